"""Log entries: what stands in an event log, and how it stands in the database's tables."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from adrec.schema import Task

IMPRESSION = "impression"
"""The kind of event that says that an ad was shown; the other kinds are names of tasks."""

AdStatus = Literal["active", "paused", "removed"]

METADATA = sa.MetaData()
SLATES = sa.Table(
    "slates",
    METADATA,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("user_id", sa.Text, index=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("ads", sa.Text, nullable=False),
    sa.Column("seen", sa.Text),
)
EVENTS = sa.Table(
    "events",
    METADATA,
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
AD_CHANGES = sa.Table(
    "ad_changes",
    METADATA,
    sa.Column("ad_id", sa.Text, primary_key=True),
    sa.Column("fields", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)
ERASURES = sa.Table(
    "erasures",
    METADATA,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)
MARKS = sa.Table(  # how often something was changed, and what it is now
    "marks",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class AdChange:
    """How an ad stands that was changed while serving."""

    ad_id: str
    status: AdStatus
    fields: Mapping[str, Any] | None = None
    """Raw values by column, as it was put last; None: those of the model version."""


@dataclass(frozen=True)
class Wanted:
    """The model version that servers of a log were told to answer with."""

    name: str = ""
    """'' for none."""
    over: str = ""
    """What the run's `current` named then."""
    previous: str | None = None
    """What had answered before."""


@dataclass(frozen=True)
class Marks:
    """What changes seldom, told by numbers: a process that knows an older one is behind."""

    last: int
    """Place of the last event in the log."""
    ads: int
    """Number of the last change of ads."""
    erasures: int
    """Number of the last erasure of a user."""
    wanted: Wanted
    versions: int
    """How often servers were told which version is wanted."""


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


def with_event(before: tuple[float, ...], event: Event, tasks: Sequence[Task]) -> tuple[float, ...]:
    """Outcomes of an impression after an event: binary ones are 1 once met, values add up."""
    if event.kind == IMPRESSION:
        return before
    after = list(before)
    for k, task in enumerate(tasks):
        if event.kind == task.name:
            after[k] = after[k] + event.value if task.kind == "value" else 1.0
    return tuple(after)


def outcomes_of(events: Iterable[Event], tasks: Sequence[Task]) -> dict[str, tuple[float, ...]]:
    """Outcomes of a slate's ads, from all its events in the log's order; ads without any event are
    left out."""
    nothing = (0.0,) * len(tasks)
    found: dict[str, tuple[float, ...]] = {}
    for event in events:
        ad_id = sys.intern(event.ad_id)  # feeds keep many
        found[ad_id] = with_event(found.get(ad_id, nothing), event, tasks)
    return found


def slate_row(slate: LoggedSlate) -> dict[str, Any]:
    """A row of SLATES."""
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


def slate_of(row: Any) -> LoggedSlate:
    """The slate of a row."""
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


def event_row(event: Event) -> dict[str, Any]:
    """A row of EVENTS, without its place."""
    names = ("event_id", "kind", "request_id", "ad_id", "at_ms", "value")
    return {name: getattr(event, name) for name in names}


def event_of(row: Any) -> Event:
    """The event of a row whose first columns are those of EVENTS."""
    seq, event_id, kind, request_id, ad_id, at_ms, value = row[: len(EVENTS.c)]
    return Event(
        event_id=event_id,
        kind=kind,
        request_id=request_id,
        ad_id=ad_id,
        at_ms=at_ms,
        value=value,
        seq=seq,
    )


def placed(event: Event, seq: int) -> Event:
    """The event with its place in the log."""
    return Event(**event_row(event), seq=seq)
