"""The vectors that an index stores, fetched by place, and the best of some of them.

A scan under a filter comes by every ad of the catalogue; where few are allowed it is ten times
faster to fetch those.

Shapes: D width, Q queries, K results a query, N places.
"""

import threading
from typing import Any

import faiss as _typed_faiss
import numpy as np

from adrec.retrieval.inputs import Floats, Ints

faiss: Any = _typed_faiss  # its stubs lack the keyword constructors that are its documented API

_BLOCK_ROWS = 4_096  # vectors in work at a time: they stay in the cache


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
        self._lists_lock = threading.Lock()

    def vectors(self, places_N: Ints) -> Floats:
        """Vectors at some places, [N, D]."""
        if not isinstance(self.index, faiss.IndexFlatCodes):
            with self._lists_lock:
                if self.index.direct_map.no():
                    self.index.make_direct_map()  # place to list, 8 bytes an ad
            found: Floats = self.index.reconstruct_batch(places_N)
            return found
        codes = faiss.rev_swig_ptr(self.index.codes.data(), self.index.codes.size())
        codes_ND = codes.reshape(-1, self.index.code_size)[places_N]
        if isinstance(self.index, faiss.IndexFlat):
            plain: Floats = codes_ND.view(np.float32)
            return plain
        decoded: Floats = self.index.sa_decode(codes_ND)
        return decoded

    def best(self, queries: Floats, k: int, places_N: Ints) -> tuple[Floats, Ints]:
        """Scores and places [Q, K] of the best k of some places, N >= k."""
        scores_QN = np.empty((len(queries), len(places_N)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite score is one too
            for start in range(0, len(places_N), _BLOCK_ROWS):
                block = slice(start, start + _BLOCK_ROWS)
                scores_QN[:, block] = queries @ self.vectors(places_N[block]).T
        if k < len(places_N):
            kept_QK = np.argpartition(-scores_QN, k - 1, axis=1)[:, :k]
        else:
            kept_QK = np.broadcast_to(np.arange(k), (len(queries), k))
        scores_QK = np.take_along_axis(scores_QN, kept_QK, axis=1)
        order_QK = np.argsort(-scores_QK, axis=1, kind="stable")
        scores_QK = np.take_along_axis(scores_QK, order_QK, axis=1)
        at_QK = places_N[np.take_along_axis(kept_QK, order_QK, axis=1)]
        return scores_QK, np.where(np.isneginf(scores_QK), -1, at_QK)


def faiss_search(index: Any, queries: Floats, k: int, params: Any) -> tuple[Floats, Ints]:
    """Scores and places [Q, k]; -inf and -1 where nothing was found."""
    scores, at = index.search(queries, k, params=params)
    scores[at < 0] = -np.inf  # FAISS says -3.4e38
    return scores, at
