"""The entry of the `rlx` program."""

import io
import os
import sys

from rlx.cli.start import run_train


def main() -> None:
    """Run the `rlx` program.

    `rlx train` goes straight to its work: Typer, which here would hand everything on to Hydra, takes 0.3 s to do so.
    """
    _open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a sign that the terminal does not know loses no result
    if sys.argv[1:2] == ["train"]:
        run_train(sys.argv[2:])
        return
    from rlx.cli.app import app

    app(prog_name="rlx")


def _open_standard_streams() -> None:
    """Open what the shell closed (`>&-`): the next file opened would get its number, and all that is printed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the least number that is free, which is this one
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  (for as long as the process lives)
