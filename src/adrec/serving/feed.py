"""Feed: from the event log into the state that a recommender answers from.

An impression is observed when the first event of its ad arrives, whatever its kind: what was
clicked was shown. Its time is that of the request, as in the log that the models learned from;
outcomes that arrive later are added to it. A recommender that has just been loaded knows the log
that it was trained on; the feed tells it the rest, to the same end as if it had been told live.
"""

import logging
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import NamedTuple

from adrec.data.databases import Patience
from adrec.data.event_log import EventLog
from adrec.data.log_entries import Event, LoggedSlate, outcomes_of, with_event
from adrec.data.log_export import impression_frame
from adrec.data.tables import under_own_names
from adrec.errors import RequestError
from adrec.recommender import Recommender
from adrec.slates import Reported, Request

_log = logging.getLogger(__name__)

_REMEMBERED = 30_000  # requests whose outcomes are kept in memory
_TABLE = 5_000  # slates told at a time as a table
_PART = 50  # events told at a time
_EARLY_MS = 60_000  # by so much may times of requests be ahead of this clock


class _Heard(NamedTuple):
    """What was told of one request: when it came, and the outcomes of its ads."""

    at_ms: int
    outcomes: dict[str, tuple[float, ...]]


class Feed:
    """What one recommender was told of a log, and the telling of more. For one thread."""

    def __init__(
        self,
        recommender: Recommender,
        *,
        log_end_ms: int,
        told: int = 0,
        newest_ms: int | None = None,
    ) -> None:
        """Begin.

        Args:
            recommender: that is told.
            log_end_ms: time of the last impression that it was trained on; it knows all up to it.
            told, newest_ms: where an earlier feed of the same state left off; it was told nothing
                if there was none.
        """
        self.recommender = recommender
        self.told = told
        """Place in the log up to which it was told all."""
        self.newest_ms = log_end_ms if newest_ms is None else newest_ms
        """Time of the last request that it was told of."""
        self._after_ms = log_end_ms
        self._tasks = recommender.state.schema.tasks
        self._nothing = (0.0,) * len(self._tasks)
        self._heard: OrderedDict[str, _Heard] = OrderedDict()
        self._patience = Patience()  # answers wait for what is told
        self._heard_after_ms = self.newest_ms  # of later requests every event came through here

    def begin(self, log: EventLog, now_ms: int, *, last: int | None = None) -> None:
        """Tell a recommender that does not answer yet what stands in a log and it was not told:
        as a table, which is many times faster than event by event and comes to the same.

        Args:
            log: of the server.
            now_ms: the time.
            last: place in the log up to which to tell; None: its end, also of what is reported
                meanwhile.
        """
        schema = under_own_names(self.recommender.state.schema)
        end, newest_ms = (log.marks().last if last is None else last) + 1, self.newest_ms
        if newest_ms > self._after_ms:
            first_ms = self._after_ms + 1
            self._tell_each(
                log,
                log.events(after=self.told, before=end, from_ms=first_ms, before_ms=newest_ms + 1),
            )
        slates = log.shown(newest_ms + 1, now_ms + _EARLY_MS + 1, before=end)
        rest: list[tuple[Event, LoggedSlate]] = []
        while part := list(islice(slates, _TABLE)):
            shown: list[tuple[LoggedSlate, dict[str, tuple[float, ...]]]] = []
            for slate, events in part:
                if slate.user_id is None or slate.profile is not None:
                    rest += [(event, slate) for event in events]  # they stand in no table
                else:
                    shown.append((slate, outcomes_of(events, self._tasks)))
                    self._remember(slate.request_id, slate.at_ms).outcomes.update(shown[-1][1])
            self._evict()
            if shown:
                self.recommender.observe_log(impression_frame(schema, shown))
            self.newest_ms = part[-1][0].at_ms
        self._tell_each(log, sorted(rest, key=lambda pair: pair[0].seq))
        self.told = max(self.told, end - 1)
        if last is None:
            self.catch_up(log)

    def catch_up(self, log: EventLog, *, last: int | None = None) -> None:
        """Tell all that stands in a log and was not told yet, up to a place; None: to its end.

        If it fails, what it has told stays told, and the next call goes on from there.
        """
        end = (log.marks().last if last is None else last) + 1
        if end - 1 <= self.told:
            return
        events = log.events(after=self.told, before=end, from_ms=self._after_ms + 1)
        for part in _parts(events):
            self._tell_all(log, part)
            self.told = part[-1][0].seq
        self.told = max(self.told, end - 1)

    def tell(
        self, log: EventLog, events: Sequence[Event], slates: Mapping[str, LoggedSlate]
    ) -> None:
        """Tell events that were added to a log, in its order, after what it missed of others.

        Args:
            log: holds what came before them.
            events: new ones, each with its place.
            slates: theirs, by request.

        Raises:
            EventLogError: what it missed cannot be read; `catch_up` tells it then.
        """
        new = [event for event in events if event.seq > self.told]
        if new and new[0].seq > self.told + 1:  # other processes write to the log, too
            with self._patience():
                self.catch_up(log)
            new = [event for event in new if event.seq > self.told]
        if new:
            self._tell_all(log, [(event, slates[event.request_id]) for event in new])
            self.told = new[-1].seq

    def _tell_each(self, log: EventLog, pairs: Iterable[tuple[Event, LoggedSlate]]) -> None:
        for part in _parts(pairs):
            self._tell_all(log, part)

    def _tell_all(self, log: EventLog, pairs: Sequence[tuple[Event, LoggedSlate]]) -> None:
        forgotten = {
            event.request_id
            for event, slate in pairs
            if self._after_ms < slate.at_ms <= self._heard_after_ms
            and event.request_id not in self._heard
        }
        if forgotten:
            times_ms = {event.request_id: slate.at_ms for event, slate in pairs}
            with self._patience():
                before = log.reported(forgotten, before=pairs[0][0].seq)
            for event in before:
                self._note(event, times_ms[event.request_id])
        for _, group in groupby(pairs, key=lambda pair: pair[0].request_id):
            together = list(group)
            slate = together[0][1]
            if slate.at_ms > self._after_ms:
                self._tell([event for event, _ in together], slate)
                self.newest_ms = max(self.newest_ms, slate.at_ms)
        self._evict()

    def _tell(self, events: Sequence[Event], slate: LoggedSlate) -> None:
        reported = [Reported(event.ad_id, *self._note(event, slate.at_ms)) for event in events]
        try:
            self.recommender.report(request_of(slate), reported)
        except RequestError as error:  # it was logged under another schema
            _log.warning("events of request %s are left out: %s", slate.request_id, error)

    def _note(self, event: Event, at_ms: int) -> tuple[tuple[float, ...] | None, tuple[float, ...]]:
        """Outcomes of an impression before an event and after it."""
        outcomes = self._remember(event.request_id, at_ms).outcomes
        before = outcomes.get(event.ad_id)
        after = with_event(before or self._nothing, event, self._tasks)
        outcomes[sys.intern(event.ad_id)] = after  # many are kept: those alike are the same
        return before, after

    def _remember(self, request_id: str, at_ms: int) -> _Heard:
        """What was told of a request, which is now the last that is forgotten."""
        heard = self._heard.setdefault(request_id, _Heard(at_ms, {}))
        self._heard.move_to_end(request_id)
        return heard

    def _evict(self) -> None:
        """Forget the oldest requests: between tellings, as one finds out first what it needs."""
        while len(self._heard) > _REMEMBERED:
            _, forgotten = self._heard.popitem(last=False)
            self._heard_after_ms = max(self._heard_after_ms, forgotten.at_ms)


def _parts(
    pairs: Iterable[tuple[Event, LoggedSlate]],
) -> Iterator[list[tuple[Event, LoggedSlate]]]:
    rest = iter(pairs)
    while part := list(islice(rest, _PART)):
        yield part


def request_of(slate: LoggedSlate) -> Request:
    """The request that a slate answered."""
    return Request(
        user=slate.user_id, context=slate.context, profile=slate.profile, at_ms=slate.at_ms
    )
