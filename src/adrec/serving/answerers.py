"""Answerers: processes that answer, each with the version and its state in memory of its own.

In one process everything that runs in Python shares one lock: answers, HTTP, the event log, and a
version that is loaded meanwhile would wait for each other. So each of these processes does one
thing at a time, in the order in which the server sends it down a pipe: a batch of requests to
answer, or something to know. It is told events without being waited for; what is sent later is
answered knowing them. The index and the rows of the ads are mapped from disk, where their pages are
in memory once.

A process that dies answers nothing more, and the others go on; `whole` says so, and whoever holds
the version loads it anew.
"""

import atexit
import contextlib
import logging
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe, set_forkserver_preload
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange, Event, LoggedSlate
from adrec.errors import BundleError
from adrec.inference.backends import BackendName
from adrec.inference.threads import use_threads
from adrec.recommender import Clock
from adrec.serving.aside import begin
from adrec.serving.kept import Kept, Known, Room
from adrec.serving.loaded import Ask, Found, GoneError, Loaded, Version
from adrec.serving.logs import log_to_stderr
from adrec.serving.wire import AdInfo, UserOut
from adrec.slates import Request

T = TypeVar("T")

_LEAVE_S = 10.0
_UNKNOWN = 255  # exit code of a process, if the one that it was forked from has ended

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """Something to be done in another process."""

    work: Callable[[Loaded], Any]
    waited_for: bool


class _LostError(Exception):
    """The process has ended."""


class Answerers:
    """A version in processes of their own; see `Answering`."""

    def __init__(
        self,
        folder: Path,
        log: EventLog,
        *,
        clock: Clock,
        count: int,
        like: BackendName | None = None,
        kept: Kept | None = None,
    ) -> None:
        """Start the processes, and wait until all can answer.

        The first one verifies the version if that was not done, finds the fastest backend if none
        is named, and tells itself the log; the others go on from there.

        Args:
            folder: of the version.
            log: each opens it by itself.
            clock: time of requests, UTC milliseconds; can be pickled.
            count: of processes.
            like: the backend to run on, if this version may; None: the fastest.
            kept: of this version, if it was told the log before.

        Raises:
            BundleError: the version is damaged.
            EventLogError: the log cannot be read.
        """
        self._log = log
        self.kept: Kept | None = None
        load = partial(_load, folder, log.url, clock)
        self._processes: list[_Process] = []
        try:
            room = Room.new()
            self._processes.append(_Process(partial(load, like), kept, room))
            self.version, known = self._processes[0].wait_until_ready()
            if room is not None and known is not None:
                self.kept = Kept(known, room)
            others = partial(load, self.version.backend)
            for _ in range(count - 1):
                self._processes.append(_Process(others, self.kept))
            for process in self._processes[1:]:
                process.wait_until_ready()
            self.told = log.marks().last
            """Place in the log up to which they were told all."""
            self._all(Loaded.read_log)  # what came meanwhile
        except BaseException:
            self.close()
            raise
        self._free: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._processes:
            self._free.put(process)

    @property
    def whole(self) -> bool:
        """Whether all of them live."""
        return all(process.look() for process in self._processes)

    def answer(self, asks: Sequence[Ask]) -> list[Found | Exception]:
        """See `Answering`."""
        return self._one(partial(Loaded.answer, asks=list(asks)))

    def tell(self, slates: Mapping[str, LoggedSlate], events: Sequence[Event]) -> None:
        """See `Answering`."""
        self._tell_all(partial(Loaded.tell, slates=dict(slates), events=list(events)))
        self.told = max(self.told, events[-1].seq)

    def catch_up(self) -> None:
        """See `Answering`."""
        end = self._log.marks().last
        self._tell_all(Loaded.catch_up)
        self.told = max(self.told, end)

    def change_ads(self, changes: Sequence[AdChange]) -> None:
        """See `Answering`."""
        self._all(partial(Loaded.change_ads, changes=list(changes)))

    def restore_ads(self, changes: Sequence[AdChange]) -> None:
        """See `Answering`."""
        self._all(partial(Loaded.restore_ads, changes=list(changes)))

    def forget(self, user_ids: Sequence[str]) -> None:
        """See `Answering`."""
        self._all(partial(Loaded.forget, user_ids=list(user_ids)))

    def check(self, requests: Sequence[Request]) -> list[str | None]:
        """See `Answering`."""
        return self._one(partial(Loaded.check, requests=list(requests)))

    def size(self) -> int:
        """See `Answering`."""
        return self._one(Loaded.size)

    def ad(self, ad_id: str) -> AdInfo | None:
        """See `Answering`."""
        return self._one(partial(Loaded.ad, ad_id=ad_id))

    def find_ads(self, text: str, count: int) -> tuple[int, list[AdInfo]]:
        """See `Answering`."""
        return self._one(partial(Loaded.find_ads, text=text, count=count))

    def user(self, user_id: str, at_ms: int) -> UserOut:
        """See `Answering`."""
        return self._one(partial(Loaded.user, user_id=user_id, at_ms=at_ms))

    def close(self) -> None:
        """See `Answering`."""
        for process in self._processes:
            process.close()

    def _one(self, work: Callable[[Loaded], T]) -> T:
        """Do something in whichever process is free first."""
        while True:
            process = self._next()
            try:
                return process.call(work)
            except _LostError:
                continue
            finally:
                self._free.put(process)

    def _next(self) -> "_Process":
        while any(process.lives for process in self._processes):
            with contextlib.suppress(queue.Empty):
                process = self._free.get(timeout=1.0)
                if process.lives:
                    return process
        raise GoneError

    def _all(self, work: Callable[[Loaded], object]) -> None:
        """Do something in all processes; what the first refuses, none of them does."""
        for process in self._processes:
            with contextlib.suppress(_LostError):
                process.call(work)

    def _tell_all(self, work: Callable[[Loaded], object]) -> None:
        message = ForkingPickler.dumps(_Call(work, waited_for=False))
        for process in self._processes:
            process.tell(message)


class _Process:
    """One process, seen from the server."""

    def __init__(
        self,
        load: Callable[[Kept | None, Room | None], Callable[[Connection], None]],
        kept: Kept | None = None,
        room: Room | None = None,
    ) -> None:
        """Start.

        Args:
            load: called in the process.
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
        self.lives = True

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
            raise BundleError(f"its process {self._end()} while it was loaded") from error
        return ready

    def call(self, work: Callable[[Loaded], T]) -> T:
        """Have something done, and wait for what it returns.

        Raises:
            _LostError: the process has ended.
        """
        with self._calling:
            try:
                with self._sending:
                    self._connection.send(_Call(work, waited_for=True))
                found = self._connection.recv()
            except (EOFError, OSError) as error:
                self._bury()
                raise _LostError from error
        done: T = _result(found)
        return done

    def tell(self, message: memoryview) -> None:
        """Have something done, a pickled `_Call`, some time before what is sent next."""
        with self._sending:
            try:
                self._connection.send_bytes(message)
            except OSError:
                self._bury()

    def close(self) -> None:
        """Have it end once it has done what was sent."""
        with self._calling, self._sending:
            self.lives = False
            self._connection.close()
        atexit.unregister(self._connection.close)
        self._end()

    def _bury(self) -> None:
        if self.lives:
            self.lives = False
            _log.error("a process that answers %s", self._end())

    def _is_there(self) -> bool:
        if self._process.is_alive():
            return True
        if self._process.exitcode != _UNKNOWN or not self._calling.acquire(blocking=False):
            return self._process.exitcode == _UNKNOWN  # who calls it will see
        try:
            return not self._connection.poll()  # nothing was asked of it: that would be its end
        finally:
            self._calling.release()

    def _end(self) -> str:
        self._process.join(_LEAVE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _result(found: Any) -> Any:
    if isinstance(found, Exception):
        raise found
    return found


def _started(*given: object) -> ForkServerProcess | SpawnProcess:
    """A process that begins aside.

    Raises:
        BundleError: none can be started.
    """
    # A fork of this process, which has threads at work, may hang. Those of the seed, which are of
    # allocators, stand still and are made for forks. Every process imports what started this one.
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


def _load(
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
            elif isinstance(found, Exception):
                _log.warning("what came could not be taken in: %s", found)
