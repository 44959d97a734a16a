"""Waiting: rows of one instant and tables come out when they are known, and once."""

from itertools import chain, groupby

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.features import waiting as module
from adrec.features.waiting import WAITING, Waiting

Row = tuple[int, int, int, int, float, int]
rows = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(0, 2**62),
        st.sampled_from([0, 7, 2**41]),
        st.integers(0, 2),
        st.floats(0, 5),
        st.integers(0, 1),
    ),
    max_size=12,
)


def alike(row: Row) -> tuple[int, int, int, int]:
    """What rows share that are added together."""
    return row[0], row[2], row[3], row[5]


def known(waiting: Waiting, at_ms: int) -> list[tuple[float, ...]]:
    found = waiting.take_known(at_ms)
    return [] if found is None else sorted(zip(*(part.tolist() for part in found), strict=True))


@given(rows, st.lists(rows, max_size=4), st.sampled_from([0, 3, 99]), st.booleans())
def test_each_row_comes_out_once_it_is_known(
    begun: list[Row], added: list[list[Row]], most: int, again: bool
) -> None:
    waiting, all_rows = Waiting(), [*begun, *chain(*added)]
    waiting.replace(pl.DataFrame(begun, schema=WAITING, orient="row"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_FEW", most)
        for some in added:
            for (known_at_ms, time_ms, task, shown), group in groupby(
                sorted(some, key=alike), alike
            ):
                alone = [*group]
                keys, outcomes = [row[1] for row in alone], [row[4] for row in alone]
                waiting.add(known_at_ms, keys, time_ms, task, outcomes, shown)
                assert waiting._rows <= most
    if again:
        table = waiting.table()
        assert table.schema == pl.Schema(WAITING)
        waiting = Waiting()
        waiting.replace(table)
    before_ms = 0
    for at_ms in (0, 1, 5, 5, 10):
        expected = sorted(row[1:] for row in all_rows if before_ms <= row[0] < at_ms)
        assert known(waiting, at_ms) == expected
        before_ms = at_ms
    assert waiting.table().is_empty()


def test_what_waits_long_takes_little_memory() -> None:
    """48 bytes a row in tables, however many there are."""
    waiting = Waiting()
    for i in range(30_000):
        waiting.add(10**12 + i, [i], i, i % 3, [1.0], 1)
    assert waiting._rows <= 4_000
    assert sum(map(len, waiting._stores)) >= 26_000
    found = waiting.take_known(10**12 + 29_000)
    assert found is not None
    assert np.sort(found[0]).tolist() == [*range(29_000)]
    assert waiting._rows + sum(map(len, waiting._stores)) == 1_000
