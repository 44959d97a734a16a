"""Histories: a batch, single events and a plain list agree, and end before the request."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adrec.features import histories as module
from adrec.features.histories import UNKNOWN_MS, History
from adrec.features.past import count_strictly_before

Answer = tuple[NDArray[np.int32], NDArray[np.int64]]


@dataclass(frozen=True)
class Log:
    """Rows in time order, what users met before, and what a history of them is made of."""

    users: NDArray[np.int64]
    ads: NDArray[np.int32]
    times: NDArray[np.int64]
    positive: NDArray[np.bool_]
    starts: dict[int, list[tuple[int, int]]]
    """(ad, time) of each user, oldest first."""
    length: int
    delay: int

    def __len__(self) -> int:
        return len(self.users)

    def history(self) -> History:
        history = History(self.length, delay_ms=self.delay)
        for user, items in self.starts.items():
            ads, times = np.array(items, np.int64).reshape(-1, 2).T
            history.start(user, ads.astype(np.int32), times)
        return history

    def rows(self, part: slice | NDArray[np.bool_]) -> "Log":
        return replace(
            self,
            users=self.users[part],
            ads=self.ads[part],
            times=self.times[part],
            positive=self.positive[part],
        )


def brute_force(log: Log, users: NDArray[np.int64], times: NDArray[np.int64]) -> Answer:
    """The last items of a plain list, for each query anew."""
    ads_QL = np.zeros((len(users), log.length), np.int32)
    times_QL = np.full((len(users), log.length), UNKNOWN_MS, np.int64)
    for q, (user, at) in enumerate(zip(users, times, strict=True)):
        if user == 0:
            continue
        met = [
            (int(log.times[i]), int(log.ads[i]))
            for i in range(len(log))
            if log.users[i] == user and log.positive[i] and log.times[i] + log.delay < at
        ]
        items = log.starts.get(int(user), []) + [(ad, time) for time, ad in sorted(met)]
        for place, (ad, time) in enumerate(reversed(items[-log.length :])):
            ads_QL[q, -1 - place], times_QL[q, -1 - place] = ad, time
    return ads_QL, times_QL


def in_a_batch(log: Log, history: History) -> Answer:
    everyone = np.arange(len(log))
    return history.advance(log.users, log.ads, log.times, log.positive, everyone)


def one_by_one(log: Log, history: History) -> Answer:
    ads, times = brute_force(log, np.zeros(len(log), np.int64), log.times)  # empty ones
    for i in range(len(log)):
        ads[i], times[i] = history.read(int(log.users[i]), int(log.times[i]))
        if log.positive[i]:
            history.observe(int(log.users[i]), int(log.ads[i]), int(log.times[i]))
    return ads, times


def same(one: Answer, other: Answer) -> None:
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@st.composite
def logs(draw: st.DrawFn, max_rows: int = 40) -> Log:
    """Few users (0 is nobody), many ties, histories longer and shorter than what is kept."""
    rows, users = draw(st.integers(1, max_rows)), draw(st.integers(1, 4))
    start = draw(st.sampled_from([0, 1_767_571_200_000]))
    steps = draw(st.lists(st.sampled_from([0, 0, 1, 5, 300]), min_size=rows, max_size=rows))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    starts = st.dictionaries(
        st.integers(1, users + 2),
        st.lists(st.tuples(st.integers(1, 9), st.sampled_from([UNKNOWN_MS])), max_size=6),
        max_size=3,
    )
    return Log(
        users=numbers.integers(0, users + 1, rows),
        ads=numbers.integers(1, 9, rows).astype(np.int32),
        times=start + np.cumsum(steps),
        positive=numbers.random(rows) < draw(st.sampled_from([0.3, 1.0])),
        starts=draw(starts),
        length=draw(st.integers(1, 5)),
        delay=draw(st.sampled_from([0, 1, 6, 900])),
    )


class TestAgainstBruteForce:
    @given(logs())
    def test_a_batch(self, log: Log) -> None:
        same(in_a_batch(log, log.history()), brute_force(log, log.users, log.times))

    @given(logs())
    def test_one_event_at_a_time(self, log: Log) -> None:
        same(one_by_one(log, log.history()), brute_force(log, log.users, log.times))

    @given(logs(), st.data())
    def test_any_mixture_of_both_with_restarts(
        self, tmp_path_factory: pytest.TempPathFactory, log: Log, data: st.DataObject
    ) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=4)))
        history, parts = log.history(), []
        for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
            run = data.draw(st.sampled_from([in_a_batch, one_by_one]))
            parts.append(run(log.rows(slice(start, end)), history))
            if data.draw(st.booleans()):
                history = restarted(history, log, tmp_path_factory.getbasetemp())
        ads, times = zip(*parts, strict=True)
        together = np.concatenate(ads), np.concatenate(times)
        same(together, brute_force(log, log.users, log.times))

    @given(logs(), st.sampled_from([in_a_batch, one_by_one]), st.integers(1, 3000))
    def test_what_is_left_behind(self, log: Log, run: Callable, later: int) -> None:
        """After the log, every user and one never seen can be read at any later time."""
        history = log.history()
        run(log, history)
        for at in (int(log.times[-1]) + later, int(log.times[-1]) + 4000):
            for user in (0, 1, 2, 3, 99):
                expected = brute_force(log, np.array([user]), np.array([at]))
                ads, times = history.read(user, at)
                same((ads[None], times[None]), expected)

    @given(logs(), st.data())
    def test_only_the_rows_asked_for_are_answered(self, log: Log, data: st.DataObject) -> None:
        queries = np.array(sorted(data.draw(st.sets(st.integers(0, len(log) - 1)))), np.int64)
        history = log.history()
        answer = history.advance(log.users, log.ads, log.times, log.positive, queries)
        same(answer, brute_force(log, log.users[queries], log.times[queries]))


def restarted(history: History, log: Log, folder: Path) -> History:
    history.save(folder / "history.parquet")
    again = History(log.length, delay_ms=log.delay)
    again.restore(folder / "history.parquet")
    return again


class TestByHand:
    def test_the_newest_item_is_on_the_right(self) -> None:
        history = History(3)
        history.start(1, np.array([7], np.int32), np.array([50]))
        history.observe(1, 8, 100)
        assert [part.tolist() for part in history.read(1, 101)] == [[0, 7, 8], [-1, 50, 100]]
        history.observe(1, 9, 200)
        history.observe(1, 6, 300)
        assert history.read(1, 301)[0].tolist() == [8, 9, 6]

    def test_a_start_longer_than_the_history_keeps_its_end(self) -> None:
        history = History(2)
        history.start(4, np.array([1, 2, 3], np.int32), np.array([10, 20, 30]))
        assert [part.tolist() for part in history.read(4, 99)] == [[2, 3], [20, 30]]

    def test_an_empty_start(self) -> None:
        history = History(2)
        history.start(4, np.zeros(0, np.int32), np.zeros(0, np.int64))
        assert history.read(4, 99)[0].tolist() == [0, 0]

    def test_nobody_has_no_history(self) -> None:
        history = History(2)
        history.observe(0, 5, 10)
        zero, ten = np.zeros(3, np.int64), np.array([10, 11, 12])
        ads, _ = history.advance(zero, np.full(3, 5, np.int32), ten, np.ones(3, bool), np.arange(3))
        assert not ads.any()
        assert not history.read(0, 99)[0].any()

    def test_clicks_of_one_instant_stand_in_order_of_ad_however_they_came(self) -> None:
        """Two clicks in one slate have one time. Without a rule, the order would depend on where
        the log was cut and on whether it was read or lived through."""
        for ads in ([5, 3], [3, 5]):
            batch, live = History(2), History(2)
            three = np.array([1, 1, 1]), np.array([*ads, 9], np.int32), np.array([10, 10, 20])
            answer, _ = batch.advance(*three, np.ones(3, bool), np.array([2]))
            for ad in ads:
                live.observe(1, ad, 10)
            assert answer[0].tolist() == live.read(1, 20)[0].tolist() == [3, 5]

    def test_an_empty_history_is_saved_and_read(self, tmp_path: Path) -> None:
        History(2).save(tmp_path / "history.parquet")
        again = History(2)
        again.restore(tmp_path / "history.parquet")
        assert again.read(3, 5)[0].tolist() == [0, 0]

    def test_no_rows(self) -> None:
        none = np.zeros(0, np.int64)
        ads, times = History(3).advance(none, none.astype(np.int32), none, none > 0, none)
        assert ads.shape == times.shape == (0, 3)


def leaks(log: Log, run: Callable[[Log, History], Answer]) -> set[str]:
    """What rows can see that they must not: whose absence changes what they are given."""
    before, _ = run(log, log.history())
    found = set()
    for i in range(len(log)):
        hidden = {
            "itself": np.arange(len(log)) == i,
            "a row of the same instant": (log.times == log.times[i]) & (np.arange(len(log)) != i),
            "a future row": log.times > log.times[i],
            "a row not known yet": (log.times < log.times[i])
            & (log.times + log.delay >= log.times[i]),
        }
        for what, rows in hidden.items():
            ads, _ = run(replace(log, positive=log.positive & ~rows), log.history())
            if (ads[i] != before[i]).any():
                found.add(what)
    return found


TIED = Log(
    users=np.array([1, 1, 2, 1, 1, 2, 1]),
    ads=np.array([11, 12, 13, 14, 15, 16, 17], np.int32),
    times=np.array([1000, 1000, 1000, 1005, 1005, 1040, 1050]),
    positive=np.ones(7, bool),
    starts={1: [(9, 500)]},
    length=4,
    delay=8,
)


class TestNoLeak:
    @pytest.mark.parametrize("run", [in_a_batch, one_by_one])
    @pytest.mark.parametrize("delay", [0, 8])
    def test_no_row_sees_itself_its_instant_or_the_future(self, run: Callable, delay: int) -> None:
        assert leaks(replace(TIED, delay=delay), run) == set()

    @settings(max_examples=25)
    @given(logs(max_rows=12), st.sampled_from([in_a_batch, one_by_one]))
    def test_in_any_log(self, log: Log, run: Callable) -> None:
        assert leaks(log, run) == set()

    def test_the_detector_notices_ties_that_are_counted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def including_ties(groups: NDArray, known: NDArray, of: NDArray, at: NDArray) -> NDArray:
            events, queries = (groups << 42) | known, (of << 42) | at
            return np.searchsorted(events, queries, side="right")

        monkeypatch.setattr(module, "count_strictly_before", including_ties)
        found = leaks(replace(TIED, delay=0), in_a_batch)
        assert found == {"itself", "a row of the same instant"}

    def test_the_detector_notices_a_delay_that_is_ignored_and_the_future(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_late(groups: NDArray, known: NDArray, of: NDArray, at: NDArray) -> NDArray:
            return count_strictly_before(groups, known, of, at + 60)

        monkeypatch.setattr(module, "count_strictly_before", too_late)
        found = leaks(TIED, in_a_batch)
        assert {"a row not known yet", "a future row"} <= found

    def test_the_detector_notices_a_row_that_is_observed_before_it_is_read(self) -> None:
        def wrong_way_round(log: Log, history: History) -> Answer:
            for i in np.flatnonzero(log.positive):
                history.observe(int(log.users[i]), int(log.ads[i]), int(log.times[i]) - 9)
            parts = [
                history.read(int(u), int(t)) for u, t in zip(log.users, log.times, strict=True)
            ]
            ads, times = zip(*parts, strict=True)
            return np.stack(ads), np.stack(times)

        assert {"itself", "a row of the same instant"} <= leaks(TIED, wrong_way_round)
