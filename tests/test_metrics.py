"""Metrics against hand arithmetic, scikit-learn, SciPy and brute force."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    ndcg_score,
    roc_auc_score,
)
from sklearn.metrics import log_loss as sklearn_log_loss

from adrec import metrics
from adrec.errors import ConfigError, DataError
from adrec.metrics import Grouped

quick = settings(max_examples=80, deadline=None)


@st.composite
def impressions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, labels and group ids of one length, groups interleaved."""
    rows = draw(st.integers(0, 40))
    integers = [hnp.arrays(np.int64, rows, elements=st.integers(0, top)) for top in (5, 1, 4)]
    scores, labels, groups = (draw(part) for part in integers)
    return scores / 5 - 0.3, labels, groups


# ------------------------------------------------------------------------------ binary outcomes


def test_auc_by_hand() -> None:
    # Positives .8, .4; negatives .4, .1. Pairs: .8>.4, .8>.1, .4=.4 (half), .4>.1: 3.5 of 4.
    assert metrics.auc([0.8, 0.4, 0.4, 0.1], [1, 1, 0, 0]) == 0.875


def test_weighted_auc_by_hand() -> None:
    # Pairs weigh w_i w_j: (2·1)·1 + (2·3)·1 + (1·1)·½ + (1·3)·1 = 11.5, of (2+1)(1+3) = 12.
    assert metrics.auc([0.8, 0.4, 0.4, 0.1], [1, 1, 0, 0], [2, 1, 1, 3]) == 11.5 / 12


@quick
@given(impressions(), st.integers(0, 2**32 - 1))
def test_auc_and_average_precision_match_scikit_learn(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int
) -> None:
    scores, labels, _ = data
    weights = np.random.default_rng(seed).integers(1, 4, len(scores))
    if len(np.unique(labels)) < 2:
        assert math.isnan(metrics.auc(scores, labels))
        return
    assert metrics.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.pr_auc(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    weighted = metrics.auc(scores, labels, weights)
    assert weighted == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    # A weight of w is the row w times.
    repeated = metrics.auc(np.repeat(scores, weights), np.repeat(labels, weights))
    assert weighted == pytest.approx(repeated)
    assert metrics.auc(-scores, labels) == pytest.approx(1 - metrics.auc(scores, labels))


def test_gauc_by_hand() -> None:
    # Group a: 3 rows, AUC 1/2 (one win, one loss). Group b: 2 rows, AUC 1. Group c: one class.
    scores = [0.5, 0.9, 0.1, 0.8, 0.2, 0.7]
    labels = [1, 0, 0, 1, 0, 1]
    groups = ["a", "a", "a", "b", "b", "c"]
    assert metrics.gauc(scores, labels, groups) == Grouped(
        pytest.approx((3 * 0.5 + 2 * 1.0) / 5), groups=2, rows=5
    )


@quick
@given(impressions())
def test_gauc_matches_a_loop_over_groups(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    scores, labels, groups = data
    parts = [(scores[groups == g], labels[groups == g]) for g in np.unique(groups)]
    mixed = [(len(y), roc_auc_score(y, s)) for s, y in parts if len(np.unique(y)) == 2]
    rows = sum(size for size, _ in mixed)
    expected = sum(size * value for size, value in mixed) / rows if rows else math.nan
    assert metrics.gauc(scores, labels, groups) == Grouped(
        pytest.approx(expected, nan_ok=True), len(mixed), rows
    )


def test_log_loss_and_normalised_entropy_by_hand() -> None:
    # −(ln .8 + ln .5 + ln .5 + ln .5)/4; the base rate ¼ loses −(¼ ln ¼ + ¾ ln ¾).
    probabilities, labels = [0.8, 0.5, 0.5, 0.5], [1, 0, 0, 0]
    loss = -(math.log(0.8) + 3 * math.log(0.5)) / 4
    assert metrics.log_loss(probabilities, labels) == pytest.approx(loss)
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert metrics.normalised_entropy(probabilities, labels) == pytest.approx(loss / base)
    assert metrics.normalised_entropy([0.25] * 4, labels) == pytest.approx(1.0)


def test_log_loss_matches_scikit_learn_and_bounds_a_sure_miss() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random(500), rng.integers(0, 2, 500)
    expected = sklearn_log_loss(labels, probabilities)
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected)
    assert metrics.log_loss([0.0], [1]) == pytest.approx(-math.log(1e-15))


def test_reliability_by_hand() -> None:
    # Two bins of two: predictions .1, .3 (mean .2, label ½) and .6, .8 (mean .7, label 1).
    # ECE = ½ |.2 − .5| + ½ |.7 − 1| = .3. Bias = (1.8 / 4) / (3 / 4) = .6.
    probabilities, labels = [0.8, 0.1, 0.6, 0.3], [1, 0, 1, 1]
    table = metrics.reliability(probabilities, labels, bins=2)
    assert table.prediction == pytest.approx([0.2, 0.7])
    assert table.label == pytest.approx([0.5, 1.0])
    assert table.count.tolist() == [2, 2]
    assert metrics.calibration_error(probabilities, labels, bins=2) == pytest.approx(0.3)
    assert metrics.bias(probabilities, labels) == pytest.approx(0.6)


def test_equal_predictions_share_a_bin_however_the_log_is_sorted() -> None:
    # Splitting this tie by input order would give bins of label 0 and 1, and an ECE of ½.
    assert metrics.calibration_error([0.5] * 100, [0] * 50 + [1] * 50, bins=10) == 0.0


def test_calibration_error_is_small_only_for_true_probabilities() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(100_000)
    labels = rng.random(100_000) < truth
    # 20 bins of 5,000: the gap in a bin has a deviation of at most √(¼/5000) = .007, mean .006.
    assert metrics.calibration_error(truth, labels) < 0.01
    # E|p² − p| over a uniform p is 1/2 − 1/3 = 1/6; noise of .006 a bin averages out.
    assert metrics.calibration_error(truth**2, labels) == pytest.approx(1 / 6, abs=0.01)


def test_roc_curve_points_keep_the_area_and_the_ends() -> None:
    rng = np.random.default_rng(2)
    labels = rng.random(20_000) < 0.1
    scores = rng.normal(size=20_000) + labels
    false_rate, true_rate = metrics.roc_curve_points(scores, labels, points=200)
    assert len(false_rate) <= 200
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert (np.diff(false_rate) >= 0).all()
    assert (np.diff(true_rate) >= 0).all()
    # Steps of 2/199 along a concave curve cut off corners of area below (2/199)² each.
    area = np.trapezoid(true_rate, false_rate)
    assert area == pytest.approx(metrics.auc(scores, labels), abs=0.002)


def test_roc_curve_of_one_threshold_is_the_diagonal() -> None:
    false_rate, true_rate = metrics.roc_curve_points([0.5, 0.5], [0, 1])
    assert (false_rate.tolist(), true_rate.tolist()) == ([0, 1], [0, 1])
    assert [len(side) for side in metrics.roc_curve_points([0.5, 0.4], [1, 1])] == [0, 0]


# ------------------------------------------------------------------ ranking inside a request

RANKING = [metrics.ndcg_at_k, metrics.map_at_k, metrics.mrr]


def test_ranking_by_hand() -> None:
    # Best first, the labels read 0 1 0 1: positives at ranks 2 and 4.
    data = ([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1], [7, 7, 7, 7])
    ideal = 1 + 1 / math.log2(3)
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    assert metrics.ndcg_at_k(*data, k=4) == Grouped(pytest.approx(dcg / ideal), 1, 4)
    # At 3 only rank 2 counts, but both positives would fit.
    assert metrics.ndcg_at_k(*data, k=3).value == pytest.approx(1 / math.log2(3) / ideal)
    assert metrics.map_at_k(*data, k=4).value == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics.map_at_k(*data, k=3).value == pytest.approx((1 / 2) / 2)
    assert metrics.map_at_k(*data, k=1).value == 0.0
    assert metrics.mrr(*data, k=4).value == 0.5
    assert metrics.mrr(*data, k=1).value == 0.0


def brute_force(
    name: str, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, k: int
) -> Grouped:
    """One group after another, with Python's sort."""
    values, rows = [], 0
    for group in sorted(set(groups.tolist())):
        ranked = sorted(zip(-scores[groups == group], labels[groups == group], strict=True))
        hits = [int(label) for _, label in ranked]
        if sum(hits) in (0, len(hits)):
            continue
        rows += len(hits)
        top, best = hits[:k], sorted(hits, reverse=True)[:k]
        if name == "mrr":
            values.append(1 / (top.index(1) + 1) if 1 in top else 0.0)
        elif name == "map_at_k":
            precisions = [sum(top[: i + 1]) / (i + 1) for i, hit in enumerate(top) if hit]
            values.append(sum(precisions) / sum(best))
        else:
            gains = [
                sum(hit / math.log2(i + 2) for i, hit in enumerate(row)) for row in (top, best)
            ]
            values.append(gains[0] / gains[1])
    mean = sum(values) / len(values) if values else math.nan
    return Grouped(pytest.approx(mean, nan_ok=True), len(values), rows)


@pytest.mark.parametrize("metric", RANKING)
@quick
@given(data=impressions(), k=st.integers(1, 12))
def test_ranking_matches_brute_force(
    metric: Callable[..., Grouped], data: tuple[np.ndarray, np.ndarray, np.ndarray], k: int
) -> None:
    assert metric(*data, k) == brute_force(metric.__name__, *data, k)


def test_ranking_matches_scikit_learn_without_ties() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (50, 12))
    labels[:, :2] = [0, 1]  # both outcomes in every request
    scores = rng.random((50, 12))
    flat = (scores.ravel(), labels.ravel(), np.repeat(np.arange(50), 12))
    for k in (1, 5, 12):
        expected = ndcg_score(labels, scores, k=k)
        assert metrics.ndcg_at_k(*flat, k).value == pytest.approx(expected)
    expected = label_ranking_average_precision_score(labels, scores)
    assert metrics.map_at_k(*flat, 12).value == pytest.approx(expected)


@pytest.mark.parametrize("metric", RANKING)
def test_a_constant_score_earns_the_worst_value_even_if_the_log_lists_clicks_first(
    metric: Callable[..., Grouped],
) -> None:
    constant = metric([0.5] * 4, [1, 0, 0, 0], [0] * 4, 4).value
    assert constant == metric([1, 2, 3, 4], [1, 0, 0, 0], [0] * 4, 4).value


@quick
@given(impressions(), st.randoms(use_true_random=False))
def test_input_order_never_matters(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], random: object
) -> None:
    scores, labels, groups = data
    order = np.array(random.sample(range(len(scores)), len(scores)), dtype=int)  # type: ignore[attr-defined]
    probabilities = (scores + 0.3) / 2
    for metric in RANKING:
        same = metric(scores[order], labels[order], groups[order], 3)
        expected = metric(scores, labels, groups, 3)
        assert same.value == pytest.approx(expected.value, nan_ok=True)
    for plain in (metrics.pr_auc, metrics.auc, metrics.normalised_gini, metrics.spearman):
        same = plain(scores[order], labels[order])
        assert same == pytest.approx(plain(scores, labels), nan_ok=True)
    same = metrics.calibration_error(probabilities[order], labels[order], 4)
    expected = metrics.calibration_error(probabilities, labels, 4)
    assert same == pytest.approx(expected, nan_ok=True)


# --------------------------------------------------------------------------------------- money


def test_value_metrics_by_hand() -> None:
    predicted, actual = [3.0, 1.0, 2.0, 0.0], [5.0, 0.0, 0.0, 1.0]
    # Errors −2, 1, 2, −1: mean square 10/4.
    assert metrics.rmse(predicted, actual) == pytest.approx(math.sqrt(2.5))
    # Ranks of predictions 4 2 3 1, so 2r − 5 = 3 −1 1 −3: 5·3 − 1·3 = 12.
    # By actual value: 5 has 3 and 1 has 1: 16. The ratio is .75.
    assert metrics.normalised_gini(predicted, actual) == pytest.approx(0.75)
    # Earned: 3, 0. Did not: 1, 2. Wins: 3 over both, 0 over none: 2 of 4.
    assert metrics.value_auc(predicted, actual) == 0.5


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30))
def test_spearman_matches_scipy(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    ours = metrics.spearman(x, y)
    if min(len(set(x)), len(set(y))) < 2:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(x, y).statistic)


@quick
@given(impressions())
def test_gini_of_labels_is_twice_auc_less_one(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    scores, labels, _ = data
    if len(np.unique(labels)) == 2:
        expected = 2 * metrics.auc(scores, labels) - 1
        assert metrics.normalised_gini(scores, labels) == pytest.approx(expected, abs=1e-12)


# ----------------------------------------------------------------------------------- retrieval


def test_recall_by_hand() -> None:
    # Query 0 wants 3 and 9: first of two ranked at 1, none further. Query 1 wants nothing.
    # Query 2 wants 5, found at rank 2 before padding.
    ranked = [[3, 1, 2], [4, 5, 6], [8, 5, -1]]
    recall = metrics.recall_at_k(ranked, ([0, 2, 2, 3], [3, 9, 5]), ks=[1, 2, 3])
    assert recall == {1: (0.5 + 0) / 2, 2: (0.5 + 1) / 2, 3: (0.5 + 1) / 2}


@quick
@given(st.integers(0, 2**32 - 1))
def test_recall_matches_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, depth, ads = rng.integers(0, 8), rng.integers(1, 10), 15
    ranked = np.array([rng.permutation(ads)[:depth] for _ in range(queries)], dtype=int)
    ranked = ranked.reshape(queries, depth)
    ranked[rng.random(ranked.shape) < 0.2] = -1
    wanted = [rng.integers(0, ads, rng.integers(0, 6)) for _ in range(queries)]
    offsets = np.cumsum([0, *map(len, wanted)])
    for k, recall in metrics.recall_at_k(
        ranked, (offsets, np.concatenate([[], *wanted])), ks=range(1, depth + 1)
    ).items():
        shares = [
            len({*row[:k].tolist()} & {*want.tolist()}) / len({*want.tolist()})
            for row, want in zip(ranked, wanted, strict=True)
            if len(want)
        ]
        assert recall == pytest.approx(np.mean(shares) if shares else math.nan, nan_ok=True)


def test_recall_refuses_what_would_be_a_wrong_number() -> None:
    with pytest.raises(ConfigError, match="ks holds 4, but 3 ads were ranked"):
        metrics.recall_at_k([[1, 2, 3]], ([0, 1], [1]), ks=[4])
    with pytest.raises(DataError, match="an ad twice in one query"):
        metrics.recall_at_k([[1, 2, 1]], ([0, 1], [1]), ks=[3])
    with pytest.raises(DataError, match="offsets must rise from 0 to 2"):
        metrics.recall_at_k([[1, 2, 3]], ([0, 1], [1, 2]), ks=[3])
    with pytest.raises(DataError, match="ad row -1"):
        metrics.recall_at_k([[1, 2, 3]], ([0, 1], [-1]), ks=[3])


# --------------------------------------------------------------------------- the edges of all


def test_what_the_data_leave_undefined_is_nan() -> None:
    empty = np.empty(0)
    for metric in (
        metrics.auc,
        metrics.log_loss,
        metrics.normalised_entropy,
        metrics.calibration_error,
        metrics.pr_auc,
        metrics.bias,
        metrics.rmse,
        metrics.spearman,
        metrics.normalised_gini,
        metrics.value_auc,
    ):
        assert math.isnan(metric(empty, empty)), metric.__name__
    for grouped in (metrics.gauc, lambda *data: metrics.mrr(*data, k=3)):
        result = grouped(empty, empty, empty)
        assert math.isnan(result.value)
        assert (result.groups, result.rows) == (0, 0)
    assert math.isnan(metrics.normalised_entropy([0.1, 0.2], [0, 0]))
    assert math.isnan(metrics.pr_auc([0.1, 0.2], [0, 0]))


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(DataError, match=r"predictions\[1\] is nan"):
        metrics.auc([0.1, math.nan], [0, 1])
    with pytest.raises(DataError, match=r"labels\[0\] is 2.0; a label is 0 or 1"):
        metrics.auc([0.1, 0.2], [2, 1])
    with pytest.raises(DataError, match="2 predictions do not match 1"):
        metrics.rmse([0.1, 0.2], [1])
    with pytest.raises(DataError, match="are these logits"):
        metrics.log_loss([-2.0, 0.2], [0, 1])
    with pytest.raises(DataError, match="one dimension"):
        metrics.auc([[0.1, 0.2]], [[0, 1]])
    with pytest.raises(DataError, match="weights must be"):
        metrics.auc([0.1, 0.2], [0, 1], [1, -1])
    with pytest.raises(DataError, match="2 rows need one id each"):
        metrics.gauc([0.1, 0.2], [0, 1], [1])
    with pytest.raises(ConfigError, match="k is 0"):
        metrics.mrr([0.1, 0.2], [0, 1], [1, 1], k=0)
    with pytest.raises(ConfigError, match="bins is 0"):
        metrics.reliability([0.1, 0.2], [0, 1], bins=0)
    with pytest.raises(ConfigError, match="points is 1"):
        metrics.roc_curve_points([0.1, 0.2], [0, 1], points=1)
