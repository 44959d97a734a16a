"""Runtime: both models, trees beside the ranker if there are any, calibrated.

Serving and evaluation score with it. A request is encoded once for all candidates. Where the
backend is coarser than float32, the best candidates are scored once more, exactly: as an index
rescores what its codes found.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.calibration import Calibration
from adrec.features.batches import Batch, Candidates, Query
from adrec.inference.backends import Backend, CandidateRows
from adrec.models.ad_rows import AdRows
from adrec.models.ranker import Ranker
from adrec.models.trees import Trees
from adrec.models.two_tower import TwoTower

Order = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Calibrated scores [B, N, K] to what candidates are ranked by, [B, N]."""


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
        rescored: int = 32,
    ) -> None:
        """Put the parts together.

        Args:
            two_tower, ranker, calibration, trees: as trained.
            backend: what runs the ranker.
            ad_rows: what the ranker makes of the ads, for a backend that is coarser than float32.
            rescored: candidates of a request that are scored exactly after a coarse pass.
        """
        self.two_tower = two_tower.eval().requires_grad_(False)
        self.ranker = ranker.eval().requires_grad_(False)
        self.calibration, self.backend, self.trees = calibration, backend, trees
        self.ad_rows, self._rescored = ad_rows, rescored

    @torch.inference_mode()
    def embed(self, query: Query) -> NDArray[np.float32]:
        """Vectors of B requests, [B, D]."""
        vectors: NDArray[np.float32] = self.two_tower.users(query).numpy()
        return vectors

    def score(
        self,
        query: Query,
        candidates: Candidates,
        stored: CandidateRows,
        order: Order,
        *,
        shown: int,
    ) -> NDArray[np.float64]:
        """Calibrated probability or expected value of each task, [B, N, K].

        Args:
            query: B requests.
            candidates: N ads each.
            stored: where they stand in the rows of all ads.
            order: what the best are chosen by.
            shown: at least twice as many of the best are exact.
        """
        opened, row_BN = self.backend.open(query), stored.row_BN
        trees = None if self.trees is None else self.trees.predict(query, candidates)
        best = max(self._rescored, 2 * shown)
        if self.backend.precision == "float32" or best >= row_BN.shape[1]:
            return self.calibration.apply(opened.score_exactly(candidates), trees)
        scores = self.calibration.apply(opened.score(candidates, stored), trees)
        order_BN = np.where(row_BN > 0, order(scores), -np.inf)
        place_BM = np.argpartition(-order_BN, best, axis=1)[:, :best]
        exact = opened.score_exactly(candidates.at(torch.from_numpy(place_BM)))
        at = place_BM[..., None]
        some = None if trees is None else np.take_along_axis(trees, at, axis=1)
        np.put_along_axis(scores, at, self.calibration.apply(exact, some), axis=1)
        return scores

    def score_batch(self, batch: Batch) -> NDArray[np.float64]:
        """Exact scores of a batch's impressions without the padding, [rows, K]."""
        raw = self.backend.open(batch.query).score_exactly(batch.candidates)
        trees = None if self.trees is None else self.trees.predict(batch.query, batch.candidates)
        scores = self.calibration.apply(raw, trees)
        rows: NDArray[np.float64] = scores[batch.candidates.mask_BN.numpy()]
        return rows
