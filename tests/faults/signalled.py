"""`rlx`, which sends itself a signal as the update of an iteration ends: `signalled.py SIGTERM 3 train ...`."""

import os
import signal
import sys
from typing import Any

from rlx.cli.main import main
from rlx.run.run import Run


def signal_before_log(number: signal.Signals, iteration: int) -> None:
    """Send this process a signal right before the end of an iteration is logged."""
    log = Run.log

    def signalled(self: Run, *arguments: Any, **keywords: Any) -> None:
        if self.iteration == iteration - 1:
            os.kill(os.getpid(), number)
        log(self, *arguments, **keywords)

    Run.log = signalled


if __name__ == "__main__":
    signal_before_log(signal.Signals[sys.argv[1]], int(sys.argv[2]))
    sys.argv = ["rlx", *sys.argv[3:]]
    main()
