"""Encoders of one field: a vocabulary, a number, a vector. Each encodes a column or one value.

The two ways of each encoder give the same result; a test compares them on every kind.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from adrec.data.parsing import as_text
from adrec.data.texts import Lookup
from adrec.errors import RequestError
from adrec.schema import Strict

FloatRow = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_QUANTILES = 64
_COUNTS = 4096  # whole numbers below it are looked up
_MANY = 1000  # values in a column for which that pays


class Vocabulary(Strict):
    """Codes of a categorical field: 0 missing, then hashed buckets for rare and new values, then
    one code for each value seen often enough."""

    name: str
    values: tuple[str, ...]
    """Values with a code of their own, most frequent first."""
    buckets: int = Field(ge=1)
    """Codes shared by all other values, by xxHash64 of the text."""

    @property
    def size(self) -> int:
        """Number of codes."""
        return 1 + self.buckets + len(self.values)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {value: 1 + self.buckets + i for i, value in enumerate(self.values)}

    @cached_property
    def _enum(self) -> pl.Enum:
        return pl.Enum(self.values)

    @cached_property
    def _of_categories(self) -> Lookup:
        return Lookup(self._codes_of)

    def _bucket(self, text: str) -> int:
        return 1 + xxhash.xxh64_intdigest(text.encode(errors="surrogatepass")) % self.buckets

    def encode(self, value: Any) -> int:
        """Code of one value.

        Raises:
            RequestError: a list or an object.
        """
        if not (value is None or isinstance(value, str | int | float)):
            raise RequestError(f"field '{self.name}': {value!r} is not a single value; send one")
        text = as_text(value)
        if text is None:
            return 0
        code = self._codes.get(text)
        return self._bucket(text) if code is None else code

    def encode_column(self, column_N: pl.Series) -> NDArray[np.int32]:
        """Codes of a column of strings or of categories, [N]."""
        if isinstance(column_N.dtype, pl.Categorical):
            return self._of_categories.read(column_N)
        return self._codes_of(column_N)

    def _codes_of(self, column_N: pl.Series) -> NDArray[np.int32]:
        known = column_N.cast(self._enum, strict=False).to_physical()
        codes_N = known.cast(pl.Int32).fill_null(-1).to_numpy() + (1 + self.buckets)
        codes_N[known.is_null().to_numpy()] = 0
        rare = known.is_null() & column_N.is_not_null() & (column_N != "").fill_null(False)
        if rare.any():
            texts = column_N.filter(rare)
            distinct = texts.unique()
            hashed = pl.Series([self._bucket(text) for text in distinct], dtype=pl.Int32)
            codes_N[rare.to_numpy()] = texts.replace_strict(distinct, hashed).to_numpy()
        return codes_N

    def text(self, code: int) -> str:
        """The value behind a code, for people."""
        if code == 0:
            return "(missing)"
        if code <= self.buckets:
            return f"(rare {code})"
        return self.values[code - 1 - self.buckets]


def fit_vocabulary(
    name: str, counts: pl.DataFrame, *, min_count: int, max_size: int, buckets: int
) -> Vocabulary:
    """Give a code to each value counted at least `min_count` times, the `max_size` most frequent.

    Args:
        counts: columns `value` (string) and `count`.
    """
    kept = (
        counts.filter((pl.col("count") >= min_count) & pl.col("value").is_not_null())
        .filter(pl.col("value") != "")
        .sort(["count", "value"], descending=[True, False])
        .head(max_size)
    )
    return Vocabulary(name=name, values=tuple(kept["value"]), buckets=buckets)


class NumericEncoder(Strict):
    """A number as three: its signed log, standardised; its quantile in [-1, 1]; 1 if missing.

    The log keeps distances (Criteo's counts), the quantile is safe from outliers. A missing value
    is (0, 0, 1).
    """

    name: str
    log_mean: float
    log_std: float
    knots: tuple[float, ...]
    """Ascending quantiles of the training values."""

    width: int = 3

    def encode(self, value: object) -> FloatRow:
        """One value, [3].

        Raises:
            RequestError: not a number.
        """
        if value is None or value == "":
            return self.encode_column(np.array([np.nan])).reshape(-1)
        try:
            number = float(value)  # type: ignore[arg-type]  # whatever a request holds
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"field '{self.name}': {value!r} is not a number; send a number or leave it out"
            ) from error
        return self.encode_column(np.array([number])).reshape(-1)

    def encode_column(self, values_N: NDArray[np.floating]) -> NDArray[np.float32]:
        """A column, NaN where missing, [N, 3]."""
        with np.errstate(over="ignore"):  # beyond float32 is infinite, hence missing, in a table
            values = np.asarray(values_N, np.float32)
        if len(values) < _MANY:
            return self._encode(values)
        with np.errstate(invalid="ignore"):
            place_N = values.astype(np.int32)  # whatever it is for NaN, it is not equal to it
        counts_N = (place_N == values) & (place_N >= 0) & (place_N < _COUNTS)
        out_N3 = self._of_counts.take(np.where(counts_N, place_N, 0), axis=0)
        others = np.flatnonzero(~counts_N)
        if len(others):
            out_N3[others] = self._encode(values[others])
        return out_N3

    @cached_property
    def _of_counts(self) -> NDArray[np.float32]:
        """The codes of 0, 1, 2, ..., which most numbers of a log are: looked up, not computed."""
        return self._encode(np.arange(_COUNTS, dtype=np.float32))

    def _encode(self, given_N: NDArray[np.float32]) -> NDArray[np.float32]:
        values = given_N.astype(np.float64)
        missing = ~np.isfinite(values)
        values = np.where(missing, 0.0, values)
        out_N3 = np.zeros((len(values), 3), np.float32)
        out_N3[:, 0] = np.clip((_signed_log(values) - self.log_mean) / self.log_std, -5.0, 5.0)
        out_N3[:, 1] = np.interp(values, self.knots, np.linspace(-1.0, 1.0, len(self.knots)))
        out_N3[missing] = 0.0
        out_N3[:, 2] = missing
        return out_N3


def fit_numeric(name: str, values_N: NDArray[np.floating]) -> NumericEncoder:
    """Fit the mean, spread and quantiles of a sample of training values; NaN is missing."""
    values = values_N[np.isfinite(values_N)].astype(np.float64)
    if not values.size:
        values = np.zeros(1)
    logs = _signed_log(values)
    knots = np.unique(np.quantile(values, np.linspace(0.0, 1.0, _QUANTILES + 1)))
    if len(knots) == 1:  # a constant: place it in the middle
        knots = np.array([knots[0] - 1.0, knots[0], knots[0] + 1.0])
    return NumericEncoder(
        name=name,
        log_mean=float(logs.mean()),
        log_std=float(logs.std()) if values.min() < values.max() else 1.0,
        knots=tuple(float(knot) for knot in knots),
    )


class EmbeddingEncoder(Strict):
    """A dense vector, scaled so that its components have a mean square of 1; then 1 if missing."""

    name: str
    dim: int
    scale: float

    @property
    def width(self) -> int:
        """Floats it becomes."""
        return self.dim + 1

    def encode(self, value: object) -> FloatRow:
        """One vector, [dim + 1].

        Raises:
            RequestError: not `dim` finite numbers.
        """
        if value is None:
            return self.encode_column([None]).reshape(-1)
        try:
            with np.errstate(over="ignore"):
                vector = np.asarray(value, np.float32)
        except (TypeError, ValueError) as error:
            raise RequestError(f"field '{self.name}': not a vector of numbers") from error
        if vector.shape != (self.dim,) or not np.isfinite(vector).all():
            raise RequestError(
                f"field '{self.name}': expected {self.dim} finite numbers, got {vector.shape}"
            )
        return self.encode_column([vector]).reshape(-1)

    def encode_column(
        self, vectors_N: Sequence[NDArray[np.float32] | None] | pl.Series
    ) -> NDArray[np.float32]:
        """A column of vectors, [N, dim + 1]."""
        if isinstance(vectors_N, pl.Series):
            missing = vectors_N.is_null().to_numpy()
            values = np.zeros((len(vectors_N), self.dim), np.float32)
            values[~missing] = vectors_N.drop_nulls().to_numpy().reshape(-1, self.dim)
        else:
            missing = np.array([vector is None for vector in vectors_N])
            empty = np.zeros(self.dim, np.float32)
            values = np.stack([empty if vector is None else vector for vector in vectors_N])
        out = np.zeros((len(values), self.dim + 1), np.float32)
        out[:, :-1] = values * np.float32(self.scale)
        out[:, -1] = missing
        return out


def fit_embedding(name: str, dim: int, vectors: pl.Series) -> EmbeddingEncoder:
    """Fit the scale on a sample of training vectors."""
    present = vectors.drop_nulls()
    square = float(np.square(present.to_numpy(), dtype=np.float64).mean()) if len(present) else 0.0
    return EmbeddingEncoder(name=name, dim=dim, scale=1.0 / float(np.sqrt(square)) if square else 1)


def _signed_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values))
