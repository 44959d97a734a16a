"""Arithmetic that several metrics share: runs of equal keys, ranks with ties, ratios."""

from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt

from adrec.metrics.inputs import Floats, Ints


def ratio(numerator: SupportsFloat, denominator: SupportsFloat) -> float:
    """The quotient; NaN for a denominator of 0."""
    return float(numerator) / float(denominator) if float(denominator) != 0 else float("nan")


def run_starts(*keys: npt.NDArray[Any]) -> Ints:
    """Where a run of equal keys begins.

    Args:
        keys: [N] each, sorted together.

    Returns:
        The first index of each run, ascending; a run ends where one of the keys changes.
    """
    begins = np.zeros(len(keys[0]), dtype=bool)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(begins)


def average_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs.

    Args:
        values: [N], in any order.

    Returns:
        [N], each value's rank; they sum to N (N + 1) / 2.
    """
    order = np.argsort(values)
    starts = run_starts(values[order])
    sizes = np.diff(starts, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(starts + (sizes + 1) / 2, sizes)
    return ranks


def centred_ranks(values: Floats) -> Floats:
    """Average ranks [N], moved to sum to 0 and stretched to the step 2: 2 r − N − 1."""
    return 2 * average_ranks(values) - len(values) - 1
