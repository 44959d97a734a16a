"""The durable log of a server: which ads it answered with, and what came of them.

A *slate* is an answer: who asked, with what, when, and which ads were returned with which
propensity. An *event* is what a client reports of one of its ads: that it was shown
(`impression`), or the outcome of a task (`click`, ...). Slates and events stand in a database:
SQLite in a file (write-ahead log, synced at every commit), or PostgreSQL. What `append` has
returned for is on disk; an event that is sent again is told by its id and counts once. Beside them
the log keeps how ads stand that were changed while serving.

`EventLog` is one database. `GroupCommit` puts what many threads append at the same time into one
transaction, so that a sync to disk serves all of them.
"""

import json
import queue
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from adrec.errors import EventLogError
from adrec.schema import Task

IMPRESSION = "impression"
"""The kind of event that says that an ad was shown; the other kinds are names of tasks."""
MS_PER_DAY = 86_400_000
_BUSY_S = 30.0
_CHUNK = 2_000  # rows read at a time
_MOST_PARAMETERS = 500  # in one statement
_APPENDING = 6_021_023  # PostgreSQL's lock of appends
_TIMEOUTS = {
    "connect_timeout": 3,
    "options": "-c statement_timeout=10000 -c lock_timeout=10000",
    "tcp_user_timeout": 5000,
}

_metadata = sa.MetaData()
_slates = sa.Table(
    "slates",
    _metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("user_id", sa.Text, index=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("ads", sa.Text, nullable=False),
    sa.Column("seen", sa.Text),
)
_events = sa.Table(
    "events",
    _metadata,
    sa.Column(
        "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True
    ),  # SQLite numbers only an INTEGER by itself
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False, index=True),
    sa.Column("ad_id", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("value", sa.Float, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, even after deletions
)
_ad_changes = sa.Table(
    "ad_changes",
    _metadata,
    sa.Column("ad_id", sa.Text, primary_key=True),
    sa.Column("fields", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)
_erasures = sa.Table(
    "erasures",
    _metadata,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)
_marks = sa.Table(  # how often something was changed, and what it is now
    "marks",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

AdStatus = Literal["active", "paused", "removed"]


@dataclass(frozen=True, kw_only=True)
class AdChange:
    """How an ad stands that was changed while serving."""

    ad_id: str
    status: AdStatus
    fields: Mapping[str, Any] | None = None
    """Raw values by column, as it was put last; None: those of the model version."""


@dataclass(frozen=True)
class Marks:
    """What changes seldom, told by numbers: a process that knows an older one is behind."""

    last: int
    """Place of the last event in the log."""
    ads: int
    """Number of the last change of ads."""
    erasures: int
    """Number of the last erasure of a user."""
    version: str
    """Name of the model version that servers of this log were told to answer with; '' for none."""
    versions: int
    """How often they were told."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One ad of a slate."""

    ad_id: str
    propensity: float = 1.0
    """Probability with which it stood in its place."""
    score: float | None = None
    """Calibrated probability of the first task, as it was predicted."""


@dataclass(frozen=True, kw_only=True)
class LoggedSlate:
    """An answer."""

    request_id: str
    at_ms: int
    user_id: str | None
    version: str
    ads: tuple[Shown, ...]
    """From position 1 on."""
    context: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] | None = None
    seen: Mapping[str, Any] | None = None
    """What the models were told, of a sample of answers; compared with what the log says later."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a client reports of one ad of a slate."""

    event_id: str
    """The client's; the same again is the same event."""
    kind: str
    """IMPRESSION or the name of a task."""
    request_id: str
    ad_id: str
    at_ms: int
    value: float = 1.0
    """Of a value task; 1 elsewhere."""
    seq: int = 0
    """Place in the log, from 1; 0 before it is there."""


def kinds(tasks: Iterable[Task]) -> tuple[str, ...]:
    """Kinds of events under a schema."""
    return (IMPRESSION, *(task.name for task in tasks))


def with_event(before: Sequence[float], event: Event, tasks: Iterable[Task]) -> list[float]:
    """Outcomes of an impression after an event: binary ones are 1 once met, values add up."""
    after = list(before)
    for k, task in enumerate(tasks):
        if event.kind == task.name:
            after[k] = after[k] + event.value if task.kind == "value" else 1.0
    return after


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
            timeouts = _TIMEOUTS if self._url.drivername.startswith("postgresql") else {}
            self._engine = sa.create_engine(self._url, pool_pre_ping=True, connect_args=timeouts)
            if self._url.drivername.startswith("sqlite"):
                sa.event.listen(self._engine, "connect", _make_durable)
            with self._translated():
                _metadata.create_all(self._engine)
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
                rows = [_slate_row(slate) for slate in slates]
                connection.execute(self._insert(_slates).on_conflict_do_nothing(), rows)
            if events:
                rows = [_event_row(first[key]) for key in dict.fromkeys(e.event_id for e in events)]
                statement = self._insert(_events).on_conflict_do_nothing()
                found = connection.execute(
                    statement.returning(_events.c.seq, _events.c.event_id), rows
                )
                added = [_placed(first[event_id], seq) for seq, event_id in sorted(found)]
        return added

    def slates(self, request_ids: Collection[str]) -> dict[str, LoggedSlate]:
        """Slates by request; those that are not there are left out."""
        wanted, found = list(request_ids), {}
        with self._translated(), self._engine.connect() as connection:
            for start in range(0, len(wanted), _MOST_PARAMETERS):
                some = wanted[start : start + _MOST_PARAMETERS]
                statement = sa.select(_slates).where(_slates.c.request_id.in_(some))
                for row in connection.execute(statement):
                    found[row.request_id] = _slate_of(row)
        return found

    def reported(self, request_ids: Collection[str], *, before: int) -> list[Event]:
        """Events of some requests that stand before a place in the log, in its order."""
        wanted, found = list(request_ids), []
        names = [column.label(f"event_{column.name}") for column in _events.c]
        with self._translated(), self._engine.connect() as connection:
            for start in range(0, len(wanted), _MOST_PARAMETERS):
                some = wanted[start : start + _MOST_PARAMETERS]
                statement = sa.select(*names).where(
                    _events.c.request_id.in_(some), _events.c.seq < before
                )
                found += [_event_of(row) for row in connection.execute(statement)]
        return sorted(found, key=lambda event: event.seq)

    def events(
        self, *, after: int = 0, before: int | None = None, from_ms: int = 0
    ) -> Iterator[tuple[Event, LoggedSlate]]:
        """Events in the log's order, each with its slate.

        Args:
            after: place in the log; only later ones.
            before: place in the log; only earlier ones.
            from_ms: time; only events of slates not before it.
        """
        joined = _events.join(_slates, _events.c.request_id == _slates.c.request_id)
        names = [column.label(f"event_{column.name}") for column in _events.c]
        until = [] if before is None else [_events.c.seq < before]
        with self._translated(), self._engine.connect() as connection:
            while True:
                statement = (
                    sa.select(*names, _slates)
                    .select_from(joined)
                    .where(_events.c.seq > after, _slates.c.at_ms >= from_ms, *until)
                    .order_by(_events.c.seq)
                    .limit(_CHUNK)
                )
                rows = connection.execute(statement).all()
                slates: dict[str, LoggedSlate] = {}  # those of a request share theirs
                for row in rows:
                    slate = slates.get(row.request_id) or _slate_of(row)
                    slates[row.request_id] = slate
                    yield _event_of(row), slate
                if len(rows) < _CHUNK:
                    return
                after = rows[-1].event_seq

    def shown(self, from_ms: int, before_ms: int) -> Iterator[tuple[LoggedSlate, list[Event]]]:
        """Slates of a period of which something was reported, by time, each with its events in the
        log's order."""
        joined = _events.join(_slates, _events.c.request_id == _slates.c.request_id)
        names = [column.label(f"event_{column.name}") for column in _events.c]
        statement = (
            sa.select(*names, _slates)
            .select_from(joined)
            .where(_slates.c.at_ms >= from_ms, _slates.c.at_ms < before_ms)
            .order_by(_slates.c.at_ms, _slates.c.request_id, _events.c.seq)
        )
        with self._translated(), self._engine.connect() as connection:
            rows = connection.execution_options(yield_per=_CHUNK).execute(statement)
            for _, of_slate in groupby(rows, key=lambda row: row.request_id):
                some = list(of_slate)
                yield _slate_of(some[0]), [_event_of(row) for row in some]

    def span_ms(self) -> tuple[int, int] | None:
        """Times of the first slate and of the last; None if there are none."""
        ends = sa.select(sa.func.min(_slates.c.at_ms), sa.func.max(_slates.c.at_ms))
        with self._translated(), self._engine.connect() as connection:
            first, last = connection.execute(ends).one()
        return None if first is None else (int(first), int(last))

    def change_ads(self, changes: Sequence[AdChange]) -> int:
        """Note how ads stand from now on; fields that a change leaves out stay as they were put.

        Returns:
            The number of the change.
        """
        insert = self._insert(_ad_changes)
        kept = sa.func.coalesce(insert.excluded.fields, _ad_changes.c.fields)
        statement = insert.on_conflict_do_update(
            index_elements=[_ad_changes.c.ad_id],
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
        statement = sa.select(_ad_changes).where(_ad_changes.c.number > after)
        with self._translated(), self._engine.connect() as connection:
            return [
                AdChange(
                    ad_id=row.ad_id,
                    status=row.status,
                    fields=None if row.fields is None else json.loads(row.fields),
                )
                for row in connection.execute(statement.order_by(_ad_changes.c.ad_id))
            ]

    def want_version(self, name: str) -> None:
        """Tell all servers of this log which model version to answer with."""
        with self._translated(), self._engine.begin() as connection:
            self._mark(connection, "version", name)

    def marks(self) -> Marks:
        """What has been changed so far."""
        last = sa.select(sa.func.max(_events.c.seq))
        with self._translated(), self._engine.connect() as connection:
            found = {row.name: row for row in connection.execute(sa.select(_marks))}
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
            count = connection.execute(sa.select(sa.func.count()).select_from(_events)).scalar()
            return int(count or 0)

    def prune(self, before_ms: int) -> int:
        """Delete slates older than an instant, with their events; returns how many slates."""
        with self._translated(), self._engine.begin() as connection:
            return self._delete(connection, _slates.c.at_ms < before_ms)

    def erase_user(self, user_id: str, *, at_ms: int) -> int:
        """Delete all slates of a user, with their events, and note that the user was erased.

        Returns:
            How many slates there were.
        """
        insert = self._insert(_erasures)
        statement = insert.on_conflict_do_update(
            index_elements=[_erasures.c.user_id],
            set_={"at_ms": insert.excluded.at_ms, "number": insert.excluded.number},
        )
        with self._translated(), self._engine.begin() as connection:
            number = self._mark(connection, "erasures")
            connection.execute(statement, {"user_id": user_id, "at_ms": at_ms, "number": number})
            return self._delete(connection, _slates.c.user_id == user_id)

    def erased(self, *, after: int = 0, from_ms: int = 0) -> list[str]:
        """Users that were erased, after a number and not before an instant."""
        statement = sa.select(_erasures.c.user_id).where(
            _erasures.c.number > after, _erasures.c.at_ms >= from_ms
        )
        with self._translated(), self._engine.connect() as connection:
            return [row.user_id for row in connection.execute(statement)]

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def _identify(self) -> str:
        with self._engine.begin() as connection:
            row = {"name": "id", "number": 0, "text": uuid.uuid4().hex}
            connection.execute(self._insert(_marks).on_conflict_do_nothing(), row)
            named = sa.select(_marks.c.text).where(_marks.c.name == "id")
            return str(connection.execute(named).scalar_one())

    def _delete(self, connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
        theirs = sa.select(_slates.c.request_id).where(which)
        connection.execute(sa.delete(_events).where(_events.c.request_id.in_(theirs)))
        return int(connection.execute(sa.delete(_slates).where(which)).rowcount)

    def _mark(self, connection: sa.Connection, name: str, text: str = "") -> int:
        """Count a change; its number. Whoever else counts the same waits until this is over."""
        insert = self._insert(_marks)
        statement = insert.on_conflict_do_update(
            index_elements=[_marks.c.name],
            set_={"number": _marks.c.number + 1, "text": insert.excluded.text},
        ).returning(_marks.c.number)
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
                they are on disk and before those who wait hear of it.
        """
        self.log = log
        self._on_commit = on_commit or (lambda slates, events: None)
        self._waiting: queue.Queue[_Append | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._write, name="event-log", daemon=True)
        self._thread.start()

    def append(
        self, slates: Sequence[LoggedSlate], events: Sequence[Event]
    ) -> "Future[list[Event]]":
        """As `EventLog.append`; the future is done when all is on disk, or was refused."""
        entry = _Append(tuple(slates), tuple(events), Future())
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
            entries = [self._waiting.get()]
            while True:
                try:
                    entries.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            self._commit([entry for entry in entries if entry is not None])
            if None in entries:
                return

    def _commit(self, entries: "Sequence[_Append]") -> None:
        if not entries:
            return
        slates = [slate for entry in entries for slate in entry.slates]
        events = [event for entry in entries for event in entry.events]
        try:
            new = self.log.append(slates, events)
            self._on_commit(slates, new)
            added = {event.event_id: event for event in new}
        except Exception as error:  # whatever it was, those who wait have to hear of it
            for entry in entries:
                entry.done.set_exception(error)
            return
        for entry in entries:
            mine = [added.pop(event.event_id, None) for event in entry.events]
            entry.done.set_result([event for event in mine if event is not None])


@dataclass(frozen=True)
class _Append:
    slates: tuple[LoggedSlate, ...]
    events: tuple[Event, ...]
    done: "Future[list[Event]]"


def _make_durable(connection: Any, record: object) -> None:
    """Settings of an SQLite connection."""
    del record
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={round(_BUSY_S * 1000)}")
    cursor.close()


def _slate_row(slate: LoggedSlate) -> dict[str, Any]:
    request = {"context": slate.context, "profile": slate.profile}
    return {
        "request_id": slate.request_id,
        "at_ms": slate.at_ms,
        "user_id": slate.user_id,
        "version": slate.version,
        "request": json.dumps(request),
        "ads": json.dumps([[ad.ad_id, ad.propensity, ad.score] for ad in slate.ads]),
        "seen": None if slate.seen is None else json.dumps(slate.seen),
    }


def _slate_of(row: Any) -> LoggedSlate:
    request = json.loads(row.request)
    return LoggedSlate(
        request_id=row.request_id,
        at_ms=row.at_ms,
        user_id=row.user_id,
        version=row.version,
        ads=tuple(
            Shown(ad_id=ad, propensity=share, score=score)
            for ad, share, score in json.loads(row.ads)
        ),
        context=request["context"],
        profile=request["profile"],
        seen=None if row.seen is None else json.loads(row.seen),
    )


def _event_row(event: Event) -> dict[str, Any]:
    names = ("event_id", "kind", "request_id", "ad_id", "at_ms", "value")
    return {name: getattr(event, name) for name in names}


def _event_of(row: Any) -> Event:
    return Event(
        event_id=row.event_event_id,
        kind=row.event_kind,
        request_id=row.event_request_id,
        ad_id=row.event_ad_id,
        at_ms=row.event_at_ms,
        value=row.event_value,
        seq=row.event_seq,
    )


def _placed(event: Event, seq: int) -> Event:
    return Event(**_event_row(event), seq=seq)
