"""New ads: ads that come while serving, as raw values by column; parsed and checked as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from adrec.data.checks import check_rows
from adrec.data.parsing import LISTS, NUMBERS, Column, raw_series, type_complaint
from adrec.data.tables import Table, ad_columns
from adrec.errors import DataError, Problem
from adrec.schema import AD_ID, Schema

_FILE = "ads"


def parse_ads(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Ads from rows of raw values, under adrec's names and types.

    Args:
        schema: of the log.
        rows: values by column, as the ads table has them; what is absent or None is missing.

    Raises:
        DataError: no rows, a column that an ad has not, a value that does not fit, or an id that is
            missing or there twice; lists everything that is wrong.
    """
    if not rows:
        raise DataError("No ads were given; give at least one row")
    columns = ad_columns(schema)
    problems = _unknown_columns(rows, columns)
    series = []
    for column in columns:
        values = [row.get(column.source) for row in rows]
        problems += _wrong_shapes(column, values)
        series.append(raw_series(column, values))
    if not problems:
        table = Table(_FILE, pl.LazyFrame(series), columns)
        problems = check_rows(table, AD_ID)
    if problems:
        raise DataError("The ads do not match the schema:", problems)
    return table.frame().collect()


def _unknown_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[Problem]:
    known = [column.source for column in columns]
    first = {name: at for at, row in reversed(list(enumerate(rows, start=1))) for name in row}
    return [
        Problem(
            file=_FILE,
            column=str(name),
            row=first[name],
            problem="no such column",
            remedy=f"An ad has {', '.join(known)}",
        )
        for name in first
        if name not in known
    ]


def _wrong_shapes(column: Column, values: Sequence[Any]) -> list[Problem]:
    """Lists where one value is wanted, and objects."""
    listed = isinstance(column.dtype, pl.List | pl.Array)
    fits = (str, *NUMBERS, *(LISTS if listed else ()))
    wrong = [
        at
        for at, value in enumerate(values, start=1)
        if not (value is None or isinstance(value, fits))
    ]
    if not wrong:
        return []
    problem, remedy = type_complaint(column)
    return [
        Problem(
            file=_FILE,
            column=column.source,
            row=wrong[0],
            rows=len(wrong),
            problem=problem,
            remedy=remedy,
        )
    ]
