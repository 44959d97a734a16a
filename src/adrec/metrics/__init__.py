"""What a model is judged by: pure functions from numpy arrays to numbers.

Four families, a file each: binary outcomes (AUC, log loss, calibration), ranking inside a group
(GAUC, NDCG, MAP, MRR), value (RMSE, Spearman, Gini) and retrieval (recall). Input order never
decides a number: ties share their average, or, where an order is needed, the worse row of a tie
stands first. What the data leave undefined is NaN; what cannot be right (another length, a NaN
score, a label that is neither 0 nor 1) raises `DataError`. Shapes: N rows, G groups, Q queries,
K ranked ads, M relevant.
"""

from adrec.metrics.binary import (
    Reliability,
    auc,
    bias,
    calibration_error,
    log_loss,
    normalised_entropy,
    pr_auc,
    reliability,
    roc_curve_points,
)
from adrec.metrics.bins import bin_means, equal_mass_bins, mean_gap
from adrec.metrics.inputs import Floats, Ints, Vector, check_outcomes, check_values, check_vector
from adrec.metrics.ranking import Grouped, gauc, map_at_k, mrr, ndcg_at_k
from adrec.metrics.retrieval import query_ndcg, query_recalls, recall_at_k
from adrec.metrics.value import normalised_gini, rmse, spearman, value_auc

__all__ = [
    "Floats",
    "Grouped",
    "Ints",
    "Reliability",
    "Vector",
    "auc",
    "bias",
    "bin_means",
    "calibration_error",
    "check_outcomes",
    "check_values",
    "check_vector",
    "equal_mass_bins",
    "gauc",
    "log_loss",
    "map_at_k",
    "mean_gap",
    "mrr",
    "ndcg_at_k",
    "normalised_entropy",
    "normalised_gini",
    "pr_auc",
    "query_ndcg",
    "query_recalls",
    "recall_at_k",
    "reliability",
    "rmse",
    "roc_curve_points",
    "spearman",
    "value_auc",
]
