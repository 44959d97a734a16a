"""Binary outcomes against hand arithmetic and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from adrec import metrics
from metrics.logs import impressions, quick


def test_auc_by_hand() -> None:
    # Positives .8, .4; negatives .4, .1. Pairs: .8>.4, .8>.1, .4=.4 (half), .4>.1: 3.5 of 4.
    assert metrics.auc([0.8, 0.4, 0.4, 0.1], [1, 1, 0, 0]) == 0.875


@quick
@given(impressions())
def test_auc_and_average_precision_match_scikit_learn(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    scores, labels, _ = data
    if len(np.unique(labels)) < 2:
        assert math.isnan(metrics.auc(scores, labels))
        return
    assert metrics.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.pr_auc(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    assert metrics.auc(-scores, labels) == pytest.approx(1 - metrics.auc(scores, labels))


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
