"""Histories: a batch, single events and a plain list agree, and end before the request."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adrec.features import histories as module
from adrec.features.bits import UNKNOWN_MS
from adrec.features.histories import History, Items
from adrec.features.past import count_strictly_before


@dataclass(frozen=True)
class Log:
    """Rows in time order, what users met before, and what a history of them is made of."""

    users: NDArray[np.int64]
    ads: NDArray[np.int32]
    times: NDArray[np.int64]
    positive: NDArray[np.bool_]
    bits: NDArray[np.uint8]
    starts: dict[int, list[tuple[int, int, int]]]
    """(ad, time, bits) of each user, oldest first; a user's items have the same bits."""
    length: int
    delay: int
    outcome_delays: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.users)

    def history(self) -> History:
        history = self.empty()
        for user, items in self.starts.items():
            ads, times, bits = np.array(items, np.int64).reshape(-1, 3).T
            history.start(user, ads.astype(np.int32), times, int(bits.max(initial=0)))
        return history

    def empty(self) -> History:
        return History(self.length, self.delay, self.outcome_delays)

    def rows(self, part: slice | NDArray[np.bool_]) -> "Log":
        return replace(
            self,
            users=self.users[part],
            ads=self.ads[part],
            times=self.times[part],
            positive=self.positive[part],
            bits=self.bits[part],
        )

    def known(self, time: int, bits: int, at: int) -> list[int]:
        """Tasks that are known to be positive, those that are known first in front."""
        delays = sorted((delay, k) for k, delay in enumerate(self.outcome_delays))
        return [
            k for delay, k in delays if bits >> k & 1 and (time == UNKNOWN_MS or time + delay < at)
        ]


def brute_force(log: Log, users: NDArray[np.int64], times: NDArray[np.int64]) -> Items:
    """The last items of a plain list, for each query anew."""
    answer = Items.none(len(users), log.length)
    for q, (user, at) in enumerate(zip(users, times, strict=True)):
        if user == 0:
            continue
        met = [
            (int(log.ads[i]), int(log.times[i]), int(log.bits[i]))
            for i in range(len(log))
            if log.users[i] == user and log.positive[i] and log.times[i] + log.delay < at
        ]
        # At one instant by ad, and of one ad by what is known of it, as far as it is.
        met.sort(key=lambda item: (item[1], item[0], outcome_order(log, item, int(at))))
        items = log.starts.get(int(user), []) + met
        for place, (ad, time, bits) in enumerate(reversed(items[-log.length :])):
            there = (q, -1 - place)
            answer.ads[there], answer.times_ms[there] = ad, time
            answer.outcomes[there] = sum(1 << k for k in log.known(time, bits, int(at)))
    return answer


def outcome_order(log: Log, item: tuple[int, int, int], at: int) -> list[bool]:
    known = log.known(item[1], item[2], at)
    delays = sorted((delay, k) for k, delay in enumerate(log.outcome_delays))
    return [k in known for _, k in delays]


def in_a_batch(log: Log, history: History) -> Items:
    return of_rows(log, history, np.arange(len(log)))


def of_rows(log: Log, history: History, queries: NDArray[np.int64]) -> Items:
    return history.advance(log.users, log.ads, log.times, log.positive, log.bits, queries)


def one_by_one(log: Log, history: History) -> Items:
    answer = Items.none(len(log), log.length)
    for i in range(len(log)):
        user, at = int(log.users[i]), int(log.times[i])
        for part, read in zip(answer, history.read(user, at), strict=True):
            part[i] = read
        if log.positive[i]:
            history.observe(user, int(log.ads[i]), at, int(log.bits[i]))
    return answer


def same(one: Items, other: Items) -> None:
    for part, expected in zip(one, other, strict=True):
        assert part.dtype == expected.dtype
        np.testing.assert_array_equal(part, expected)


@st.composite
def logs(draw: st.DrawFn, max_rows: int = 40) -> Log:
    """Few users (0 is nobody), many ties, histories longer and shorter than what is kept."""
    rows, users = draw(st.integers(1, max_rows)), draw(st.integers(1, 4))
    start = draw(st.sampled_from([0, 1_767_571_200_000]))
    steps = draw(st.lists(st.sampled_from([0, 0, 1, 5, 300]), min_size=rows, max_size=rows))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.integers(0, 7))
    items = st.tuples(st.integers(1, 9), st.sampled_from([UNKNOWN_MS, start + 1]), st.just(bits))
    starts = st.dictionaries(st.integers(1, users + 2), st.lists(items, max_size=6), max_size=3)
    delays = st.sampled_from([0, 1, 6, 900])
    return Log(
        users=numbers.integers(0, users + 1, rows),
        ads=numbers.integers(1, 9, rows).astype(np.int32),
        times=start + np.cumsum(steps),
        positive=numbers.random(rows) < draw(st.sampled_from([0.3, 1.0])),
        bits=numbers.integers(0, 8, rows).astype(np.uint8),
        starts=draw(starts),
        length=draw(st.integers(1, 5)),
        delay=draw(delays),
        outcome_delays=tuple(draw(st.lists(delays, max_size=3))),
    )


class TestAgainstBruteForce:
    @given(logs())
    def test_a_batch(self, log: Log) -> None:
        same(in_a_batch(log, log.history()), brute_force(log, log.users, log.times))

    @given(logs())
    def test_one_event_at_a_time(self, log: Log) -> None:
        same(one_by_one(log, log.history()), brute_force(log, log.users, log.times))

    @given(logs(), st.data())
    def test_any_mixture_of_both_with_restarts(self, log: Log, data: st.DataObject) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=4)))
        history, parts = log.history(), []
        for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
            run = data.draw(st.sampled_from([in_a_batch, one_by_one]))
            parts.append(run(log.rows(slice(start, end)), history))
            if data.draw(st.booleans()):
                history = restarted(history, log)
        together = Items(*map(np.concatenate, zip(*parts, strict=True)))
        same(together, brute_force(log, log.users, log.times))

    @given(logs(), st.sampled_from([in_a_batch, one_by_one]), st.integers(1, 3000))
    def test_what_is_left_behind(self, log: Log, run: Callable, later: int) -> None:
        """After the log, every user and one never seen can be read at any later time."""
        history = log.history()
        run(log, history)
        for at in (int(log.times[-1]) + later, int(log.times[-1]) + 4000):
            for user in (0, 1, 2, 3, 99):
                expected = brute_force(log, np.array([user]), np.array([at]))
                same(history.read(user, at).as_row(), expected)

    @given(logs(), st.data())
    def test_only_the_rows_asked_for_are_answered(self, log: Log, data: st.DataObject) -> None:
        queries = np.array(sorted(data.draw(st.sets(st.integers(0, len(log) - 1)))), np.int64)
        same(
            of_rows(log, log.history(), queries),
            brute_force(log, log.users[queries], log.times[queries]),
        )


def restarted(history: History, log: Log) -> History:
    again = log.empty()
    again.restore(*history.tables())
    return again


class TestByHand:
    def test_the_newest_item_is_on_the_right(self) -> None:
        history = History(3)
        history.start(1, np.array([7], np.int32), np.array([50]))
        history.observe(1, 8, 100)
        assert [part.tolist() for part in history.read(1, 101)[:2]] == [[0, 7, 8], [-1, 50, 100]]
        history.observe(1, 9, 200)
        history.observe(1, 6, 300)
        assert history.read(1, 301)[0].tolist() == [8, 9, 6]

    def test_a_start_longer_than_the_history_keeps_its_end(self) -> None:
        history = History(2)
        history.start(4, np.array([1, 2, 3], np.int32), np.array([10, 20, 30]))
        assert [part.tolist() for part in history.read(4, 99)[:2]] == [[2, 3], [20, 30]]

    def test_an_empty_start(self) -> None:
        history = History(2)
        history.start(4, np.zeros(0, np.int32), np.zeros(0, np.int64))
        assert history.read(4, 99).ads.tolist() == [0, 0]

    def test_an_outcome_shows_once_it_is_known(self) -> None:
        # Task 0 is known after 10 ms, task 1 at once, task 2 after 5; shown at 100 were an ad with
        # all three, at 103 one with task 2 alone. The start has task 1, and no time.
        history = History(3, outcome_delays_ms=(10, 0, 5))
        history.start(1, np.array([7], np.int32), np.array([UNKNOWN_MS]), bits=0b010)
        history.observe(1, 8, 100, 0b111)
        history.observe(1, 9, 103, 0b100)
        for at, expected in (
            (101, [0, 0b010, 0b010]),
            (105, [0b010, 0b010, 0]),
            (106, [0b010, 0b110, 0]),
            (108, [0b010, 0b110, 0]),
            (109, [0b010, 0b110, 0b100]),
            (110, [0b010, 0b110, 0b100]),
            (111, [0b010, 0b111, 0b100]),
        ):
            assert history.read(1, at).outcomes.tolist() == expected

    def test_nobody_has_no_history(self) -> None:
        history = History(2)
        history.observe(0, 5, 10)
        zero, ten = np.zeros(3, np.int64), np.array([10, 11, 12])
        rows = zero, np.full(3, 5, np.int32), ten, np.ones(3, bool), np.ones(3, np.uint8)
        assert not history.advance(*rows, np.arange(3)).ads.any()
        assert not history.read(0, 99).ads.any()

    def test_clicks_of_one_instant_stand_in_order_of_ad_however_they_came(self) -> None:
        """Two clicks in one slate have one time. Without a rule, the order would depend on where
        the log was cut and on whether it was read or lived through."""
        for ads in ([5, 3], [3, 5]):
            batch, live = History(2), History(2)
            three = np.array([1, 1, 1]), np.array([*ads, 9], np.int32), np.array([10, 10, 20])
            answer = batch.advance(*three, np.ones(3, bool), np.zeros(3, np.uint8), np.array([2]))
            for ad in ads:
                live.observe(1, ad, 10)
            assert answer.ads[0].tolist() == live.read(1, 20).ads.tolist() == [3, 5]

    def test_what_is_reported_late_after_a_batch(self) -> None:
        history, at_ms = History(4), np.array([100, 300, 350, 400])
        users, ads = np.array([1, 1, 1, 2]), np.array([1, 3, 4, 5], np.int32)
        rows = users, ads, at_ms, np.ones(4, bool), np.zeros(4, np.uint8)
        history.advance(*rows, np.arange(4))
        history.observe(1, 2, 200)
        assert history.read(1, 500).ads.tolist() == [1, 2, 3, 4]

    @pytest.mark.parametrize("ads", [[5, 3, 8], [3, 5, 8], [8, 5, 3]])
    @pytest.mark.parametrize("read", [False, True])
    def test_what_is_reported_late_stands_where_it_would_have_stood(
        self, ads: list[int], read: bool
    ) -> None:
        """Also if it was read meanwhile, before an item without a time, and what came of it."""
        batch, live = (History(6, outcome_delays_ms=(0,)) for _ in range(2))
        for history in (batch, live):
            history.start(1, np.array([9, 2], np.int32), np.array([UNKNOWN_MS] * 2))
            history.observe(1, 4, 20)
            history.observe(1, 6, 5)
        for ad in (3, 5, 8):
            batch.observe(1, ad, 10, bits=1)
        assert live.read(1, 30).ads.tolist() == [0, 0, 9, 2, 6, 4]
        for ad in ads:
            live.observe(1, ad, 10)
            if read:
                live.read(1, 30)
            live.amend(1, ad, 10, 1)
        assert live.read(1, 40).ads.tolist() == [2, 6, 3, 5, 8, 4]
        assert live.read(1, 40).outcomes.tolist() == [0, 0, 1, 1, 1, 0]
        assert batch.read(1, 40).ads.tolist() == live.read(1, 40).ads.tolist()
        live.observe(1, 7, UNKNOWN_MS - 1)  # older than all there is room for
        assert live.read(1, 40).ads.tolist() == [2, 6, 3, 5, 8, 4]

    @pytest.mark.parametrize("late", [0b00, 0b10])
    def test_the_order_of_equals_does_not_tell_what_is_not_known_yet(self, late: int) -> None:
        """One ad, twice at one instant: once with task 0, once without, and task 1 is slow."""
        history = History(2, outcome_delays_ms=(0, 50))
        for bits in (0b01, late):
            history.observe(1, 3, 10, bits)
        assert history.read(1, 20).outcomes.tolist() == [0, 1]
        assert history.read(1, 99).outcomes.tolist() == [late, 1]

    def test_what_is_restored_shows_nothing_before_its_time(self) -> None:
        """However late what it began with: it was not read then."""
        history, again = History(2), History(2)
        history.start(1, np.array([7], np.int32), np.array([50]))
        again.restore(*history.tables())
        again.observe(1, 8, 20)
        assert again.read(1, 20).ads.tolist() == [0, 7]
        assert again.read(1, 21).ads.tolist() == [7, 8]

    def test_an_empty_history_is_restored(self) -> None:
        again = History(2)
        again.restore(*History(2).tables())
        assert again.read(3, 5).ads.tolist() == [0, 0]

    def test_no_rows(self) -> None:
        none = np.zeros(0, np.int64)
        rows = none, none.astype(np.int32), none, none > 0, none.astype(np.uint8), none
        assert [part.shape for part in History(3).advance(*rows)] == [(0, 3)] * 3


def leaks(log: Log, run: Callable[[Log, History], Items]) -> set[str]:
    """What rows can see that they must not: what changes what they are given if it is different."""
    before = run(log, log.history())

    def changes(i: int, other: Log) -> bool:
        pairs = zip(run(other, other.history()), before, strict=True)
        return any((part[i] != expected[i]).any() for part, expected in pairs)

    found = set()
    for i in range(len(log)):
        for k, delay in enumerate(log.outcome_delays):
            unknown = (log.times + delay >= log.times[i]).astype(np.uint8)
            if changes(i, replace(log, bits=log.bits ^ (unknown << np.uint8(k)))):
                found.add("an outcome not known yet")
        hidden = {
            "itself": np.arange(len(log)) == i,
            "a row of the same instant": (log.times == log.times[i]) & (np.arange(len(log)) != i),
            "a future row": log.times > log.times[i],
            "a row not known yet": (log.times < log.times[i])
            & (log.times + log.delay >= log.times[i]),
        }
        for what, rows in hidden.items():
            if changes(i, replace(log, positive=log.positive & ~rows)):
                found.add(what)
    return found


TIED = Log(
    users=np.array([1, 1, 2, 1, 1, 2, 1]),
    ads=np.array([11, 12, 13, 14, 15, 16, 17], np.int32),
    times=np.array([1000, 1000, 1000, 1005, 1005, 1040, 1050]),
    positive=np.ones(7, bool),
    bits=np.array([3, 0, 1, 2, 3, 1, 3], np.uint8),
    starts={1: [(9, 500, 2)]},
    length=4,
    delay=8,
    outcome_delays=(8, 40),
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

    @pytest.mark.parametrize("run", [in_a_batch, one_by_one])
    def test_the_detector_notices_outcomes_that_show_too_early(
        self, monkeypatch: pytest.MonkeyPatch, run: Callable
    ) -> None:
        known_bits = module.known_bits

        def a_tick_early(bits: NDArray, times: NDArray, at: NDArray, delays: tuple) -> NDArray:
            return known_bits(bits, times, at + 1, delays)

        monkeypatch.setattr(module, "known_bits", a_tick_early)
        # Row 4 comes 5 ms after the first two, row 5 comes 40 ms after row 2: at the very instant.
        log = replace(TIED, delay=0)
        assert leaks(replace(log, outcome_delays=(5,)), run) == {"an outcome not known yet"}
        assert leaks(replace(log, outcome_delays=(0, 40)), run) == {"an outcome not known yet"}
        assert leaks(replace(log, outcome_delays=(6,)), run) == set()

    def test_the_detector_notices_a_delay_that_is_ignored_and_the_future(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_late(groups: NDArray, known: NDArray, of: NDArray, at: NDArray) -> NDArray:
            return count_strictly_before(groups, known, of, at + 60)

        monkeypatch.setattr(module, "count_strictly_before", too_late)
        found = leaks(TIED, in_a_batch)
        assert {"a row not known yet", "a future row"} <= found

    def test_the_detector_notices_a_row_that_is_observed_before_it_is_read(self) -> None:
        def wrong_way_round(log: Log, history: History) -> Items:
            for i in np.flatnonzero(log.positive):
                history.observe(int(log.users[i]), int(log.ads[i]), int(log.times[i]) - 9)
            parts = [
                history.read(int(u), int(t)) for u, t in zip(log.users, log.times, strict=True)
            ]
            return Items(*map(np.stack, zip(*parts, strict=True)))

        assert {"itself", "a row of the same instant"} <= leaks(TIED, wrong_way_round)


class TestForgetting:
    def test_users_and_what_waits_of_them(self) -> None:
        history = History(3, outcome_delays_ms=(0,))
        for user in (1, 2, 3):
            history.observe(user, user, 10)
            history.read(user, 20)
            history.observe(user, 9, 30)
            history.amend(user, 9, 30, bits=1)
        history.forget(np.array([1, 3, 99]))
        for user, expected in ((1, [0, 0, 0]), (2, [0, 2, 9]), (3, [0, 0, 0]), (99, [0, 0, 0])):
            assert history.read(user, 40).ads.tolist() == expected
        assert history.read(2, 40).outcomes.tolist() == [0, 0, 1]
        history.observe(1, 9, 30)
        assert history.read(1, 40).outcomes.tolist() == [0, 0, 0]


class TestReportedLate:
    def test_an_item_joins_where_its_time_puts_it(self) -> None:
        history = History(3)
        for ad, time_ms in ((1, 10), (3, 30)):
            history.observe(1, ad, time_ms)
        assert history.read(1, 40).ads.tolist() == [0, 1, 3]
        history.observe(1, 2, 20)
        assert history.read(1, 40).ads.tolist() == [1, 2, 3]

    def test_outcomes_reach_the_item_wherever_it_is(self) -> None:
        history = History(2, outcome_delays_ms=(0, 0))
        history.observe(1, 7, 10, bits=1)
        history.amend(1, 7, 10, bits=2)  # waits to be history
        assert history.read(1, 20).outcomes.tolist() == [0, 3]
        history.observe(1, 8, 30)
        assert history.read(1, 40).outcomes.tolist() == [3, 0]
        history.amend(1, 8, 30, bits=2)  # is history
        assert history.read(1, 40).outcomes.tolist() == [3, 2]

    @pytest.mark.parametrize("when", ["live", "kept", "restored"])
    def test_outcomes_reach_all_items_like_theirs(self, when: str) -> None:
        """They are the same ad at the same instant, and none that joins later."""
        history = History(4, outcome_delays_ms=(0,))
        for ad in (7, 8, 8):
            history.observe(1, ad, 10)
        history.amend(1, 8, 10, bits=1)
        if when != "live":
            tables = history.tables()
            if when == "restored":
                history = History(4, outcome_delays_ms=(0,))
                history.restore(*tables)
        history.observe(1, 8, 10)
        items = history.read(1, 20)
        assert items.ads.tolist() == [7, 8, 8, 8]
        assert items.outcomes.tolist() == [0, 0, 1, 1]
        assert history.amended == {}

    def test_what_was_pushed_out_is_left_alone(self) -> None:
        history = History(1, outcome_delays_ms=(0,))
        for ad, time_ms in ((1, 10), (2, 20)):
            history.observe(1, ad, time_ms)
        history.read(1, 30)
        history.amend(1, 1, 10, bits=1)
        assert history.amended == {}
        assert history.read(1, 40).outcomes.tolist() == [0]

    def test_nobody_has_no_outcomes(self) -> None:
        history = History(1, outcome_delays_ms=(0,))
        history.amend(0, 1, 10, bits=1)
        assert history.read(0, 40).outcomes.tolist() == [0]
