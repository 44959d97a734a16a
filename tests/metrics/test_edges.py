"""What holds of all metrics: order never matters, what is undefined is NaN, what is wrong fails."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec import metrics
from adrec.errors import ConfigError, DataError
from metrics.logs import impressions, quick


@quick
@given(impressions(), st.randoms(use_true_random=False))
def test_input_order_never_matters(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], random: object
) -> None:
    scores, labels, groups = data
    order = np.array(random.sample(range(len(scores)), len(scores)), dtype=int)  # type: ignore[attr-defined]
    probabilities = (scores + 0.3) / 2
    for metric in (metrics.ndcg_at_k, metrics.map_at_k, metrics.mrr):
        same = metric(scores[order], labels[order], groups[order], 3)
        expected = metric(scores, labels, groups, 3)
        assert same.value == pytest.approx(expected.value, nan_ok=True)
    for plain in (metrics.pr_auc, metrics.auc, metrics.normalised_gini, metrics.spearman):
        same = plain(scores[order], labels[order])
        assert same == pytest.approx(plain(scores, labels), nan_ok=True)
    same = metrics.calibration_error(probabilities[order], labels[order], 4)
    expected = metrics.calibration_error(probabilities, labels, 4)
    assert same == pytest.approx(expected, nan_ok=True)


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
    with pytest.raises(DataError, match="2 rows need one id each"):
        metrics.gauc([0.1, 0.2], [0, 1], [1])
    with pytest.raises(ConfigError, match="k is 0"):
        metrics.mrr([0.1, 0.2], [0, 1], [1, 1], k=0)
    with pytest.raises(ConfigError, match="bins is 0"):
        metrics.reliability([0.1, 0.2], [0, 1], bins=0)
    with pytest.raises(ConfigError, match="points is 1"):
        metrics.roc_curve_points([0.1, 0.2], [0, 1], points=1)
