"""The vectors that an index stores, fetched by place, and the best of some of them.

A scan under a filter comes by every ad of the catalogue; where few are allowed it is ten times
faster to fetch those. Numbers of 8 bits are multiplied as they are: with a step s_d and a least
value m_d a column, <q, m + s (c + 1/2)> = <q s, c> + <q, m + s / 2>.

Shapes: D width, Q queries, K results a query, N places.
"""

import threading
from typing import Any

import faiss as _typed_faiss
import numpy as np

from adrec.retrieval.inputs import Floats, Ints

faiss: Any = _typed_faiss  # its stubs lack the keyword constructors that are its documented API

_BLOCK_ROWS = 1_024  # vectors in work at a time: they stay in the cache


class Stored:
    """The vectors of an index by place, as exactly as it has them."""

    def __init__(self, core: Any) -> None:
        """`core` is the FAISS index; it has to outlive this."""
        if isinstance(core, faiss.IndexRefine):
            core = faiss.downcast_index(core.refine_index)
        elif isinstance(core, faiss.IndexHNSW):
            core = faiss.downcast_index(core.storage)
        self.index = core
        """Whose search weighs all of them."""
        self._codes_AD = None
        if isinstance(core, faiss.IndexFlatCodes):
            codes = faiss.rev_swig_ptr(core.codes.data(), core.codes.size())
            self._codes_AD = codes.reshape(-1, core.code_size)
        self._steps = _steps_of(core)
        self._lists_lock = threading.Lock()

    def vectors(self, places_N: Ints) -> Floats:
        """Vectors at some places, [N, D]."""
        if self._codes_AD is None:
            with self._lists_lock:
                if self.index.direct_map.no():
                    self.index.make_direct_map()  # place to list, 8 bytes an ad
            found: Floats = self.index.reconstruct_batch(places_N)
            return found
        codes_ND = np.take(self._codes_AD, places_N, axis=0)
        if isinstance(self.index, faiss.IndexFlat):
            plain: Floats = codes_ND.view(np.float32)
            return plain
        decoded: Floats = self.index.sa_decode(codes_ND)
        return decoded

    def best(self, queries: Floats, k: int, places_N: Ints) -> tuple[Floats, Ints]:
        """Scores and places [Q, K] of the best k of some places, N >= k."""
        scores_QN = self._scores(queries, places_N)
        best_QK = best_first(scores_QN, k)
        scores_QK = np.take_along_axis(scores_QN, best_QK, axis=1)
        return scores_QK, np.where(np.isneginf(scores_QK), -1, places_N[best_QK])

    def best_of_each(self, queries: Floats, k: int, at_QN: Ints) -> tuple[Floats, Ints]:
        """As `best`, of each query's own places; those that are -1 come last, as -1."""
        scores_QK = np.empty((len(queries), k), np.float32)
        at_QK = np.empty((len(queries), k), np.int64)
        for q, at_N in enumerate(at_QN):
            scores_N = self._scores(queries[q : q + 1], at_N)[0]
            scores_N[at_N < 0] = -np.inf
            best_K = best_first(scores_N, k)
            scores_QK[q], at_QK[q] = scores_N[best_K], at_N[best_K]
        at_QK[np.isneginf(scores_QK)] = -1
        return scores_QK, at_QK

    def _scores(self, queries: Floats, places_N: Ints) -> Floats:
        """[Q, N]"""
        scores_QN = np.empty((len(queries), len(places_N)), np.float32)
        scaled_QD, shift_Q1 = queries, np.zeros((len(queries), 1), np.float32)
        if self._steps is not None:
            least_D, step_D = self._steps
            scaled_QD, shift_Q1 = queries * step_D, queries @ least_D[:, None]
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite score is one too
            for start in range(0, len(places_N), _BLOCK_ROWS):
                block = slice(start, start + _BLOCK_ROWS)
                scores_QN[:, block] = scaled_QD @ self._numbers(places_N[block]).T
            scores_QN += shift_Q1
        return scores_QN

    def _numbers(self, places_N: Ints) -> Floats:
        """Vectors as they are multiplied with a query, [N, D]: codes where there are steps."""
        if self._steps is None:
            return self.vectors(places_N)
        assert self._codes_AD is not None
        numbers: Floats = np.take(self._codes_AD, places_N, axis=0).astype(np.float32)
        return numbers


def best_first(scores: Floats, k: int) -> Ints:
    """Where the k highest of the last axis are, the highest first; equal ones in any order."""
    if k >= scores.shape[-1]:
        return np.argsort(-scores, axis=-1, kind="stable")
    best = np.argpartition(-scores, k - 1, axis=-1)[..., :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(best, order, axis=-1)


def _steps_of(index: Any) -> tuple[Floats, Floats] | None:
    """Middle of the lowest step and the step of each column [D] where codes are 8 bits."""
    if not isinstance(index, faiss.IndexScalarQuantizer):
        return None
    least_D, span_D = faiss.vector_to_array(index.sq.trained).reshape(2, -1)
    step_D = span_D / np.float32(255.0)
    return least_D + step_D / 2, step_D


def faiss_search(index: Any, queries: Floats, k: int, params: Any) -> tuple[Floats, Ints]:
    """Scores and places [Q, k]; -inf and -1 where nothing was found."""
    scores, at = index.search(queries, k, params=params)
    scores[at < 0] = -np.inf  # FAISS says -3.4e38
    return scores, at
