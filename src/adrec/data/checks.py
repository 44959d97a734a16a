"""Checks: everything that is wrong with a log, found before anything is trained on it."""

import polars as pl

from adrec.data.files import check_lines, reading
from adrec.data.parsing import Column, parse, type_complaint
from adrec.data.tables import Table, Tables, times_column
from adrec.errors import DataError, Problem
from adrec.schema import AD_ID, REQUEST_ID, TIMESTAMP_MS, USER_ID

_ROW = "adrec:row"
_LONGEST_REQUEST_MS = 24 * 3_600_000


def require_valid(tables: Tables) -> None:
    """Raise a DataError with everything that `check_tables` finds."""
    problems = check_tables(tables)
    if problems:
        raise DataError("The log does not match its schema:", problems)


def check_tables(tables: Tables) -> list[Problem]:
    """Everything wrong with a log, one entry for each kind of mistake in each column.

    Finds lines with too many or too few cells, values that do not parse, missing ids, times and
    labels, labels outside their range, vectors of the wrong length, histories out of order,
    duplicate ids, request ids used again, and tables without rows.
    """
    problems: list[Problem] = []
    for table in tables.all:
        problems += check_lines(table.file)
        with reading(table.file):
            problems += _check_columns(table)
    for keyed, key in ((tables.users, USER_ID), (tables.ads, AD_ID)):
        if keyed is not None:
            with reading(keyed.file):
                problems += _check_unique(keyed, key)
    if tables.schema.request_id is not None:
        with reading(tables.impressions.file):
            problems += _check_requests(tables)
    return problems


def check_rows(table: Table, key: str) -> list[Problem]:
    """Everything wrong with the values of one table whose rows have an id of their own."""
    return _check_columns(table) + _check_unique(table, key)


def _check_requests(tables: Tables) -> list[Problem]:
    """A request id used twice would join what different people were shown at different times."""
    schema = tables.schema
    time = pl.col(TIMESTAMP_MS)
    apart = (time.max() - time.min()) > _LONGEST_REQUEST_MS
    if schema.user_id is not None:
        apart |= pl.col(USER_ID).drop_nulls().n_unique() > 1
    log = tables.impressions.frame().select(
        REQUEST_ID, TIMESTAMP_MS, *([USER_ID] if schema.user_id is not None else [])
    )
    requests = (
        log.with_row_index(_ROW)
        .filter(pl.col(REQUEST_ID).is_not_null())
        .group_by(REQUEST_ID)
        .agg(apart.alias("apart"), pl.col(_ROW).min(), pl.len().alias("rows"))
        .filter("apart")
        .select(pl.col(_ROW).min(), pl.col("rows").sum())
        .collect(engine="streaming")
    )
    row, rows = requests.row(0)
    if not rows:
        return []
    return [
        Problem(
            file=tables.impressions.file,
            column=schema.request_id,
            row=row + 1,
            rows=rows,
            problem="a request is of several users, or lasts more than a day",
            remedy="Give each request an id of its own, or drop request_id from the schema",
        )
    ]


def _check_columns(table: Table) -> list[Problem]:
    types = table.raw.collect_schema()
    parsed = {c.name: parse(c, types[c.source]) for c in table.columns}
    checks: list[tuple[Column, str, str, pl.Expr]] = []
    for column in table.columns:
        value = parsed[column.name]
        empty = _is_empty(column, types[column.source], value)
        if column.required:
            checks.append((column, "a value is missing", "Fill it in or drop the row", empty))
        if column.dtype != pl.String():
            checks.append((column, *type_complaint(column), ~empty & value.is_null()))
        if isinstance(column.dtype, pl.List):
            hole = value.list.eval(pl.element().is_null()).list.any()
            checks.append((column, *type_complaint(column), ~empty & hole))
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


def _is_empty(column: Column, there: pl.DataType, value: pl.Expr) -> pl.Expr:
    """Whether a cell is missing, as opposed to wrong. NaN is missing."""
    raw = pl.col(column.source)
    if column.dtype == pl.String():
        return value.is_null()
    if there == pl.String():
        return raw.is_null() | (raw == "") | (raw.str.to_lowercase() == "nan")
    return raw.is_null() | raw.is_nan() if there.is_float() else raw.is_null()


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
