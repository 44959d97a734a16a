"""Group commit: what many threads append to an event log at the same time, in one transaction, so
that a sync to disk serves all of them. What nobody waits for stays a moment for company."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from adrec.data.event_log import EventLog
from adrec.data.log_entries import Event, LoggedSlate
from adrec.errors import EventLogError

_LINGER_S = 0.05

_log = logging.getLogger(__name__)


class GroupCommit:
    """Appends of many threads in common transactions, made by a thread of its own.

    Appends are taken in order: what one thread hands in after another's `append` was called comes
    later in the log, or in the same transaction.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        most_waiting: int = 10_000,
        on_commit: Callable[[Sequence[LoggedSlate], Sequence[Event]], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            log: to append to.
            most_waiting: appends that may wait; more are refused.
            on_commit: called with the slates of a transaction and the events that it added, once
                they are on disk and before those who wait hear of it. They are on disk also if it
                fails.
        """
        self.log = log
        self._on_commit = on_commit or (lambda slates, events: None)
        self._waiting: queue.Queue[_Append | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._write, name="event-log", daemon=True)
        self._thread.start()

    def append(
        self, slates: Sequence[LoggedSlate], events: Sequence[Event], *, urgent: bool = True
    ) -> "Future[list[Event]]":
        """As `EventLog.append`; the future is done when all is on disk, or was refused.

        Args:
            slates, events: what to write.
            urgent: whether somebody waits; if not, it may be written some 50 ms later.
        """
        entry = _Append(tuple(slates), tuple(events), urgent, Future())
        entry.done.set_running_or_notify_cancel()  # it is written, whoever gives up waiting for it
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            entry.done.set_exception(
                EventLogError("the event log cannot keep up; send the events again later")
            )
        return entry.done

    @property
    def waiting(self) -> int:
        """Appends that are not on disk yet, about."""
        return self._waiting.qsize()

    def close(self) -> None:
        """Write what waits and end."""
        self._waiting.put(None)
        self._thread.join()

    def _write(self) -> None:
        while True:
            entries = self._gather()
            self._commit([entry for entry in entries if entry is not None])
            if None in entries:
                return

    def _gather(self) -> "list[_Append | None]":
        """All that waits, as soon as something of it is urgent; None among them is the end."""
        entries: list[_Append | None] = []
        entry = self._waiting.get()
        until = time.monotonic() + _LINGER_S
        with contextlib.suppress(queue.Empty):
            while True:
                entries.append(entry)
                if entry is None or entry.urgent:
                    until = 0.0
                entry = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
        return entries

    def _commit(self, entries: "Sequence[_Append]") -> None:
        if not entries:
            return
        slates = list({s.request_id: s for entry in entries for s in entry.slates}.values())
        events = [event for entry in entries for event in entry.events]
        try:
            new = self.log.append(slates, events)
        except Exception as error:  # whatever it was, those who wait have to hear of it
            if len(entries) > 1 and not isinstance(error, EventLogError):
                for entry in entries:  # the log works: it is one of them that cannot be written
                    self._commit([entry])
                return
            for entry in entries:
                entry.done.set_exception(error)
            return
        try:
            self._on_commit(slates, new)
        except Exception:
            _log.exception("events that are in the log are told later")
        added = {event.event_id: event for event in new}
        for entry in entries:
            mine = [added.pop(event.event_id, None) for event in entry.events]
            entry.done.set_result([event for event in mine if event is not None])


@dataclass(frozen=True)
class _Append:
    slates: tuple[LoggedSlate, ...]
    events: tuple[Event, ...]
    urgent: bool
    done: "Future[list[Event]]"
