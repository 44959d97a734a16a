"""The bootstrap against theory: known deviations, coverage, and p values without a difference."""

import math

import numpy as np
import pytest

from adrec.errors import ConfigError, DataError
from adrec.evaluation.bootstrap import Interval, bootstrap, paired_bootstrap
from adrec.metrics import auc, gauc, ndcg_at_k


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def clustered(rng: np.random.Generator, units: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that share their unit's standard normal number, in mixed order; and the unit of each."""
    unit = rng.permutation(np.repeat(np.arange(units), rows))
    return rng.normal(size=units)[unit], unit


def test_interval_has_the_width_that_theory_gives_to_units_not_rows() -> None:
    rng = np.random.default_rng(0)
    values, unit = clustered(rng, units=100, rows=20)
    interval = bootstrap(mean, [values], unit, 2_000, rng)
    # 100 independent numbers: ± 1.96 σ/√100. Quantiles of 2,000 replicates vary by about 3%, the
    # quotient of normal and percentile ends a few more: 10%. By rows it would be √20 shorter.
    sigma = np.unique(values).std()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * sigma / 10, rel=0.10)
    assert interval.estimate == pytest.approx(values.mean())
    # The mean of replicates deviates by σ/10/√2000 = .002.
    assert interval.mean == pytest.approx(interval.estimate, abs=0.01)
    by_row = bootstrap(mean, [values], np.arange(2_000), 500, rng)
    assert by_row.high - by_row.low < (interval.high - interval.low) / 3


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values, unit = clustered(rng, units=50, rows=3)
        interval = bootstrap(mean, [values], unit, 200, rng, level=0.9)
        covered += interval.low <= 0 <= interval.high
    # 90% less a point for 50 units, with a deviation of √(.9 · .1 / 200) = 2.1 points; 3 of them.
    assert 0.82 <= covered / 200 <= 0.965


def test_each_draw_holds_whole_units() -> None:
    sizes: list[tuple[int, int]] = []

    def record(values: np.ndarray) -> float:
        sizes.append((int((values == 1).sum()), int((values == 2).sum())))
        return 0.0

    # Unit a has one row of value 1; unit b has three of value 2.
    values, units = np.array([2.0, 1.0, 2.0, 2.0]), np.array(["b", "a", "b", "b"])
    bootstrap(record, [values], units, 50, np.random.default_rng(2))
    assert sizes[0] == (1, 3)
    assert set(sizes) == {(2, 0), (1, 3), (0, 6)}


def test_a_request_drawn_twice_is_two_requests() -> None:
    # Every request ranks its click second of two, so each copy has NDCG@1 = 0 and NDCG@2 =
    # 1/log2(3). One request of double length would rank its clicks third and fourth.
    scores, labels = np.tile([0.9, 0.1], 6), np.tile([0.0, 1.0], 6)
    request, user = np.repeat(np.arange(6), 2), np.repeat([0, 1, 2], 4)
    interval = bootstrap(
        lambda *data: ndcg_at_k(*data, k=2).value,
        [scores, labels],
        user,
        50,
        np.random.default_rng(3),
        groups=request,
    )
    for value in (interval.estimate, interval.low, interval.high):
        assert value == pytest.approx(1 / math.log2(3))


def test_grouped_rows_reach_the_metric_with_their_own_scores() -> None:
    rng = np.random.default_rng(4)
    user = rng.integers(0, 40, 2_000)
    labels = rng.integers(0, 2, 2_000).astype(float)
    scores = labels + rng.normal(size=2_000)
    expected = gauc(scores, labels, user)
    interval = bootstrap(
        lambda *data: gauc(*data).value, [scores, labels], user, 200, rng, groups=user
    )
    assert interval.estimate == pytest.approx(expected.value)
    assert interval.low < expected.value < interval.high


def test_auc_interval_agrees_with_hanley_and_mcneil() -> None:
    rng = np.random.default_rng(5)
    labels = np.repeat([0.0, 1.0], 1_000)
    scores = rng.exponential(1 + labels)  # the model of exponentials for which they derived it
    interval = bootstrap(auc, [scores, labels], np.arange(2_000), 1_000, rng)
    # θ = 2/3, Q1 = θ/(2 − θ) = ½, Q2 = 2θ²/(1 + θ) = 8/15.
    # Var = (θ(1−θ) + 999(Q1 − θ²) + 999(Q2 − θ²)) / 10⁶ = .0001446: deviation .01203.
    # 1,000 replicates: 4% for each end.
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.01203, rel=0.10)
    assert interval.low < 2 / 3 < interval.high


def test_paired_intervals_are_short_because_both_see_the_same_units() -> None:
    rng = np.random.default_rng(6)
    values, unit = clustered(rng, units=100, rows=5)
    better = values + 0.01 + rng.normal(scale=0.01, size=len(values))
    difference = paired_bootstrap(mean, [better], [values], unit, 500, rng)
    # Deviation .01/√500 = .00045, though that of either mean is .1.
    assert difference.estimate == pytest.approx(0.01, abs=0.0014)
    assert difference.high - difference.low < 0.0025
    # No replicate falls below 0: p = 2 · 1 / 501.
    assert difference.p_value == pytest.approx(2 / 501)
    assert difference.low > 0


def test_no_difference_is_a_p_value_of_one() -> None:
    rng = np.random.default_rng(7)
    values, unit = clustered(rng, units=20, rows=2)
    difference = paired_bootstrap(mean, [values], [values], unit, 50, rng)
    assert (difference.estimate, difference.low, difference.high) == (0, 0, 0)
    assert difference.p_value == 1.0


def test_p_values_are_uniform_when_models_are_equally_good() -> None:
    rng = np.random.default_rng(8)
    p_values = []
    for _ in range(200):
        values, unit = clustered(rng, units=50, rows=2)
        sides = [values + rng.normal(size=100) for _ in range(2)]
        p_values.append(paired_bootstrap(mean, sides[:1], sides[1:], unit, 199, rng).p_value)
    # Deviations √(.05 · .95 / 200) = 1.5 and √(¼ / 200) = 3.5 points; 3 of them, and one point
    # for the percentile method's short intervals.
    assert np.mean(np.array(p_values) <= 0.05) <= 0.11
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.12)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, unit = clustered(np.random.default_rng(9), units=20, rows=3)
    first, second = (
        bootstrap(mean, [values], unit, 30, np.random.default_rng(10)) for _ in range(2)
    )
    assert first == second


def test_replicates_that_leave_the_metric_undefined_are_counted_out() -> None:
    # One positive among three units: a draw misses it with probability (2/3)³ = .30, or holds it
    # alone with probability 1/27; deviation of the share √(.33 · .67 / 300) = .027.
    scores, labels = np.array([0.9, 0.5, 0.1]), np.array([1.0, 0.0, 0.0])
    interval = bootstrap(auc, [scores, labels], np.arange(3), 300, np.random.default_rng(11))
    assert interval.replicates / 300 == pytest.approx(1 - 9 / 27, abs=0.09)
    assert (interval.low, interval.high) == (1.0, 1.0)
    never = bootstrap(auc, [scores, labels * 0], np.arange(3), 5, np.random.default_rng(11))
    assert isinstance(never, Interval)
    assert never.replicates == 0
    assert math.isnan(never.low)


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(12)
    values = np.arange(4.0)
    with pytest.raises(DataError, match="1 units to draw from"):
        bootstrap(mean, [values], np.zeros(4), 10, rng)
    with pytest.raises(DataError, match="do not match units"):
        bootstrap(mean, [values], np.arange(3), 10, rng)
    with pytest.raises(DataError, match="group 7 has rows in more than one unit"):
        bootstrap(mean, [values], np.arange(4), 10, rng, groups=np.full(4, 7))
    with pytest.raises(DataError, match="groups of shape"):
        bootstrap(mean, [values], np.arange(4), 10, rng, groups=np.arange(3))
    with pytest.raises(ConfigError, match="replicates is 0"):
        bootstrap(mean, [values], np.arange(4), 0, rng)
    with pytest.raises(ConfigError, match="level is 95"):
        bootstrap(mean, [values], np.arange(4), 10, rng, level=95)
