"""Value: how well predicted money matches what was earned, in amount and in order."""

import numpy as np

from adrec.metrics.arithmetic import centred_ranks, ratio
from adrec.metrics.binary import auc
from adrec.metrics.inputs import Vector, check_values


def rmse(predictions: Vector, actuals: Vector) -> float:
    """Root mean squared error, in the unit of the values: √(mean (predicted − actual)²).

    Args:
        predictions: [N].
        actuals: [N].

    Returns:
        A number ≥ 0; NaN for no rows.
    """
    predicted, actual = check_values(predictions, actuals)
    return float(np.sqrt(ratio(((predicted - actual) ** 2).sum(), len(actual))))


def spearman(predictions: Vector, actuals: Vector) -> float:
    """Rank correlation: Pearson's correlation of the average ranks (Spearman 1904).

    Args:
        predictions: [N].
        actuals: [N].

    Returns:
        A number in [−1, 1]; NaN if either side is constant.
    """
    predicted, actual = check_values(predictions, actuals)
    x, y = centred_ranks(predicted), centred_ranks(actual)
    return ratio(x @ y, np.sqrt((x @ x) * (y @ y)))


def normalised_gini(predictions: Vector, actuals: Vector) -> float:
    """How much of the actual inequality of value the predicted order recovers.

    Gini(v by p) ∝ Σ v_i (2 r_i − N − 1), r the average rank of p; the metric is Gini(v by p) /
    Gini(v by v) (Wang, Liu and Miao 2019, "A deep probabilistic model for customer lifetime
    value prediction"). Average ranks spread tied predictions evenly.

    Args:
        predictions: [N], predicted value.
        actuals: [N], actual value, usually many zeros.

    Returns:
        1 for the perfect order, 0 for a constant prediction; NaN if actual values are all equal.
    """
    predicted, actual = check_values(predictions, actuals)
    return ratio(actual @ centred_ranks(predicted), actual @ centred_ranks(actual))


def value_auc(predictions: Vector, actuals: Vector) -> float:
    """The AUC with which predicted value tells rows that earned something from those that did not.

    Args:
        predictions: [N], predicted value.
        actuals: [N], actual value.

    Returns:
        auc(predictions, actuals > 0); NaN if all rows earned or none did.
    """
    predicted, actual = check_values(predictions, actuals)
    return auc(predicted, actual > 0)
