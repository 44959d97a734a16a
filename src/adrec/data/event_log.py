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
import uuid
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

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
    event_of,
    event_row,
    placed,
    slate_of,
    slate_row,
)
from adrec.errors import EventLogError

_BUSY_S = 30.0
_CHUNK = 2_000  # rows read at a time
_MOST_PARAMETERS = 500  # in one statement
_APPENDING = 6_021_023  # PostgreSQL's lock of appends
_TIMEOUTS = {
    "connect_timeout": 3,
    "options": "-c statement_timeout=10000 -c lock_timeout=10000",
    "tcp_user_timeout": 5000,
}


class EventLog:
    """One database of slates and events. Safe to use from many threads."""

    def __init__(self, url: str) -> None:
        """Open a database and make the tables that are missing.

        Args:
            url: SQLAlchemy's, e.g. `sqlite:///events.db` or `postgresql+psycopg://user@host/name`.

        Raises:
            EventLogError: it cannot be opened.
        """
        try:
            self._url = sa.make_url(url)
            far = self._url.drivername.startswith("postgresql")
            timeouts = _TIMEOUTS if far else {}
            self._engine = sa.create_engine(self._url, pool_pre_ping=far, connect_args=timeouts)
            if self._url.drivername.startswith("sqlite"):
                sa.event.listen(self._engine, "connect", _make_durable)
            with self._translated():
                METADATA.create_all(self._engine)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
            raise EventLogError(f"event log '{url}' cannot be opened: {error}") from error
        dialect = {"sqlite": sqlite, "postgresql": postgresql}.get(self._engine.dialect.name)
        if dialect is None:
            raise EventLogError(
                f"event log '{url}': give a sqlite or postgresql database, not "
                f"{self._engine.dialect.name}"
            )
        self._insert = dialect.insert
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
        return self._url.render_as_string(hide_password=False)

    def append(self, slates: Sequence[LoggedSlate], events: Sequence[Event]) -> list[Event]:
        """Add slates, then events, all or none; what was added is on disk when this returns.

        Returns:
            The events that were not there before, with their place in the log, in its order.

        Raises:
            EventLogError: nothing was added.
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
        ends = sa.select(sa.func.min(SLATES.c.at_ms), sa.func.max(SLATES.c.at_ms))
        with self._translated(), self._engine.connect() as connection:
            first, last = connection.execute(ends).one()
        return None if first is None else (int(first), int(last))

    def change_ads(self, changes: Sequence[AdChange]) -> int:
        """Note how ads stand from now on; fields that a change leaves out stay as they were put.

        Returns:
            The number of the change.
        """
        insert = self._insert(AD_CHANGES)
        kept = sa.func.coalesce(insert.excluded.fields, AD_CHANGES.c.fields)
        statement = insert.on_conflict_do_update(
            index_elements=[AD_CHANGES.c.ad_id],
            set_={
                "status": insert.excluded.status,
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

    def want_version(self, name: str) -> None:
        """Tell all servers of this log which model version to answer with."""
        with self._translated(), self._engine.begin() as connection:
            self._mark(connection, "version", name)

    def marks(self) -> Marks:
        """What has been changed so far."""
        last = sa.select(sa.func.max(EVENTS.c.seq))
        with self._translated(), self._engine.connect() as connection:
            found = {row.name: row for row in connection.execute(sa.select(MARKS))}
            return Marks(
                last=int(connection.execute(last).scalar() or 0),
                ads=found["ads"].number if "ads" in found else 0,
                erasures=found["erasures"].number if "erasures" in found else 0,
                version=found["version"].text if "version" in found else "",
                versions=found["version"].number if "version" in found else 0,
            )

    def __len__(self) -> int:
        """Number of events."""
        with self._translated(), self._engine.connect() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(EVENTS)).scalar()
            return int(count or 0)

    def prune(self, before_ms: int) -> int:
        """Delete slates older than an instant, with their events; returns how many slates."""
        with self._translated(), self._engine.begin() as connection:
            return self._delete(connection, SLATES.c.at_ms < before_ms)

    def erase_user(self, user_id: str, *, at_ms: int) -> int:
        """Delete all slates of a user, with their events, and note that the user was erased.

        Returns:
            How many slates there were.
        """
        insert = self._insert(ERASURES)
        statement = insert.on_conflict_do_update(
            index_elements=[ERASURES.c.user_id],
            set_={"at_ms": insert.excluded.at_ms, "number": insert.excluded.number},
        )
        with self._translated(), self._engine.begin() as connection:
            number = self._mark(connection, "erasures")
            connection.execute(statement, {"user_id": user_id, "at_ms": at_ms, "number": number})
            return self._delete(connection, SLATES.c.user_id == user_id)

    def erased(self, *, after: int = 0, from_ms: int = 0) -> list[str]:
        """Users that were erased, after a number and not before an instant."""
        statement = sa.select(ERASURES.c.user_id).where(
            ERASURES.c.number > after, ERASURES.c.at_ms >= from_ms
        )
        with self._translated(), self._engine.connect() as connection:
            return [row.user_id for row in connection.execute(statement)]

    def erasures(self) -> dict[str, int]:
        """When each user who was ever erased was erased last."""
        statement = sa.select(ERASURES.c.user_id, ERASURES.c.at_ms)
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

    def _delete(self, connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
        theirs = sa.select(SLATES.c.request_id).where(which)
        connection.execute(sa.delete(EVENTS).where(EVENTS.c.request_id.in_(theirs)))
        return int(connection.execute(sa.delete(SLATES).where(which)).rowcount)

    def _mark(self, connection: sa.Connection, name: str, text: str = "") -> int:
        """Count a change; its number. Whoever else counts the same waits until this is over."""
        insert = self._insert(MARKS)
        statement = insert.on_conflict_do_update(
            index_elements=[MARKS.c.name],
            set_={"number": MARKS.c.number + 1, "text": insert.excluded.text},
        ).returning(MARKS.c.number)
        found = connection.execute(statement, {"name": name, "number": 1, "text": text})
        return int(found.scalar_one())

    def _translated(self) -> "_Translated":
        return _Translated(self._url.render_as_string(hide_password=True))


class _Translated:
    """Errors of the database as `EventLogError`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError):
            cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            raise EventLogError(f"event log {self._url}: {cause}") from error


def _make_durable(connection: Any, record: object) -> None:
    """Settings of an SQLite connection."""
    del record
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={round(_BUSY_S * 1000)}")
    cursor.close()
