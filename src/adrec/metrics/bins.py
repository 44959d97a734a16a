"""Bins of equal mass: what was predicted beside what came of it, probabilities and values alike."""

import numpy as np

from adrec.metrics.arithmetic import average_ranks, ratio
from adrec.metrics.inputs import Floats, Ints, Vector, at_least_one, check_values


def equal_mass_bins(values: Floats, bins: int) -> Ints:
    """The bin of each row [N], from 0, by value.

    A row whose average rank (from 1) is r falls in bin ⌊(r − ½) · bins / N⌋, so that equal values
    share a bin and the order of the input decides nothing; a bin may stay empty.

    Args:
        values: [N].
        bins: how many, at least 1.
    """
    at_least_one("bins", bins)
    slot: Ints = ((average_ranks(values) - 0.5) * bins / max(len(values), 1)).astype(np.int64)
    return slot


def bin_means(slots: Ints, values: Floats) -> Floats:
    """The mean value of each bin that is not empty, in order of the bins.

    Args:
        slots: [N], from 0.
        values: [N].
    """
    counts = np.bincount(slots)
    used = counts > 0
    means: Floats = np.bincount(slots, weights=values)[used] / counts[used]
    return means


def mean_gap(predictions: Vector, expected: Vector, bins: int = 20) -> float:
    """The mean gap between what is predicted and what is true over bins of equal mass.

    Σ_b (n_b / N) |mean p in b − mean y in b|: the calibration error, where y need not be an
    outcome but may be a true probability, or a value.

    Args:
        predictions: [N], probabilities or values.
        expected: [N], what they should be.
        bins: how many, at least 1.

    Returns:
        A number ≥ 0, in the unit of the predictions; NaN for no rows.
    """
    predicted, actual = check_values(predictions, expected)
    slots = equal_mass_bins(predicted, bins)
    counts = np.bincount(slots)
    gaps = np.abs(bin_means(slots, predicted) - bin_means(slots, actual))
    return ratio(counts[counts > 0] @ gaps, len(predicted))
