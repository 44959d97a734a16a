"""Memory: a state from tables or files is the state that they were made of."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adrec.features.memory import load_state, memory_of, remember, save_state
from adrec.features.state import State
from adrec.schema import TIMESTAMP_MS, USER_ID, Schema
from features.test_state import (
    DAY_MS,
    begin,
    live_through,
    opened,
    query_of_rows,
    same,
    slow_outcomes,
    spread_out,
    whole_log,
    with_users,
    without_users,
    without_users_table,
)


@pytest.mark.parametrize("variant", [with_users, without_users_table, slow_outcomes])
def test_what_is_saved_serves_as_before(
    tiny_world: Path, tmp_path: Path, variant: Callable[[Schema], Schema]
) -> None:
    tables = opened(tiny_world, variant)
    log = whole_log(tables)
    state = begin(tables)
    state.advance(log[:4000])
    save_state(state, tmp_path)
    again = load_state(tmp_path, state.features, state.catalogue)
    assert again.users.ids == state.users.ids
    query, seen = live_through(again, log[4000:5000])
    rows = state.advance(log[4000:5000])
    same(spread_out(query), spread_out(query_of_rows(state, rows)))
    np.testing.assert_allclose(seen, rows.counters_NC, atol=1e-5)
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    assert suffixes == {".parquet", ".safetensors"}


def test_what_is_saved_knows_how_ads_stand(tiny_world: Path, tmp_path: Path) -> None:
    tables = opened(tiny_world, slow_outcomes)
    log, state = whole_log(tables), begin(tables)
    state.advance(log)
    at = int(log[TIMESTAMP_MS][-1]) + 1
    save_state(state, tmp_path)  # with outcomes that are not known yet
    again = load_state(tmp_path, state.features, state.catalogue)
    np.testing.assert_allclose(again.standing(at), state.standing(at), atol=1e-6)
    later = at + 3 * DAY_MS
    assert not np.array_equal(state.standing(later), state.standing(at))
    np.testing.assert_allclose(again.standing(later), state.standing(later), atol=1e-6)


def content(state: State) -> Iterator[Any]:
    """All that a state knows of the past, as arrays and values that can be compared."""
    yield state.users.ids
    yield from (state.static.categorical, state.static.dense)
    for history in state.histories:
        known = history.ads_UL.any(axis=1)
        for part in (history.ads_UL, history.times_ms_UL, history.outcomes_UL):
            yield part[known]
        yield from (np.flatnonzero(known), history.settled_ms)
        yield from (sorted(history.pending), history.amended)
    for counter in state.all_counters:
        used = len(counter.slots)
        yield from (counter.slots, counter.sums[:used], counter.as_of_ms[:used])
        yield sorted(counter.waiting.table().rows())


class TestRemembering:
    @pytest.mark.parametrize(
        "variant", [with_users, without_users_table, without_users, slow_outcomes]
    )
    def test_bit_for_bit(self, tiny_world: Path, variant: Callable[[Schema], Schema]) -> None:
        """Also what waits, and whatever the state knew before that remembers."""
        tables = opened(tiny_world, variant)
        log, state, again = whole_log(tables), begin(tables), begin(tables)
        again.advance(log[:400])
        state.advance(log[:2000])
        live_through(state, log[2000:2400], reported="at the last instant")
        remember(again, memory_of(state))
        for mine, theirs in zip(content(again), content(state), strict=True):
            if isinstance(theirs, np.ndarray):
                assert mine.dtype == theirs.dtype
                np.testing.assert_array_equal(mine, theirs)
            else:
                assert mine == theirs
        assert any(history.pending for history in state.histories) == bool(state.histories)
        assert all(counter.waiting.table().height for counter in state.all_counters)
        live_through(again, log[2400:2800])
        live_through(state, log[2400:2800])
        at_ms = int(log[TIMESTAMP_MS][-1]) + DAY_MS
        np.testing.assert_allclose(again.standing(at_ms), state.standing(at_ms), atol=1e-6)

    def test_neither_changes_the_other(self, tiny_world: Path) -> None:
        tables = opened(tiny_world)
        log, state, again = whole_log(tables), begin(tables), begin(tables)
        state.advance(log[:400])
        memory = memory_of(state)
        remember(again, memory)
        again.forget(again.users.ids[:9])
        again.advance(log[400:800])
        for name, table in memory_of(state).items():
            assert table.equals(memory[name])
        users = pl.DataFrame({USER_ID: state.users.ids}, schema={USER_ID: pl.String})
        assert memory["users"].equals(users)
