"""Aside: what a new process does before it can answer leaves the processor to all others.

That begins with the imports, where it is not forked from a process that has done them (`seed.py`):
they take seconds where others answer meanwhile. So this module, all that such a process needs to
begin, imports nothing of ours.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

_NICENESS = 19  # the most there is


def begin(connection: Connection, *given: object) -> None:
    """Begin in a process of one's own.

    Args:
        connection: to the process that started this one. What it has sent first, a function, is
            called aside; what that returns is then called with the connection, at the process's
            own priority.
        given: arguments of the function.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all: the server ends us in time
        signal.signal(number, signal.SIG_IGN)
    with ThreadPoolExecutor(1, initializer=_leave_to_others) as pool:
        go_on = pool.submit(_prepare, connection, *given).result()
    go_on(connection)


def _prepare(connection: Connection, *given: object) -> Callable[[Connection], object]:
    gc.disable()  # what is loaded stays, and looking through it again and again takes long
    prepare: Callable[..., Callable[[Connection], object]] = connection.recv()  # and its imports
    go_on = prepare(*given)
    gc.collect()
    gc.freeze()
    gc.enable()
    return go_on


def _leave_to_others() -> None:
    """Lower this thread's priority: a whole process could not raise its own again."""
    if sys.platform == "linux":  # elsewhere threads have none of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
