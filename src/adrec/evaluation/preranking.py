"""A preranker taught by the ranker, and how many candidates the ranker must look at with it.

Requests of the validation period, as they would be asked at the log's end, are answered by the
ranker from all that retrieval finds. Most of them teach the preranker; on the others it is counted
how deep in its order the ranker's top 10 lie.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adrec.evaluation.retrieval import logged_visitor
from adrec.features.batches import Query, stack_queries
from adrec.features.dataset import Dataset
from adrec.features.visitor import Visitor
from adrec.inference.backends import Pool
from adrec.inference.choice import Preranking
from adrec.inference.runtime import TOP
from adrec.inference.threads import side_by_side
from adrec.models.preranker import Preranker
from adrec.models.ranker import Ranker
from adrec.progress import Progress
from adrec.recommender import Recommender
from adrec.training.objectives import thin

CHOICES = (16, 24, 32, 40, 48, 64, 96, 128, 192, 256)
"""How many candidates the ranker may look at."""

_LEAST_FOUND = 0.995  # of the top 10
_REQUESTS, _TAUGHT = 600, 0.8
_BATCH = 4


class Ranked(NamedTuple):
    """What the ranker made of N candidates of Q requests: its cross stream [Q, N, D], calibrated
    scores [Q, N, K], the ads [Q, N] and the place of each in its order [Q, N], 0 the best."""

    crossed_QND: Tensor
    scores_QNK: Tensor
    ads_QN: NDArray[np.int64]
    place_QN: NDArray[np.int64]


def teach(
    recommender: Recommender,
    dataset: Dataset,
    considered: Literal["auto"] | int,
    *,
    seed: int,
    progress: Progress,
) -> tuple[Preranker, Preranking] | None:
    """A preranker, and how many candidates it leaves to the ranker.

    Args:
        recommender: with the ranker, exact, on all candidates.
        dataset: that it was trained on.
        considered: candidates that the ranker is to look at; auto: the least of CHOICES among which
            are 99.5% of its top 10.
        seed: of the preranker's training.

    Returns:
        None where there are too few candidates for it, or where so few are never enough.
    """
    choices = CHOICES if considered == "auto" else (considered,)
    if min(recommender.serving.candidates, len(recommender.index)) <= min(choices):
        return None
    ranked = _rank(recommender, dataset, progress)
    taught = max(1, round(_TAUGHT * len(ranked.ads_QN)))
    ranker = recommender.runtime.ranker
    preranker = Preranker(ranker.config.width, ranker.layout.task_kinds)
    preranker.fit(
        ranked.crossed_QND[:taught],
        ranked.scores_QNK[:taught],
        torch.from_numpy(ranked.place_QN[:taught]),
        seed=seed,
    )
    preranker.eval().requires_grad_(False)
    rest = slice(taught if taught < len(ranked.ads_QN) else 0, None)
    with torch.inference_mode():
        guessed = preranker(ranked.crossed_QND[rest]).double().numpy()
    order_QN = recommender.order(guessed, ranked.ads_QN[rest])
    found = agreements(order_QN, ranked.place_QN[rest], choices)
    enough = [c for c in choices if found[c] >= _LEAST_FOUND or considered != "auto"]
    if not enough or enough[0] >= ranked.ads_QN.shape[1]:
        return None
    return preranker, Preranking(considered=enough[0], top_agreement=found[enough[0]])


def agreements(
    order_QN: NDArray[np.float64], place_QN: NDArray[np.int64], counts: Sequence[int]
) -> dict[int, float]:
    """Share of the ranker's top 10 that are among the first of another order.

    Args:
        order_QN: what the other orders by, higher first.
        place_QN: place in the ranker's order, 0 the best.
        counts: how many of the first.
    """
    other_QN = _places(order_QN)
    of_top = other_QN[place_QN < TOP]
    return {count: float((of_top < count).mean()) for count in counts}


def _places(order_QN: NDArray[np.float64]) -> NDArray[np.int64]:
    best_first = np.argsort(-order_QN, axis=1, kind="stable")
    places = np.empty_like(best_first)
    np.put_along_axis(places, best_first, np.arange(order_QN.shape[1])[None], axis=1)
    return places


@torch.inference_mode()
def _crossed(ranker: Ranker, query: Query, pool: Pool) -> Tensor:
    cross_BND = ranker.ads(pool.candidates.ads).chunk(2, dim=-1)[1]
    return ranker.crossed(
        ranker.prefix(query).summary_BD, cross_BND, ranker.scores(pool.together_BNX)
    )


def _rank(recommender: Recommender, dataset: Dataset, progress: Progress) -> Ranked:
    """Have the ranker answer some requests."""
    end_ms = int(dataset.time_ms_R[-1]) + 1
    asked = dataset.requests("valid")
    asked = thin(asked if len(asked) else dataset.requests("train"), _REQUESTS)
    asked = np.random.default_rng(0).permutation(asked)  # those that judge are of all times, too
    count = min(recommender.serving.candidates, len(recommender.index))

    def told(part: NDArray[np.int64]) -> tuple[list[Visitor], Query]:
        visitors = [
            replace(logged_visitor(dataset, int(request)), at_ms=end_ms) for request in part
        ]
        return visitors, stack_queries([recommender.state.query(visitor) for visitor in visitors])

    def rank(
        asking: tuple[list[Visitor], Query],
    ) -> tuple[Tensor, NDArray[np.float64], NDArray[np.int64]]:
        visitors, query = asking
        ads_BN = recommender.retrieve(query, count)
        scored = recommender.rank(visitors, query, ads_BN, shown=count)
        pool = recommender.pool(visitors, query, ads_BN)
        return _crossed(recommender.runtime.ranker, query, pool), scored.scores_BNK, ads_BN

    # What becomes known by now is taken in while histories are read: by one thread.
    parts = [told(part) for part in np.array_split(asked, -(-len(asked) // _BATCH))]
    crossed, scores, ads = [], [], []
    with progress.track("preranker", len(asked), "requests") as advance:
        for crossed_BND, scores_BNK, ads_BN in side_by_side(rank, parts):
            crossed.append(crossed_BND)
            scores.append(scores_BNK)
            ads.append(ads_BN)
            advance(len(ads_BN), "")
    ads_QN, scores_QNK = np.concatenate(ads), np.concatenate(scores)
    place_QN = _places(recommender.order(scores_QNK, ads_QN))
    return Ranked(torch.cat(crossed), torch.from_numpy(scores_QNK).float(), ads_QN, place_QN)
