"""Retrieval judged: which share of the ads that users go on to click is found among all."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec import metrics
from adrec.evaluation.bootstrap import bootstrap
from adrec.evaluation.cold_start import cold_retrieval
from adrec.evaluation.judged import BEST_POSSIBLE, OURS, EvaluationConfig
from adrec.evaluation.known_world import KnownWorld
from adrec.evaluation.retrieval_queries import Queries, RetrievalRival
from adrec.features.dataset import Dataset
from adrec.features.visitor import Visitor
from adrec.progress import Progress
from adrec.recommender import Recommender

_QUERY_BATCH = 256
_OBSERVED = 500
_RANK_BATCH = 8


def judge_retrieval(
    recommender: Recommender,
    dataset: Dataset,
    asked: Queries,
    config: EvaluationConfig,
    rivals: Sequence[RetrievalRival],
    progress: Progress,
    world: KnownWorld | None = None,
    learned: Dataset | None = None,
) -> dict[str, Any]:
    """Recall of clicked ads: by exact search, by the index, by rivals, and after the ranker.

    In a known world also the best possible: what its ideal observer would retrieve for 500 of the
    queries (it takes 20 ms for each). What is new is new to the training period of `learned`,
    the same log as our models learned from it.
    """
    if not len(asked.requests_Q):
        return {"queries": 0, "models": {}}
    progress.say(f"retrieval: {len(asked.requests_Q):,} queries")
    ads = len(dataset.catalogue) - 1
    depths = [k for k in config.recall_at if k <= ads] or [ads]
    deepest = max(depths)
    recommender = recommender.as_of(dataset.state("test"), dataset.split.test_from_ms)
    by_search, by_index = f"{OURS}, exact search", f"{OURS}, {recommender.index.kind} index"
    found = {by_search: _retrieve(recommender, dataset, asked, deepest, exact=True)}
    found[by_index] = found[by_search]
    if recommender.index.kind != "exact":
        found[by_index] = _retrieve(recommender, dataset, asked, deepest, exact=False)
    for rival in rivals:
        progress.say(f"fitting {rival.name}")
        rival.fit(dataset)
        found[rival.name] = rival.rank(asked.seen, deepest)
    models = {name: _recalls(ads, asked, depths, config) for name, ads in found.items()}
    if world is not None:
        part = asked.take(_evenly(len(asked.requests_Q), _OBSERVED))
        progress.say(f"the ideal observer ranks the catalogue for {len(part.requests_Q):,} queries")
        models[BEST_POSSIBLE] = _recalls(world.rank(part, deepest), part, depths, config)
    few = _evenly(len(asked.requests_Q), config.pipeline_queries)
    pipeline: dict[str, Any] = {}
    if len(few):
        progress.say(f"pipeline: the ranker orders the candidates of {len(few):,} queries")
        part = asked.take(few)
        for name in (by_search, by_index):
            if name == by_index and found[by_index] is found[by_search]:
                pipeline[f"{name} + ranker"] = pipeline[f"{by_search} + ranker"]
                continue
            replayed = recommender.with_state(dataset.state("test"))  # each pass starts afresh
            ranked = _rerank(replayed, dataset, part, found[name][few])
            pipeline[f"{name} + ranker"] = _recalls(ranked, part, depths, config)
    return {
        "queries": len(asked.requests_Q),
        "targets": len(asked.targets.ads),
        "catalogue": len(dataset.catalogue) - 1,
        "models": models,
        "cold": cold_retrieval(learned or dataset, asked, found, depths),
        "pipeline_queries": len(few),
        "pipeline": pipeline,
    }


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many places of `count`, evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def _recalls(
    ads_QK: NDArray[np.int64], asked: Queries, depths: Sequence[int], config: EvaluationConfig
) -> dict[str, Any]:
    """Mean recall at each depth and mean NDCG, with an interval over queries."""
    found: dict[str, Any] = {}
    targets = asked.targets.offsets, asked.targets.ads
    recalls = metrics.query_recalls(ads_QK, targets, depths)
    of_queries = {f"recall@{k}": recalls_Q for k, recalls_Q in recalls.items()}
    top = min(config.k, ads_QK.shape[1])
    of_queries[f"NDCG@{top}"] = metrics.query_ndcg(ads_QK, targets, top)
    for name, values_Q in of_queries.items():
        found[name] = {"estimate": float(values_Q.mean())}
        if config.replicates and len(values_Q) > 1:
            interval = bootstrap(
                lambda of_query: float(of_query.mean()),
                (values_Q,),
                np.arange(len(values_Q)),
                config.replicates,
                np.random.default_rng(config.seed),
            )
            found[name] = asdict(interval)
    return found


def _retrieve(
    recommender: Recommender, dataset: Dataset, asked: Queries, count: int, *, exact: bool
) -> NDArray[np.int64]:
    """Nearest unseen ads of each query, [Q, count], -1 where there are fewer."""
    found = []
    for part in np.array_split(
        np.arange(len(asked.requests_Q)), max(1, len(asked.requests_Q) // _QUERY_BATCH)
    ):
        query = dataset.query(asked.requests_Q[part])
        seen = [_list(asked, int(q)) for q in part]
        found.append(recommender.retrieve(query, count, seen, exact=exact))
    ads = np.concatenate(found)
    return np.where(ads == 0, -1, ads)


def _list(asked: Queries, q: int) -> NDArray[np.int64]:
    return asked.seen.ads[asked.seen.offsets[q] : asked.seen.offsets[q + 1]]


def _rerank(
    replayed: Recommender, dataset: Dataset, asked: Queries, ads_QK: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The same ads in the ranker's order of click probability."""
    found = []
    for part in np.array_split(
        np.arange(len(asked.requests_Q)), max(1, len(asked.requests_Q) // _RANK_BATCH)
    ):
        requests = asked.requests_Q[part]
        visitors = [logged_visitor(dataset, int(request)) for request in requests]
        ads_BN = np.maximum(ads_QK[part], 0)  # all of them are put in order
        scored = replayed.rank(visitors, dataset.query(requests), ads_BN, shown=ads_BN.shape[1])
        click = np.where(scored.ads_BN > 0, scored.scores_BNK[..., 0], -np.inf)
        order = np.argsort(-click, axis=1, kind="stable")
        found.append(np.take_along_axis(ads_QK[part], order, axis=1))
    return np.concatenate(found)


def logged_visitor(dataset: Dataset, request: int) -> Visitor:
    """Who asked in a request of the log."""
    user = int(dataset.user_R[request])
    known = user if user < len(dataset.static) else 0
    return Visitor(
        user=user,
        at_ms=int(dataset.time_ms_R[request]),
        static=dataset.static.take(np.array([known])),
        request=dataset.request.take(np.array([request])),
    )
