"""What a model is judged by: pure functions from numpy arrays to numbers.

Four families: binary outcomes (AUC, GAUC, log loss, calibration), ranking inside a request (NDCG,
MAP, MRR), money (RMSE, Spearman, Gini) and retrieval (recall). Input order never decides a number:
ties share their average, or, where an order is needed, the worse row of a tie stands first. What
the data leave undefined is NaN; what cannot be right (another length, a NaN score, a label that is
neither 0 nor 1) raises `DataError`. Shapes: N rows, G groups, Q queries, K ranked ads, M relevant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
import numpy.typing as npt

from adrec.errors import ConfigError, DataError

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Vector: TypeAlias = npt.ArrayLike

SMALLEST_PROBABILITY = 1e-15  # bounds the log loss of a confident miss at 34.5 nats


@dataclass(frozen=True)
class Grouped:
    """A metric averaged over groups, and how much of the data it speaks for."""

    value: float
    groups: int  # groups that hold both outcomes; the others say nothing and are left out
    rows: int  # rows in those groups


@dataclass(frozen=True)
class Reliability:
    """One entry a non-empty bin, in order of prediction: means of shape [bins], counts [bins]."""

    prediction: Floats
    label: Floats
    count: Ints


# ------------------------------------------------------------------------------- binary outcomes


def auc(scores: Vector, labels: Vector, weights: Vector | None = None) -> float:
    """The chance that a random positive scores above a random negative.

    AUC = Σ_{i∈P, j∈N} w_i w_j ([s_i > s_j] + ½[s_i = s_j]) / (Σ_P w · Σ_N w), summed as the area
    under the ROC curve, in one sort (Hanley and McNeil 1982).

    Args:
        scores: [N], any scale.
        labels: [N], 0 or 1.
        weights: [N], not negative; None counts every row once.

    Returns:
        A number in [0, 1]; NaN if only one class has weight.
    """
    score, label = check_outcomes(scores, labels)
    weight = np.ones_like(score) if weights is None else check_vector("weights", weights)
    if weight.shape != score.shape or (weight < 0).any():
        raise DataError("weights must be one number a row, none of them negative")
    hits, misses = _cumulative(score, weight * label, weight * (1 - label))
    return _ratio(np.trapezoid(hits, misses), hits[-1] * misses[-1])


def gauc(scores: Vector, labels: Vector, groups: Vector) -> Grouped:
    """AUC inside each group, averaged with the groups' impressions as weights.

    GAUC = Σ_g n_g AUC_g / Σ_g n_g over groups with both outcomes (Zhu et al. 2017, "Optimized cost
    per click in Taobao display advertising"; Zhou et al. 2018, DIN).

    Args:
        scores: [N], comparable inside a group.
        labels: [N], 0 or 1.
        groups: [N], one sortable id a row: a user or a request.

    Returns:
        The average; NaN over 0 groups if no group holds both outcomes.
    """
    score, label = check_outcomes(scores, labels)
    group = _ids(groups, len(score))
    order = np.lexsort((score, group))
    runs = _run_starts(group[order], score[order])  # a run: equal scores of one group
    positive = np.add.reduceat(label[order], runs)
    negative = np.add.reduceat(1 - label[order], runs)
    first = _run_starts(group[order][runs])  # the first run of each group
    positives, negatives = np.add.reduceat(positive, first), np.add.reduceat(negative, first)
    # The running count of negatives spans groups; take away those of the groups before.
    wins = np.add.reduceat(positive * (np.cumsum(negative) - negative / 2), first)
    wins -= positives * (np.cumsum(negatives) - negatives)
    mixed = (positives > 0) & (negatives > 0)
    sizes = (positives + negatives)[mixed]
    aucs = wins[mixed] / (positives * negatives)[mixed]
    return Grouped(_ratio(sizes @ aucs, sizes.sum()), len(sizes), int(sizes.sum()))


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
    return _ratio(loss.sum(), len(loss))


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
    return _ratio(predicted.sum(), actual.sum())


def reliability(probabilities: Vector, labels: Vector, bins: int = 20) -> Reliability:
    """What happened beside what was predicted, in bins of equal mass.

    A row whose average rank (from 1) is r falls in bin ⌊(r − ½) · bins / N⌋, so that equal
    predictions share a bin and the order of the input cannot make a bin of clicks only.

    Args:
        probabilities: [N], in [0, 1].
        labels: [N], 0 or 1.
        bins: how many, at least 1.

    Returns:
        Mean prediction, mean label and rows of each non-empty bin.
    """
    probability, label = check_outcomes(probabilities, labels, probability=True)
    _at_least_one("bins", bins)
    slot = ((_average_ranks(probability) - 0.5) * bins / max(len(label), 1)).astype(np.int64)
    counts = np.bincount(slot, minlength=bins)
    used = counts > 0
    predicted = np.bincount(slot, weights=probability, minlength=bins)[used] / counts[used]
    happened = np.bincount(slot, weights=label, minlength=bins)[used] / counts[used]
    return Reliability(predicted, happened, counts[used].astype(np.int64))


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
    return _ratio(table.count @ np.abs(table.prediction - table.label), table.count.sum())


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
    return _ratio(np.diff(hits) @ precision, hits[-1])


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


# ------------------------------------------------------------------- ranking inside a request


def ndcg_at_k(scores: Vector, labels: Vector, groups: Vector, k: int) -> Grouped:
    """Normalised discounted cumulative gain of each group's first k, averaged over groups.

    NDCG@k = Σ_{r≤k} y_r / log2(1 + r) divided by the same sum with all positives first (Järvelin
    and Kekäläinen 2002, binary gains). Of equal scores the negative ranks first, so a constant
    model earns the worst value, not the log's own order.

    Args:
        scores: [N], comparable inside a group.
        labels: [N], 0 or 1.
        groups: [N], one sortable id a row: a request.
        k: depth, at least 1.

    Returns:
        The unweighted mean over groups that hold both outcomes; NaN over 0 groups if none does.
    """
    ranking = _rank(scores, labels, groups, k)
    top = ranking.label * (ranking.rank <= k)
    gain = ranking.sum_by_group(top / np.log2(1 + ranking.rank))
    found = np.minimum(ranking.positives, k)
    discount = 1 / np.log2(1 + np.arange(1, 1 + found.max(initial=0)))
    return ranking.mean(gain / np.cumsum(discount)[found - 1])


def map_at_k(scores: Vector, labels: Vector, groups: Vector, k: int) -> Grouped:
    """Average precision of each group's first k, averaged over groups.

    AP@k = Σ_{r≤k} y_r (hits in the first r) / r, divided by min(k, positives) (Manning, Raghavan
    and Schütze 2008, chapter 8, cut at k). Of equal scores the negative ranks first.

    Args:
        scores: [N], comparable inside a group.
        labels: [N], 0 or 1.
        groups: [N], one sortable id a row: a request.
        k: depth, at least 1.

    Returns:
        The unweighted mean over groups that hold both outcomes; NaN over 0 groups if none does.
    """
    ranking = _rank(scores, labels, groups, k)
    top = ranking.label * (ranking.rank <= k)
    precision = ranking.sum_by_group(top * ranking.hits / ranking.rank)
    return ranking.mean(precision / np.minimum(ranking.positives, k))


def mrr(scores: Vector, labels: Vector, groups: Vector, k: int) -> Grouped:
    """The reciprocal rank of each group's first positive, averaged over groups.

    RR@k = 1 / (rank of the first positive), 0 if it lies below rank k (Voorhees 1999). Of equal
    scores the negative ranks first.

    Args:
        scores: [N], comparable inside a group.
        labels: [N], 0 or 1.
        groups: [N], one sortable id a row: a request.
        k: depth, at least 1.

    Returns:
        The unweighted mean over groups that hold both outcomes; NaN over 0 groups if none does.
    """
    ranking = _rank(scores, labels, groups, k)
    first = ranking.label * (ranking.hits == 1) * (ranking.rank <= k)
    return ranking.mean(ranking.sum_by_group(first / ranking.rank))


# -------------------------------------------------------------------------------------- money


def rmse(predictions: Vector, actuals: Vector) -> float:
    """Root mean squared error, in the unit of the values: √(mean (predicted − actual)²).

    Args:
        predictions: [N].
        actuals: [N].

    Returns:
        A number ≥ 0; NaN for no rows.
    """
    predicted, actual = check_values(predictions, actuals)
    return float(np.sqrt(_ratio(((predicted - actual) ** 2).sum(), len(actual))))


def spearman(predictions: Vector, actuals: Vector) -> float:
    """Rank correlation: Pearson's correlation of the average ranks (Spearman 1904).

    Args:
        predictions: [N].
        actuals: [N].

    Returns:
        A number in [−1, 1]; NaN if either side is constant.
    """
    predicted, actual = check_values(predictions, actuals)
    x, y = _centred_ranks(predicted), _centred_ranks(actual)
    return _ratio(x @ y, np.sqrt((x @ x) * (y @ y)))


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
    return _ratio(actual @ _centred_ranks(predicted), actual @ _centred_ranks(actual))


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


# ---------------------------------------------------------------------------------- retrieval


def recall_at_k(
    ranked: npt.ArrayLike, relevant: tuple[npt.ArrayLike, npt.ArrayLike], ks: Sequence[int]
) -> dict[int, float]:
    """The share of a query's relevant ads that are among its first k, averaged over queries.

    recall@k = (1/Q) Σ_q |first k of q ∩ relevant to q| / |relevant to q|, over the queries that
    have a relevant ad. With more than k relevant ads its ceiling is below 1.

    Args:
        ranked: [Q, K], ad rows, best first, no ad twice in a query; −1 pads.
        relevant: offsets [Q + 1] and ad rows [M]: those of query q are ads[offsets[q]:offsets[q+1]]
            (an ad listed twice counts once).
        ks: depths, each in 1..K.

    Returns:
        recall by k; NaN if no query has a relevant ad.
    """
    ads_QK = np.asarray(ranked, dtype=np.int64)
    offsets, ads = (np.asarray(part, dtype=np.int64) for part in relevant)
    _check_retrieval(ads_QK, offsets, ads, ks)
    queries = len(ads_QK)
    # One integer a (query, ad) pair turns Q set intersections into a single lookup.
    catalogue = 1 + max(ads_QK.max(initial=0), ads.max(initial=0))
    wanted = np.unique(np.repeat(np.arange(queries), np.diff(offsets)) * catalogue + ads)
    pair_QK = np.where(ads_QK >= 0, np.arange(queries)[:, None] * catalogue + ads_QK, -1)
    hits_QK = np.cumsum(np.isin(pair_QK, wanted), axis=1)
    relevant_Q = np.bincount(wanted // catalogue, minlength=queries)
    asked = relevant_Q > 0
    return {k: _ratio((hits_QK[asked, k - 1] / relevant_Q[asked]).sum(), asked.sum()) for k in ks}


# ----------------------------------------------------------- checks, shared with calibration


def check_vector(name: str, values: Vector) -> Floats:
    """Returns `values` as a float64 vector [N]; raises `DataError` unless it is one and finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise DataError(f"{name} has shape {vector.shape}; it must have one dimension")
    finite = np.isfinite(vector)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{name}[{row}] is {vector[row]}; every value must be finite")
    return vector


def check_values(predictions: Vector, actuals: Vector) -> tuple[Floats, Floats]:
    """Returns both as finite float64 vectors [N]; raises `DataError` unless they are that long."""
    predicted, actual = check_vector("predictions", predictions), check_vector("actuals", actuals)
    if predicted.shape != actual.shape:
        raise DataError(f"{len(predicted)} predictions do not match {len(actual)} actual values")
    return predicted, actual


def check_outcomes(
    predictions: Vector, labels: Vector, probability: bool = False
) -> tuple[Floats, Floats]:
    """As `check_values`; raises `DataError` too for a label not 0 or 1, or no probability."""
    predicted, label = check_values(predictions, labels)
    wrong = (label != 0) & (label != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"labels[{row}] is {label[row]}; a label is 0 or 1")
    if probability and len(predicted) and not 0 <= predicted.min() <= predicted.max() <= 1:
        raise DataError(
            f"predictions span [{predicted.min()}, {predicted.max()}]; a probability lies in "
            "[0, 1] (are these logits?)"
        )
    return predicted, label


# ----------------------------------------------------------------------------------- helpers


@dataclass(frozen=True)
class _Ranking:
    """The rows [N] of mixed groups, group after group, best first and worst of a tie first."""

    label: Floats  # [N]
    rank: Ints  # [N], from 1 inside the group
    hits: Floats  # [N], positives at this rank or above
    group: Ints  # [N], 0 to G - 1
    positives: Ints  # [G]

    def sum_by_group(self, values: Floats) -> Floats:
        return np.bincount(self.group, values, len(self.positives)).astype(np.float64)

    def mean(self, by_group: Floats) -> Grouped:
        groups = len(self.positives)
        return Grouped(_ratio(by_group.sum(), groups), groups, len(self.label))


def _rank(scores: Vector, labels: Vector, groups: Vector, k: int) -> _Ranking:
    _at_least_one("k", k)
    score, label = check_outcomes(scores, labels)
    ids = _ids(groups, len(score))
    order = np.lexsort((label, -score, ids))
    label = label[order]
    starts = _run_starts(ids[order])
    sizes = np.diff(starts, append=len(label))
    positives = np.add.reduceat(label, starts)
    mixed = (positives > 0) & (positives < sizes)
    kept = np.repeat(mixed, sizes)
    positives_before = np.repeat(np.cumsum(positives) - positives, sizes)
    return _Ranking(
        label=label[kept],
        rank=(np.arange(1, len(label) + 1) - np.repeat(starts, sizes))[kept],
        hits=(np.cumsum(label) - positives_before)[kept],
        group=np.repeat(np.cumsum(mixed) - 1, sizes)[kept],
        positives=positives[mixed].astype(np.int64),
    )


def _run_starts(*keys: npt.NDArray[Any]) -> Ints:
    """Where a run of equal keys begins, for sorted keys of one length."""
    begins = np.zeros(len(keys[0]), dtype=bool)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(begins)


def _average_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    order = np.argsort(values)
    starts = _run_starts(values[order])
    sizes = np.diff(starts, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(starts + (sizes + 1) / 2, sizes)
    return ranks


def _centred_ranks(values: Floats) -> Floats:
    return 2 * _average_ranks(values) - len(values) - 1


def _cumulative(scores: Floats, positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives above nothing, then down to each distinct score [≤ N+1].

    Divided by their last entries they are the corners of the ROC curve.
    """
    order = np.argsort(scores)[::-1]
    ends = np.append(_run_starts(scores[order]), len(scores))  # a run ends where the next begins
    hits, misses = np.zeros(len(scores) + 1), np.zeros(len(scores) + 1)
    np.cumsum(positive[order], out=hits[1:])
    np.cumsum(negative[order], out=misses[1:])
    return hits[ends], misses[ends]


def _check_retrieval(ads_QK: Ints, offsets: Ints, ads: Ints, ks: Sequence[int]) -> None:
    if ads_QK.ndim != 2:
        raise DataError(f"ranked has shape {ads_QK.shape}; it must be queries by ranks")
    queries, depth = ads_QK.shape
    steps = np.diff(offsets, prepend=0, append=len(ads))
    if len(offsets) != queries + 1 or steps[0] or steps[-1] or (steps < 0).any():
        raise DataError(f"relevant offsets must rise from 0 to {len(ads)} in {queries} steps")
    if ads.min(initial=0) < 0:
        raise DataError(f"relevant holds the ad row {ads.min()}; rows count from 0")
    for k in ks:
        if not 1 <= k <= depth:
            raise ConfigError(f"ks holds {k}, but {depth} ads were ranked; choose 1 to {depth}")
    sorted_QK = np.sort(ads_QK, axis=1)
    if ((sorted_QK[:, 1:] == sorted_QK[:, :-1]) & (sorted_QK[:, 1:] >= 0)).any():
        raise DataError("ranked holds an ad twice in one query; a retriever must return it once")


def _ids(groups: Vector, rows: int) -> npt.NDArray[Any]:
    ids = np.asarray(groups)
    if ids.shape != (rows,):
        raise DataError(f"groups has shape {ids.shape}; {rows} rows need one id each")
    return ids


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}; it must be at least 1")


def _ratio(numerator: SupportsFloat, denominator: SupportsFloat) -> float:
    return float(numerator) / float(denominator) if float(denominator) != 0 else float("nan")
