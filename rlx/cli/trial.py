"""`rlx train` as a part of `rlx tune`: it ends when the process that started it is gone, however that ended."""

import os
import signal
import sys
import threading

from rlx.cli.start import run_train

CODE = "import sys; sys.path.append({root!r}); from rlx.cli.trial import main; main()"
"""What starts it, as `python -P -c` takes it; rlx may lie where only the process that starts it looks."""


def main() -> None:
    """Run `rlx train` until it ends or standard input does."""
    threading.Thread(target=_watch, name="parent", daemon=True).start()
    run_train(sys.argv[1:])


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
