"""Runtime: both models, trees beside the ranker if there are any, calibrated.

Serving and evaluation score with it. All candidates of a request are scored at once. With a
preranker the ranker looks only at those that it guesses to be the best; and where the backend is
so much coarser than float32 that it puts others on top, the best of these are scored once more,
exactly: as an index rescores what its codes found.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.calibration import Calibration
from adrec.features.batches import Batch, Query
from adrec.inference.backends import Backend, Opened, Pool
from adrec.models.ad_rows import AdRows
from adrec.models.ranker import Ranker
from adrec.models.trees import Trees
from adrec.models.two_tower import TwoTower

TOP = 10
"""Ads shown for which `considered` was measured."""
RESCORED = 20
"""Candidates that are scored exactly after a pass that is too coarse."""

Order = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]
"""Calibrated scores [B, N, K] of ads [B, N] to what these are ranked by, [B, N]; -inf where there
is no ad."""


class Scores(NamedTuple):
    """scores_BNK: calibrated probability or expected value of each task. ranked_BN: of which ads
    the ranker made them; the others are guessed, and none of the best."""

    scores_BNK: NDArray[np.float64]
    ranked_BN: NDArray[np.bool_]


UserTower = Callable[[Query], NDArray[np.float32]]
"""B requests to their vectors, [B, D]."""


@torch.inference_mode()
def embed_users(two_tower: TwoTower, query: Query) -> NDArray[np.float32]:
    """Vectors of B requests, [B, D]."""
    vectors: NDArray[np.float32] = two_tower.users(query).numpy()
    return vectors


class Runtime:
    """Both models, frozen, on the CPU."""

    def __init__(
        self,
        two_tower: TwoTower,
        ranker: Ranker,
        calibration: Calibration,
        backend: Backend,
        *,
        ad_rows: AdRows | None = None,
        trees: Trees | None = None,
        users: UserTower | None = None,
        considered: int | None = None,
        rescored: int = RESCORED,
    ) -> None:
        """Put the parts together.

        Args:
            two_tower, ranker, calibration, trees: as trained.
            backend: what runs the ranker.
            ad_rows: what the ranker makes of the ads, for a preranker and for a backend that is
                coarser than float32.
            users: what embeds users; None: the two-tower as it is.
            considered: candidates of a request, for 10 that are shown, that the ranker looks at;
                the backend must have a preranker. None: all.
            rescored: candidates of a request that are scored exactly after a coarse pass; at least
                twice as many as are shown, unless it is 0.
        """
        self.two_tower = two_tower.eval().requires_grad_(False)
        self.ranker = ranker.eval().requires_grad_(False)
        self.calibration, self.backend, self.trees = calibration, backend, trees
        self.considered, self._rescored = considered, rescored
        self._users = users or partial(embed_users, self.two_tower)
        reads_rows = considered is not None or backend.precision != "float32"
        self.ad_rows = ad_rows if reads_rows else None

    def embed(self, query: Query) -> NDArray[np.float32]:
        """Vectors of B requests, [B, D]."""
        return self._users(query)

    def score(self, query: Query, pool: Pool, order: Order, *, shown: int) -> Scores:
        """Score candidates of B requests.

        Args:
            query: the requests.
            pool: N ads each.
            order: what the best are chosen by.
            shown: how many of the best are wanted.
        """
        opened, count = self.backend.open(query), pool.row_BN.shape[1]
        looked_at = self._looked_at(shown, count)
        if looked_at == count:
            scores = self._look(opened, query, pool, order, shown)
            return Scores(scores, np.ones(pool.row_BN.shape, bool))
        scores = opened.prerank(pool).astype(np.float64)
        place_BM = _best(order(scores, pool.row_BN), looked_at)
        found = self._look(opened, query, pool.at(place_BM), order, shown)
        np.put_along_axis(scores, place_BM[..., None], found, axis=1)
        ranked_BN = np.zeros(pool.row_BN.shape, bool)
        np.put_along_axis(ranked_BN, place_BM, True, axis=1)
        return Scores(scores, ranked_BN)

    def score_batch(self, batch: Batch) -> NDArray[np.float64]:
        """Exact scores of a batch's impressions without the padding, [rows, K]."""
        query, candidates = batch.query, batch.candidates
        pool = Pool.of(self.ranker.layout, query, candidates, None, batch.ad_row_BN.numpy())
        raw = self.backend.open(query).score_exactly(pool)
        trees = None if self.trees is None else self.trees.predict(query, candidates)
        scores = self.calibration.apply(raw, trees)
        rows: NDArray[np.float64] = scores[batch.candidates.mask_BN.numpy()]
        return rows

    def _looked_at(self, shown: int, count: int) -> int:
        """How many of so many candidates the ranker looks at."""
        if self.considered is None:
            return count
        return min(count, max(shown, math.ceil(self.considered * max(1.0, shown / TOP))))

    def _look(
        self, opened: Opened, query: Query, pool: Pool, order: Order, shown: int
    ) -> NDArray[np.float64]:
        """Calibrated scores of the ranker, and of the trees if there are any; exact ones of the
        best where the first pass is too coarse."""
        trees = None if self.trees is None else self.trees.predict(query, pool.candidates)
        exact = max(self._rescored, 2 * shown) if self._rescored else 0
        if self.backend.precision == "float32" or exact >= pool.row_BN.shape[1]:
            return self.calibration.apply(opened.score_exactly(pool), trees)
        scores = self.calibration.apply(opened.score(pool), trees)
        if not exact:
            return scores
        place_BM = _best(order(scores, pool.row_BN), exact)
        at = place_BM[..., None]
        some = None if trees is None else np.take_along_axis(trees, at, axis=1)
        found = self.calibration.apply(opened.score_exactly(pool.at(place_BM)), some)
        np.put_along_axis(scores, at, found, axis=1)
        return scores


def _best(order_BN: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of the best candidates, in any order."""
    places: NDArray[np.int64] = np.argpartition(-order_BN, count, axis=1)[:, :count]
    return places
