"""Tables: impressions, users and ads, read lazily from Parquet, CSV or TSV under a Schema.

Every column comes out under the name and type that the rest of adrec uses: ids as strings, time as
UTC milliseconds, categorical fields as strings, numbers as floats, sequences and embeddings as
lists. `check_tables` finds everything that is wrong before anything is trained on it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

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

SUFFIXES = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")

_UNIT_TO_MS = {"ms": 1.0, "s": 1000.0, "us": 0.001}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column to read: where from, what it becomes, and what counts as wrong in it."""

    name: str
    source: str
    dtype: pl.DataType
    required: bool = False
    """A missing value is an error."""
    low: float | None = None
    high: float | None = None
    whole: bool = False
    """Only whole numbers (labels 0 and 1)."""
    timestamp_unit: str | None = None


@dataclass(frozen=True)
class Table:
    """A lazily read file with the columns that a schema wants of it."""

    file: str
    raw: pl.LazyFrame
    columns: tuple[Column, ...]

    def frame(self) -> pl.LazyFrame:
        """The columns under adrec's names and types; what does not parse becomes null."""
        types = self.raw.collect_schema()
        return self.raw.select(_parse(c, types[c.source]).alias(c.name) for c in self.columns)


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

    def ad_frame(self) -> pl.DataFrame:
        """The catalogue: ads in file order or, without a table of ads, by first impression."""
        if self.ads is not None:
            with reading(self.ads.file):
                return self.ads.frame().collect(engine="streaming")
        names = [AD_ID, *(field.name for field in self.schema.ad_fields)]
        with reading(self.impressions.file):
            frame = self.impressions.frame().select(names)
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

        A sort needs the impressions in memory; a file that is in order is read in pieces.
        """
        frame = self.impressions.frame()
        if self.schema.request_id is None:
            with reading(self.impressions.file):
                time = frame.select(TIMESTAMP_MS).collect(engine="streaming").to_series()
            return frame if time.is_sorted() else frame.sort(TIMESTAMP_MS, maintain_order=True)
        with reading(self.impressions.file):
            keys = frame.select(TIMESTAMP_MS, REQUEST_ID).collect(engine="streaming")
        runs = (keys[REQUEST_ID] != keys[REQUEST_ID].shift()).fill_null(True).sum()
        if keys[TIMESTAMP_MS].is_sorted() and runs == keys[REQUEST_ID].n_unique():
            return frame
        return frame.sort(TIMESTAMP_MS, REQUEST_ID, maintain_order=True)

    def chunks(self, rows: int) -> Iterator[pl.DataFrame]:
        """Impressions in time order, about `rows` at a time; a request is never cut in two."""
        batches = self.ordered().collect_batches(chunk_size=rows, maintain_order=True)
        if self.schema.request_id is None:
            with reading(self.impressions.file):
                yield from batches
            return
        rest: pl.DataFrame | None = None
        with reading(self.impressions.file):
            for batch in batches:
                frame = batch if rest is None else pl.concat([rest, batch])
                open_request = frame[REQUEST_ID] == frame[REQUEST_ID][-1]
                cut = frame.height - int(open_request.sum())
                if cut:
                    yield frame[:cut]
                rest = frame[cut:]
        if rest is not None and rest.height:
            yield rest


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn polars' and the system's read errors into a DataError that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        problem = Problem(
            file=file,
            problem=f"cannot be read ({str(error).splitlines()[0]})",
            remedy="Check that it is complete, readable and of the type its name says",
        )
        raise DataError("A table cannot be read:", [problem]) from error


def find_table(directory: Path, name: str) -> Path:
    """The file of a table: `impressions.parquet`, `.csv`, `.tsv`, or the last two with `.gz`.

    Raises:
        DataError: the folder has none, or more than one.
    """
    found = [p for suffix in SUFFIXES if (p := directory / f"{name}{suffix}").exists()]
    if len(found) == 1:
        return found[0]
    what = "is missing" if not found else f"is there as {', '.join(p.name for p in found)}"
    endings = ", ".join(SUFFIXES)
    raise DataError(
        "A log needs one file for each of its tables:",
        [
            Problem(
                file=str(directory / name),
                problem=f"table '{name}' {what}",
                remedy=f"Give it exactly one file with one of the endings {endings}",
            )
        ],
    )


def scan(path: Path) -> pl.LazyFrame:
    """Open a file lazily by its ending. CSV and TSV columns come as strings, to be parsed later."""
    with reading(str(path)):
        if path.stat().st_size == 0:
            problem = Problem(file=str(path), problem="is empty", remedy="Export it again")
            raise DataError("A table has no content:", [problem])
        if path.suffix == ".parquet":
            return pl.scan_parquet(path)
        separator = "\t" if ".tsv" in path.suffixes else ","
        return pl.scan_csv(path, separator=separator, infer_schema=False)


def open_tables(schema: Schema, directory: Path) -> Tables:
    """Open the tables of a folder; see `find_table` for their names.

    Raises:
        DataError: a file or a column is missing.
    """
    frames = {"impressions": scan_table(directory, "impressions")}
    if schema.users_table:
        frames["users"] = scan_table(directory, "users")
    if schema.ads_table:
        frames["ads"] = scan_table(directory, "ads")
    return tables_from(schema, frames)


def scan_table(directory: Path, name: str) -> tuple[str, pl.LazyFrame]:
    """The file's name and its lazy content."""
    path = find_table(directory, name)
    return str(path), scan(path)


def tables_from(schema: Schema, frames: Mapping[str, tuple[str, pl.LazyFrame]]) -> Tables:
    """Tables from `{name: (file name for messages, frame)}`: what a layout's reader returns.

    Raises:
        DataError: a column that the schema names is missing.
    """
    wanted: dict[TableName, tuple[Column, ...]] = {"impressions": _impression_columns(schema)}
    if schema.users_table:
        wanted["users"] = _user_columns(schema)
    if schema.ads_table:
        wanted["ads"] = _ad_columns(schema)
    tables = {name: Table(*frames[name], columns) for name, columns in wanted.items()}
    missing = [problem for table in tables.values() for problem in _missing_columns(table)]
    if missing:
        raise DataError("Columns that the schema names are not there:", missing)
    return Tables(schema, tables["impressions"], tables.get("users"), tables.get("ads"))


def check_tables(tables: Tables) -> list[Problem]:
    """Everything wrong with a log, one entry for each kind of mistake in each column.

    Finds values that do not parse, missing ids, times and labels, labels outside their range,
    vectors of the wrong length, duplicate ids, and tables without rows.
    """
    problems: list[Problem] = []
    for table in tables.all:
        with reading(table.file):
            problems += _check_columns(table)
    for keyed, key in ((tables.users, USER_ID), (tables.ads, AD_ID)):
        if keyed is not None:
            with reading(keyed.file):
                problems += _check_unique(keyed, key)
    return problems


def require_valid(tables: Tables) -> None:
    """Raise a DataError with everything that `check_tables` finds."""
    problems = check_tables(tables)
    if problems:
        raise DataError("The log does not match its schema:", problems)


def _impression_columns(schema: Schema) -> tuple[Column, ...]:
    columns = [
        Column(
            name=TIMESTAMP_MS,
            source=schema.timestamp,
            dtype=pl.Int64(),
            required=True,
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


def _user_columns(schema: Schema) -> tuple[Column, ...]:
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


def _field_columns(schema: Schema, table: TableName) -> list[Column]:
    columns: list[Column] = []
    for field in schema.fields:
        if schema.table_of(field) != table or (field.kind == "sequence" and field.column is None):
            continue
        columns.append(Column(name=field.name, source=field.source, dtype=_dtype(field)))
        if field.kind == "sequence" and field.times is not None:
            columns.append(
                Column(name=times_column(field.name), source=field.times, dtype=pl.List(pl.Int64))
            )
    return columns


def times_column(sequence: str) -> str:
    """Name of the column with the times of a sequence's items."""
    return f"{sequence}:times_ms"


def _dtype(field: AnyField) -> pl.DataType:
    match field.kind:
        case "categorical":
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
    return [
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


def _parse(column: Column, dtype: pl.DataType) -> pl.Expr:
    """The expression that turns a raw column into adrec's type; null where it cannot."""
    raw = pl.col(column.source)
    if column.timestamp_unit is not None:
        return _parse_time(raw, dtype, column.timestamp_unit)
    if isinstance(column.dtype, pl.List | pl.Array) and dtype == pl.String():
        raw = raw.str.strip_chars("[] ").str.replace_all(r"[\s,|;]+", " ")
        raw = (
            pl.when(raw == "")
            .then(pl.lit([], dtype=pl.List(pl.String)))
            .otherwise(raw.str.split(" "))
        )
        dtype = pl.List(pl.String)
    if isinstance(column.dtype, pl.Array) and not isinstance(dtype, pl.Array):
        as_list = raw.cast(pl.List(pl.Float32), strict=False)
        return (
            pl.when(as_list.list.len() == column.dtype.size)
            .then(as_list)
            .otherwise(None)
            .cast(column.dtype, strict=False)
        )
    if isinstance(column.dtype, pl.Int64 | pl.Int32) and dtype == pl.String():
        raw = raw.cast(pl.Float64, strict=False)
    return raw.cast(column.dtype, strict=False)


def _parse_time(raw: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    if isinstance(dtype, pl.Datetime | pl.Date):
        return raw.cast(pl.Datetime("ms", None), strict=False).cast(pl.Int64)
    if unit == "iso8601":
        parsed = raw.cast(pl.String).str.to_datetime(time_unit="ms", time_zone="UTC", strict=False)
        return parsed.dt.timestamp("ms")
    if dtype.is_integer() and unit == "ms":
        return raw.cast(pl.Int64)
    return (raw.cast(pl.Float64, strict=False) * _UNIT_TO_MS[unit]).floor().cast(pl.Int64)


def _check_columns(table: Table) -> list[Problem]:
    types = table.raw.collect_schema()
    checks: list[tuple[Column, str, str, pl.Expr]] = []
    for column in table.columns:
        raw, parsed = pl.col(column.source), _parse(column, types[column.source])
        empty = raw.is_null()
        if types[column.source] == pl.String():
            empty |= (raw == "") & (column.dtype != pl.String())
        if column.required:
            checks.append((column, "a value is missing", "Fill it in or drop the row", empty))
        if column.dtype != pl.String():
            checks.append((column, *_type_complaint(column), ~empty & parsed.is_null()))
        complaint = _range_complaint(column)
        if complaint is not None:
            outside = (parsed < column.low) if column.low is not None else pl.lit(False)
            if column.high is not None:
                outside |= parsed > column.high
            if column.whole:
                outside |= parsed != parsed.floor()
            if isinstance(column.dtype, pl.Float32 | pl.Float64):
                outside |= parsed.is_nan() | parsed.is_infinite()
            checks.append((column, *complaint, outside))
    return _first_rows(table, checks)


def _first_rows(table: Table, checks: list[tuple[Column, str, str, pl.Expr]]) -> list[Problem]:
    """Run all checks in one pass: how many rows fail each, and which is the first."""
    index = pl.int_range(pl.len(), dtype=pl.Int64)
    wanted = [pl.len().alias("rows")]
    for i, (_, _, _, bad) in enumerate(checks):
        bad = bad.fill_null(False)
        wanted += [bad.sum().alias(f"n{i}"), index.filter(bad).min().alias(f"first{i}")]
    found = table.raw.select(wanted).collect().row(0, named=True)
    if found["rows"] == 0:
        return [Problem(file=table.file, problem="has no rows", remedy="Export it again")]
    return [
        Problem(
            file=table.file,
            column=column.source,
            row=found[f"first{i}"] + 1,
            rows=found[f"n{i}"],
            problem=problem,
            remedy=remedy,
        )
        for i, (column, problem, remedy, _) in enumerate(checks)
        if found[f"n{i}"]
    ]


def _type_complaint(column: Column) -> tuple[str, str]:
    if isinstance(column.dtype, pl.Array):
        size = column.dtype.size
        return f"not a vector of {size} numbers", f"Give each row {size} numbers or leave it empty"
    if isinstance(column.dtype, pl.List):
        return "not a list", "Write items with spaces or commas between, or a Parquet list"
    if column.timestamp_unit is not None:
        unit = column.timestamp_unit
        return f"not a time in {unit}", "Correct it, or set timestamp_unit in the schema"
    return "not a number", "Correct it, leave it empty, or make the field categorical"


def _range_complaint(column: Column) -> tuple[str, str] | None:
    if column.low is None and column.high is None:
        return None
    if column.whole:
        return "a label is neither 0 nor 1", "Correct it, or make the task's kind value"
    if column.high is None:
        return f"a value is below {column.low:g} or not finite", "Correct it or drop the row"
    return f"a value is outside [{column.low:g}, {column.high:g}]", "Correct it or drop the row"


def _check_unique(table: Table, key: str) -> list[Problem]:
    source = next(column.source for column in table.columns if column.name == key)
    ids = table.frame().select(key).collect().to_series()
    repeated = ids.is_first_distinct().not_()
    if not repeated.any():
        return []
    first = int(repeated.arg_max() or 0)
    return [
        Problem(
            file=table.file,
            column=source,
            row=first + 1,
            rows=int(repeated.sum()),
            problem=f"id '{ids[first]}' stands there already",
            remedy="Keep one row an id",
        )
    ]
