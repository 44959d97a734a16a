"""Backend: what runs the ranker. A request is opened once, then any candidates of it are scored.

A backend whose arithmetic is coarser than float32 also scores exactly, which `Runtime` has it do
for the best few if need be. It is admitted to serve by measurement (`evaluation/admission.py`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adrec.features.batches import Candidates, Query, of_rows, rows_at
from adrec.features.transforms import Layout
from adrec.inference.graphs import PrerankGraph
from adrec.models.ad_rows import AdRows
from adrec.models.matches import histories_of, known_together
from adrec.models.preranker import Preranker
from adrec.models.ranker import Ranker

Engine = Literal["torch", "openvino"]
Precision = Literal["float32", "bf16", "int8"]


class Example(NamedTuple):
    """Any request with candidates: it tells shapes, and can be timed."""

    query: Query
    candidates: Candidates
    row_BN: NDArray[np.int64]


class BackendName(NamedTuple):
    """Which backend."""

    engine: Engine
    precision: Precision


class Usual(NamedTuple):
    """How many candidates of a lone request the preranker mostly guesses at, and how many the
    ranker looks at: a backend may be made ready for that."""

    guessed: int
    scored: int


@dataclass(frozen=True)
class Pool:
    """N candidates of B requests, with all that a backend may read of them.

    together_BNX: `known_together`. rows: what the ranker makes of all ads, None if nobody reads
    it. row_BN: where the candidates stand in it, 0 where there is none.
    """

    candidates: Candidates
    together_BNX: Tensor
    rows: AdRows | None
    row_BN: NDArray[np.int64]

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        layout: Layout,
        query: Query,
        candidates: Candidates,
        rows: AdRows | None,
        row_BN: NDArray[np.int64],
    ) -> Self:
        """Put together what is known of candidates of a query."""
        together_BNX = known_together(histories_of(query, layout.impressions), candidates)
        return cls(candidates, together_BNX, rows, row_BN)

    def at(self, place_BM: NDArray[np.int64]) -> "Pool":
        """Some places of each request, M."""
        places = torch.from_numpy(place_BM)
        return Pool(
            self.candidates.at(places),
            of_rows(self.together_BNX, rows_at(places, self.row_BN.shape[1])),
            self.rows,
            np.take_along_axis(self.row_BN, place_BM, axis=1),
        )

    def stored(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes [B, N, 2D] and scales [B, N, 2] of the candidates' rows."""
        assert self.rows is not None
        return self.rows.take(self.row_BN)

    def stored_cross(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes [B, N, D] and scales [B, N] of the half that the cross stream reads."""
        assert self.rows is not None
        return self.rows.take_cross(self.row_BN)


class Opened(Protocol):
    """B requests. Scores are a probability or expected value of each task, [B, N, K]."""

    def prerank(self, pool: Pool) -> NDArray[np.float32]:
        """The preranker's guess, calibrated."""

    def score(self, pool: Pool) -> NDArray[np.float32]:
        """Score candidates in the backend's precision, uncalibrated."""

    def score_exactly(self, pool: Pool) -> NDArray[np.float32]:
        """Score candidates in float32, from their fields, uncalibrated."""


class Backend(Protocol):
    """Runs the ranker. Safe to use from many threads at once."""

    @property
    def engine(self) -> Engine:
        """The library that it runs on."""

    @property
    def precision(self) -> Precision:
        """Of `Opened.score`."""

    def open(self, query: Query) -> Opened:
        """Do what can be done for B requests before their candidates are known."""


class TorchBackend:
    """The model as it is."""

    engine: Engine = "torch"

    def __init__(
        self,
        ranker: Ranker,
        precision: Literal["float32", "bf16"] = "float32",
        preranker: Preranker | None = None,
    ) -> None:
        self._ranker = ranker.eval().requires_grad_(False)
        self._preranking = None if preranker is None else PrerankGraph(ranker, preranker).eval()
        self.precision: Precision = precision

    def open(self, query: Query) -> Opened:
        """See `Backend`."""
        return _OpenedOnTorch(self._ranker, self._preranking, query, bf16=self.precision == "bf16")


class _OpenedOnTorch:
    @torch.inference_mode()
    def __init__(
        self, ranker: Ranker, preranking: PrerankGraph | None, query: Query, *, bf16: bool
    ) -> None:
        self._ranker, self._preranking, self._bf16 = ranker, preranking, bf16
        self._prefix = ranker.prefix(query)

    @torch.inference_mode()
    def prerank(self, pool: Pool) -> NDArray[np.float32]:
        assert self._preranking is not None
        codes, scales = (torch.from_numpy(array) for array in pool.stored_cross())
        guessed: NDArray[np.float32] = self._preranking.guess(
            self._prefix.summary_BD, codes, scales, pool.together_BNX
        ).numpy()
        return guessed

    @torch.inference_mode()
    def score(self, pool: Pool) -> NDArray[np.float32]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            return self.score_exactly(pool)

    @torch.inference_mode()
    def score_exactly(self, pool: Pool) -> NDArray[np.float32]:
        candidates = pool.candidates
        outputs = self._ranker.judge(
            self._prefix,
            self._ranker.ads(candidates.ads),
            pool.together_BNX,
            candidates.position_BN,
        )
        scores: NDArray[np.float32] = self._ranker.heads.predictions(outputs).numpy()
        return scores
