"""Answerers: processes that answer, each with the version and its state in memory of its own.

In one process everything that runs in Python shares one lock: answers, HTTP, the event log, and a
version that is loaded meanwhile would wait for each other. So each of these processes does one
thing at a time, in the order in which the server sends it down a pipe: a batch of requests to
answer, or something to know. It is told events without being waited for; what is sent later is
answered knowing them. The index and the rows of the ads are mapped from disk, where their pages are
in memory once.

A process that dies answers nothing more, and the others go on; `whole` says so, and whoever holds
the version loads it anew. One that hangs is killed (`answerer_process.py`). What a process ended
over may be what ended it, so it is given to one more at most, and never to the last one.
"""

import contextlib
import queue
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from adrec.data.event_log import EventLog
from adrec.data.log_entries import AdChange, Event, LoggedSlate
from adrec.errors import OverloadError
from adrec.inference.backends import BackendName
from adrec.recommender import Clock
from adrec.serving.answerer_process import (
    AnswererProcess,
    LostError,
    end_all,
    load_aside,
    message_of,
)
from adrec.serving.kept import Kept, Room
from adrec.serving.loaded import Ask, Found, GoneError, Loaded
from adrec.serving.wire import AdInfo, UserOut
from adrec.slates import Request

T = TypeVar("T")

_MUCH = 1_000  # events that are told at a time, and waited for
_PART = 2_000  # ads that are changed at a time


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
        load, begun = partial(load_aside, folder, log.url, clock), log.marks()
        self._processes: list[AnswererProcess] = []
        try:
            room = Room.new()
            self._processes.append(AnswererProcess(partial(load, like), kept, room))
            self.version, known = self._processes[0].wait_until_ready()
            if room is not None and known is not None:
                self.kept = Kept(known, room)
            others = partial(load, self.version.backend)
            for _ in range(count - 1):
                self._processes.append(AnswererProcess(others, self.kept))
            for process in self._processes[1:]:
                process.wait_until_ready()
            self.told = log.marks().last
            """Place in the log up to which they were told all."""
            self.restore_ads(log.ad_changes(after=begun.ads))  # what came meanwhile
            self._all(partial(Loaded.read_log, last=self.told))
            for process in self._processes:
                process.limit_waiting()
        except BaseException:
            self.close()
            raise
        self._free: queue.LifoQueue[AnswererProcess] = queue.LifoQueue()
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

    def catch_up(self, last: int | None = None) -> None:
        """See `Answering`."""
        end = self._log.marks().last if last is None else last
        work = partial(Loaded.catch_up, last=end)
        if end - self.told < _MUCH:
            self._tell_all(work)
        else:  # answers come in between
            self._all(work)
        self.told = max(self.told, end)

    def check_ads(self, changes: Sequence[AdChange]) -> None:
        """See `Answering`."""
        self._one(partial(Loaded.check_ads, changes=list(changes)))

    def change_ads(self, changes: Sequence[AdChange]) -> None:
        """See `Answering`."""
        self._all(partial(Loaded.change_ads, changes=list(changes)))

    def restore_ads(self, changes: Sequence[AdChange]) -> None:
        """See `Answering`."""
        for start in range(0, len(changes), _PART):  # answers come in between
            some = list(changes[start : start + _PART])
            self._all(partial(Loaded.restore_ads, changes=some))

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
        end_all(self._processes)

    def _one(self, work: Callable[[Loaded], T]) -> T:
        """Do something in whichever process is free first.

        Raises:
            GoneError: none lives.
            OverloadError: one has ended over it, and it is not given to another.
        """
        ended = 0
        while True:
            process = self._next()
            try:
                return process.call(work)
            except LostError as error:
                ended += error.over_it
                left = sum(one.lives for one in self._processes)
                if error.over_it and (ended > 1 or left < 2):
                    raise OverloadError(
                        "a process that answers has ended over this, and it is not tried again"
                    ) from error
            finally:
                self._free.put(process)

    def _next(self) -> AnswererProcess:
        while any(process.lives for process in self._processes):
            with contextlib.suppress(queue.Empty):
                process = self._free.get(timeout=1.0)
                if process.lives:
                    return process
        raise GoneError

    def _all(self, work: Callable[[Loaded], object]) -> None:
        """Do something in all processes; what the first refuses, none of them does."""
        for process in self._processes:
            with contextlib.suppress(LostError):
                process.call(work)

    def _tell_all(self, work: Callable[[Loaded], object]) -> None:
        message = message_of(work)
        for process in self._processes:
            process.tell(message)
