"""Ranking inside a group (a request, a user): averages over the groups that hold both outcomes."""

from dataclasses import dataclass

import numpy as np

from adrec.metrics.arithmetic import ratio, run_starts
from adrec.metrics.inputs import Floats, Ints, Vector, at_least_one, check_groups, check_outcomes


@dataclass(frozen=True)
class Grouped:
    """A metric averaged over groups, and how much of the data it speaks for."""

    value: float
    groups: int  # groups that hold both outcomes; the others say nothing and are left out
    rows: int  # rows in those groups


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
    group = check_groups(groups, len(score))
    order = np.lexsort((score, group))
    runs = run_starts(group[order], score[order])  # a run: equal scores of one group
    positive = np.add.reduceat(label[order], runs)
    negative = np.add.reduceat(1 - label[order], runs)
    first = run_starts(group[order][runs])  # the first run of each group
    positives, negatives = np.add.reduceat(positive, first), np.add.reduceat(negative, first)
    # The running count of negatives spans groups; take away those of the groups before.
    wins = np.add.reduceat(positive * (np.cumsum(negative) - negative / 2), first)
    wins -= positives * (np.cumsum(negatives) - negatives)
    mixed = (positives > 0) & (negatives > 0)
    sizes = (positives + negatives)[mixed]
    aucs = wins[mixed] / (positives * negatives)[mixed]
    return Grouped(ratio(sizes @ aucs, sizes.sum()), len(sizes), int(sizes.sum()))


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
        return Grouped(ratio(by_group.sum(), groups), groups, len(self.label))


def _rank(scores: Vector, labels: Vector, groups: Vector, k: int) -> _Ranking:
    at_least_one("k", k)
    score, label = check_outcomes(scores, labels)
    ids = check_groups(groups, len(score))
    order = np.lexsort((label, -score, ids))
    label = label[order]
    starts = run_starts(ids[order])
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
