"""Sets of ads as bits behave as Python's sets of row numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.errors import DataError
from adrec.retrieval.ad_set import AdSet

ROWS = st.integers(0, 90)


def rows_of(drawn: set[int], rows: int) -> set[int]:
    return {row for row in drawn if row < rows}


def made(drawn: set[int], rows: int) -> AdSet:
    return AdSet.of_rows(np.array(sorted(drawn), np.int64), rows)


@given(rows=ROWS, one=st.sets(ROWS), other=st.sets(ROWS), size=ROWS)
def test_as_sets(rows: int, one: set[int], other: set[int], size: int) -> None:
    one, other = rows_of(one, rows), rows_of(other, rows)
    a, b = made(one, rows), made(other, rows)
    some = np.array(sorted(other), np.int64)
    for found, expected in (
        (a, one),
        (a & b, one & other),
        (a | b, one | other),
        (~a, set(range(rows)) - one),
        (a.without(some), one - other),
        (a.plus(some), one | other),
        (AdSet.none(rows), set()),
    ):
        assert found.rows == rows
        assert found.members().tolist() == sorted(expected)
        assert len(found) == len(expected)
        has = found.has(np.arange(rows))
        assert np.flatnonzero(has).tolist() == sorted(expected)
        np.testing.assert_array_equal(AdSet.of(has).bits, found.bits)
        np.testing.assert_array_equal(found.bits, np.packbits(has, bitorder="little"))
    resized = a.resized(size)
    assert resized.rows == size
    assert set(resized.members().tolist()) == rows_of(one, size)
    assert a.members().tolist() == sorted(one)  # none of this changed it


def test_a_row_given_twice_counts_once() -> None:
    assert AdSet.of_rows(np.array([3, 3]), 9).members().tolist() == [3]
    assert len((~AdSet.none(9)).without(np.array([3, 3, 4]))) == 7
    assert len(AdSet.none(9).plus(np.array([3, 3, 4]))) == 2


def test_bits_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        AdSet.none(9).bits[0] = 1


def test_what_is_no_set() -> None:
    with pytest.raises(DataError, match=r"uint8 \[2\]"):
        AdSet(np.zeros(3, np.uint8), 9)
    with pytest.raises(DataError, match="int64"):
        AdSet(np.zeros(2, np.int64), 9)
    with pytest.raises(DataError, match="beyond the 9 ad rows"):
        AdSet(np.array([0, 2], np.uint8), 9)
    with pytest.raises(DataError, match=r"float64 \[3\]; give a bool"):
        AdSet.of(np.zeros(3))
    with pytest.raises(DataError, match="one set is of 9 ad rows, the other of 8"):
        AdSet.none(9) & AdSet.none(8)
    for rows in ([9], [-1]):
        with pytest.raises(DataError, match=f"row {rows[0]} is not among the 9 rows"):
            AdSet.none(9).plus(np.array(rows))
