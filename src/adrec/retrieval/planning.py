"""How far a filtered search has to look, judged by a sample of the catalogue.

A search that stops early meets the ads nearest to the query, allowed or not. Where a share f of the
ads is allowed, spread like all others, the best k allowed ones are among the nearest k / f. A filter
that has to do with the query (ads of one language, of one shop) puts them nearer or much farther.
Which it is shows in a sample: how many of its ads, allowed or not, score above its best allowed.
"""

import numpy as np
import numpy.typing as npt

from adrec.retrieval.inputs import Floats, Ints
from adrec.retrieval.passing import Passing

SAMPLE_ROWS = 2_048
"""Scoring them takes a fortieth of a millisecond at a width of 128."""
_BEST = 8  # allowed ads of the sample that are looked at: their rank is off by about a third


class Sample:
    """Some ads of an index, drawn evenly, with their vectors."""

    def __init__(self, places_S: Ints, vectors_SD: Floats) -> None:
        self._places_S, self._vectors_DS = places_S, np.ascontiguousarray(vectors_SD.T)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the vectors."""
        return self._vectors_DS.nbytes

    def depth(self, queries: Floats, passing: Passing) -> npt.NDArray[np.float64]:
        """How many ads are nearer to each query than an allowed one, for each allowed one, [Q].

        1 / f where the filter has nothing to do with the query; 1 where all that is near is
        allowed; infinite where the sample holds too few allowed ads to tell.
        """
        allowed_S = passing.has(self._places_S)
        best = min(_BEST, int(allowed_S.sum()))
        if best == 0:
            return np.full(len(queries), np.inf)
        scores_QS = queries @ self._vectors_DS
        bar_Q1 = -np.partition(-scores_QS[:, allowed_S], best - 1, axis=1)[:, best - 1, None]
        return (scores_QS >= bar_Q1).sum(axis=1) / best
