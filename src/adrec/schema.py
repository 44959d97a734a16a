"""Schema: which column of a log is what. Nothing downstream knows a column name of yours.

A schema is a YAML file. It names the ids, the time, the tasks (outcomes to predict), the fields
(what may be known when a request arrives) and the historical counters. Criteo, a shop, a news site
and a social feed differ in this file only.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from adrec.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)
TimesT = TypeVar("TimesT", int, NDArray[np.int64])

TableName = Literal["impressions", "users", "ads"]
Role = Literal["user", "ad", "context"]

# The names that every table carries after reading, whatever they were called in the file.
USER_ID = "user_id"
AD_ID = "ad_id"
TIMESTAMP_MS = "timestamp_ms"
REQUEST_ID = "request_id"
POSITION = "position"
PROPENSITY = "propensity"
BID_MICROS = "bid_micros"
ID_COLUMNS = (USER_ID, AD_ID, TIMESTAMP_MS, REQUEST_ID, POSITION, PROPENSITY, BID_MICROS)

IMPRESSION = "impression"
"""What a sequence grows with that every impression joins; no task has this name."""

_MS_PER_HOUR = 3_600_000
_THURSDAY = 3  # weekday of 1970-01-01


class Strict(BaseModel):
    """Base of every setting: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class _Field(Strict):
    """What every field has: a name, the column it is read from, and the table that holds it."""

    name: str
    column: str | None = None
    """Column in the file; by default the field's name."""
    table: TableName | None = None
    """By default the table of the role: user fields in `users` and ad fields in `ads` where the log
    has those tables, all else in `impressions`."""

    @property
    def source(self) -> str:
        """The column in the file."""
        return self.column or self.name


class CategoricalField(_Field):
    """A value out of a set: a category, a device, an advertiser."""

    kind: Literal["categorical"]
    role: Role


class NumericField(_Field):
    """A number: a price, an age, a count."""

    kind: Literal["numeric"]
    role: Role


class EmbeddingField(_Field):
    """A dense vector computed elsewhere: of a text, an image, a position in a social graph."""

    kind: Literal["embedding"]
    role: Role
    dim: int = Field(ge=1, le=4096)
    """Length of the vector."""


class SequenceField(_Field):
    """Ads a user met in the past, oldest first. It ends before the impression.

    The users table may hold a start (`column`, with times in `times`); with `grows_with`, every ad
    with a positive outcome of that task joins at the time the outcome is known. Without `column`
    it starts empty. If it grows with impressions, every ad that was shown joins, at once. Of each
    ad the outcomes are known as well, as far as they are known by then.
    """

    kind: Literal["sequence"]
    role: Literal["user"] = "user"
    times: str | None = None
    """Column with the UTC milliseconds of each item; None: unknown."""
    grows_with: str | None = None
    """Task whose positives are appended while the log runs; `impression`: all that was shown."""
    length: int = Field(default=20, ge=1, le=1000)
    """How many of the most recent items are used."""

    @property
    def of_impressions(self) -> bool:
        """Whether every impression joins, liked or not."""
        return self.grows_with == IMPRESSION


class ClockField(_Field):
    """The hour or the weekday (0: Monday) of a request, taken from its time, not from a column."""

    kind: Literal["clock"]
    role: Literal["context"] = "context"
    part: Literal["hour", "weekday"]
    utc_offset_hours: float = Field(default=0.0, ge=-14.0, le=14.0)
    """Local time less UTC where the log comes from."""

    @property
    def values(self) -> int:
        """Number of different values."""
        return 24 if self.part == "hour" else 7

    def at(self, time_ms: TimesT) -> TimesT:
        """The value at a time in UTC milliseconds, or of each of an array of times."""
        hours = (time_ms + round(self.utc_offset_hours * _MS_PER_HOUR)) // _MS_PER_HOUR
        return hours % 24 if self.part == "hour" else (hours // 24 + _THURSDAY) % 7


AnyField = Annotated[
    CategoricalField | NumericField | EmbeddingField | SequenceField | ClockField,
    Field(discriminator="kind"),
]


class Task(Strict):
    """An outcome to predict: binary (click, purchase) or a value of zero or more (revenue)."""

    name: str
    column: str | None = None
    """Column in the impressions table; by default the task's name."""
    kind: Literal["binary", "value"] = "binary"
    weight: float = Field(default=1.0, ge=0.0)
    """Weight of its loss beside the other tasks'."""
    delay_ms: int = Field(default=0, ge=0)
    """How long after the impression the outcome is known. Features use it from then on only."""

    @property
    def source(self) -> str:
        """The column in the file."""
        return self.column or self.name


class CounterSpec(Strict):
    """Past impressions and outcomes of a key: `[ad_id]`, `[advertiser]`, `[user_id, category]`."""

    columns: tuple[str, ...] = Field(min_length=1, max_length=2)
    """`user_id`, `ad_id` or names of categorical fields; together they are the key."""
    half_lives_hours: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        default=(None,), min_length=1
    )
    """One set of counts per half-life; None never forgets."""

    @property
    def name(self) -> str:
        """`user_id*category`."""
        return "*".join(self.columns)


class Schema(Strict):
    """Everything that has to be said about a log. Names are unique across ids, fields and tasks."""

    name: str
    user_id: str | None = None
    """Column of the user's id; None where the log has no users (Criteo)."""
    ad_id: str = AD_ID
    timestamp: str = TIMESTAMP_MS
    timestamp_unit: Literal["ms", "s", "us", "iso8601"] = "ms"
    request_id: str | None = None
    """Column that is the same for all impressions of one request; None: each row is a request."""
    position: str | None = None
    """Column with the position in the slate, from 1."""
    propensity: str | None = None
    """Column with the probability with which the logging policy showed this ad here."""
    bid_micros: str | None = None
    """Column of the ads table with the bid per click in micros of `currency`."""
    currency: str = "USD"
    tasks: tuple[Task, ...] = Field(min_length=1)
    fields: tuple[AnyField, ...] = ()
    counters: tuple[CounterSpec, ...] = ()
    users_table: bool = False
    """Whether the log comes with a table of users."""
    ads_table: bool = False
    """Whether the log comes with a table of ads; else an ad is taken from its first impression."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [*ID_COLUMNS, *(f.name for f in self.fields), *(t.name for t in self.tasks)]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"names used twice: {', '.join(twice)}; rename them (`column:` stays)")
        if self.tasks[0].kind != "binary":
            raise ValueError(
                f"the first task, '{self.tasks[0].name}', is what retrieval learns and a bid pays "
                "for; put a binary task first"
            )
        if any(task.name == IMPRESSION for task in self.tasks):
            raise ValueError(
                f"a task is called '{IMPRESSION}', but `grows_with: {IMPRESSION}` means all that "
                "was shown; rename the task (`column:` stays)"
            )
        for field in self.fields:
            self._check_field(field)
        known = {USER_ID, AD_ID, *(f.name for f in self.fields if f.kind == "categorical")}
        if self.user_id is None:
            known.remove(USER_ID)
        if self.users_table and self.user_id is None:
            raise ValueError("users_table is true, but no user_id says whose row is whose")
        if self.bid_micros is not None and not self.ads_table:
            raise ValueError("bid_micros is a column of the ads table, but ads_table is false")
        keys = Counter(frozenset(spec.columns) for spec in self.counters)
        for spec in self.counters:
            halves = spec.half_lives_hours
            if keys[frozenset(spec.columns)] > 1 or len(set(halves)) < len(halves):
                raise ValueError(f"counter '{spec.name}' or one of its half-lives is there twice")
            if len(set(spec.columns)) < len(spec.columns):
                raise ValueError(f"counter '{spec.name}' uses a column twice")
            unknown = sorted(set(spec.columns) - known)
            if unknown:
                raise ValueError(
                    f"counter '{spec.name}': {', '.join(unknown)} is not a key; "
                    f"choose from {', '.join(sorted(known))}"
                )
        return self

    def _check_field(self, field: AnyField) -> None:
        for table, exists in (("users", self.users_table), ("ads", self.ads_table)):
            if field.table == table and not exists:
                raise ValueError(
                    f"field '{field.name}' is in the {table} table, but {table}_table is false"
                )
        if field.table not in (None, "impressions", "ads" if field.role == "ad" else "users") or (
            field.role == "context" and field.table == "users"
        ):
            raise ValueError(
                f"field '{field.name}' has the role {field.role} and cannot be in the "
                f"{field.table} table"
            )
        if field.role == "ad" and field.table == "impressions" and self.ads_table:
            raise ValueError(
                f"field '{field.name}': an ad's field in the impressions table changes with the "
                "request; give it the role context, or move it to the ads table"
            )
        outcomes = {task.source for task in self.tasks}
        if self.table_of(field) == "impressions" and field.source in outcomes:
            raise ValueError(
                f"field '{field.name}' reads '{field.source}', an outcome: it is not known yet "
                "when the request arrives; remove the field"
            )
        if field.kind == "sequence":
            if self.user_id is None:
                raise ValueError(f"sequence '{field.name}' needs a user_id")
            if field.column is None and field.grows_with is None:
                raise ValueError(f"sequence '{field.name}' needs a column, grows_with, or both")
            if field.column is not None and not self.users_table:
                raise ValueError(
                    f"sequence '{field.name}' has a column but no users_table to be in"
                )
            if field.table == "impressions":
                raise ValueError(f"sequence '{field.name}' has to be in the users table")
            if field.times is not None and field.column is None:
                raise ValueError(f"sequence '{field.name}' has times, but no column of items")
            tasks = {task.name for task in self.tasks}
            if field.grows_with not in (None, IMPRESSION, *tasks):
                raise ValueError(
                    f"sequence '{field.name}' grows with '{field.grows_with}', "
                    f"which is not a task; choose from {', '.join(sorted(tasks))}, "
                    f"or {IMPRESSION} for all that was shown"
                )

    @property
    def click(self) -> Task:
        """The task that retrieval learns from and the auction multiplies a bid with: the first."""
        return self.tasks[0]

    @property
    def clocks(self) -> tuple[ClockField, ...]:
        """Fields that are read from the time."""
        return tuple(f for f in self.fields if f.kind == "clock")

    def table_of(self, field: AnyField) -> TableName:
        """The table that holds a field."""
        if field.table is not None:
            return field.table
        if field.role == "user" and self.users_table:
            return "users"
        if field.role == "ad" and self.ads_table:
            return "ads"
        return "impressions"

    @property
    def sequences(self) -> tuple[SequenceField, ...]:
        """The sequence fields, in order."""
        return tuple(f for f in self.fields if f.kind == "sequence")

    @property
    def user_fields(self) -> tuple[AnyField, ...]:
        """What is known of a user before any request: fields of the users table but sequences."""
        return tuple(f for f in self.fields if self.table_of(f) == "users" and f.kind != "sequence")

    @property
    def request_fields(self) -> tuple[AnyField, ...]:
        """What arrives with a request: context, and user fields where there is no users table."""
        return tuple(
            f
            for f in self.fields
            if self.table_of(f) == "impressions" and f.role != "ad" and f.kind != "sequence"
        )

    @property
    def standing(self) -> tuple[CounterSpec, ...]:
        """Counters of ads alone, whoever asks: what retrieval may know of an ad's past."""
        ad = {AD_ID, *(field.name for field in self.ad_fields)}
        return tuple(spec for spec in self.counters if ad.issuperset(spec.columns))

    @property
    def ad_fields(self) -> tuple[AnyField, ...]:
        """What is known of an ad."""
        return tuple(f for f in self.fields if f.role == "ad")

    def dump(self) -> str:
        """This schema as YAML."""
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_defaults=True) | {"name": self.name},
            sort_keys=False,
        )


def parse_schema(text: str, *, source: str = "schema") -> Schema:
    """Read a schema from YAML.

    Args:
        text: the YAML.
        source: where it came from, for error messages.

    Raises:
        ConfigError: not YAML, an unknown key, a wrong type, or names that do not fit together.
    """
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected keys such as 'name', 'tasks' and 'fields'")
    return parse_config(Schema, content, source=source)


def load_schema(path: Path) -> Schema:
    """Read a schema file; see `parse_schema`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_schema(text, source=str(path))


def _may_be_shown(item: ErrorDetails) -> bool:
    """Whether an error may repeat the value: a table of settings is too long, and a token, a URL
    with a password, or what stands under a mistyped name may be secret."""
    names = [str(part) for part in item["loc"]]
    secret = item["type"] == "extra_forbidden" or any(
        name.endswith("token") or name in ("redis", "events") for name in names
    )
    return not secret and not isinstance(item["input"], dict)


def parse_config(model: type[ConfigT], content: Any, *, source: str) -> ConfigT:
    """Validate `content` as `model`, turning pydantic's errors into one that names each field."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [
            "  "
            + ".".join(map(str, item["loc"]))
            + ": " * bool(item["loc"])
            + item["msg"].removeprefix("Value error, ")
            + (f" (got {item['input']!r})" if _may_be_shown(item) else "")
            for item in error.errors()
        ]
        raise ConfigError("\n".join([f"{source}: not valid:", *lines])) from error
