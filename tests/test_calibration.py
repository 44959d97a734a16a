"""Calibration against hand arithmetic, known truths and scikit-learn."""

import json
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from adrec import metrics
from adrec.calibration import (
    CLIP,
    Calibration,
    IdentityCalibrator,
    IsotonicCalibrator,
    Method,
    PlattCalibrator,
    TemperatureCalibrator,
    ValueCalibrator,
    fit_calibrator,
    fit_value_calibrator,
    undo_sampling,
)
from adrec.errors import ConfigError, DataError

METHODS = get_args(Method)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def miscalibrated(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw probabilities with logit z, labels drawn from the truth σ(½z − 1), and the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=rows)
    truth = sigmoid(0.5 * logits - 1)
    return sigmoid(logits), (rng.random(rows) < truth).astype(int), truth


# ------------------------------------------------------------------------------- undo_sampling


def test_undo_sampling_by_hand() -> None:
    # One negative in ten kept: odds 1 in training were 1/10, a probability of 1/11.
    assert undo_sampling(0.5, 0.1) == pytest.approx(1 / 11)
    # He et al. 2014, section 6.3: p / (p + (1 − p)/w) = .2 / (.2 + .8/.25) = 1/17.
    assert undo_sampling(0.2, 0.25) == pytest.approx(1 / 17)
    # Positives of weight 3 over all negatives: odds 1 were 1/3.
    assert undo_sampling(0.5, 1.0, positive_weight=3.0) == pytest.approx(0.25)


@given(
    hnp.arrays(np.float64, 8, elements=st.floats(0, 1)),
    st.floats(0.001, 1),
    st.floats(0.1, 10),
)
def test_undo_sampling_inverts_the_shift(
    truth: np.ndarray, negative_rate: float, positive_weight: float
) -> None:
    ratio = positive_weight / negative_rate
    trained = truth * ratio / (truth * ratio + 1 - truth)
    assert undo_sampling(trained, negative_rate, positive_weight) == pytest.approx(truth, abs=1e-9)


def test_undo_sampling_recovers_the_click_rate_of_a_thinned_log() -> None:
    # 200,000 impressions at 2%, 5% of negatives kept: the kept rate, corrected, is the true rate.
    rng = np.random.default_rng(0)
    clicks = rng.random(200_000) < 0.02
    kept = clicks | (rng.random(200_000) < 0.05)
    # 4,000 clicks and 9,800 negatives: relative deviation √(1/4000 + 1/9800) = 1.9%; 4 of them.
    assert undo_sampling(clicks[kept].mean(), 0.05) == pytest.approx(0.02, rel=0.08)


@pytest.mark.parametrize(("rate", "weight"), [(0.0, 1.0), (1.5, 1.0), (0.1, 0.0), (0.1, math.inf)])
def test_undo_sampling_refuses_impossible_settings(rate: float, weight: float) -> None:
    with pytest.raises(ConfigError, match="it must"):
        undo_sampling([0.5], rate, weight)


# ----------------------------------------------------------------------- every calibrator


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30),
    asked=hnp.arrays(np.float64, 20, elements=st.floats(0, 1)),
)
def test_any_rows_give_a_monotone_probability_and_survive_json(
    method: Method, rows: list[tuple[float, bool]], asked: np.ndarray
) -> None:
    probabilities, labels = zip(*rows, strict=True)
    calibrator = fit_calibrator(method, probabilities, labels)
    applied = calibrator.apply(np.sort(asked))
    assert applied.dtype == np.float64
    assert (np.diff(applied) >= -1e-12).all()  # up to the rounding of log and exp
    assert applied.min() >= CLIP
    assert applied.max() <= 1 - CLIP
    kept = Calibration(tasks=(calibrator,))
    assert Calibration.model_validate_json(kept.model_dump_json()) == kept


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_removes_the_error_on_rows_it_did_not_see(method: Method) -> None:
    raw, labels, _ = miscalibrated(seed=1, rows=40_000)
    calibrator = fit_calibrator(method, raw, labels)
    unseen, unseen_labels, truth = miscalibrated(seed=2, rows=40_000)
    applied = calibrator.apply(unseen)
    assert metrics.calibration_error(unseen, unseen_labels) > 0.15
    # 20 bins of 2,000 rows leave at most √(¼/2000) = .011 of noise in a bin.
    assert metrics.calibration_error(applied, unseen_labels) < 0.011
    assert np.abs(applied - truth).mean() < 0.012
    assert metrics.bias(applied, unseen_labels) == pytest.approx(1.0, abs=0.03)
    # A calibrator may tie, but never turn, a ranking.
    before = metrics.auc(unseen, unseen_labels)
    assert metrics.auc(applied, unseen_labels) == pytest.approx(before, abs=1e-3)


# ------------------------------------------------------------------------------ one by one


def test_platt_matches_unpenalised_logistic_regression() -> None:
    raw, labels, _ = miscalibrated(seed=3, rows=20_000)
    fitted = fit_calibrator("platt", raw, labels)
    assert isinstance(fitted, PlattCalibrator)
    logits = np.log(raw / (1 - raw))
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    # Platt's targets differ from 0 and 1 by about 1/5,000 and 1/13,000.
    assert fitted.slope == pytest.approx(oracle.coef_[0, 0], abs=2e-3)
    assert fitted.intercept == pytest.approx(oracle.intercept_[0], abs=2e-3)


def test_platt_fits_smoothed_targets_by_hand() -> None:
    # Two scores only, so the fit passes through the mean target of each. 2 positives and 2
    # negatives: targets (2+1)/(2+2) = ¾ and 1/(2+2) = ¼.
    fitted = fit_calibrator("platt", [0.2, 0.2, 0.6, 0.6], [0, 0, 1, 1])
    assert fitted.apply([0.2, 0.6]) == pytest.approx([0.25, 0.75])


def test_platt_is_flat_for_scores_worse_than_chance() -> None:
    fitted = fit_calibrator("platt", [0.2, 0.2, 0.6, 0.6], [1, 1, 0, 0])
    assert isinstance(fitted, PlattCalibrator)
    assert fitted.slope == 0
    assert fitted.apply([0.1, 0.9]) == pytest.approx([0.5, 0.5])


def test_temperature_recovers_the_one_that_was_there() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(scale=2.0, size=50_000)
    labels = rng.random(50_000) < sigmoid(logits / 1.7)
    fitted = fit_calibrator("temperature", sigmoid(logits), labels)
    assert isinstance(fitted, TemperatureCalibrator)
    # The slope's deviation is 1/√(Σ z² q(1−q)) ≈ .008; 1/1.7 ± 4 of them.
    assert 1 / fitted.temperature == pytest.approx(1 / 1.7, abs=0.035)
    assert fitted.apply(0.5) == pytest.approx(0.5)
    # At the optimum the score equation Σ z (q − y) = 0 holds; smoothing moves each of 50,000
    # targets by about 1/25,000, times |z| of 1.6 on average.
    residual = logits @ (fitted.apply(sigmoid(logits)) - labels)
    assert abs(residual) < 4


def test_temperature_stays_sober_after_two_rows() -> None:
    # logit .6 = ln 1.5. Smoothed targets 2/3 and 1/3 have logits ± ln 2, not ± infinity.
    fitted = fit_calibrator("temperature", [0.4, 0.6], [0, 1])
    assert isinstance(fitted, TemperatureCalibrator)
    assert fitted.temperature == pytest.approx(math.log(1.5) / math.log(2))
    # Scores worse than chance: as flat as the range allows, never turned over.
    assert fit_calibrator("temperature", [0.4, 0.6], [1, 0]).apply(0.6) == pytest.approx(
        0.501, 0.01
    )


def test_isotonic_by_hand() -> None:
    # Rates along x = .1 .2 .3 .4 are 0, 1, 0, 1: .2 and .3 pool to (.25, ½) of 2 rows. Base rate
    # (2+1)/(4+2) = ½, one such row to each block: (0+½)/2 = ¼, (1+½)/3 = ½, (1+½)/2 = ¾.
    fitted = fit_calibrator("isotonic", [0.4, 0.1, 0.3, 0.2], [1, 0, 0, 1])
    assert isinstance(fitted, IsotonicCalibrator)
    assert fitted.x == pytest.approx((0.1, 0.25, 0.4))
    assert fitted.y == pytest.approx((0.25, 0.5, 0.75))
    # Half way between knots, and level outside them.
    assert fitted.apply([0.0, 0.175, 1.0]) == pytest.approx([0.25, 0.375, 0.75])


def test_isotonic_does_not_promise_certainty_after_three_clicks() -> None:
    probabilities = [*np.linspace(0.01, 0.5, 1000), 0.9, 0.91, 0.92]
    fitted = fit_calibrator("isotonic", probabilities, [*[0, 0, 0, 0, 1] * 200, 1, 1, 1])
    # A base rate of (203 + 1)/1005 = .203: (3 + .203)/4 = .80 where plain pooling says 1. The last
    # of the thousand is a click as well and joins the block: (4 + .203)/5 = .84.
    assert fitted.apply(0.95) == pytest.approx((4 + 204 / 1005) / 5)


def test_value_calibrator_makes_the_sums_agree() -> None:
    fitted = fit_value_calibrator([1.0, 2.0, 1.0], [0.0, 6.0, 0.0])
    assert fitted == ValueCalibrator(scale=1.5)
    assert fitted.apply([1.0, 2.0]).tolist() == [1.5, 3.0]
    assert ValueCalibrator.model_validate_json(fitted.model_dump_json()) == fitted


# ---------------------------------------------------------------------------------- the edges


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="calibration method is 'beta'"):
        fit_calibrator("beta", [0.5], [1])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no rows to calibrate on"):
        fit_calibrator("platt", [], [])
    with pytest.raises(DataError, match="are these logits"):
        fit_calibrator("platt", [2.0], [1])
    with pytest.raises(DataError, match="do not match"):
        fit_calibrator("isotonic", [0.5, 0.5], [1])
    with pytest.raises(DataError, match="above 0 to fit a scale"):
        fit_value_calibrator([1.0, 2.0], [0.0, 0.0])


@pytest.mark.parametrize(
    "document",
    [
        "not json",
        '{"method": "beta"}',
        '{"method": "platt", "slope": -1, "intercept": 0}',
        '{"method": "platt", "slope": 1, "intercept": 0, "extra": 1}',
        '{"method": "temperature", "temperature": 0}',
        '{"method": "isotonic", "x": [0.1, 0.2], "y": [0.2, 0.1]}',
        '{"method": "isotonic", "x": [0.2, 0.1], "y": [0.1, 0.2]}',
        '{"method": "isotonic", "x": [0.2], "y": [1.2]}',
        '{"method": "isotonic", "x": [], "y": []}',
    ],
)
def test_a_damaged_document_is_refused(document: str) -> None:
    with pytest.raises(ValidationError):
        Calibration.model_validate_json(f'{{"tasks": [{document}]}}')


def test_a_calibrator_is_a_readable_document() -> None:
    document = json.loads(PlattCalibrator(slope=0.5, intercept=-1.0).model_dump_json())
    assert document == {"method": "platt", "slope": 0.5, "intercept": -1.0}
    assert IdentityCalibrator().apply([0.0, 0.3, 1.0]).tolist() == [CLIP, 0.3, 1 - CLIP]
