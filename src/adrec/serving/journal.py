"""Journal: what a server writes to the event log, and remembers of it.

Answers are written without waiting; events are acknowledged when they, and the answers that they
belong to, are on disk.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future

from adrec.data.event_log import Event, EventLog, GroupCommit, LoggedSlate

_REMEMBERED = 100_000  # newest slates, found without asking the log


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
        self._recent: OrderedDict[str, LoggedSlate] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, slates: Sequence[LoggedSlate]) -> "Future[list[Event]]":
        """Write answers; the future fails if they could not be."""
        with self._lock:
            for slate in slates:
                self._recent[slate.request_id] = slate
            while len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
        return self._group.append(slates, [])

    def append(
        self, slates: Sequence[LoggedSlate], events: Sequence[Event]
    ) -> "Future[list[Event]]":
        """Write events, and slates of ads that were shown elsewhere; see `EventLog.append`."""
        return self._group.append(slates, events)

    def remembered(self, request_id: str) -> LoggedSlate | None:
        """A slate of lately, without asking the log."""
        with self._lock:
            return self._recent.get(request_id)

    def find(self, request_ids: Collection[str]) -> dict[str, LoggedSlate]:
        """Slates by request, wherever they are; those that are nowhere are left out."""
        with self._lock:
            found = {key: self._recent[key] for key in request_ids if key in self._recent}
        rest = [key for key in request_ids if key not in found]
        return found | (self._log.slates(rest) if rest else {})

    @property
    def waiting(self) -> int:
        """Appends that are not on disk yet, about."""
        return self._group.waiting

    def close(self) -> None:
        """Write what waits and end."""
        self._group.close()
