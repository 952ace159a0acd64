"""Shell completion of what `rlx train` takes: groups, members, keys."""

import os


def complete_override(args: list[str], incomplete: str) -> list[str]:
    """Return what the override being typed may go on to be; an empty list where nothing helps.

    Args:
        args: the words before it.
        incomplete: the word as the shell cut it; bash cuts at `=`.
    """
    words, word, cut = _typed(args, incomplete)
    if word.startswith("-"):
        return []
    from hydra._internal.core_plugins.bash_completion import BashCompletion

    from rlx.cli.explain import Composition
    from rlx.cli.members import config_directory

    composition = Composition(overrides=[], config_name="config", directories=[str(config_directory())])
    line = " ".join([*(other for other in words if "=" in other and not other.startswith("-")), word])
    try:
        found: list[str] = BashCompletion(composition.loader)._query("config", line)  # pyright: ignore[reportPrivateUsage]
    except Exception:  # a half-typed line may be no configuration at all: then there is nothing to offer
        return []
    return [match[cut:] for match in found if match.startswith(word)]


def _typed(args: list[str], incomplete: str) -> tuple[list[str], str, int]:
    """Return the words before, the whole word being typed, and how many letters of it the shell holds apart."""
    if "COMP_WORDS" not in os.environ or "bash" not in os.environ.get("_RLX_COMPLETE", ""):
        return args, incomplete, 0
    pieces = os.environ["COMP_WORDS"].split("\n")[: int(os.environ.get("COMP_CWORD", "0")) + 1]
    words: list[str] = []
    for piece in pieces:
        if words and (piece == "=" or words[-1].endswith("=")):
            words[-1] += piece
        else:
            words.append(piece)
    word = words[-1] if words else ""
    return words[2:-1], word, word.rfind("=") + 1
