"""The pipeline's own top ads: do their scores come true, or did it choose the overestimated ones?

Whoever picks the best of many estimates picks those that err upwards (the winner's curse: Smith and
Winkler, "The optimizer's curse", Management Science 2006). Logged impressions cannot show it, as
others chose them. A synthetic world tells what any ad would have earned; of a real log those
impressions are judged that the pipeline would have chosen, too (replay: Li et al., WSDM 2011).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec import metrics
from adrec.evaluation.judged import EvaluationConfig, Impressions, Scores
from adrec.evaluation.known_world import KnownWorld
from adrec.evaluation.retrieval import logged_visitor
from adrec.evaluation.retrieval_queries import visitors_of
from adrec.features.dataset import Dataset
from adrec.recommender import Recommender
from adrec.training.objectives import thin

_BATCH = 8
_ENOUGH_ROWS = 200
"""With fewer matched impressions, what came of them says little."""


def judge_top(
    recommender: Recommender,
    dataset: Dataset,
    shown: Impressions,
    ours: Scores,
    config: EvaluationConfig,
    world: KnownWorld | None = None,
) -> dict[str, Any]:
    """Predicted beside true outcomes of the ads that the whole pipeline chooses.

    Asked are first requests of the test period, whatever came of them: those of users who went on
    to click would make every score look too low. The pipeline answers as served, from the state at
    the test's start. In a world, predictions and truth are those on top of the slate; of matched
    impressions, both are of the position that they had.

    Args:
        recommender: with any state.
        dataset: the prepared log.
        shown: the test period's impressions.
        ours: our scores of those [N, K].
        config: `pipeline_queries` requests of `k` ads.
        world: what is true of every pair, where that is known.

    Returns:
        `k`, `requests`, `judged_by`, `rows`, `enough` (whether they say anything), and by task
        `predicted`, `actual`, `predicted / actual`, `calibration error`, and in a world `best
        possible`: the means and how far they are apart. Empty where nothing is asked.
    """
    requests = thin(_first_requests(dataset), config.pipeline_queries)
    if not config.pipeline_queries or not len(requests):
        return {}
    ads_QK, scores_QKT = top_ads(recommender, dataset, requests, config.k)
    best = None
    if world is not None:
        q, place = np.nonzero(ads_QK > 0)
        pairs = requests[q], ads_QK[q, place]
        predicted, actual, best = scores_QKT[q, place], world.true(*pairs), world.best(*pairs)
    else:
        rows = _matched(dataset, requests, ads_QK)
        of_shown = np.searchsorted(shown.rows_N, rows)
        predicted, actual = ours[of_shown], shown.labels_NK[of_shown]
    tasks = {
        task.name: _gaps(predicted[:, t], actual[:, t], None if best is None else best[:, t])
        for t, task in enumerate(dataset.features.schema.tasks)
    }
    return {
        "k": config.k,
        "requests": len(requests),
        "judged_by": "matched impressions" if world is None else "true probabilities",
        "rows": len(predicted),
        "enough": world is not None or len(predicted) >= _ENOUGH_ROWS,
        "tasks": tasks,
    }


def top_ads(
    recommender: Recommender, dataset: Dataset, requests_Q: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], Scores]:
    """What the pipeline answers to requests of the test period, in time order.

    Returns:
        The best k ads of each [Q, k], -1 where there are fewer, and their scores by task
        [Q, k, T], each as if on top of the slate.
    """
    state = dataset.state("test")
    replayed = recommender.as_of(state, dataset.split.test_from_ms)
    count = max(recommender.serving.candidates, k)
    ads, scores = [], []
    for part in np.array_split(requests_Q, max(1, len(requests_Q) // _BATCH)):
        visitors = [logged_visitor(dataset, int(request)) for request in part]
        query = dataset.query(part)
        seen = None
        if recommender.serving.skip_seen:
            seen = [state.history_ads(visitor) for visitor in visitors]
        scored = replayed.rank(visitors, query, replayed.retrieve(query, count, seen), shown=k)
        places, top = scored.top(k)
        ads.append(top)
        scores.append(np.take_along_axis(scored.scores_BNK, places[..., None], axis=1))
    return np.concatenate(ads), np.concatenate(scores)


def judge_deciles(
    dataset: Dataset, shown: Impressions, ours: Scores, references: dict[str, Scores]
) -> list[dict[str, Any]]:
    """Predicted beside actual value by tenths of the prediction, for each value task.

    Args:
        dataset: the prepared log.
        shown: the test period's impressions.
        ours: our scores of those [N, K].
        references: what is known of those [N, K], by name.

    Returns:
        `task`, `rows` of each tenth, lowest first, and its mean `predicted`, `actual`, and by
        reference.
    """
    found = []
    for t, task in enumerate(dataset.features.schema.tasks):
        if task.kind != "value":
            continue
        slots = metrics.equal_mass_bins(ours[:, t], 10)
        columns = {"predicted": ours, "actual": shown.labels_NK} | references
        counts = np.bincount(slots)
        means = {name: metrics.bin_means(slots, values[:, t]) for name, values in columns.items()}
        found.append({"task": task.name, "rows": counts[counts > 0]} | means)
    return found


def _first_requests(dataset: Dataset) -> NDArray[np.int64]:
    """Each user's first request in the test period, in time order; all without users."""
    test = dataset.requests("test")
    return np.sort(test[np.unique(visitors_of(dataset)[test], return_index=True)[1]])


def _matched(
    dataset: Dataset, requests_Q: NDArray[np.int64], ads_QK: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Logged impressions of the requests whose ad is among the ads chosen for the request."""
    rows = dataset.rows_of(requests_Q)
    request = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    chosen_NK = ads_QK[np.searchsorted(requests_Q, request)]
    matched: NDArray[np.int64] = rows[(chosen_NK == dataset.ad_N[rows][:, None]).any(axis=1)]
    return matched


def _gaps(predicted: Scores, actual: Scores, best: Scores | None) -> dict[str, float]:
    """How far the means, and the means of bins, are apart."""
    found = {
        "predicted": _mean(predicted),
        "actual": _mean(actual),
        "predicted / actual": metrics.bias(predicted, actual),
        "calibration error": metrics.mean_gap(predicted, actual),
    }
    return found if best is None else found | {"best possible": _mean(best)}


def _mean(values: Scores) -> float:
    """NaN of nothing."""
    return float(values.mean()) if len(values) else float("nan")
