"""Bins of equal mass and the gaps in them, by hand."""

import numpy as np
import pytest

from adrec import metrics
from adrec.errors import ConfigError, DataError


def test_bins_have_equal_mass_and_equal_values_share_one() -> None:
    """Ranks 3, 1, 2, 4 of 4 in 2 bins: (r − ½) / 2 is 1.25, .25, .75, 1.75."""
    assert metrics.equal_mass_bins(np.array([0.3, 0.1, 0.2, 0.9]), 2).tolist() == [1, 0, 0, 1]
    # Three ties share rank 2: (2 − ½) / 2 = .75, the first bin; the last has rank 4.
    assert metrics.equal_mass_bins(np.array([5.0, 5.0, 5.0, 7.0]), 2).tolist() == [0, 0, 0, 1]


def test_means_are_of_the_bins_that_are_not_empty() -> None:
    means = metrics.bin_means(np.array([0, 2, 2]), np.array([1.0, 3.0, 5.0]))
    assert means.tolist() == [1.0, 4.0]


def test_the_gap_is_weighed_by_rows() -> None:
    """Bins {.1, .1, .1} and {.5}: gaps |.1 − .2| and |.5 − .1|, (3 · .1 + 1 · .4) / 4 = .175."""
    predicted, true = [0.1, 0.1, 0.5, 0.1], [0.1, 0.2, 0.1, 0.3]
    assert metrics.mean_gap(predicted, true, bins=2) == pytest.approx(0.175)
    assert metrics.mean_gap(np.multiply(predicted, 1e6), np.multiply(true, 1e6), 2) == (
        pytest.approx(175_000)
    )


def test_of_outcomes_it_is_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.random(1000)
    clicked = rng.random(1000) < predicted**2
    expected = metrics.calibration_error(predicted, clicked)
    assert metrics.mean_gap(predicted, clicked) == pytest.approx(expected, rel=1e-12)


def test_what_cannot_be_is_refused() -> None:
    assert np.isnan(metrics.mean_gap([], []))
    with pytest.raises(ConfigError, match="bins is 0"):
        metrics.mean_gap([0.1], [0.1], bins=0)
    with pytest.raises(DataError, match="2 predictions do not match 1"):
        metrics.mean_gap([0.1, 0.2], [0.1])
