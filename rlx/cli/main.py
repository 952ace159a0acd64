"""The entry of the `rlx` program."""

import sys

from rlx.cli.start import run_train


def main() -> None:
    """Run the `rlx` program.

    `rlx train` goes straight to its work: Typer, which here would hand everything on to Hydra, takes 0.3 s to do so.
    """
    if sys.argv[1:2] == ["train"]:
        run_train(sys.argv[2:])
        return
    from rlx.cli.app import app

    app(prog_name="rlx")
