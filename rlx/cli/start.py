"""The head start of `rlx train`: worker processes import torch while the command itself does."""

from collections.abc import Sequence

# What ends without a worker, and what starts its workers elsewhere.
_NO_WORKERS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--version")
_ELSEWHERE = ("batcher=local", "batcher=ray", "hydra/launcher=")


def prestart_workers(arguments: Sequence[str]) -> None:
    """Start the workers' server now, unless the arguments tell that no worker of this process will run."""
    if any(argument.split("=")[0] in _NO_WORKERS or argument.startswith(_ELSEWHERE) for argument in arguments):
        return
    from rlx.batcher.start import prestart

    prestart()
