"""Journal: what a server writes to the event log, and remembers of it.

Answers are written without waiting; events are acknowledged when they, and the answers that they
belong to, are on disk: an answer that could not be written goes with its first event.
"""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

from adrec.data.event_log import EventLog
from adrec.data.group_commit import GroupCommit
from adrec.data.log_entries import Event, LoggedSlate, Shown, slate_of, slate_row
from adrec.slates import Request, Slate

_LATE_MS = 120_000  # longer than any request may take
REMEMBERED = 30_000  # newest slates, found without asking the log


class _Kept(NamedTuple):
    """A slate as `slate_row` has it: a fraction of the memory, and few objects for the garbage
    collector, whose rounds would else hold up all requests."""

    request_id: str
    at_ms: int
    user_id: str | None
    version: str
    request: str
    ads: str
    seen: str | None


class Journal:
    """Writes slates and events, and finds slates again. Safe to use from many threads."""

    def __init__(
        self,
        log: EventLog,
        *,
        on_commit: Callable[[Sequence[LoggedSlate], Sequence[Event]], None] | None = None,
    ) -> None:
        """Begin; `on_commit` as `GroupCommit` takes it."""
        self._log, self._group = log, GroupCommit(log, on_commit=on_commit)
        self._recent: OrderedDict[str, _Kept] = OrderedDict()
        self._unwritten: set[str] = set()  # of the recent: those that are not known to be on disk
        self._erased_ms: dict[str | None, int] = {}  # when users were, of late
        self._lock = threading.Lock()

    def note(self, slates: Sequence[LoggedSlate]) -> "Future[list[Event]]":
        """Write answers; the future fails if they could not be. Those of users who were erased
        while they were worked out are left out."""
        rows = {slate.request_id: _Kept(**slate_row(slate)) for slate in slates}
        with self._lock:
            erased_ms = self._erased_ms
            slates = [one for one in slates if one.at_ms > erased_ms.get(one.user_id, -1)]
            kept = {slate.request_id: rows[slate.request_id] for slate in slates}
            self._recent |= kept
            self._unwritten |= kept.keys()
            while len(self._recent) > REMEMBERED:
                self._unwritten.discard(self._recent.popitem(last=False)[0])
        return self._append(slates, [], urgent=False)

    def append(
        self, slates: Sequence[LoggedSlate], events: Sequence[Event]
    ) -> "Future[list[Event]]":
        """Write events, and slates of ads that were shown elsewhere; see `EventLog.append`."""
        with self._lock:
            theirs = self._unwritten.intersection(event.request_id for event in events)
            kept = [self._recent[request_id] for request_id in theirs]
        unwritten = [slate_of(one) for one in kept]
        return self._append([*slates, *unwritten], events, urgent=True)

    def _append(
        self, slates: Sequence[LoggedSlate], events: Sequence[Event], *, urgent: bool
    ) -> "Future[list[Event]]":
        done = self._group.append(slates, events, urgent=urgent)
        done.add_done_callback(partial(self._written, slates))
        return done

    def _written(self, slates: Sequence[LoggedSlate], done: "Future[list[Event]]") -> None:
        if not done.cancelled() and done.exception() is None:
            with self._lock:
                self._unwritten.difference_update(slate.request_id for slate in slates)

    def find(self, request_ids: Collection[str]) -> dict[str, LoggedSlate]:
        """Slates by request, wherever they are; those that are nowhere are left out."""
        with self._lock:
            kept = {key: self._recent[key] for key in request_ids if key in self._recent}
        rest = [key for key in request_ids if key not in kept]
        found = {key: slate_of(one) for key, one in kept.items()}
        return found | (self._log.slates(rest) if rest else {})

    def forget(self, erased_ms: Mapping[str, int]) -> None:
        """Remember no slates of users who were erased from the log, nor note any more what they
        were answered before that. What they were answered since is found in the log."""
        with self._lock:
            last_ms = max(erased_ms.values(), default=0)
            self._erased_ms = {
                user: at_ms
                for user, at_ms in (self._erased_ms | dict(erased_ms)).items()
                if at_ms > last_ms - _LATE_MS
            }
            theirs = [key for key, kept in self._recent.items() if kept.user_id in erased_ms]
            for key in theirs:
                del self._recent[key]
            self._unwritten.difference_update(theirs)

    @property
    def waiting(self) -> int:
        """Appends that are not on disk yet, about."""
        return self._group.waiting

    def close(self) -> None:
        """Write what waits and end."""
        self._group.close()


def logged_slate(request: Request, slate: Slate) -> LoggedSlate:
    """An answer as the log has it, with an id of its own."""
    assert request.at_ms is not None
    return LoggedSlate(
        request_id=uuid.uuid4().hex,
        at_ms=request.at_ms,
        user_id=slate.user,
        version=slate.version,
        ads=tuple(
            Shown(ad_id=ad.ad_id, propensity=ad.propensity, score=next(iter(ad.scores.values())))
            for ad in slate.ads
        ),
        context=request.context,
        profile=request.profile,
        seen=None if slate.seen is None else asdict(slate.seen),
    )
