"""Checks: everything that is wrong with a log, found before anything is trained on it."""

from dataclasses import dataclass

import polars as pl

from adrec.data.files import check_lines, reading
from adrec.data.parsing import Column, type_complaint
from adrec.data.tables import Table, Tables, times_column
from adrec.errors import DataError, Problem
from adrec.schema import AD_ID, REQUEST_ID, TIMESTAMP_MS, USER_ID

_ROW = "adrec:row"
_MISSING = "a value is missing"
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
    problems = check_table(tables.impressions)
    return problems + check_keyed(tables) + check_requests(tables)


def check_keyed(tables: Tables) -> list[Problem]:
    """Everything wrong with the tables of users and ads."""
    problems: list[Problem] = []
    for table, key in ((tables.users, USER_ID), (tables.ads, AD_ID)):
        if table is not None:
            problems += check_rows(table, key)
    return problems


def check_rows(table: Table, key: str) -> list[Problem]:
    """Everything wrong with one table whose rows have an id of their own."""
    problems = check_table(table)
    with reading(table.file):
        return problems + _check_unique(table, key)


def check_table(table: Table) -> list[Problem]:
    """Everything wrong with the lines and columns of one table."""
    problems = check_lines(table.file)
    checks = ColumnChecks(table)
    columns = [*checks.beside, *(parse.alias(name) for name, parse in table.parsed().items())]
    with reading(table.file):
        for batch in table.raw.select(columns).collect_batches(maintain_order=True):
            checks.take(batch)
    return problems + checks.problems()


def check_requests(tables: Tables) -> list[Problem]:
    """A request id used twice would join what different people were shown at different times."""
    schema = tables.schema
    if schema.request_id is None:
        return []
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
    )
    with reading(tables.impressions.file):
        row, rows = requests.collect(engine="streaming").row(0)
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


@dataclass(frozen=True)
class _Check:
    """One kind of mistake in one column."""

    column: Column
    problem: str
    remedy: str
    bad: pl.Expr
    raw: str | None = None
    """Of cells that do not parse: the raw column. Where it has as many nulls, all cells parse."""

    def may_fail(self, piece: pl.DataFrame) -> bool:
        """Whether a look at each cell is worth it, by the number of nulls."""
        if self.column.dtype == pl.String():
            return True  # a missing text may also be an empty one
        nulls = piece[self.column.name].null_count()
        if self.raw is not None:
            return nulls != piece[self.raw].null_count()
        return nulls > 0 or self.problem != _MISSING


class ColumnChecks:
    """Everything that may be wrong in the columns of one table, found piece by piece.

    A piece has the parsed columns, under adrec's names, and those in `beside`.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._checks = _checks_of(table)
        self._rows = 0
        self._bad = [0] * len(self._checks)
        self._first = [0] * len(self._checks)

    @property
    def beside(self) -> list[pl.Expr]:
        """Raw columns that a piece needs beside the parsed ones: those whose cells may be wrong."""
        columns = {_raw(c): c.source for c in self._table.columns if _may_not_parse(c)}
        return [pl.col(source).alias(name) for name, source in columns.items()]

    def take(self, piece: pl.DataFrame) -> None:
        """Look at the next rows."""
        wanted = [i for i, check in enumerate(self._checks) if check.may_fail(piece)]
        found = piece.select(self._checks[i].bad.fill_null(False).alias(str(i)) for i in wanted)
        for i in wanted:
            bad = found[str(i)]
            if bad.any():
                if not self._bad[i]:
                    self._first[i] = self._rows + int(bad.arg_max() or 0)
                self._bad[i] += int(bad.sum())
        self._rows += piece.height

    @property
    def found(self) -> bool:
        """Whether anything is wrong so far."""
        return any(self._bad)

    def problems(self) -> list[Problem]:
        """What was found, one entry for each kind of mistake in each column."""
        if not self._rows:
            file = self._table.file
            return [Problem(file=file, problem="has no rows", remedy="Export it again")]
        return [
            Problem(
                file=self._table.file,
                column=check.column.source,
                row=first + 1,
                rows=bad,
                problem=check.problem,
                remedy=check.remedy,
            )
            for check, first, bad in zip(self._checks, self._first, self._bad, strict=True)
            if bad
        ]


def _checks_of(table: Table) -> list[_Check]:
    types = table.raw.collect_schema()
    names = {column.name for column in table.columns}
    checks: list[_Check] = []
    for column in table.columns:
        value = pl.col(column.name)
        empty = _is_empty(column, types[column.source], value)
        if column.required:
            checks.append(_Check(column, _MISSING, "Fill it in or drop the row", empty))
        if _may_not_parse(column):
            unread = ~empty & value.is_null()
            checks.append(_Check(column, *type_complaint(column), unread, _raw(column)))
        if isinstance(column.dtype, pl.List):
            hole = value.list.eval(pl.element().is_null()).list.any()
            checks.append(_Check(column, *type_complaint(column), ~empty & hole))
        complaint = _range_complaint(column)
        if complaint is not None:
            outside = (value < column.low) if column.low is not None else pl.lit(False)
            if column.high is not None:
                outside |= value > column.high
            if column.whole:
                outside |= value != value.floor()
            checks.append(_Check(column, *complaint, outside))
        if times_column(column.name) in names:
            times = pl.col(times_column(column.name))
            uneven = value.list.len().fill_null(0) != times.list.len().fill_null(0)
            remedy = "Give each item its time"
            problem = "the items and their times differ in number"
            checks.append(_Check(column, problem, remedy, uneven))
            falling = times.list.eval(pl.element().diff() < 0).list.any()
            remedy = "Sort the items by time, oldest first"
            checks.append(_Check(column, "the items are not in time order", remedy, falling))
    return checks


def _may_not_parse(column: Column) -> bool:
    return column.dtype != pl.String()


def _raw(column: Column) -> str:
    return f"adrec:raw:{column.source}"


def _is_empty(column: Column, there: pl.DataType, value: pl.Expr) -> pl.Expr:
    """Whether a cell is missing, as opposed to wrong. NaN is missing."""
    if column.dtype == pl.String():
        return value.is_null() | (value == "")
    raw = pl.col(_raw(column))
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
