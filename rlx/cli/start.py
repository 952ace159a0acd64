"""The start of `rlx train`: worker processes import torch while the command itself does."""

from collections.abc import Sequence

from rlx.cli.report import reported_errors

# What ends without a worker, and what starts its workers elsewhere.
_NO_WORKERS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--version")
_ELSEWHERE = ("batcher=local", "batcher=ray", "hydra/launcher=")


def run_train(arguments: Sequence[str]) -> None:
    """Run `rlx train` with the arguments that follow it.

    Raises:
        SystemExit: it failed, and a message has been written to standard error.
    """
    with reported_errors():
        if _needs_workers(arguments):
            from rlx.batcher.start import prestart

            prestart()
        from rlx.cli.train import run_hydra

        run_hydra(arguments)


def _needs_workers(arguments: Sequence[str]) -> bool:
    """Return whether, as far as the bare arguments tell, workers will be started by this process."""
    return not any(word.split("=")[0] in _NO_WORKERS or word.startswith(_ELSEWHERE) for word in arguments)
