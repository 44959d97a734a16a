"""Runtime: both models on torch, trees beside the ranker if there are any, calibrated.

Serving and evaluation score with it. A request's prefix is encoded once for all candidates.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.calibration import Calibration
from adrec.features.batches import Batch, Candidates, Query
from adrec.models.ranker import Ranker
from adrec.models.trees import Trees
from adrec.models.two_tower import TwoTower


class Runtime:
    """Both models, frozen, on the CPU."""

    def __init__(
        self,
        two_tower: TwoTower,
        ranker: Ranker,
        calibration: Calibration,
        *,
        trees: Trees | None = None,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        self.two_tower = two_tower.eval().requires_grad_(False)
        self.ranker = ranker.eval().requires_grad_(False)
        self.calibration = calibration
        self.trees = trees
        self._bf16 = precision == "bf16"

    @torch.inference_mode()
    def embed(self, query: Query) -> NDArray[np.float32]:
        """Vectors of B requests, [B, D]."""
        vectors: NDArray[np.float32] = self.two_tower.users(query).numpy()
        return vectors

    @torch.inference_mode()
    def score(self, query: Query, candidates: Candidates) -> NDArray[np.float64]:
        """Calibrated probability or expected value of each task, [B, N, K]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            predictions = self.ranker.predict(self.ranker.prefix(query), candidates)
        trees = None if self.trees is None else self.trees.predict(query, candidates)
        return self.calibration.apply(predictions.double().numpy(), trees)

    def score_batch(self, batch: Batch) -> NDArray[np.float64]:
        """Scores of a batch's impressions without the padding, [rows, K]."""
        scores = self.score(batch.query, batch.candidates)
        rows: NDArray[np.float64] = scores[batch.candidates.mask_BN.numpy()]
        return rows
