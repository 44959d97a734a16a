"""RawColumn: the exact values of a categorical ad field, which filters ask for.

A vocabulary joins rare values in buckets: good for a model, useless to say that one advertiser must
not be shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.features.directory import Directory


@dataclass(frozen=True)
class RawColumn:
    """Values of A ads: `codes_A` unsigned, as narrow as fits; 0 where missing, as in row 0."""

    values: Directory
    """The text of each code."""
    codes_A: NDArray[np.unsignedinteger[Any]]

    @classmethod
    def of(cls, column_N: pl.Series) -> Self:
        """Take the values of ads 1 to N; ad 0 has none."""
        column_N = column_N.cast(pl.String)
        distinct = column_N.drop_nulls().unique(maintain_order=True)
        values = Directory(distinct.to_list())
        place_N = column_N.cast(pl.Enum(distinct)).to_physical().cast(pl.Int64)
        codes_N = (place_N + 1).fill_null(0).to_numpy()
        return cls(values, np.append(0, codes_N).astype(_narrowest(values)))

    def changed(self, rows_N: NDArray[np.int64], column_N: pl.Series, ads: int) -> "RawColumn":
        """The column of a catalogue of `ads` rows with other values at some of them."""
        new = column_N.drop_nulls().unique(maintain_order=True).to_list()
        values = self.values.extended([value for value in new if not self.values.row(value)])
        codes = np.zeros(ads, _narrowest(values))
        codes[: len(self.codes_A)] = self.codes_A
        codes[rows_N] = values.rows(column_N)
        return RawColumn(values, codes)

    def value(self, row: int) -> str | None:
        """The value of one ad, None where missing."""
        return self.values.id(int(self.codes_A[row])) or None

    def texts(self) -> pl.Series:
        """The values of ads 1 to A-1 as text, null where missing."""
        texts = pl.Series([None, *self.values.ids], dtype=pl.String)
        return texts.gather(self.codes_A[1:].astype(np.uint32))

    def codes(self, values: Sequence[str | None]) -> list[int]:
        """Codes of some values, without those that no ad has; None is missing."""
        known = [0 if value is None else self.values.row(value) for value in values]
        pairs = zip(values, known, strict=True)
        return [code for value, code in pairs if code or value is None]


def _narrowest(values: Directory) -> np.dtype[np.unsignedinteger[Any]]:
    """The narrowest type that holds every code."""
    narrowest: np.dtype[np.unsignedinteger[Any]] = np.min_scalar_type(len(values) - 1)
    return narrowest
