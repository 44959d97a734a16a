"""Binary outcomes: how well a score tells clicks from the rest, and how true a probability is."""

from dataclasses import dataclass

import numpy as np

from adrec.errors import ConfigError
from adrec.metrics.arithmetic import ratio, run_starts
from adrec.metrics.bins import bin_means, equal_mass_bins
from adrec.metrics.inputs import (
    Floats,
    Ints,
    Vector,
    check_outcomes,
    check_values,
)

SMALLEST_PROBABILITY = 1e-15  # bounds the log loss of a confident miss at 34.5 nats


@dataclass(frozen=True)
class Reliability:
    """One entry a non-empty bin, in order of prediction: means of shape [bins], counts [bins]."""

    prediction: Floats
    label: Floats
    count: Ints


def auc(scores: Vector, labels: Vector) -> float:
    """The chance that a random positive scores above a random negative.

    AUC = Σ_{i∈P, j∈N} ([s_i > s_j] + ½[s_i = s_j]) / (|P| · |N|), summed as the area under
    the ROC curve, in one sort (Hanley and McNeil 1982).

    Args:
        scores: [N], any scale.
        labels: [N], 0 or 1.

    Returns:
        A number in [0, 1]; NaN with only one class.
    """
    score, label = check_outcomes(scores, labels)
    hits, misses = _cumulative(score, label, 1 - label)
    return ratio(np.trapezoid(hits, misses), hits[-1] * misses[-1])


def pr_auc(scores: Vector, labels: Vector) -> float:
    """Average precision: the area under the precision-recall curve, summed as steps.

    AP = Σ_t (R_t − R_{t−1}) P_t over distinct thresholds t, highest first, without interpolation.

    Args:
        scores: [N], any scale.
        labels: [N], 0 or 1.

    Returns:
        A number in (0, 1]; NaN without a positive.
    """
    score, label = check_outcomes(scores, labels)
    hits, misses = _cumulative(score, label, 1 - label)
    precision = hits[1:] / (hits[1:] + misses[1:])
    return ratio(np.diff(hits) @ precision, hits[-1])


def roc_curve_points(scores: Vector, labels: Vector, points: int = 200) -> tuple[Floats, Floats]:
    """The ROC curve, thinned for a plot.

    Steps of equal length along the curve (|Δfpr| + |Δtpr|), each to the next corner, so steep and
    flat stretches are drawn alike. A corner is a distinct threshold.

    Args:
        scores: [N], any scale.
        labels: [N], 0 or 1.
        points: the most points to return, at least 2.

    Returns:
        False and true positive rates, each [≤ points], from (0, 0) to (1, 1); both empty if only
        one class is present.
    """
    if points < 2:
        raise ConfigError(f"points is {points}; a curve needs at least 2")
    score, label = check_outcomes(scores, labels)
    hits, misses = _cumulative(score, label, 1 - label)
    if hits[-1] == 0 or misses[-1] == 0:
        return np.empty(0), np.empty(0)
    false_rate, true_rate = misses / misses[-1], hits / hits[-1]
    # Both rates end at exactly 1, so the curve is exactly 2 long and its last corner is kept.
    kept = np.unique(np.searchsorted(false_rate + true_rate, np.linspace(0.0, 2.0, points)))
    return false_rate[kept], true_rate[kept]


def log_loss(probabilities: Vector, labels: Vector) -> float:
    """The mean negative log likelihood, in nats.

    −(1/N) Σ y ln p + (1 − y) ln(1 − p), with p kept 1e-15 away from 0 and 1.

    Args:
        probabilities: [N], in [0, 1].
        labels: [N], 0 or 1.

    Returns:
        A number ≥ 0; NaN for no rows.
    """
    probability, label = check_outcomes(probabilities, labels, probability=True)
    probability = np.clip(probability, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    loss = -(label * np.log(probability) + (1 - label) * np.log1p(-probability))
    return ratio(loss.sum(), len(loss))


def normalised_entropy(probabilities: Vector, labels: Vector) -> float:
    """The log loss as a share of what predicting the base rate would lose (lower is better).

    NE = log loss / −(c ln c + (1 − c) ln(1 − c)), c the mean label (He et al. 2014, section 2).

    Args:
        probabilities: [N], in [0, 1].
        labels: [N], 0 or 1.

    Returns:
        1.0 for a model no better than the base rate; NaN if only one class is present.
    """
    probability, label = check_outcomes(probabilities, labels, probability=True)
    if len(np.unique(label)) < 2:
        return float("nan")
    return log_loss(probability, label) / log_loss(np.full_like(label, label.mean()), label)


def bias(predictions: Vector, actuals: Vector) -> float:
    """How far predictions are too high on the whole: mean prediction / mean actual.

    Args:
        predictions: [N], probabilities or values.
        actuals: [N], labels or values.

    Returns:
        1.0 if unbiased, 1.1 if 10% too high; NaN if the actuals sum to 0.
    """
    predicted, actual = check_values(predictions, actuals)
    return ratio(predicted.sum(), actual.sum())


def reliability(probabilities: Vector, labels: Vector, bins: int = 20) -> Reliability:
    """What happened beside what was predicted, in bins of equal mass.

    Equal predictions share a bin (`equal_mass_bins`), so the order of the input cannot make a bin
    of clicks only.

    Args:
        probabilities: [N], in [0, 1].
        labels: [N], 0 or 1.
        bins: how many, at least 1.

    Returns:
        Mean prediction, mean label and rows of each non-empty bin.
    """
    probability, label = check_outcomes(probabilities, labels, probability=True)
    slots = equal_mass_bins(probability, bins)
    counts = np.bincount(slots)
    means = bin_means(slots, probability), bin_means(slots, label)
    return Reliability(*means, counts[counts > 0].astype(np.int64))


def calibration_error(probabilities: Vector, labels: Vector, bins: int = 20) -> float:
    """Expected calibration error: the mean gap between prediction and outcome over equal-mass bins.

    ECE = Σ_b (n_b / N) |mean p in b − mean y in b| (Naeini et al. 2015; equal-mass bins after
    Nguyen and O'Connor 2015).

    Args:
        probabilities: [N], in [0, 1].
        labels: [N], 0 or 1.
        bins: how many, at least 1.

    Returns:
        A number in [0, 1]; NaN for no rows.
    """
    table = reliability(probabilities, labels, bins)
    return ratio(table.count @ np.abs(table.prediction - table.label), table.count.sum())


def _cumulative(scores: Floats, positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives above nothing, then down to each distinct score [≤ N+1].

    Divided by their last entries they are the corners of the ROC curve.
    """
    order = np.argsort(scores)[::-1]
    ends = np.append(run_starts(scores[order]), len(scores))  # a run ends where the next begins
    hits, misses = np.zeros(len(scores) + 1), np.zeros(len(scores) + 1)
    np.cumsum(positive[order], out=hits[1:])
    np.cumsum(negative[order], out=misses[1:])
    return hits[ends], misses[ends]
