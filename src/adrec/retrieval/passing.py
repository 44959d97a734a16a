"""Which places of an index a filter lets pass: catalogue rows and where an index stores them.

FAISS numbers what it holds 0, 1, 2, ... in the order of adding. Where the rows of a catalogue
follow each other, a bitmap of rows is the bitmap of places but for a shift; elsewhere the row of a
place is looked up for each ad that a search comes by.
"""

from functools import cached_property
from typing import Any

import faiss as _typed_faiss
import numpy as np
import numpy.typing as npt

from adrec.errors import DataError
from adrec.retrieval.ad_set import AdSet, Bools, Ints

faiss: Any = _typed_faiss  # its stubs lack the keyword constructors that are its documented API


class Places:
    """The catalogue row of each place of an index."""

    def __init__(self, ads: Ints | None, count: int) -> None:
        """`ads` [count] are rows by place; None: row r at place r."""
        self.rows = count if ads is None else int(ads.max()) + 1
        """The highest row and one."""
        self._count = count
        self._first = 0 if ads is None else _first_of_a_run(ads)
        self._ads = ads if self._first is None else None
        self.held = ~AdSet.none(count) if ads is None else AdSet.of_rows(ads, self.rows)
        """The rows that are there."""
        if self._ads is not None:
            self._row_of_place = faiss.Int64Vector()
            faiss.copy_array_to_vector(self._ads, self._row_of_place)
            self._place_of_row = np.zeros(self.rows, np.int64)
            self._place_of_row[self._ads] = np.arange(count)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the tables between rows and places."""
        return 0 if self._ads is None else 16 * self._count + 8 * self.rows

    def rows_at(self, places: Ints) -> Ints:
        """Rows of some places, -1 for -1."""
        if self._ads is not None:
            return np.where(places < 0, -1, self._ads[places])
        return np.where(places < 0, -1, places + self._first) if self._first else places

    def passing(self, allowed: AdSet) -> "Passing | None":
        """Where what a filter allows stands; None where all passes.

        Raises:
            DataError: the filter is of a smaller catalogue than the index.
        """
        if allowed.rows < self.rows:
            raise DataError(
                f"allowed is of {allowed.rows:,} ad rows, but the index holds ads up to row "
                f"{self.rows - 1:,}; make it of the catalogue that was indexed"
            )
        allowed = allowed.resized(self.rows)
        held = allowed & self.held
        return None if len(held) == self._count else Passing(self, held)


class Passing:
    """The places of an index that a filter lets pass."""

    def __init__(self, of: Places, held: AdSet) -> None:
        self._of, self._held = of, held

    def __len__(self) -> int:
        return len(self._held)

    @cached_property
    def selector(self) -> Any:
        """The FAISS selector of these places."""
        if self._of._first is None:
            self._inner = faiss.IDSelectorBitmap(self._held.bits)  # the outer one only points at it
            return faiss.IDSelectorTranslated(self._of._row_of_place, self._inner)
        return faiss.IDSelectorBitmap(_shifted(self._held.bits, self._of._first))

    def places(self) -> Ints:
        """The places themselves, ascending where rows are."""
        rows = self._held.members()
        if self._of._first is None:
            places: Ints = self._of._place_of_row[rows]
            return places
        return rows - self._of._first

    def has(self, places: Ints) -> Bools:
        """Which of some places pass."""
        return self._held.has(self._of.rows_at(places))


def _first_of_a_run(ads: Ints) -> int | None:
    """The first of rows that follow each other; None where they do not."""
    first = int(ads[0])
    return first if np.array_equal(ads, np.arange(first, first + len(ads))) else None


def _shifted(bits: npt.NDArray[np.uint8], by: int) -> npt.NDArray[np.uint8]:
    """Bits from bit `by` on."""
    bits = bits[by >> 3 :]
    if by & 7 == 0:
        return bits
    moved = bits >> np.uint8(by & 7)
    moved[:-1] |= bits[1:] << np.uint8(8 - (by & 7))
    return moved
