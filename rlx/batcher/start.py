"""How worker processes start: a server that has imported everything once, and forks itself for each worker.

Only the standard library is imported here, so that the command line can start the server in its first milliseconds: it
then imports torch while the command itself does. Plain fork is never used (torch's threads do not survive it).
"""

import multiprocessing
import multiprocessing.context
import sys
from typing import cast

# What a worker needs, imported once by the server. Missing ones are passed over.
_PRELOAD = ["torch", "numpy", "gymnasium", "rlx.batcher.serve", "rlx.env", "rlx.agent"]

_prepared = False


def context() -> multiprocessing.context.BaseContext:
    """Return the multiprocessing context that workers start from: a forkserver where there is one, else spawn."""
    global _prepared
    if sys.platform == "win32" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    if not _prepared:
        forkserver.set_forkserver_preload([*_PRELOAD, *_launchers_own()])
        _prepared = True
    return forkserver


def _launchers_own() -> list[str]:
    """Return the module of this process's own start method, where a launcher (joblib) brought one.

    Each worker is told to make it its own too, and dies where it does not know it.
    """
    method = cast("str | None", multiprocessing.get_start_method(allow_none=True))  # typeshed: never None
    if method is None or method in multiprocessing.get_all_start_methods():
        return []
    return [type(multiprocessing.get_context(method)).__module__]


def prestart() -> None:
    """Start the server now, so that it imports while the caller does something else. Returns at once."""
    if context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()
