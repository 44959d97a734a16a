"""The durable log of a server: which ads it answered with, and what came of them.

A *slate* is an answer: who asked, with what, when, and which ads were returned with which
propensity. An *event* is what a client reports of one of its ads: that it was shown
(`impression`), or the outcome of a task (`click`, ...). Slates and events stand in a database:
SQLite in a file (write-ahead log, synced at every commit), or PostgreSQL. What `append` has
returned for is on disk; an event that is sent again is told by its id and counts once. Beside them
the log keeps how ads stand that were changed while serving, which users were erased, and which
version servers are to answer with.
"""

import json
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from adrec.data.databases import Translated, open_database
from adrec.data.log_entries import (
    AD_CHANGES,
    ERASURES,
    EVENTS,
    MARKS,
    METADATA,
    SLATES,
    AdChange,
    Event,
    LoggedSlate,
    Marks,
    Wanted,
    event_of,
    event_row,
    placed,
    slate_of,
    slate_row,
)

_CHUNK = 2_000  # rows read at a time
_MOST_PARAMETERS = 500  # in one statement
_DELETED = 1_000  # slates in one transaction
_PAUSE_S = 0.1  # after it, at most: whoever waits for SQLite's lock tries again within that time
_APPENDING = 6_021_023  # PostgreSQL's lock of appends
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class EventLog:
    """One database of slates and events. Safe to use from many threads."""

    def __init__(self, url: str) -> None:
        """Open a database and make the tables that are missing.

        Args:
            url: SQLAlchemy's, e.g. `sqlite:///events.db` or `postgresql+psycopg://user@host/name`.

        Raises:
            EventLogError: it cannot be opened.
        """
        self._engine = open_database(url, METADATA)
        self._insert = _INSERTS[self._engine.dialect.name]
        with self._translated():
            self.id = self._identify()
            """The same for all who have this log open."""

    @classmethod
    def in_file(cls, path: Path) -> "EventLog":
        """The log in an SQLite file, which is made with its folder if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}")

    @property
    def url(self) -> str:
        """Where others can open it, its password with it."""
        return self._engine.url.render_as_string(hide_password=False)

    def append(self, slates: Sequence[LoggedSlate], events: Sequence[Event]) -> list[Event]:
        """Add slates, then events, all or none; what was added is on disk when this returns. With
        neither it writes all the same, and so tells whether it can.

        Returns:
            The events that were not there before, with their place in the log, in its order.

        Raises:
            EventLogError: nothing was added, as the log cannot be written.
            DataError: nothing was added, as the log cannot hold a value.
        """
        first = {event.event_id: event for event in reversed(events)}
        added: list[Event] = []
        with self._translated(), self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                # Numbers are given before transactions end; one after the other they end in order,
                # so that whoever reads up to a number has read all before it.
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_APPENDING})"))
            if slates:
                rows = [slate_row(slate) for slate in slates]
                connection.execute(self._insert(SLATES).on_conflict_do_nothing(), rows)
            if events:
                rows = [event_row(first[key]) for key in dict.fromkeys(e.event_id for e in events)]
                statement = self._insert(EVENTS).on_conflict_do_nothing()
                found = connection.execute(
                    statement.returning(EVENTS.c.seq, EVENTS.c.event_id), rows
                )
                added = [placed(first[event_id], seq) for seq, event_id in sorted(found)]
            if not slates and not events:
                self._mark(connection, "tried")
        return added

    def slates(self, request_ids: Collection[str]) -> dict[str, LoggedSlate]:
        """Slates by request; those that are not there are left out."""
        wanted, found = list(request_ids), {}
        with self._translated(), self._engine.connect() as connection:
            for start in range(0, len(wanted), _MOST_PARAMETERS):
                some = wanted[start : start + _MOST_PARAMETERS]
                statement = sa.select(SLATES).where(SLATES.c.request_id.in_(some))
                for row in connection.execute(statement):
                    found[row.request_id] = slate_of(row)
        return found

    def reported(self, request_ids: Collection[str], *, before: int) -> list[Event]:
        """Events of some requests that stand before a place in the log, in its order."""
        wanted, found = list(request_ids), []
        with self._translated(), self._engine.connect() as connection:
            for start in range(0, len(wanted), _MOST_PARAMETERS):
                some = wanted[start : start + _MOST_PARAMETERS]
                statement = sa.select(EVENTS).where(
                    EVENTS.c.request_id.in_(some), EVENTS.c.seq < before
                )
                found += [event_of(row) for row in connection.execute(statement)]
        return sorted(found, key=lambda event: event.seq)

    def events(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        from_ms: int = 0,
        before_ms: int | None = None,
    ) -> Iterator[tuple[Event, LoggedSlate]]:
        """Events in the log's order, each with its slate.

        Args:
            after: place in the log; only later ones.
            before: place in the log; only earlier ones.
            from_ms: time; only events of slates not before it.
            before_ms: time; only events of slates before it.
        """
        joined = EVENTS.join(SLATES, EVENTS.c.request_id == SLATES.c.request_id)
        names = [column.label(f"event_{column.name}") for column in EVENTS.c]
        until = [] if before is None else [EVENTS.c.seq < before]
        until += [] if before_ms is None else [SLATES.c.at_ms < before_ms]
        with self._translated(), self._engine.connect() as connection:
            while True:
                statement = (
                    sa.select(*names, SLATES)
                    .select_from(joined)
                    .where(EVENTS.c.seq > after, SLATES.c.at_ms >= from_ms, *until)
                    .order_by(EVENTS.c.seq)
                    .limit(_CHUNK)
                )
                rows = connection.execute(statement).all()
                slates: dict[str, LoggedSlate] = {}  # those of a request share theirs
                for row in rows:
                    slate = slates.get(row.request_id) or slate_of(row)
                    slates[row.request_id] = slate
                    yield event_of(row), slate
                if len(rows) < _CHUNK:
                    return
                after = rows[-1].event_seq

    def shown(
        self, from_ms: int, before_ms: int, *, before: int | None = None
    ) -> Iterator[tuple[LoggedSlate, list[Event]]]:
        """Slates of a period of which something was reported, by time, each with its events in the
        log's order; `before`: only events that stand before a place in the log."""
        until = [] if before is None else [EVENTS.c.seq < before]
        statement = (
            sa.select(EVENTS)
            .join(SLATES, EVENTS.c.request_id == SLATES.c.request_id)
            .where(SLATES.c.at_ms >= from_ms, SLATES.c.at_ms < before_ms, *until)
            .order_by(SLATES.c.at_ms, SLATES.c.request_id, EVENTS.c.seq)
        )
        with self._translated(), self._engine.connect() as connection:
            rows = connection.execution_options(yield_per=_CHUNK).execute(statement)
            by_slate = groupby(map(event_of, rows), key=attrgetter("request_id"))
            theirs = ((request_id, list(events)) for request_id, events in by_slate)
            while part := dict(islice(theirs, _MOST_PARAMETERS)):
                slates = self.slates(part)
                yield from ((slates[key], part[key]) for key in part if key in slates)

    def span_ms(self) -> tuple[int, int] | None:
        """Times of the first slate and of the last; None if there are none."""
        ends = (sa.func.min(SLATES.c.at_ms), sa.func.max(SLATES.c.at_ms))
        with self._translated(), self._engine.connect() as connection:
            # Each by itself, for which SQLite looks at one end of the index.
            first, last = (connection.execute(sa.select(end)).scalar() for end in ends)
        return None if first is None or last is None else (int(first), int(last))

    def change_ads(self, changes: Sequence[AdChange]) -> int:
        """Note how ads stand from now on; fields that a change leaves out stay as they were put,
        and an ad that is paused stays so when fields are.

        Returns:
            The number of the change.
        """
        insert = self._insert(AD_CHANGES)
        kept = sa.func.coalesce(insert.excluded.fields, AD_CHANGES.c.fields)
        stays_paused = insert.excluded.fields.is_not(None) & (AD_CHANGES.c.status == "paused")
        statement = insert.on_conflict_do_update(
            index_elements=[AD_CHANGES.c.ad_id],
            set_={
                "status": sa.case((stays_paused, "paused"), else_=insert.excluded.status),
                "fields": kept,
                "number": insert.excluded.number,
            },
        )
        with self._translated(), self._engine.begin() as connection:
            number = self._mark(connection, "ads")
            rows = [
                {
                    "ad_id": change.ad_id,
                    "status": change.status,
                    "fields": None if change.fields is None else json.dumps(change.fields),
                    "number": number,
                }
                for change in changes
            ]
            if rows:
                connection.execute(statement, rows)
        return number

    def ad_changes(self, *, after: int = 0) -> list[AdChange]:
        """How all ads stand that were changed; after a number, only those changed since."""
        statement = sa.select(AD_CHANGES).where(AD_CHANGES.c.number > after)
        with self._translated(), self._engine.connect() as connection:
            return [
                AdChange(
                    ad_id=row.ad_id,
                    status=row.status,
                    fields=None if row.fields is None else json.loads(row.fields),
                )
                for row in connection.execute(statement.order_by(AD_CHANGES.c.ad_id))
            ]

    def want_version(self, wanted: Wanted) -> int:
        """Tell all servers of this log which model version to answer with; the number of that."""
        with self._translated(), self._engine.begin() as connection:
            return self._mark(connection, "version", json.dumps(asdict(wanted)))

    def marks(self) -> Marks:
        """What has been changed so far: of ads, all that came before the last event."""
        with self._translated(), self._engine.connect() as connection:
            last = connection.execute(sa.select(sa.func.max(EVENTS.c.seq))).scalar()
            found = {row.name: row for row in connection.execute(sa.select(MARKS))}
            return Marks(
                last=int(last or 0),
                ads=found["ads"].number if "ads" in found else 0,
                erasures=found["erasures"].number if "erasures" in found else 0,
                wanted=Wanted(**json.loads(found["version"].text))
                if "version" in found
                else Wanted(),
                versions=found["version"].number if "version" in found else 0,
            )

    def place(self, *, after: int, count: int) -> int | None:
        """Place of the event that is so many after a place; None if there are fewer."""
        later = sa.select(EVENTS.c.seq).where(EVENTS.c.seq > after).order_by(EVENTS.c.seq)
        with self._translated(), self._engine.connect() as connection:
            found = connection.execute(later.limit(1).offset(count - 1)).scalar()
        return None if found is None else int(found)

    def __len__(self) -> int:
        """Number of events."""
        with self._translated(), self._engine.connect() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(EVENTS)).scalar()
            return int(count or 0)

    def prune(self, before_ms: int, *, stop: threading.Event | None = None) -> int:
        """Delete slates older than an instant, with their events, oldest first.

        They go in short transactions, between which others can write. What is deleted stays so if
        it fails, or is stopped.

        Args:
            before_ms: the instant.
            stop: once set, the rest is left for another time.

        Returns:
            How many slates.
        """
        stop, at_ms, count, from_ms = stop or threading.Event(), SLATES.c.at_ms, 0, 0
        while True:
            began_s = time.monotonic()
            oldest = (
                sa.select(SLATES.c.request_id)
                .where(at_ms >= from_ms, at_ms < before_ms)  # PostgreSQL still walks the deleted
                .order_by(at_ms)
                .limit(_DELETED)
            )
            with self._translated(), self._engine.begin() as connection:
                times_ms = self._delete(connection, oldest)
            if not times_ms:
                self._delete_orphans(before_ms)
                return count
            count, from_ms = count + len(times_ms), max(times_ms)
            if stop.wait(min(time.monotonic() - began_s, _PAUSE_S)):
                return count

    def erase_user(self, user_id: str, *, at_ms: int) -> int:
        """Delete all slates of a user, with their events, and note that the user was erased.

        Many go in short transactions; the last one notes it. If one fails, the user is not erased.

        Returns:
            How many slates there were.
        """
        insert = self._insert(ERASURES)
        statement = insert.on_conflict_do_update(
            index_elements=[ERASURES.c.user_id],
            set_={"at_ms": insert.excluded.at_ms, "number": insert.excluded.number},
        )
        theirs, count = sa.select(SLATES.c.request_id).where(SLATES.c.user_id == user_id), 0
        while True:
            began_s = time.monotonic()
            with self._translated(), self._engine.begin() as connection:
                count += len(self._delete(connection, theirs.limit(_DELETED)))
                if connection.scalar(theirs.limit(1)) is None:
                    number = self._mark(connection, "erasures")
                    row = {"user_id": user_id, "at_ms": at_ms, "number": number}
                    connection.execute(statement, row)
                    return count
            time.sleep(min(time.monotonic() - began_s, _PAUSE_S))

    def sweep_erased(self, user_ids: Sequence[str]) -> None:
        """Delete what was written of some users' answers too late for their erasure."""
        gone = sa.select(SLATES.c.request_id).join(
            ERASURES,
            sa.and_(SLATES.c.user_id == ERASURES.c.user_id, SLATES.c.at_ms <= ERASURES.c.at_ms),
        )
        for start in range(0, len(user_ids), _MOST_PARAMETERS):
            some = user_ids[start : start + _MOST_PARAMETERS]
            with self._translated(), self._engine.begin() as connection:
                self._delete(connection, gone.where(ERASURES.c.user_id.in_(some)))

    def erased(self, *, after: int = 0, from_ms: int = 0) -> dict[str, int]:
        """Users that were erased, after a number and not before an instant, and when they were
        last."""
        statement = sa.select(ERASURES.c.user_id, ERASURES.c.at_ms).where(
            ERASURES.c.number > after, ERASURES.c.at_ms >= from_ms
        )
        with self._translated(), self._engine.connect() as connection:
            return {row.user_id: int(row.at_ms) for row in connection.execute(statement)}

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def _identify(self) -> str:
        with self._engine.begin() as connection:
            row = {"name": "id", "number": 0, "text": uuid.uuid4().hex}
            connection.execute(self._insert(MARKS).on_conflict_do_nothing(), row)
            named = sa.select(MARKS.c.text).where(MARKS.c.name == "id")
            return str(connection.execute(named).scalar_one())

    def _delete(self, connection: sa.Connection, which: sa.Select[tuple[str]]) -> list[int]:
        """Delete slates by request, with their events; the slates' times."""
        statement = sa.delete(SLATES).where(SLATES.c.request_id.in_(which))
        slates = connection.execute(statement.returning(SLATES.c.request_id, SLATES.c.at_ms)).all()
        for start in range(0, len(slates), _MOST_PARAMETERS):
            some = [row.request_id for row in slates[start : start + _MOST_PARAMETERS]]
            connection.execute(sa.delete(EVENTS).where(EVENTS.c.request_id.in_(some)))
        return [row.at_ms for row in slates]

    def _delete_orphans(self, before_ms: int) -> None:
        """Delete events that were written when their slate had just gone."""
        gone = ~sa.exists().where(SLATES.c.request_id == EVENTS.c.request_id)
        with self._translated(), self._engine.begin() as connection:
            connection.execute(sa.delete(EVENTS).where(EVENTS.c.at_ms < before_ms, gone))

    def _mark(self, connection: sa.Connection, name: str, text: str = "") -> int:
        """Count a change; its number. Whoever else counts the same waits until this is over."""
        insert = self._insert(MARKS)
        statement = insert.on_conflict_do_update(
            index_elements=[MARKS.c.name],
            set_={"number": MARKS.c.number + 1, "text": insert.excluded.text},
        ).returning(MARKS.c.number)
        found = connection.execute(statement, {"name": name, "number": 1, "text": text})
        return int(found.scalar_one())

    def _translated(self) -> Translated:
        return Translated(self._engine)
