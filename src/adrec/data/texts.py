"""Texts: a column of ids or categories as numbers, each distinct text told apart but once."""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.parsing import parse_text

_MISSING = 0  # the category of the empty text


class Texts:
    """Turns pieces of one column of text into a polars Categorical, in one spelling a value.

    What a cell of text becomes depends on the text alone, so it is found once for each distinct
    one: "9.0" and "9" share a category. What is missing becomes the category of the empty text.
    """

    def __init__(self) -> None:
        self.dtype = pl.Categorical(pl.Categories.random("adrec", pl.UInt32))
        self._spelt_as: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._respell = False
        # polars forgets categories once no series has them.
        self._kept = pl.Series([""]).cast(self.dtype)
        self._learn(1)

    def codes(self, column_N: pl.Series) -> NDArray[np.uint32]:
        """The categories of a piece of the column, of type `dtype` or text, as numbers, [N]."""
        codes_N = self._categories(column_N)
        self._learn(1 + int(codes_N.max(initial=0)))
        return self._spelt_as.take(codes_N) if self._respell else codes_N

    def restored(self, name: str) -> pl.Expr:
        """The column of a frame that `codes` were of."""
        return pl.col(name).cat.to(self.dtype)

    def _categories(self, column_N: pl.Series) -> NDArray[np.uint32]:
        codes = column_N.cast(self.dtype).to_physical()
        return codes.fill_null(_MISSING).to_numpy()

    def _learn(self, categories: int) -> None:
        """How each category that is new is spelt."""
        known = len(self._spelt_as)
        while known < categories:
            new = np.arange(known, categories, dtype=np.uint32)
            text = pl.Series("text", new).cat.to(self.dtype).cast(pl.String)
            spelling = text.to_frame().select(parse_text(pl.col("text"), pl.String())).to_series()
            codes = self._categories(spelling)
            self._respell |= bool((codes != new).any())
            self._spelt_as = np.append(self._spelt_as, codes)
            known = categories
            categories = max(categories, 1 + int(codes.max()))


class Lookup:
    """What each text of a column of categories stands for, found once for each."""

    def __init__(self, find: Callable[[pl.Series], NDArray[np.int32]]) -> None:
        """`find` is told texts [T] and gives their numbers [T]; of a missing one it is 0."""
        self._find = find
        self._dtype: pl.DataType | None = None
        self._numbers: NDArray[np.int32] = np.zeros(0, np.int32)

    def read(self, column_N: pl.Series) -> NDArray[np.int32]:
        """The number of each cell, [N]; 0 where it is missing."""
        if column_N.dtype != self._dtype:
            self._dtype, self._numbers = column_N.dtype, np.zeros(0, np.int32)
        codes = column_N.to_physical()
        known, size = len(self._numbers), int(codes.max() or 0) + 1  # type: ignore[arg-type]
        if column_N.null_count() < len(column_N) and size > known:
            new = pl.Series(np.arange(known, size, dtype=np.uint32))
            texts = new.cat.to(column_N.dtype).cast(pl.String)
            self._numbers = np.append(self._numbers, self._find(texts))
        numbers = self._numbers
        if codes.null_count():
            codes, numbers = codes.fill_null(len(numbers)), np.append(numbers, np.int32(0))
        found_N: NDArray[np.int32] = numbers.take(codes.to_numpy())
        return found_N

    def note(self, texts_T: pl.Series, numbers_T: NDArray[np.int32]) -> None:
        """From now on, these texts of the last column stand for other numbers."""
        self._numbers[texts_T.to_physical().to_numpy()] = numbers_T
