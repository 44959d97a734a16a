"""Searches that leave out some ads of each request: what it excludes, what its user has seen.

Few of them are dropped after looking for so many more, which costs next to nothing and lets
requests share a search; none is missed by that, as the best k others are among the best k + few.
Many of them become a filter of their own.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.index import Found
from adrec.retrieval.inputs import Floats


class Searchable(Protocol):
    """An index, or a snapshot of one."""

    @property
    def rows(self) -> int:
        """The highest row of an ad and one."""
        ...

    def search(
        self, queries: Floats, k: int, *, allowed: AdSet | None = None, exact: bool = False
    ) -> Found:
        """The k best allowed ads of each query."""
        ...


def search_without(
    index: Searchable,
    queries: Floats,
    k: int,
    excluded: Sequence[NDArray[np.integer]],
    *,
    allowed: AdSet | None = None,
    exact: bool = False,
) -> Found:
    """The k best allowed ads of each query outside those excluded for it.

    Args:
        index: what is searched.
        queries: float32 [Q, D].
        k: results a query.
        excluded: rows for each query, in any order; rows that the index has not are fine.
        allowed: as `AdIndex.search`, for all queries.
        exact: as `AdIndex.search`.
    """
    found = Found(
        np.full((len(queries), k), -1, np.int64),
        np.full((len(queries), k), -np.inf, np.float32),
    )
    few = [q for q, rows in enumerate(excluded) if len(rows) <= k]
    if few:
        more = max(len(excluded[q]) for q in few)
        ads, scores = index.search(queries[few], k + more, allowed=allowed, exact=exact)
        gone = np.stack([np.isin(ads[i], excluded[q]) for i, q in enumerate(few)])
        left = np.argsort(gone, axis=1, kind="stable")[:, :k]
        gone = np.take_along_axis(gone, left, axis=1)
        found.ads_QK[few] = np.where(gone, -1, np.take_along_axis(ads, left, axis=1))
        found.scores_QK[few] = np.where(gone, -np.inf, np.take_along_axis(scores, left, axis=1))
    for q in sorted(set(range(len(queries))) - set(few)):
        within = ~AdSet.none(index.rows) if allowed is None else allowed
        rows = excluded[q][excluded[q] < within.rows]
        one = index.search(queries[q : q + 1], k, allowed=within.without(rows), exact=exact)
        found.ads_QK[q], found.scores_QK[q] = one.ads_QK[0], one.scores_QK[0]
    return found
