"""Parsing: what a cell becomes, as a polars expression over a raw column.

Ids and categories are text with one spelling a value, whether a file or a request brings it: 9 and
9.0 are "9", true is "true", "" is missing. `as_text` is that rule for one value; `parse` applies it
and the rules for numbers, lists and times to a column. What does not parse becomes null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

NUMBERS = (int, float, np.integer, np.floating, bool)
LISTS = (list, tuple, np.ndarray)

_INT64 = 2**63  # whole floats below it are spelt as integers
_TRAILING_ZEROS = r"^(-?[0-9]+)\.0+$"
_ISO_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d")


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


def parse(column: Column, there: pl.DataType) -> pl.Expr:
    """The expression that turns a raw column of type `there` into adrec's; null where it cannot."""
    raw = pl.col(column.source)
    wanted = column.dtype
    if column.timestamp_unit is not None:
        return _parse_time(raw, there, column.timestamp_unit)
    if isinstance(wanted, pl.String):
        return parse_text(raw, there)
    if isinstance(wanted, pl.List | pl.Array):
        return _parse_list(raw, there, wanted)
    if wanted.is_integer():
        number = raw if there.is_integer() else raw.cast(pl.Float64, strict=False)
        return pl.when(number == number.floor()).then(number).cast(wanted, strict=False)
    number = raw.cast(wanted, strict=False)
    return pl.when(number.is_finite()).then(number)


def raw_series(column: Column, values: Sequence[Any]) -> pl.Series:
    """A raw column from values as JSON brings them, of one type: numbers or lists if all are, else
    text."""
    there = [value for value in values if value is not None]
    if column.dtype != pl.String() and there:
        if all(isinstance(value, NUMBERS) for value in there):
            whole = all(isinstance(value, int | np.integer) for value in there)
            return pl.Series(column.source, values, pl.Int64 if whole else pl.Float64, strict=False)
        if all(isinstance(value, LISTS) for value in there):
            lists = [None if value is None else list(value) for value in values]
            return pl.Series(column.source, lists, pl.List(pl.Float64), strict=False)
    texts = [
        as_text(value) if isinstance(value, str | int | float | None) else str(value)
        for value in values
    ]
    return pl.Series(column.source, texts, pl.String)


def type_complaint(column: Column) -> tuple[str, str]:
    """What to say of a value that does not parse: the problem and its remedy."""
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


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def parse_text(raw: pl.Expr, there: pl.DataType) -> pl.Expr:
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
        return items.list.eval(parse_text(pl.element(), inner))
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
