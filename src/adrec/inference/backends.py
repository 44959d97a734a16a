"""Backend: what runs the ranker. A request is opened once, then any candidates of it are scored.

A backend whose arithmetic is coarser than float32 also scores exactly, which `Runtime` has it do
for the best few. It is admitted to serve by measurement (`evaluation/admission.py`).
"""

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.features.batches import Candidates, Query
from adrec.models.ad_rows import AdRows
from adrec.models.ranker import Ranker, histories_of, known_together

Engine = Literal["torch", "openvino"]
Precision = Literal["float32", "bf16", "int8"]

_TRIALS = 5


class Example(NamedTuple):
    """Any request with candidates: it tells shapes, and can be timed."""

    query: Query
    candidates: Candidates
    row_BN: NDArray[np.int64]


class CandidateRows(NamedTuple):
    """Where candidates stand in the rows of all ads. rows: None where the backend needs none.
    row_BN: 0 where there is no candidate."""

    rows: AdRows | None
    row_BN: NDArray[np.int64]


class Opened(Protocol):
    """B requests, encoded. Scores are a probability or expected value of each task, uncalibrated,
    [B, N, K]."""

    def score(self, candidates: Candidates, stored: CandidateRows) -> NDArray[np.float32]:
        """Score candidates in the backend's precision."""

    def score_exactly(self, candidates: Candidates) -> NDArray[np.float32]:
        """Score candidates in float32, from their fields."""


class Backend(Protocol):
    """Runs the ranker. Safe to use from many threads at once."""

    @property
    def engine(self) -> Engine:
        """The library that it runs on."""

    @property
    def precision(self) -> Precision:
        """Of `Opened.score`."""

    def open(self, query: Query) -> Opened:
        """Encode B requests."""


class TorchBackend:
    """The model as it is."""

    engine: Engine = "torch"

    def __init__(self, ranker: Ranker, precision: Literal["float32", "bf16"] = "float32") -> None:
        self._ranker = ranker.eval().requires_grad_(False)
        self.precision: Precision = precision

    def open(self, query: Query) -> Opened:
        """See `Backend`."""
        return _OpenedOnTorch(self._ranker, query, bf16=self.precision == "bf16")


class _OpenedOnTorch:
    @torch.inference_mode()
    def __init__(self, ranker: Ranker, query: Query, *, bf16: bool) -> None:
        self._ranker, self._bf16 = ranker, bf16
        self._histories = histories_of(query, ranker.layout.impressions)
        self._prefix = ranker.prefix(query)

    @torch.inference_mode()
    def score(self, candidates: Candidates, stored: CandidateRows) -> NDArray[np.float32]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            return self.score_exactly(candidates)

    @torch.inference_mode()
    def score_exactly(self, candidates: Candidates) -> NDArray[np.float32]:
        outputs = self._ranker.judge(
            self._prefix,
            self._ranker.ads(candidates.ads),
            known_together(self._histories, candidates),
            candidates.position_BN,
        )
        scores: NDArray[np.float32] = self._ranker.heads.predictions(outputs).numpy()
        return scores


def fastest(backends: Sequence[Backend], example: Example, rows: AdRows | None) -> Backend:
    """The backend that scores an example in the least time; median of a few trials, taken in
    turns."""
    if len(backends) == 1:
        return backends[0]
    seconds: list[list[float]] = [[] for _ in backends]
    for trial in range(1 + _TRIALS):
        for backend, found in zip(backends, seconds, strict=True):
            begun = time.perf_counter()
            backend.open(example.query).score(
                example.candidates, CandidateRows(rows, example.row_BN)
            )
            if trial:  # the first one warms up
                found.append(time.perf_counter() - begun)
    return backends[int(np.argmin([np.median(found) for found in seconds]))]
