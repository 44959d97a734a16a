"""Intake: events that clients report, on their way to the log.

What makes no sense is left out with its reason; the rest is written together.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from adrec.data.log_entries import Event, LoggedSlate, Shown, kinds
from adrec.data.parsing import as_text
from adrec.recommender import Clock
from adrec.schema import Schema
from adrec.serving.journal import Journal
from adrec.serving.wire import EventIn
from adrec.slates import Request

_ELSEWHERE = "elsewhere"
"""Version of slates that another server answered with."""
_ON_ITS_WAY_S = 0.5
_EARLY_MS = 60_000  # an event may be ahead of our clock by so much


@dataclass(frozen=True)
class EventsTaken:
    """Events on their way to the log."""

    rejected: list[tuple[str, str]]
    """Ids of those that are not taken, and why."""
    written: "Future[list[Event]]"
    """Those that were new, once all are on disk."""


class Intake:
    """Takes in events."""

    def __init__(
        self,
        journal: Journal,
        *,
        schema: Callable[[], Schema],
        check: Callable[[Sequence[Request]], list[str | None]],
        clock: Clock,
        shared: bool,
    ) -> None:
        """Begin.

        Args:
            journal: they are written to.
            schema: of the version that answers.
            check: tells what does not fit that schema in requests that were answered elsewhere.
            clock: UTC milliseconds.
            shared: whether other processes write answers to the same log.
        """
        self._journal, self._schema, self._check = journal, schema, check
        self._clock, self._shared = clock, shared

    async def take(self, events: Sequence[EventIn]) -> EventsTaken:
        """Write events to the log; those that make no sense are left out. An answer that another
        process has just given may still be on its way to the log, and is waited for."""
        until = time.monotonic() + (_ON_ITS_WAY_S if self._shared else 0.0)
        while True:
            last = time.monotonic() >= until
            taken = await run_in_threadpool(self._take, events, whole=not last)
            if taken is not None:
                return taken
            await asyncio.sleep(_ON_ITS_WAY_S / 10.0)

    def _take(self, events: Sequence[EventIn], *, whole: bool) -> EventsTaken | None:
        """See `take`; if `whole`, None unless all their answers are there."""
        known = self._journal.find({event.request_id for event in events})
        ours = {e.request_id for e in events if e.user is None and e.context is None}
        if whole and not ours <= known.keys():
            return None
        slates: dict[str, LoggedSlate] = {}
        taken: list[Event] = []
        rejected: list[tuple[str, str]] = []
        for event in events:
            theirs = event.user is not None or event.context is not None
            if theirs and event.request_id not in known:
                slates.setdefault(event.request_id, self._from_elsewhere(event))
        problems = self._problems_of(slates)
        for event in events:
            slate = known.get(event.request_id) or slates.get(event.request_id)
            reason = problems.get(event.request_id) or self._odd(event, slate)
            if reason is None:
                taken.append(self._event(event))
            else:
                rejected.append((event.event_id, reason))
        return EventsTaken(rejected, self._journal.append(list(slates.values()), taken))

    def _from_elsewhere(self, event: EventIn) -> LoggedSlate:
        return LoggedSlate(
            request_id=event.request_id,
            at_ms=self._clock() if event.at_ms is None else event.at_ms,
            user_id=as_text(event.user),
            version=_ELSEWHERE,
            ads=(Shown(ad_id=as_text(event.ad_id) or ""),),
            context=event.context or {},
        )

    def _problems_of(self, slates: Mapping[str, LoggedSlate]) -> dict[str, str]:
        """What does not fit in slates that were answered elsewhere, by request."""
        if not slates:
            return {}
        requests = [Request(user=one.user_id, context=one.context) for one in slates.values()]
        found = self._check(requests)
        return {key: one for key, one in zip(slates, found, strict=True) if one is not None}

    def _odd(self, event: EventIn, slate: LoggedSlate | None) -> str | None:
        """Why an event is not taken, if so."""
        allowed = kinds(self._schema().tasks)
        if event.kind not in allowed:
            return f"kind is '{event.kind}'; choose {', '.join(allowed)}"
        if event.at_ms is not None and event.at_ms > self._clock() + _EARLY_MS:
            return f"at_ms is {event.at_ms}, which is in the future"
        if slate is None:
            return (
                f"no answer has the request_id '{event.request_id}'; for an ad that was shown "
                "elsewhere, give user or context"
            )
        if as_text(event.ad_id) not in {ad.ad_id for ad in slate.ads}:
            return f"answer '{event.request_id}' has no ad '{event.ad_id}'"
        return None

    def _event(self, event: EventIn) -> Event:
        return Event(
            event_id=event.event_id,
            kind=event.kind,
            request_id=event.request_id,
            ad_id=as_text(event.ad_id) or "",
            at_ms=self._clock() if event.at_ms is None else event.at_ms,
            value=event.value,
        )
