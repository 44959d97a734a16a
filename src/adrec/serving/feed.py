"""Feed: from the event log into the state that a recommender answers from.

An impression is observed when the first event of its ad arrives, whatever its kind: what was
clicked was shown. Its time is that of the request, as in the log that the models learned from;
outcomes that arrive later are added to it. A recommender that has just been loaded knows the log
that it was trained on; the feed tells it the rest, by the same steps that were taken live.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import islice

from adrec.data.event_log import EventLog
from adrec.data.log_entries import Event, LoggedSlate, with_event
from adrec.recommender import Recommender, Request

_REMEMBERED = 100_000  # requests whose outcomes are kept in memory
_PART = 50  # events told at a time


class Feed:
    """What one recommender was told of a log, and the telling of more. For one thread."""

    def __init__(self, recommender: Recommender, *, log_end_ms: int) -> None:
        """Begin.

        Args:
            recommender: that is told.
            log_end_ms: time of the last impression that it was trained on; it knows all up to it.
        """
        self.recommender = recommender
        self.told = 0
        """Place in the log up to which it was told all."""
        self._after_ms = log_end_ms
        self._tasks = recommender.state.schema.tasks
        self._outcomes: OrderedDict[str, dict[str, list[float]]] = OrderedDict()

    def catch_up(self, log: EventLog, *, rest_s: float = 0.0) -> None:
        """Tell all that stands in a log and was not told yet.

        Args:
            log: the log.
            rest_s: how long to leave the processor to others after every few events.
        """
        rows = log.events(after=self.told, from_ms=self._after_ms + 1)
        while part := list(islice(rows, _PART)):
            slates = {slate.request_id: slate for _, slate in part}
            self.tell(log, [event for event, _ in part], slates)

    def tell(
        self, log: EventLog, events: Sequence[Event], slates: Mapping[str, LoggedSlate]
    ) -> None:
        """Tell events that were added to a log, in its order, after what it missed of others.

        Args:
            log: holds what came before them.
            events: new ones, each with its place.
            slates: theirs, by request.
        """
        events = [event for event in events if event.seq > self.told]
        if not events:
            return
        if events[0].seq > self.told + 1:  # other processes write to the log, too
            missed = list(log.events(after=self.told, before=events[0].seq))
            events = [*(event for event, _ in missed), *events]
            slates = {**slates, **{slate.request_id: slate for _, slate in missed}}
        forgotten = {event.request_id for event in events} - self._outcomes.keys()
        for event in log.reported(forgotten, before=events[0].seq):
            self._note(event)
        for event in events:
            if slates[event.request_id].at_ms > self._after_ms:
                self._tell(event, slates[event.request_id])
        self.told = events[-1].seq

    def _tell(self, event: Event, slate: LoggedSlate) -> None:
        before, after = self._note(event)
        self.recommender.report(request_of(slate), event.ad_id, before, after)

    def _note(self, event: Event) -> tuple[list[float] | None, list[float]]:
        """Outcomes of an impression before an event and after it."""
        of_request = self._outcomes.setdefault(event.request_id, {})
        self._outcomes.move_to_end(event.request_id)
        if len(self._outcomes) > _REMEMBERED:
            self._outcomes.popitem(last=False)
        before = of_request.get(event.ad_id)
        after = with_event(before or [0.0] * len(self._tasks), event, self._tasks)
        of_request[event.ad_id] = after
        return before, after


def request_of(slate: LoggedSlate) -> Request:
    """The request that a slate answered."""
    return Request(
        user=slate.user_id, context=slate.context, profile=slate.profile, at_ms=slate.at_ms
    )
