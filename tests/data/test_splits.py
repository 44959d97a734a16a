"""Splits: by time, never by chance; the periods follow each other and none is empty."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from adrec.data.layouts import open_layout
from adrec.data.splits import Split, SplitConfig, rolling_splits, split_times
from adrec.data.tables import Tables, tables_from
from adrec.errors import ConfigError
from adrec.schema import TIMESTAMP_MS, parse_config, parse_schema

SCHEMA = parse_schema("{name: plain, tasks: [{name: click}]}")
DAY_MS = 86_400_000
MAY = datetime(2026, 5, 1, tzinfo=UTC)
MAY_MS = int(MAY.timestamp()) * 1000


def log_at(times_ms: list[int]) -> Tables:
    """A log with an impression at each of some times, in that order."""
    rows = {"ad_id": ["a"] * len(times_ms), "timestamp_ms": times_ms, "click": [0] * len(times_ms)}
    return tables_from(SCHEMA, {"impressions": ("log", pl.LazyFrame(rows))})


def at_ms(time_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)


DAYS = log_at([MAY_MS + day * DAY_MS for day in range(10)])


class TestByShare:
    def test_by_hand(self) -> None:
        """Of 10 impressions the 9th is the first to validate on and the 10th to test on."""
        split = split_times(log_at([30, 10, 20, 50, 40, 60, 100, 90, 80, 70]), SplitConfig())
        assert split == Split(start_ms=10, valid_from_ms=90, test_from_ms=100, end_ms=101)

    @given(
        st.lists(st.integers(0, 60), min_size=20, max_size=200),
        st.floats(0.05, 0.4),
        st.floats(0.05, 0.4),
    )
    def test_periods_follow_each_other(self, times: list[int], valid: float, test: float) -> None:
        try:
            split = split_times(log_at(times), SplitConfig(valid_share=valid, test_share=test))
        except ConfigError:
            reject()  # too many impressions at one instant, which is never divided
        assert split.valid_from_ms < split.test_from_ms < split.end_ms == max(times) + 1
        of = np.searchsorted([split.valid_from_ms, split.test_from_ms], times, side="right")
        assert set(of.tolist()) == {0, 1, 2}  # each impression is in one period
        # An instant is never divided, so a later period may only be longer than its share.
        ties = max(times.count(time) for time in set(times))
        assert abs((of == 2).sum() - test * len(times)) <= ties + 1

    def test_an_instant_is_never_divided(self) -> None:
        split = split_times(
            log_at([1, 2, 3, 4, 5, 6, 7, 8, 8, 9]), SplitConfig(valid_share=0.2, test_share=0.1)
        )
        assert split == Split(start_ms=1, valid_from_ms=8, test_from_ms=9, end_ms=10)

    def test_a_log_of_one_instant_cannot_be_split(self) -> None:
        with pytest.raises(ConfigError, match="the train period has no impression"):
            split_times(log_at([5] * 20), SplitConfig())

    @pytest.mark.parametrize("shares", [(0.6, 0.6), (0.5, 0.5), (0.89, 0.89)])
    def test_shares_that_leave_nothing_to_train_on(self, shares: tuple[float, float]) -> None:
        with pytest.raises(ConfigError, match="leave nothing to train on"):
            config(valid_share=shares[0], test_share=shares[1])

    def test_on_a_log_with_slates(self, tiny_world: Path) -> None:
        tables = open_layout("synthetic", tiny_world)
        split = split_times(tables, SplitConfig(valid_share=0.2, test_share=0.3))
        times = tables.impressions.frame().select(TIMESTAMP_MS).collect().to_series()
        assert (times < split.valid_from_ms).mean() == pytest.approx(0.5, abs=0.002)
        assert (times >= split.test_from_ms).mean() == pytest.approx(0.3, abs=0.002)


class TestRolling:
    """20 impressions, one every 10 ms from 10 to 200, or one a day."""

    TENS = log_at([10 * i for i in range(1, 21)])

    @staticmethod
    def ends(splits: list[SplitConfig], tables: Tables) -> list[tuple[int, int, int]]:
        found = [split_times(tables, split) for split in splits]
        return [(split.valid_from_ms, split.test_from_ms, split.end_ms) for split in found]

    def test_by_share_each_goes_back_by_as_many_impressions(self) -> None:
        """Of 20, the 17th and 18th validate, 19th and 20th test; then two to the left each."""
        splits = rolling_splits(self.TENS, SplitConfig(), 3)
        assert self.ends(splits, self.TENS) == [(130, 150, 170), (150, 170, 190), (170, 190, 201)]

    def test_periods_of_other_lengths_overlap_as_they_must(self) -> None:
        shares = SplitConfig(valid_share=0.2, test_share=0.1)
        splits = rolling_splits(self.TENS, shares, 2)
        assert self.ends(splits, self.TENS) == [(130, 170, 190), (150, 190, 201)]

    def test_by_time_each_goes_back_by_the_time(self) -> None:
        given_times = SplitConfig(
            valid_from=MAY + timedelta(5), test_from=MAY + timedelta(6), test_to=MAY + timedelta(8)
        )
        splits = rolling_splits(DAYS, given_times, 2)
        days = [tuple((ms - MAY_MS) // DAY_MS for ms in ends) for ends in self.ends(splits, DAYS)]
        assert days == [(3, 4, 6), (5, 6, 8)]

    def test_an_end_after_the_log_counts_as_it_is_given(self) -> None:
        """Whole days stay whole though the last impression comes before the last one is over."""
        given_times = SplitConfig(
            valid_from=MAY + timedelta(8), test_from=MAY + timedelta(9), test_to=MAY + timedelta(10)
        )
        first = rolling_splits(DAYS, given_times, 2)[0]
        assert (first.valid_from, first.test_from) == (MAY + timedelta(7), MAY + timedelta(8))
        assert first.test_to == MAY + timedelta(9)

    @pytest.mark.parametrize("shares", [(0.1, 0.1), (0.15, 0.25), (0.3, 0.05)])
    def test_the_newest_is_what_one_run_would_have(self, shares: tuple[float, float]) -> None:
        whole = SplitConfig(valid_share=shares[0], test_share=shares[1])
        newest = rolling_splits(self.TENS, whole, 2)[-1]
        assert split_times(self.TENS, newest) == split_times(self.TENS, whole)

    @pytest.mark.parametrize(
        ("split", "possible"),
        [
            (SplitConfig(), 8),  # 16 impressions train the newest, 2 fewer each: 2 the eighth
            (SplitConfig(valid_share=0.3, test_share=0.5), 1),
            # Tests last 31 ms, so validation begins at 150, 119, 88, 57 and 26 ms.
            (SplitConfig(valid_from=at_ms(150), test_from=at_ms(170)), 5),
        ],
    )
    def test_a_log_that_is_too_short_says_how_many_are_possible(
        self, split: SplitConfig, possible: int
    ) -> None:
        assert len(rolling_splits(self.TENS, split, possible)) == possible
        with pytest.raises(ConfigError, match=f"9 folds: the log is long enough for {possible},"):
            rolling_splits(self.TENS, split, 9)


class TestByTime:
    def test_boundaries_are_the_first_instants_of_their_periods(self) -> None:
        given_times = SplitConfig(valid_from=MAY + timedelta(7), test_from=MAY + timedelta(9))
        split = split_times(DAYS, given_times)
        assert split.valid_from_ms == MAY_MS + 7 * DAY_MS
        assert split.test_from_ms == MAY_MS + 9 * DAY_MS
        assert split.end_ms == MAY_MS + 9 * DAY_MS + 1

    def test_a_time_without_an_offset_is_utc(self) -> None:
        delhi = timezone(timedelta(hours=5, minutes=30))
        naive = config(valid_from="2026-05-07T18:30:00", test_from="2026-05-08T18:30:00")
        local = SplitConfig(
            valid_from=datetime(2026, 5, 8, tzinfo=delhi),
            test_from=datetime(2026, 5, 9, tzinfo=delhi),
        )
        assert split_times(DAYS, naive) == split_times(DAYS, local)

    def test_times_are_exact_to_the_millisecond(self) -> None:
        """1777593600001 ms as a float of seconds lies a hair below its millisecond."""
        for ms in range(1, 1000, 7):
            times = [MAY_MS, MAY_MS + 1000 + ms, MAY_MS + 5000]
            given_times = SplitConfig(
                valid_from=MAY + timedelta(milliseconds=1000 + ms),
                test_from=MAY + timedelta(milliseconds=5000),
            )
            assert split_times(log_at(times), given_times).valid_from_ms == MAY_MS + 1000 + ms

    def test_test_to_is_the_first_instant_left_out(self) -> None:
        given_times = SplitConfig(
            valid_from=MAY + timedelta(3),
            test_from=MAY + timedelta(4),
            test_to=MAY + timedelta(6),
        )
        assert split_times(DAYS, given_times).end_ms == MAY_MS + 6 * DAY_MS

    def test_shares_are_of_what_test_to_leaves(self) -> None:
        split = split_times(
            DAYS, SplitConfig(test_to=MAY + timedelta(5), valid_share=0.2, test_share=0.2)
        )
        assert split.valid_from_ms == MAY_MS + 3 * DAY_MS
        assert split.test_from_ms == MAY_MS + 4 * DAY_MS
        assert split.end_ms == MAY_MS + 5 * DAY_MS

    @pytest.mark.parametrize(
        ("days", "period"),
        [((0, 5, None), "train"), ((5, 5, None), "valid"), ((5, 20, None), "test"),
         ((20, 21, None), "valid"), ((5, 7, 7), "test")],
    )  # fmt: skip
    def test_an_empty_period_is_named(self, days: tuple[Any, ...], period: str) -> None:
        valid, test, to = (None if day is None else MAY + timedelta(day) for day in days)
        with pytest.raises(ConfigError, match=f"the {period} period has no impression; .*2026-05"):
            split_times(DAYS, SplitConfig(valid_from=valid, test_from=test, test_to=to))

    @pytest.mark.parametrize("by_time", [False, True])
    def test_an_end_before_the_log(self, by_time: bool) -> None:
        times: dict[str, Any] = {"test_to": MAY - timedelta(1)}
        if by_time:
            times |= {"valid_from": MAY - timedelta(3), "test_from": MAY - timedelta(2)}
        with pytest.raises(ConfigError, match="test_to is before the log, which runs from 2026-05"):
            split_times(DAYS, SplitConfig(**times))


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"valid_from": MAY}, "both valid_from and test_from"),
            ({"test_from": MAY}, "both valid_from and test_from"),
            ({"valid_from": MAY, "test_from": MAY - timedelta(1)}, "must follow each other"),
            (
                {"valid_from": MAY, "test_from": MAY, "test_to": MAY - timedelta(1)},
                "must follow each other",
            ),
            ({"test_share": 0.0}, "test_share"),
            ({"valid_share": 0.95}, "valid_share"),
            ({"seed": 1}, "seed"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            config(**settings)

    def test_times_with_and_without_an_offset_can_be_mixed(self) -> None:
        assert config(valid_from="2026-05-02", test_from="2026-05-03T00:00:00+02:00")


def config(**settings: Any) -> SplitConfig:
    return parse_config(SplitConfig, settings, source="split")
