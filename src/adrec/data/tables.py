"""Tables: impressions, users and ads, read lazily from Parquet, CSV or TSV under a Schema.

Every column comes out under the name and type that the rest of adrec uses: ids as strings, time as
UTC milliseconds, categorical fields as strings, numbers as floats, sequences and embeddings as
lists. `check_tables` finds everything that is wrong before anything is trained on it.

Ids and categories are text with one spelling a value, whether a file or a request brings it: 9 and
9.0 are "9", true is "true", "" is missing. `as_text` is that rule for one value.
"""

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
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

_INT64 = 2**63  # whole floats below it are spelt as integers
_TRAILING_ZEROS = r"^(-?[0-9]+)\.0+$"
_ISO_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d")
_ROW = "adrec:row"


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
        frame = self.ordered().select(names)
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
            return frame if time.is_sorted() else frame.sort(TIMESTAMP_MS, maintain_order=True)
        with reading(self.impressions.file):
            keys = frame.select(TIMESTAMP_MS, REQUEST_ID).collect(engine="streaming")
        runs = (keys[REQUEST_ID] != keys[REQUEST_ID].shift()).fill_null(True).sum()
        if keys[TIMESTAMP_MS].is_sorted() and runs == keys[REQUEST_ID].n_unique():
            return frame
        first = pl.col(TIMESTAMP_MS).min().over(REQUEST_ID)
        return frame.sort(first, REQUEST_ID, TIMESTAMP_MS, maintain_order=True)

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
                if batch.height == 0:
                    continue
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
            problem=f"cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})",
            remedy="Check that it is complete, readable and of the type its name says",
        )
        raise DataError("A table cannot be read:", _check_lines(file) or [problem]) from error


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
        DataError: a column that the schema names is missing, there twice, or of a type that cannot
            be what the schema says.
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


def as_text(value: str | float | bool | None) -> str | None:
    """The spelling that a table gives to an id or a category; a request's values need the same.

    Args:
        value: as JSON brings it.

    Returns:
        "9" for 9, 9.0 and "9.0"; "true" for True; None for None, "" and NaN.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < _INT64:
        return str(int(value))
    text = str(value)
    whole, dot, fraction = text.partition(".")
    if dot and fraction and not fraction.strip("0") and _is_whole(whole):
        return whole
    return text


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def check_tables(tables: Tables) -> list[Problem]:
    """Everything wrong with a log, one entry for each kind of mistake in each column.

    Finds lines with too many or too few cells, values that do not parse, missing ids, times and
    labels, labels outside their range, vectors of the wrong length, histories out of order,
    duplicate ids, and tables without rows.
    """
    problems: list[Problem] = []
    for table in tables.all:
        problems += _check_lines(table.file)
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
            problem, remedy = _type_complaint(column)
            problems.append(
                Problem(
                    file=table.file,
                    column=column.source,
                    problem=f"the column has the type {there}: {problem}",
                    remedy=remedy,
                )
            )
    return problems


def _parse(column: Column, there: pl.DataType) -> pl.Expr:
    """The expression that turns a raw column of type `there` into adrec's; null where it cannot."""
    raw = pl.col(column.source)
    wanted = column.dtype
    if column.timestamp_unit is not None:
        return _parse_time(raw, there, column.timestamp_unit)
    if isinstance(wanted, pl.String):
        return _parse_text(raw, there)
    if isinstance(wanted, pl.List | pl.Array):
        return _parse_list(raw, there, wanted)
    if wanted.is_integer():
        number = raw if there.is_integer() else raw.cast(pl.Float64, strict=False)
        return pl.when(number == number.floor()).then(number).cast(wanted, strict=False)
    number = raw.cast(wanted, strict=False)
    return pl.when(number.is_finite()).then(number)


def _parse_text(raw: pl.Expr, there: pl.DataType) -> pl.Expr:
    """The vectorised twin of `as_text`."""
    if there.is_float():
        whole = (raw == raw.floor()) & (raw.abs() < _INT64)
        integer = raw.cast(pl.Int64, strict=False).cast(pl.String)
        return pl.when(whole).then(integer).when(raw.is_not_nan()).then(raw.cast(pl.String))
    text: pl.Expr = raw.cast(pl.String, strict=False)
    if there == pl.String() or there.is_decimal():
        zeros = text.str.ends_with("0") & text.str.contains(".", literal=True)
        bare = text.str.replace(_TRAILING_ZEROS, "${1}")
        text = pl.when(zeros).then(bare).otherwise(text)
    return pl.when(text != "").then(text)


def _parse_list(raw: pl.Expr, there: pl.DataType, wanted: pl.List | pl.Array) -> pl.Expr:
    """Lists as they are, or out of text such as `3 5 8`, `3|5|8` and `["3", "5", "8"]`."""
    inner: pl.DataType = pl.String()
    if isinstance(there, pl.List | pl.Array):
        assert isinstance(there.inner, pl.DataType)
        inner = there.inner
        items = raw.arr.to_list() if isinstance(there, pl.Array) else raw
    else:
        text = raw.str.replace_all(r"""[\s,|;\[\]"']+""", " ").str.strip_chars(" ")
        none = pl.lit([], dtype=pl.List(pl.String))
        items = pl.when(text == "").then(none).otherwise(text.str.split(" "))
    if isinstance(wanted, pl.Array):
        numbers = items.cast(pl.List(pl.Float32), strict=False)
        finite = numbers.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        complete = (numbers.list.len() == wanted.size) & finite
        return pl.when(complete).then(numbers).cast(wanted, strict=False)
    if wanted.inner == pl.String():
        return items.list.eval(_parse_text(pl.element(), inner))
    if inner.is_temporal():
        return items.list.eval(pl.element().dt.timestamp("ms"))
    return items.cast(wanted, strict=False)


def _parse_time(raw: pl.Expr, there: pl.DataType, unit: str) -> pl.Expr:
    """UTC milliseconds, rounded down."""
    if isinstance(there, pl.Datetime | pl.Date):
        return raw.dt.timestamp("ms")
    if unit == "iso8601":
        # One format after the other, row by row: a format guessed from a file's first row would
        # lose the rows that differ, such as those without a fraction.
        text = raw.cast(pl.String, strict=False).str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T")
        return pl.coalesce(
            text.str.to_datetime(
                f, time_unit="ms", time_zone="UTC" if "z" in f else None, strict=False
            ).dt.timestamp("ms")
            for f in _ISO_FORMATS
        )
    if there.is_integer():
        whole = raw.cast(pl.Int64, strict=False)
        return {"ms": whole, "s": whole * 1000, "us": whole // 1000}[unit]
    number = raw.cast(pl.Float64, strict=False)
    # A second such as 1650812741.436 is stored a hair below its millisecond; hence the rounding.
    ms = {"ms": number, "s": (number * 1000).round(3), "us": number / 1000}[unit]
    return ms.floor().cast(pl.Int64, strict=False)


def _check_lines(file: str) -> list[Problem]:
    """Lines of a CSV or TSV file that have too many cells, too few, or are not UTF-8.

    Polars refuses the first without saying where, and fills up the second in silence.
    """
    path = Path(file)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    separator = {"csv": ",", "tsv": "\t", "txt": "\t"}.get(kind)
    if separator is None or not path.is_file():
        return []
    header_rows = 0 if kind == "txt" else 1
    try:
        lines = pl.scan_csv(
            path,
            separator="\x1f",
            has_header=False,
            quote_char=None,
            schema={"line": pl.String},
            encoding="utf8-lossy",
            truncate_ragged_lines=True,
        ).with_row_index(_ROW)
        line = pl.col("line").fill_null("")
        cells = pl.when(line.str.strip_chars("\r") != "").then(
            line.str.count_matches(separator, literal=True) + 1
        )
        garbled = line.str.contains("\ufffd", literal=True)
        seen = (
            lines.select(
                width=cells.first(),
                row=pl.col(_ROW).filter(cells != cells.first()).min(),
                rows=(cells != cells.first()).sum(),
                cells=cells.filter(cells != cells.first()).first(),
                quotes=(line.str.contains('"', literal=True) & (separator != "\t")).any(),
                garbled=pl.col(_ROW).filter(garbled).min(),
                garbled_rows=garbled.sum(),
            )
            .collect()
            .row(0, named=True)
        )
        if seen["row"] is not None and seen["quotes"]:
            seen |= _count_quoted(path, separator)
    except (pl.exceptions.PolarsError, OSError, csv.Error):
        return []  # whoever reads the table will say that it cannot be read
    problems = []
    if seen["row"] is not None:
        problems.append(
            Problem(
                file=file,
                row=seen["row"] + 1 - header_rows,
                rows=seen["rows"],
                problem=f"has {seen['cells']} cells where the first line has {seen['width']}",
                remedy="Quote cells that hold the separator, and give each line every cell",
            )
        )
    if seen["garbled"] is not None:
        problems.append(
            Problem(
                file=file,
                row=seen["garbled"] + 1 - header_rows,
                rows=seen["garbled_rows"],
                problem="is not UTF-8",
                remedy="Export the file again as UTF-8",
            )
        )
    return problems


def _count_quoted(path: Path, separator: str) -> dict[str, int | None]:
    """The same count where cells are quoted: slower, and right about separators inside a cell."""
    first = cells = None
    width = rows = 0
    unpack = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rt", encoding="utf-8", errors="replace", newline="") as lines:
        for i, row in enumerate(csv.reader(lines, delimiter=separator)):
            if i == 0:
                width = len(row)
            elif row and len(row) != width:
                rows += 1
                if first is None:
                    first, cells = i, len(row)
    return {"width": width, "row": first, "rows": rows, "cells": cells}


def _check_columns(table: Table) -> list[Problem]:
    types = table.raw.collect_schema()
    parsed = {c.name: _parse(c, types[c.source]) for c in table.columns}
    checks: list[tuple[Column, str, str, pl.Expr]] = []
    for column in table.columns:
        value = parsed[column.name]
        empty = _is_empty(column, types[column.source], value)
        if column.required:
            checks.append((column, "a value is missing", "Fill it in or drop the row", empty))
        if column.dtype != pl.String():
            checks.append((column, *_type_complaint(column), ~empty & value.is_null()))
        if isinstance(column.dtype, pl.List):
            hole = value.list.eval(pl.element().is_null()).list.any()
            checks.append((column, *_type_complaint(column), ~empty & hole))
        complaint = _range_complaint(column)
        if complaint is not None:
            outside = (value < column.low) if column.low is not None else pl.lit(False)
            if column.high is not None:
                outside |= value > column.high
            if column.whole:
                outside |= value != value.floor()
            checks.append((column, *complaint, outside))
        times = times_column(column.name)
        if times in parsed:
            uneven = value.list.len().fill_null(0) != parsed[times].list.len().fill_null(0)
            remedy = "Give each item its time"
            checks.append((column, "the items and their times differ in number", remedy, uneven))
            falling = parsed[times].list.eval(pl.element().diff() < 0).list.any()
            remedy = "Sort the items by time, oldest first"
            checks.append((column, "the items are not in time order", remedy, falling))
    return _first_rows(table, checks)


def _is_empty(column: Column, there: pl.DataType, value: pl.Expr) -> pl.Expr:
    """Whether a cell is missing, as opposed to wrong. NaN is missing."""
    raw = pl.col(column.source)
    if column.dtype == pl.String():
        return value.is_null()
    if there == pl.String():
        return raw.is_null() | (raw == "") | (raw.str.to_lowercase() == "nan")
    return raw.is_null() | raw.is_nan() if there.is_float() else raw.is_null()


def _first_rows(table: Table, checks: list[tuple[Column, str, str, pl.Expr]]) -> list[Problem]:
    """Run all checks in one pass: how many rows fail each, and which is the first."""
    index = pl.col(_ROW)
    wanted = [pl.len().alias("rows")]
    for i, (_, _, _, bad) in enumerate(checks):
        bad = bad.fill_null(False)
        wanted += [bad.sum().alias(f"n{i}"), index.filter(bad).min().alias(f"first{i}")]
    rows = table.raw.with_row_index(_ROW).select(wanted).collect(engine="streaming")
    found = rows.row(0, named=True)
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
        what = "times in whole milliseconds" if column.dtype.inner == pl.Int64() else "items"
        return f"not a list of {what}", "Write them with spaces between, or as a Parquet list"
    if column.timestamp_unit is not None:
        unit = column.timestamp_unit
        return f"not a time in {unit}", "Correct it, or set timestamp_unit in the schema"
    if column.dtype == pl.String():
        return "not a single value", "Choose another column, or make the field a sequence"
    if column.dtype.is_integer():
        return "not a whole number", "Correct it or drop the row"
    return "not a finite number", "Correct it, leave it empty, or make the field categorical"


def _range_complaint(column: Column) -> tuple[str, str] | None:
    if column.low is None and column.high is None:
        return None
    if column.whole:
        return "a label is neither 0 nor 1", "Correct it, or make the task's kind value"
    if column.high is None:
        return f"a value is below {column.low:g}", "Correct it or drop the row"
    return f"a value is outside [{column.low:g}, {column.high:g}]", "Correct it or drop the row"


def _check_unique(table: Table, key: str) -> list[Problem]:
    source = next(column.source for column in table.columns if column.name == key)
    ids = table.frame().select(key).collect().to_series()
    repeated = ids.is_first_distinct().not_() & ids.is_not_null()
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
