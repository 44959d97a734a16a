"""A process that answers, from both ends of its pipe.

It loads a version, says so, and then does one thing at a time, in the order in which the server
sends it, until the pipe is closed.

To the server it is lost when it ends, and also when it hangs: once it has loaded, one that gives no
sign for `_HANGS_S` while something is asked of it, or takes in nothing of what it is told, is
killed.
"""

import atexit
import contextlib
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe, set_forkserver_preload
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

from adrec.data.databases import LeftAloneError
from adrec.data.event_log import EventLog
from adrec.errors import BundleError
from adrec.inference.backends import BackendName
from adrec.inference.threads import use_threads
from adrec.recommender import Clock
from adrec.serving.aside import begin
from adrec.serving.kept import Kept, Known, Room
from adrec.serving.loaded import Loaded, Version
from adrec.serving.logs import log_to_stderr

T = TypeVar("T")

_HANGS_S = 40  # longer than reading the log may stall: `databases.py` ends what takes longer
_LEAVE_S = 10.0
_SEED_ENDED = 255  # exit code that we see once the seed has ended, whether or not the process has

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """Something to be done in another process."""

    work: Callable[[Loaded], Any]
    waited_for: bool


class LostError(Exception):
    """The process has ended. `over_it`: after it was given what was asked."""

    def __init__(self, *, over_it: bool) -> None:
        super().__init__()
        self.over_it = over_it


class AnswererProcess:
    """One process, seen from the server. Safe to use from many threads."""

    def __init__(
        self,
        load: Callable[[Kept | None, Room | None], Callable[[Connection], None]],
        kept: Kept | None = None,
        room: Room | None = None,
    ) -> None:
        """Start.

        Args:
            load: called in the process, as `load_aside`.
            kept, room: as `Loaded.load` takes them.

        Raises:
            BundleError: no process can be started.
        """
        self._connection, theirs = Pipe()
        self._connection.send(load)
        self._process = _started(theirs, kept, room)
        atexit.register(self._connection.close)  # else we would wait for it for ever
        theirs.close()  # else its end would not be seen
        self._calling, self._sending = threading.Lock(), threading.Lock()
        self._burying = threading.Lock()
        self.lives = True
        """Whether it can be asked."""

    def look(self) -> bool:
        """Whether it lives, also if nothing has been asked of it for long."""
        if self.lives and not self._is_there():
            self._bury()
        return self.lives

    def wait_until_ready(self) -> tuple[Version, Known | None]:
        """The version that it can answer with, once it can, and what it has kept if it was to.

        Raises:
            BundleError: it cannot.
            EventLogError: it cannot read the log.
        """
        try:
            ready: tuple[Version, Known | None] = _result(self._connection.recv())
        except (EOFError, OSError) as error:
            raise BundleError(f"its process {self._end(_LEAVE_S)} while it was loaded") from error
        return ready

    def limit_waiting(self) -> None:
        """Wait no longer than `_HANGS_S` for a sign of it from now on: it has loaded."""
        limit = struct.pack("@ll", _HANGS_S, 0)
        with socket.fromfd(self._connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as pipe:
            for side in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                pipe.setsockopt(socket.SOL_SOCKET, side, limit)

    def call(self, work: Callable[[Loaded], T]) -> T:
        """Have something done, and wait for what it returns.

        Raises:
            LostError: the process has ended.
        """
        with self._calling:
            given = False
            try:
                with self._sending:
                    self._connection.send(_Call(work, waited_for=True))
                given = True
                found = self._connection.recv()
            except (EOFError, OSError) as error:
                self._lose(error)
                raise LostError(over_it=given) from error
        done: T = _result(found)
        return done

    def tell(self, message: memoryview) -> None:
        """Have something done, a `message_of`, some time before what is sent next."""
        with self._sending:
            try:
                self._connection.send_bytes(message)
            except OSError as error:
                self._lose(error)

    def _hang_up(self, until: float) -> None:
        with self._held(self._calling, until), self._held(self._sending, until):
            self._connection.close()
        atexit.unregister(self._connection.close)

    @contextlib.contextmanager
    def _held(self, lock: threading.Lock, until: float) -> Iterator[None]:
        """Hold a lock; from a time on, whoever holds it sees the process end."""
        if not lock.acquire(timeout=_left_s(until)):
            self._kill()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lose(self, error: Exception) -> None:
        if self.lives and isinstance(error, BlockingIOError):  # the limit has passed
            _log.error("a process that answers has hung for %d s, and is killed", _HANGS_S)
            self._kill()
        self._bury()

    def _bury(self) -> None:
        with self._burying:
            if self.lives:
                self.lives = False
                _log.error("a process that answers %s", self._end(_LEAVE_S))

    def _is_there(self) -> bool:
        if self._process.is_alive():
            return True
        if self._process.exitcode != _SEED_ENDED or not self._calling.acquire(blocking=False):
            return self._process.exitcode == _SEED_ENDED  # who calls it will see
        try:
            return not self._connection.poll()  # nothing was asked of it: that would be its end
        finally:
            self._calling.release()

    def _kill(self) -> None:
        if self._process.exitcode != _SEED_ENDED:
            self._process.kill()
        elif self._process.pid is not None:  # multiprocessing takes it for ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def _end(self, within_s: float) -> str:
        self._process.join(within_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def end_all(processes: Sequence[AnswererProcess]) -> None:
    """Have processes end once they have done what was sent, or by force after a while."""
    until = time.monotonic() + _LEAVE_S
    for process in processes:
        process.lives = False
    for process in processes:
        process._hang_up(until)
    for process in processes:
        process._end(_left_s(until))


def message_of(work: Callable[[Loaded], object]) -> memoryview:
    """What `AnswererProcess.tell` sends: pickled once for all."""
    return ForkingPickler.dumps(_Call(work, waited_for=False))


def load_aside(
    folder: Path,
    log_url: str,
    clock: Clock,
    like: BackendName | None,
    kept: Kept | None,
    room: Room | None,
) -> Callable[[Connection], None]:
    """In the process, aside: load, or find out why that cannot be."""
    log_to_stderr()
    try:
        use_threads(1)
        log = EventLog(log_url)
        loaded = Loaded.load(folder, log, clock=clock, mapped=True, like=like, kept=kept, room=room)
        loaded.recommender.index.settle()  # what goes on from here would go on aside
    except Exception as error:
        return partial(_give_up, error)
    finally:
        for one in (room, None if kept is None else kept.room):
            if one is not None:
                one.close()
    return partial(_answer, loaded)


def _give_up(error: Exception, connection: Connection) -> None:
    with contextlib.suppress(OSError):  # the server is gone
        connection.send(error)


def _answer(loaded: Loaded, connection: Connection) -> None:
    """In the process: say that it can answer, and do what is sent until the pipe is closed."""
    try:
        use_threads(1)
        loaded.warm()  # this thread, too
    except Exception as error:
        _give_up(error, connection)
        return
    with contextlib.suppress(EOFError, OSError):  # the server is gone
        connection.send((loaded.version, loaded.kept and loaded.kept.known))
        while True:
            call: _Call = connection.recv()
            try:
                found = call.work(loaded)
            except Exception as error:
                found = error
            if call.waited_for:
                connection.send(found)
            elif isinstance(found, Exception) and not isinstance(found, LeftAloneError):
                _log.warning("what came could not be taken in: %s", found)


def _result(found: Any) -> Any:
    if isinstance(found, Exception):
        raise found
    return found


def _left_s(until: float) -> float:
    return max(0.0, until - time.monotonic())


def _started(*given: object) -> ForkServerProcess | SpawnProcess:
    """A process that begins aside.

    Raises:
        BundleError: none can be started.
    """
    # A fork of this process, which has threads at work, may hang. Those of the seed, which are of
    # allocators, stand still and are made for forks. Every process imports the program that this
    # one was started with, mostly `adrec`: what that needs the seed imports, too, once for all.
    set_forkserver_preload(["adrec.serving.seed", "adrec.cli"])
    for kind in (ForkServerProcess, SpawnProcess) if sys.platform == "linux" else (SpawnProcess,):
        process = kind(target=begin, args=given, name="adrec-answers")
        try:
            process.start()
        except (OSError, EOFError) as error:
            _log.warning("a process cannot be started (%s): %s", kind.__name__, error)
        else:
            return process
    raise BundleError("no process can be started that answers; the log says why")
