"""Value against hand arithmetic, SciPy and the AUC."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from adrec import metrics
from metrics.logs import impressions, quick


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
