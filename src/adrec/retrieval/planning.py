"""How far a filtered search has to look, judged by a sample of the catalogue.

A search that stops early meets the ads nearest to the query, allowed or not. Where a share f of
the ads is allowed, spread like all others, the best k allowed ones are among the nearest k / f. A
filter that has to do with the query (ads of one language, of one shop) puts them nearer, or behind
all that it forbids. Which it is shows in a sample: how many of its ads, allowed or not, score above
its best allowed ones.
"""

import math

import numpy as np
import numpy.typing as npt

from adrec.retrieval.inputs import Floats, Ints
from adrec.retrieval.passing import Passing

SAMPLE_ROWS = 2_048
_BEST = 16  # allowed ads of the sample that are looked at: their rank is off by about a quarter


class Sample:
    """Some ads of an index of A, drawn evenly, with their vectors."""

    def __init__(self, places_S: Ints, vectors_SD: Floats, ads: int) -> None:
        self._places_S, self._vectors_DS = places_S, np.ascontiguousarray(vectors_SD.T)
        self._ads = ads

    def rank(self, queries: Floats, passing: Passing, k: int) -> npt.NDArray[np.float64]:
        """About how many ads, allowed or not, are as near to each query as its k-th allowed, [Q].

        It is k where all that is near is allowed, k / f where the filter has nothing to do with the
        query, and A where the sample holds too few allowed ads to tell.
        """
        inside_S = passing.has(self._places_S)
        best = min(_BEST, int(inside_S.sum()))
        if best == 0:
            return np.full(len(queries), float(self._ads))
        scores_QS = queries @ self._vectors_DS
        bar_Q1 = -np.partition(-scores_QS[:, inside_S], best - 1, axis=1)[:, best - 1, None]
        met_Q = (scores_QS >= bar_Q1).sum(axis=1)  # of the sample, down to its best-th allowed
        by_chance = (best + 2 * math.sqrt(best)) * self._ads / len(passing)  # two deviations up
        behind_Q = np.maximum(met_Q - by_chance, 0.0) * self._ads / len(self._places_S)
        each_Q = np.minimum(met_Q, by_chance) / best
        rank_Q: npt.NDArray[np.float64] = np.minimum(behind_Q + k * each_Q, float(self._ads))
        return rank_Q


def share_to_rank(
    rank_Q: npt.NDArray[np.float64], k: int, share: float, ads: int
) -> npt.NDArray[np.float64]:
    """Share of the lists that a search to some ranks has to visit, given the share that serves for
    the best k of all: a power of the rank, up to all lists for all ads."""
    if share >= 1.0 or k >= ads:
        return np.ones(len(rank_Q))
    power = math.log(share) / math.log(k / ads)
    share_Q: npt.NDArray[np.float64] = np.minimum(rank_Q / ads, 1.0) ** power
    return share_Q
