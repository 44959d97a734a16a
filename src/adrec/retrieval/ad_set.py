"""A set of ads as one bit a row of the catalogue: what filters are made of and searches obey.

A million ads fill 125 KB, so that AND, OR and NOT of whole catalogues take microseconds, and FAISS
reads the same bytes (`IDSelectorBitmap`) without a copy.
"""

from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from adrec.errors import DataError

Bits = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class AdSet:
    """A set of rows of a catalogue, never changed once made.

    `bits` holds row r in bit r % 8 of byte r // 8; unused bits of the last byte are 0. `rows` is
    how many rows the catalogue has. Sets are combined with &, | and ~; both have to be of a
    catalogue of the same size.
    """

    def __init__(self, bits: Bits, rows: int) -> None:
        """Take `bits` [ceil(rows / 8)] as they are: the caller does not change them afterwards.

        Raises:
            DataError: they are no bytes or of another number.
        """
        if bits.dtype != np.uint8 or bits.shape != (_bytes(rows),):
            raise DataError(
                f"bits are {bits.dtype} {list(bits.shape)}; {rows:,} ad rows take uint8 "
                f"[{_bytes(rows)}], a bit each"
            )
        if rows % 8 and bits[-1] >> rows % 8:
            raise DataError(f"bits are set beyond the {rows:,} ad rows; clear them")
        bits.setflags(write=False)
        self.bits, self.rows = bits, rows

    @classmethod
    def of(cls, members: Bools) -> Self:
        """The rows that are True, of [rows].

        Raises:
            DataError: not a row of bools.
        """
        if members.dtype != np.bool_ or members.ndim != 1:
            raise DataError(
                f"members are {members.dtype} {list(members.shape)}; give a bool for each ad row"
            )
        return cls(np.packbits(members, bitorder="little"), len(members))

    @classmethod
    def none(cls, rows: int) -> Self:
        """The empty set."""
        return cls(np.zeros(_bytes(rows), np.uint8), rows)

    @classmethod
    def of_rows(cls, members: npt.NDArray[np.integer], rows: int) -> Self:
        """Some rows, in any order.

        Raises:
            DataError: one lies outside the catalogue.
        """
        within = np.zeros(rows, np.bool_)
        within[_inside(members, rows)] = True
        return cls.of(within)

    def __len__(self) -> int:
        """How many ads are in it."""
        return self._count

    @cached_property
    def _count(self) -> int:
        whole = len(self.bits) // 8 * 8  # counted eight bytes at a time
        counted = np.bitwise_count(self.bits[:whole].view(np.uint64)).sum(dtype=np.int64)
        return int(counted) + int(np.bitwise_count(self.bits[whole:]).sum(dtype=np.int64))

    def __and__(self, other: "AdSet") -> "AdSet":
        return AdSet(self.bits & self._alike(other), self.rows)

    def __or__(self, other: "AdSet") -> "AdSet":
        return AdSet(self.bits | self._alike(other), self.rows)

    def __invert__(self) -> "AdSet":
        bits = ~self.bits
        if self.rows % 8:
            bits[-1] &= (1 << self.rows % 8) - 1
        return AdSet(bits, self.rows)

    def has(self, rows: npt.NDArray[np.integer]) -> Bools:
        """Which of some rows are in it, in their shape."""
        found: Bools = (self.bits[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(np.bool_)
        return found

    def members(self) -> Ints:
        """Its rows, ascending."""
        some = np.flatnonzero(self.bits)  # few bytes hold anything where few ads are in it
        at = np.flatnonzero(np.unpackbits(self.bits[some], bitorder="little").view(np.bool_))
        found: Ints = some[at >> 3] * 8 + (at & 7)
        return found

    def without(self, rows: npt.NDArray[np.integer]) -> "AdSet":
        """Less some rows, in time that depends on their number, but for a copy of the bits.

        Raises:
            DataError: one lies outside the catalogue.
        """
        bits = self.bits.copy()
        np.bitwise_and.at(bits, _inside(rows, self.rows) >> 3, ~_bit(rows))
        return AdSet(bits, self.rows)

    def plus(self, rows: npt.NDArray[np.integer]) -> "AdSet":
        """And some rows; otherwise as `without`."""
        bits = self.bits.copy()
        np.bitwise_or.at(bits, _inside(rows, self.rows) >> 3, _bit(rows))
        return AdSet(bits, self.rows)

    def resized(self, rows: int) -> "AdSet":
        """The same ads in a catalogue of another size: rows that it had not are not in it."""
        if rows == self.rows:
            return self
        bits = np.zeros(_bytes(rows), np.uint8)
        kept = min(len(bits), len(self.bits))
        bits[:kept] = self.bits[:kept]
        if rows < self.rows and rows % 8:
            bits[-1] &= (1 << rows % 8) - 1
        return AdSet(bits, rows)

    def _alike(self, other: "AdSet") -> Bits:
        if other.rows != self.rows:
            raise DataError(
                f"one set is of {self.rows:,} ad rows, the other of {other.rows:,}; make both of "
                "the same catalogue"
            )
        return other.bits


def _bytes(rows: int) -> int:
    return -(-rows // 8)


def _bit(rows: npt.NDArray[np.integer]) -> Bits:
    return np.left_shift(np.uint8(1), (rows & 7).astype(np.uint8))


def _inside(members: npt.NDArray[np.integer], rows: int) -> npt.NDArray[np.integer]:
    if members.size and not 0 <= int(members.min()) <= int(members.max()) < rows:
        outside = members[(members < 0) | (members >= rows)]
        raise DataError(f"row {outside[0]} is not among the {rows:,} rows of the catalogue")
    return members
