"""Tables: impressions, users and ads, read lazily from Parquet, CSV or TSV under a Schema.

Every column comes out under the name and type that the rest of adrec uses: ids as strings, time as
UTC milliseconds, categorical fields as strings, numbers as floats, sequences and embeddings as
lists. How a cell is parsed stands in `parsing`, what may be wrong with a log in `checks`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.files import reading, scan_table
from adrec.data.parsing import Column, parse, type_complaint
from adrec.errors import DataError, Problem
from adrec.schema import (
    AD_ID,
    BID_MICROS,
    POSITION,
    PROPENSITY,
    REQUEST_ID,
    TIMESTAMP_MS,
    USER_ID,
    AnyField,
    Schema,
    TableName,
)


@dataclass(frozen=True)
class Table:
    """A lazily read file with the columns that a schema wants of it."""

    file: str
    raw: pl.LazyFrame
    columns: tuple[Column, ...]
    is_parsed: bool = False
    """Whether the file has adrec's names and types already."""

    def frame(self) -> pl.LazyFrame:
        """The columns under adrec's names and types; what does not parse becomes null."""
        if self.is_parsed:
            return self.raw
        return self.raw.select(parse.alias(name) for name, parse in self.parsed().items())

    def parsed(self) -> dict[str, pl.Expr]:
        """How each column is parsed, by adrec's names."""
        types = self.raw.collect_schema()
        return {c.name: parse(c, types[c.source]) for c in self.columns}


@dataclass(frozen=True)
class Tables:
    """A log: impressions, and users and ads where the schema says that it has them."""

    schema: Schema
    impressions: Table
    users: Table | None
    ads: Table | None

    @property
    def all(self) -> tuple[Table, ...]:
        """The tables that exist."""
        return tuple(t for t in (self.impressions, self.users, self.ads) if t is not None)

    def head(self, rows: int) -> "Tables":
        """The same log with only its first impressions."""
        few = replace(self.impressions, raw=self.impressions.raw.head(rows))
        return replace(self, impressions=few)

    def ad_frame(self, *, before_ms: int | None = None) -> pl.DataFrame:
        """The catalogue: ads in file order or, without a table of ads, by first impression.

        Without a table, `before_ms` leaves out ads that only later requests showed.
        """
        if self.ads is not None:
            with reading(self.ads.file):
                return self.ads.frame().collect(engine="streaming")
        names = [AD_ID, *(field.name for field in self.schema.ad_fields)]
        frame = self.ordered()
        if before_ms is not None:
            time = pl.col(TIMESTAMP_MS)
            frame = frame.filter(
                (time if self.schema.request_id is None else time.min().over(REQUEST_ID))
                < before_ms
            )
        frame = frame.select(names)
        with reading(self.impressions.file):
            return frame.unique(subset=AD_ID, keep="first", maintain_order=True).collect()

    def user_frame(self) -> pl.DataFrame | None:
        """The users, in file order; None without a table of users."""
        if self.users is None:
            return None
        with reading(self.users.file):
            return self.users.frame().collect(engine="streaming")

    def rows(self) -> int:
        """Number of impressions."""
        with reading(self.impressions.file):
            return int(self.impressions.raw.select(pl.len()).collect(engine="streaming").item())

    def ordered(self) -> pl.LazyFrame:
        """Impressions in time order, the rows of a request together; sorted only if they are not.

        Where the rows of a request differ in time, it stands where its first row belongs. A sort
        needs the impressions in memory; a file that is in order is read in pieces.
        """
        frame = self.impressions.frame()
        if self.schema.request_id is None:
            with reading(self.impressions.file):
                time = frame.select(TIMESTAMP_MS).collect(engine="streaming").to_series()
            return frame if time.is_sorted() else self.sorted()
        with reading(self.impressions.file):
            keys = frame.select(TIMESTAMP_MS, REQUEST_ID).collect(engine="streaming")
        runs = (keys[REQUEST_ID] != keys[REQUEST_ID].shift()).fill_null(True).sum()
        if keys[TIMESTAMP_MS].is_sorted() and runs == keys[REQUEST_ID].n_unique():
            return frame
        return self.sorted()

    def sorted(self) -> pl.LazyFrame:
        """The same impressions for certain in order: sorted in memory, ties as they stand."""
        frame = self.impressions.frame()
        if self.schema.request_id is None:
            return frame.sort(TIMESTAMP_MS, maintain_order=True)
        first = pl.col(TIMESTAMP_MS).min().over(REQUEST_ID)
        return frame.sort(first, REQUEST_ID, TIMESTAMP_MS, maintain_order=True)

    def times_ms(self) -> NDArray[np.int64]:
        """When the impressions were, ascending."""
        with reading(self.impressions.file):
            times = self.impressions.frame().select(pl.col(TIMESTAMP_MS).sort())
            found: NDArray[np.int64] = times.collect(engine="streaming").to_series().to_numpy()
        return found


def uncut(batches: Iterable[pl.DataFrame], schema: Schema) -> Iterator[pl.DataFrame]:
    """The same impressions, cut elsewhere where a cut goes through a request."""
    rest: pl.DataFrame | None = None
    for batch in batches:
        if schema.request_id is None or batch.height == 0:
            yield batch
            continue
        frame = batch if rest is None else pl.concat([rest, batch])
        open_request = frame[REQUEST_ID] == frame[REQUEST_ID][-1]
        cut = frame.height - int(open_request.sum())
        if cut:
            yield frame[:cut]
        rest = frame[cut:]
    if rest is not None and rest.height:
        yield rest


def open_tables(schema: Schema, directory: Path) -> Tables:
    """Open the tables of a folder; see `files.find_table` for their names.

    Raises:
        DataError: a file or a column is missing.
    """
    frames = {"impressions": scan_table(directory, "impressions")}
    if schema.users_table:
        frames["users"] = scan_table(directory, "users")
    if schema.ads_table:
        frames["ads"] = scan_table(directory, "ads")
    return tables_from(schema, frames)


def tables_from(schema: Schema, frames: Mapping[str, tuple[str, pl.LazyFrame]]) -> Tables:
    """Tables from `{name: (file name for messages, frame)}`: what a layout's reader returns.

    Raises:
        DataError: a column that the schema names is missing, there twice, or of a type that cannot
            be what the schema says.
    """
    wanted: dict[TableName, tuple[Column, ...]] = {"impressions": impression_columns(schema)}
    if schema.users_table:
        wanted["users"] = user_columns(schema)
    if schema.ads_table:
        wanted["ads"] = _ad_columns(schema)
    tables = {name: Table(*frames[name], columns) for name, columns in wanted.items()}
    missing = [problem for table in tables.values() for problem in _missing_columns(table)]
    if missing:
        raise DataError("Columns that the schema names are not there:", missing)
    wrong = [problem for table in tables.values() for problem in _wrong_types(table)]
    if wrong:
        raise DataError("Columns are not what the schema says:", wrong)
    return Tables(schema, tables["impressions"], tables.get("users"), tables.get("ads"))


def require_columns(file: str, frame: pl.LazyFrame, names: Sequence[str]) -> None:
    """Raise a DataError that lists which of `names` the frame lacks; for the layouts' readers."""
    columns = tuple(Column(name=name, source=name, dtype=pl.String()) for name in names)
    missing = _missing_columns(Table(file, frame, columns))
    if missing:
        raise DataError("Columns that the layout needs are not there:", missing)


def under_own_names(schema: Schema) -> Schema:
    """The schema of tables that have adrec's names and types, as `Table.frame` gives them."""
    fields = [
        field.model_copy(
            update={
                "column": field.name,
                **({"times": times_column(field.name)} if field.times is not None else {}),
            }
            if field.column is not None and field.kind == "sequence"
            else {"column": None}
        )
        for field in schema.fields
    ]
    names = {
        "user_id": USER_ID, "request_id": REQUEST_ID, "position": POSITION,
        "propensity": PROPENSITY, "bid_micros": BID_MICROS,
    }  # fmt: skip
    ids = {name: own for name, own in names.items() if getattr(schema, name) is not None}
    return schema.model_copy(
        update={
            **ids,
            "ad_id": AD_ID,
            "timestamp": TIMESTAMP_MS,
            "timestamp_unit": "ms",
            "tasks": tuple(task.model_copy(update={"column": None}) for task in schema.tasks),
            "fields": tuple(fields),
        }
    )


def times_column(sequence: str) -> str:
    """Name of the column with the times of a sequence's items."""
    return f"{sequence}:times_ms"


def impression_columns(schema: Schema) -> tuple[Column, ...]:
    """What stands in a table of impressions."""
    columns = [
        Column(
            name=TIMESTAMP_MS,
            source=schema.timestamp,
            dtype=pl.Int64(),
            required=True,
            low=0.0,
            timestamp_unit=schema.timestamp_unit,
        ),
        Column(name=AD_ID, source=schema.ad_id, dtype=pl.String(), required=True),
    ]
    if schema.user_id is not None:
        columns.append(
            Column(name=USER_ID, source=schema.user_id, dtype=pl.String(), required=True)
        )
    if schema.request_id is not None:
        columns.append(
            Column(name=REQUEST_ID, source=schema.request_id, dtype=pl.String(), required=True)
        )
    if schema.position is not None:
        columns.append(
            Column(name=POSITION, source=schema.position, dtype=pl.Int32(), required=True, low=1)
        )
    if schema.propensity is not None:
        columns.append(
            Column(
                name=PROPENSITY,
                source=schema.propensity,
                dtype=pl.Float64(),
                required=True,
                low=1e-12,
                high=1.0,
            )
        )
    for task in schema.tasks:
        binary = task.kind == "binary"
        columns.append(
            Column(
                name=task.name,
                source=task.source,
                dtype=pl.Float32(),
                required=True,
                low=0.0,
                high=1.0 if binary else None,
                whole=binary,
            )
        )
    return (*columns, *_field_columns(schema, "impressions"))


def user_columns(schema: Schema) -> tuple[Column, ...]:
    """What stands in a table of users."""
    assert schema.user_id is not None, "a users table needs user_id"
    key = Column(name=USER_ID, source=schema.user_id, dtype=pl.String(), required=True)
    return (key, *_field_columns(schema, "users"))


def _ad_columns(schema: Schema) -> tuple[Column, ...]:
    columns = [Column(name=AD_ID, source=schema.ad_id, dtype=pl.String(), required=True)]
    if schema.bid_micros is not None:
        columns.append(
            Column(
                name=BID_MICROS, source=schema.bid_micros, dtype=pl.Int64(), required=True, low=0
            )
        )
    return (*columns, *_field_columns(schema, "ads"))


def ad_columns(schema: Schema) -> tuple[Column, ...]:
    """What describes an ad, whether it stands in a table of ads or with the impressions."""
    if schema.ads_table:
        return _ad_columns(schema)
    key = Column(name=AD_ID, source=schema.ad_id, dtype=pl.String(), required=True)
    own = {field.name for field in schema.ad_fields}
    return (key, *(c for c in _field_columns(schema, "impressions") if c.name in own))


def _field_columns(schema: Schema, table: TableName) -> list[Column]:
    columns: list[Column] = []
    for field in schema.fields:
        no_column = field.kind == "clock" or (field.kind == "sequence" and field.column is None)
        if no_column or schema.table_of(field) != table:
            continue
        columns.append(Column(name=field.name, source=field.source, dtype=_dtype(field)))
        if field.kind == "sequence" and field.times is not None:
            columns.append(
                Column(name=times_column(field.name), source=field.times, dtype=pl.List(pl.Int64))
            )
    return columns


def _dtype(field: AnyField) -> pl.DataType:
    match field.kind:
        case "categorical" | "clock":
            return pl.String()
        case "numeric":
            return pl.Float32()
        case "sequence":
            return pl.List(pl.String)
        case "embedding":
            return pl.Array(pl.Float32, field.dim)


def _missing_columns(table: Table) -> list[Problem]:
    with reading(table.file):
        there = table.raw.collect_schema().names()
    missing = [
        Problem(
            file=table.file,
            column=column.source,
            problem="the column is missing",
            remedy=f"Add it, or change the schema; the file has {', '.join(there[:12])}"
            + (", ..." if len(there) > 12 else ""),
        )
        for column in table.columns
        if column.source not in there
    ]
    twice = [
        Problem(
            file=table.file,
            column=column.source,
            problem="the header has the column twice",
            remedy="Rename or remove one of them",
        )
        for column in table.columns
        if f"{column.source}_duplicated_0" in there  # polars' name for the second
    ]
    return missing + twice


def _wrong_types(table: Table) -> list[Problem]:
    """Columns whose type alone rules them out: lists where a number is wanted, and the like."""
    types = table.raw.collect_schema()
    problems = []
    for column in table.columns:
        there = types[column.source]
        listed = isinstance(there, pl.List | pl.Array) or there == pl.String()
        wants_list = isinstance(column.dtype, pl.List | pl.Array)
        if (there.is_nested() or there == pl.Object()) if not wants_list else not listed:
            problem, remedy = type_complaint(column)
            problems.append(
                Problem(
                    file=table.file,
                    column=column.source,
                    problem=f"the column has the type {there}: {problem}",
                    remedy=remedy,
                )
            )
    return problems
