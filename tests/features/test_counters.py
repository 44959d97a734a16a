"""Counters: a batch, single events and a brute-force sum agree, and no row ever sees itself."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adrec.errors import DataError
from adrec.features import counters as module
from adrec.features import waiting
from adrec.features.counters import (
    SMOOTHING,
    Counter,
    counter_features,
    counter_names,
    outcomes,
)
from adrec.features.past import count_strictly_before, numbered, order_events
from adrec.schema import CategoricalField, CounterSpec, Schema, Task

CLICK = Task(name="click")
REVENUE = Task(name="revenue", kind="value")


@dataclass(frozen=True)
class Log:
    """Rows in time order and what a counter of them is made of."""

    keys: NDArray[np.int64]
    times: NDArray[np.int64]
    outcomes: NDArray[np.float64]
    half_lives: NDArray[np.float64]
    delays: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def counter(self) -> Counter:
        return Counter(half_lives_ms=self.half_lives, delays_ms=self.delays)

    def rows(self, part: slice | NDArray[np.bool_]) -> "Log":
        return replace(
            self, keys=self.keys[part], times=self.times[part], outcomes=self.outcomes[part]
        )


def brute_force(log: Log, keys: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """[Q, H, 2K]: the sums of the module's docstring, one pair of rows at a time."""
    tasks = len(log.delays)
    sums = np.zeros((len(keys), len(log.half_lives), 2 * tasks))
    for q, (key, at) in enumerate(zip(keys, times, strict=True)):
        for i in range(len(log)):
            for k, delay in enumerate(log.delays):
                if log.keys[i] == key and log.times[i] + delay < at:
                    weight_H = 2.0 ** (-(at - log.times[i]) / log.half_lives)
                    sums[q, :, k] += weight_H
                    sums[q, :, tasks + k] += weight_H * log.outcomes[i, k]
    return sums


def in_a_batch(log: Log, counter: Counter) -> NDArray[np.float64]:
    return counter.advance(log.keys, log.times, log.outcomes)


def unread(log: Log, counter: Counter) -> NDArray[np.float64]:
    counter.take_in(log.keys, log.times, log.outcomes)
    return np.full((len(log), len(log.half_lives), 2 * len(log.delays)), np.nan)


def one_by_one(log: Log, counter: Counter) -> NDArray[np.float64]:
    sums = np.zeros((len(log), len(log.half_lives), 2 * len(log.delays)))
    for i in range(len(log)):
        sums[i] = counter.read(log.keys[i : i + 1], int(log.times[i]))[0]
        counter.observe([int(log.keys[i])], int(log.times[i]), log.outcomes[[i]])
    return sums


@st.composite
def logs(draw: st.DrawFn, max_rows: int = 40) -> Log:
    """Few keys, many ties, delays shorter and longer than the gaps between rows."""
    rows = draw(st.integers(1, max_rows))
    tasks = draw(st.integers(1, 3))
    start = draw(st.sampled_from([0, 1, 1_767_571_200_000]))
    steps = draw(st.lists(st.sampled_from([0, 0, 1, 5, 300]), min_size=rows, max_size=rows))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Log(
        keys=numbers.integers(0, draw(st.integers(1, 6)), rows),
        times=start + np.cumsum(steps),
        outcomes=numbers.integers(0, 4, (rows, tasks)) / 2,
        half_lives=np.array(draw(st.sampled_from([[np.inf], [7.0], [np.inf, 50.0, 0.5]]))),
        delays=np.array(draw(st.tuples(*[st.sampled_from([0, 1, 6, 900])] * tasks))),
    )


class TestAgainstBruteForce:
    @given(logs())
    def test_a_batch(self, log: Log) -> None:
        expected = brute_force(log, log.keys, log.times)
        np.testing.assert_allclose(in_a_batch(log, log.counter()), expected, rtol=1e-9, atol=1e-12)

    @given(logs())
    def test_one_event_at_a_time(self, log: Log) -> None:
        expected = brute_force(log, log.keys, log.times)
        np.testing.assert_allclose(one_by_one(log, log.counter()), expected, rtol=1e-9, atol=1e-12)

    @given(logs(), st.data())
    def test_any_mixture_of_both_with_restarts(
        self, tmp_path_factory: pytest.TempPathFactory, log: Log, data: st.DataObject
    ) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=4)))
        counter, parts = log.counter(), []
        for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
            run = data.draw(st.sampled_from([in_a_batch, one_by_one, unread]))
            parts.append(run(log.rows(slice(start, end)), counter))
            if data.draw(st.booleans()):
                counter = restarted(counter, log, tmp_path_factory.getbasetemp())
        found, expected = np.concatenate(parts), brute_force(log, log.keys, log.times)
        read = ~np.isnan(found)
        np.testing.assert_allclose(found[read], expected[read], rtol=1e-9, atol=1e-12)

    @given(logs(), st.sampled_from([in_a_batch, one_by_one, unread]), st.integers(1, 3000))
    def test_what_is_left_behind(self, log: Log, run: Callable, later: int) -> None:
        """After the log, every key and one never seen can be read at any later time."""
        counter = log.counter()
        run(log, counter)
        keys = np.arange(-1, 7)
        for at in (int(log.times[-1]) + later, int(log.times[-1]) + 4000):
            expected = brute_force(log, keys, np.full(len(keys), at))
            np.testing.assert_allclose(counter.read(keys, at), expected, rtol=1e-9, atol=1e-12)

    @given(logs(), st.data())
    def test_what_waits_as_arrays(self, log: Log, data: st.DataObject) -> None:
        """Whatever waits one at a time, as arrays, and in a batch that came before."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(waiting, "_MOST_FEW", data.draw(st.sampled_from([0, 3, 10])))
            counter, cut = log.counter(), data.draw(st.integers(0, len(log)))
            run = data.draw(st.sampled_from([in_a_batch, one_by_one]))
            parts = [run(log.rows(slice(cut)), counter)]
            parts.append(one_by_one(log.rows(slice(cut, None)), counter))
            assert counter.waiting._rows <= waiting._MOST_FEW
            if data.draw(st.booleans()):
                again = log.counter()
                again.restore(*counter.tables())
                counter = again
        found, expected = np.concatenate(parts), brute_force(log, log.keys, log.times)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        at, keys = int(log.times[-1]) + data.draw(st.integers(1, 2000)), np.arange(-1, 7)
        expected = brute_force(log, keys, np.full(len(keys), at))
        np.testing.assert_allclose(counter.read(keys, at), expected, rtol=1e-9, atol=1e-12)

    @given(logs(), st.sampled_from([in_a_batch, one_by_one, unread]), st.sampled_from([3, 9999]))
    def test_forgetting_is_never_having_seen(self, log: Log, run: Callable, most: int) -> None:
        counter, gone = log.counter(), np.array([1, 3, 77])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(waiting, "_MOST_FEW", most)
            run(log, counter)
        counter.forget(lambda keys: np.isin(keys, gone))
        rest, keys = log.rows(~np.isin(log.keys, gone)), np.arange(-1, 7)
        for later in (1, 5, 4000):
            at = int(log.times[-1]) + later
            expected = brute_force(rest, keys, np.full(len(keys), at))
            np.testing.assert_allclose(counter.read(keys, at), expected, rtol=1e-9, atol=1e-12)

    @given(logs())
    def test_reading_changes_nothing(self, log: Log) -> None:
        counter = log.counter()
        one_by_one(log, counter)
        at = int(log.times[-1]) + 3
        first = counter.read(log.keys, at)
        counter.read(np.arange(20), at)
        np.testing.assert_array_equal(counter.read(log.keys, at), first)

    @given(logs())
    def test_impressions_of_one_instant_may_be_taken_in_together(self, log: Log) -> None:
        alone, together = log.counter(), log.counter()
        one_by_one(log, alone)
        for at in np.unique(log.times):
            mine = log.times == at
            together.observe(log.keys[mine].tolist(), int(at), log.outcomes[mine])
        at, keys = int(log.times[-1]) + 2000, np.arange(-1, 7)
        np.testing.assert_allclose(together.read(keys, at), alone.read(keys, at), atol=1e-12)

    def test_outcomes_that_are_added_wait_as_arrays_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "_MOST_FEW", 1)
        counter = Counter(half_lives_ms=np.array([np.inf]), delays_ms=np.array([10, 100]))
        counter.observe([5], 1000, np.zeros((1, 2)))
        counter.amend(5, 1000, np.array([1.0, 0.0]))
        counter.amend(5, 1000, np.array([0.0, 3.0]))
        assert counter.waiting._rows <= 1
        for at, expected in ((1010, [0, 0, 0, 0]), (1011, [1, 0, 1, 0]), (1101, [1, 1, 1, 3])):
            assert counter.read(np.array([5]), at).tolist() == [[expected]]

    def test_an_impression_and_its_outcomes_are_known_at_different_times(self) -> None:
        """By hand: a click is known after 10 ms, revenue after 100 ms; half-lives ∞ and 20 ms."""
        counter = Counter(half_lives_ms=np.array([np.inf, 20.0]), delays_ms=np.array([10, 100]))
        counter.observe([5], 1000, np.array([[1.0, 3.0]]))
        key = np.array([5])
        assert not counter.read(key, 1010).any()  # known at 1010, which is not before 1010
        # [n of click, n of revenue, y of click, y of revenue]
        half = 0.5 ** (11 / 20)
        np.testing.assert_allclose(counter.read(key, 1011)[0], [[1, 0, 1, 0], [half, 0, half, 0]])
        quarter = 0.25**3
        np.testing.assert_allclose(
            counter.read(key, 1120)[0], [[1, 1, 1, 3], [quarter, quarter, quarter, 3 * quarter]]
        )


def written_and_read(tables: tuple[pl.DataFrame, ...], folder: Path) -> Iterator[pl.DataFrame]:
    for table in tables:
        table.write_parquet(folder / "table.parquet")
        yield pl.read_parquet(folder / "table.parquet")


def restarted(counter: Counter, log: Log, folder: Path) -> Counter:
    again = log.counter()
    again.restore(*written_and_read(counter.tables(), folder))
    return again


def leaks(log: Log, run: Callable[[Log, Counter], NDArray[np.float64]]) -> set[str]:
    """What rows can see that they must not. Any of it would make a model look better than it is.

    The outcomes of some rows are changed, then the rows are left out; whoever may not know them
    has to be given the same sums as before.
    """
    before = run(log, log.counter())
    at = log.times[:, None]
    known_from = log.times[:, None] + log.delays[None, :]
    found = set()
    for i in range(len(log)):
        hidden = {
            "itself": np.arange(len(log)) == i,
            "a row of the same instant": (log.times == log.times[i]) & (np.arange(len(log)) != i),
            "a future row": log.times > log.times[i],
            "an outcome not known yet": (log.times < log.times[i]) & (known_from >= at[i]).all(1),
        }
        for what, rows in hidden.items():
            changed = replace(log, outcomes=np.where(rows[:, None], 77.0, log.outcomes))
            keep = ~rows
            keep[i] = True
            kept = run(changed.rows(keep), log.counter())[int(keep[:i].sum())]
            # Leaving rows out changes how sums are rounded; hence close, not equal.
            if not np.allclose(run(changed, log.counter())[i], before[i], rtol=1e-9) or not (
                what == "itself" or np.allclose(kept, before[i], rtol=1e-9)
            ):
                found.add(what)
    return found


TIED = Log(
    keys=np.array([1, 1, 2, 1, 1, 2, 1]),
    times=np.array([1000, 1000, 1000, 1005, 1005, 1040, 1050]),
    outcomes=np.array([[1.0], [0.0], [1.0], [0.0], [1.0], [1.0], [0.0]]),
    half_lives=np.array([np.inf, 30.0]),
    delays=np.array([8]),
)


EIGHT_APART = np.array([1000, 1000, 1000, 1008, 1008, 1016, 1024])


def too_late_by(monkeypatch: pytest.MonkeyPatch, extra_ms: int) -> None:
    """Break the rule on purpose: a row sees what is known up to `extra_ms` - 1 after it."""

    def broken(groups: NDArray, known: NDArray, of: NDArray, at: NDArray) -> NDArray:
        return count_strictly_before(groups, known, of, at + extra_ms)

    settle = Counter._settle
    monkeypatch.setattr(module, "count_strictly_before", broken)
    monkeypatch.setattr(Counter, "_settle", lambda self, at: settle(self, at + extra_ms))


class TestNoLeak:
    @pytest.mark.parametrize("run", [in_a_batch, one_by_one])
    def test_no_row_sees_itself_its_instant_or_the_future(self, run: Callable) -> None:
        assert leaks(TIED, run) == set()

    @settings(max_examples=25)
    @given(logs(max_rows=12), st.sampled_from([in_a_batch, one_by_one]))
    def test_in_any_log(self, log: Log, run: Callable) -> None:
        assert leaks(log, run) == set()

    def test_the_detector_notices_ties_that_are_counted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`side="right"`: rows known at the very instant of the query are counted, itself too."""

        def including_ties(groups: NDArray, known: NDArray, of: NDArray, at: NDArray) -> NDArray:
            events, queries = (groups << 42) | known, (of << 42) | at
            return np.searchsorted(events, queries, side="right")

        monkeypatch.setattr(module, "count_strictly_before", including_ties)
        found = leaks(replace(TIED, delays=np.array([0])), in_a_batch)
        assert {"itself", "a row of the same instant"} <= found
        found = leaks(replace(TIED, times=EIGHT_APART), in_a_batch)
        assert found == {"an outcome not known yet"}

    @pytest.mark.parametrize("run", [in_a_batch, one_by_one])
    def test_the_detector_notices_a_delay_that_is_ignored(
        self, monkeypatch: pytest.MonkeyPatch, run: Callable
    ) -> None:
        too_late_by(monkeypatch, 9)
        assert "an outcome not known yet" in leaks(TIED, run)

    def test_the_detector_notices_the_future(self, monkeypatch: pytest.MonkeyPatch) -> None:
        too_late_by(monkeypatch, 40)
        assert "a future row" in leaks(TIED, in_a_batch)

    def test_the_detector_notices_a_row_that_is_observed_before_it_is_read(self) -> None:
        def wrong_way_round(log: Log, counter: Counter) -> NDArray:
            for i in range(len(log)):
                counter.observe([int(log.keys[i])], int(log.times[i]) - 9, log.outcomes[[i]])
            return np.stack(
                [counter.read(log.keys[i : i + 1], int(log.times[i]))[0] for i in range(len(log))]
            )

        assert {"itself", "a row of the same instant"} <= leaks(TIED, wrong_way_round)


class TestLongLogs:
    def test_years_of_a_short_half_life(self) -> None:
        """Five years are 43,800 half-lives of an hour: 2^43800 fits no float."""
        hour, rng = 3_600_000, np.random.default_rng(0)
        log = Log(
            keys=rng.integers(0, 3, 300),
            times=np.sort(rng.integers(0, 5 * 365 * 24 * hour, 300)) + 1_600_000_000_000,
            outcomes=rng.random((300, 1)),
            half_lives=np.array([1.0 * hour, np.inf]),
            delays=np.array([2 * hour]),
        )
        sums = in_a_batch(log, log.counter())
        assert np.isfinite(sums).all()
        np.testing.assert_allclose(sums, brute_force(log, log.keys, log.times), rtol=1e-9)
        np.testing.assert_allclose(one_by_one(log, log.counter()), sums, rtol=1e-9)

    def test_years_of_a_short_half_life_unread(self) -> None:
        counter = Counter(half_lives_ms=np.array([1000.0]), delays_ms=np.array([0]))
        times = np.arange(0, 10**12, 10**9)
        counter.take_in(np.zeros(1000, np.int64), times, np.ones((1000, 1)))
        at = int(times[-1]) + 1000
        np.testing.assert_allclose(counter.read(np.array([0]), at), [[[0.5, 0.5]]])

    def test_two_rows_farther_apart_than_any_half_life(self) -> None:
        log = Log(
            keys=np.zeros(2, np.int64),
            times=np.array([0, 2_000_000_000_000]),
            outcomes=np.ones((2, 1)),
            half_lives=np.array([1.0]),
            delays=np.array([0]),
        )
        assert not in_a_batch(log, log.counter()).any()
        assert not one_by_one(log, log.counter()).any()

    def test_a_key_that_comes_back_after_years_starts_from_nothing(self) -> None:
        counter = Counter(half_lives_ms=np.array([1000.0]), delays_ms=np.array([0]))
        counter.advance(np.zeros(3, np.int64), np.array([5, 6, 7]), np.ones((3, 1)))
        assert counter.read(np.array([0]), 10**12).tolist() == [[[0.0, 0.0]]]
        sums = counter.advance(np.zeros(2, np.int64), np.array([10**12] * 2), np.ones((2, 1)))
        assert not sums.any()

    def test_no_rows(self) -> None:
        counter = Counter(half_lives_ms=np.array([np.inf]), delays_ms=np.array([0, 0]))
        none = np.zeros(0, np.int64)
        assert counter.advance(none, none, np.zeros((0, 2))).shape == (0, 1, 4)
        counter.take_in(none, none, np.zeros((0, 2)))
        assert counter.read(none, 5).shape == (0, 1, 4)
        assert counter.read(np.array([3]), 5).tolist() == [[[0.0] * 4]]


class TestPast:
    @given(st.data())
    def test_counting_is_brute_force_counting(self, data: st.DataObject) -> None:
        pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=20)
        events, queries = data.draw(pairs), data.draw(pairs)
        groups, known = np.array(events, np.int64).reshape(-1, 2).T
        order = order_events(groups, known)
        of, at = np.array(queries, np.int64).reshape(-1, 2).T
        expected = [
            sum(g < q or (g == q and t < when) for g, t in events) for q, when in queries
        ]  # fmt: skip
        assert count_strictly_before(groups[order], known[order], of, at).tolist() == expected

    @pytest.mark.parametrize("groups", [10, 100_000])
    @pytest.mark.parametrize("in_order", [True, False])
    def test_events_are_ordered_by_group_and_time_and_ties_stay(
        self, groups: int, in_order: bool
    ) -> None:
        rng = np.random.default_rng(0)
        group, known = rng.integers(0, groups, 1000), rng.integers(0, 50, 1000)
        known = np.sort(known) if in_order else known
        expected = sorted(range(1000), key=lambda i: (group[i], known[i]))
        assert order_events(group, known).tolist() == expected

    @given(
        st.lists(st.integers(-5, 2**62), max_size=20),
        st.sampled_from([3, 2**63 - 1]),
        st.sampled_from([0, -2, 2**62, -(2**63)]),
    )
    def test_keys_are_numbered_in_their_order(
        self, keys: list[int], below: int, least: int
    ) -> None:
        keys_E = np.minimum(np.array(keys, np.int64) % below, 2**62 - 1) + least
        distinct, place_E = numbered(keys_E)
        assert distinct.tolist() == sorted(set(keys_E.tolist()))
        assert distinct[place_E].tolist() == keys_E.tolist()

    def test_more_groups_than_memory_would_hold_rows(self) -> None:
        """Ten million groups in a year of milliseconds still fit one integer."""
        groups, times = np.array([9_999_999, 10_000_000]), np.array([5, 31_536_000_000])
        queries = np.array([10_000_000] * 2), np.array([31_536_000_000, 31_536_000_001])
        assert count_strictly_before(groups, times, *queries).tolist() == [1, 2]

    def test_times_that_cannot_be_are_refused(self) -> None:
        groups, times = np.array([0, 3_000_000]), np.array([0, 10**15])
        with pytest.raises(DataError, match="timestamp_unit"):
            count_strictly_before(groups, times, groups, times)


class TestFeatures:
    def test_by_hand(self) -> None:
        """s = 20. Click: p = .1, n = 5, y = 2; revenue: p = .4, n = 3, y = 1.5; two half-lives."""
        assert SMOOTHING == 20.0
        sums = np.array([[[5.0, 3.0, 2.0, 1.5], [0.0, 0.0, 0.0, 0.0]]])
        features = counter_features(sums, np.array([0.1, 0.4]), [CLICK, REVENUE])
        click_lift = math.log(((2 + 20 * 0.1) / (5 + 20)) / 0.1)  # log(.16 / .1)
        revenue_lift = (1.5 + 20 * 0.4) / (3 + 20) - 0.4
        expected = [math.log(6), click_lift, revenue_lift, 0.0, 0.0, 0.0]
        np.testing.assert_allclose(features, [expected], rtol=1e-6, atol=1e-7)
        assert features.dtype == np.float32

    def test_a_task_that_never_happened_gives_finite_features(self) -> None:
        sums = np.array([[[3.0, 0.0]]])
        assert np.isfinite(counter_features(sums, np.array([0.0]), [CLICK])).all()

    def test_values_are_summed_as_logs(self) -> None:
        labels = np.array([[1.0, math.e - 1], [0.0, 0.0]], np.float32)
        np.testing.assert_allclose(outcomes(labels, [CLICK, REVENUE]), [[1, 1], [0, 0]], rtol=1e-6)
        assert labels[0, 1] == np.float32(math.e - 1)  # the labels themselves are left alone

    def test_names_stand_in_the_order_of_the_features(self) -> None:
        key = CounterSpec(columns=("ad_id",))
        pair = CounterSpec(columns=("user_id", "topic"), half_lives_hours=(24.0, None))
        topic = CategoricalField(name="topic", kind="categorical", role="ad")
        schema = Schema(
            name="test", user_id="user", tasks=(CLICK, REVENUE), fields=(topic,),
            counters=(key, pair),
        )  # fmt: skip
        assert counter_names(schema) == [
            "ad_id, ever: shown", "ad_id, ever: click", "ad_id, ever: revenue",
            "user_id*topic, 24 h: shown", "user_id*topic, 24 h: click",
            "user_id*topic, 24 h: revenue", "user_id*topic, ever: shown",
            "user_id*topic, ever: click", "user_id*topic, ever: revenue",
        ]  # fmt: skip
