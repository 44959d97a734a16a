"""Retrieval: how many of the ads that a query wanted were found."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adrec.errors import ConfigError, DataError
from adrec.metrics.inputs import Floats, Ints


def recall_at_k(
    ranked: npt.ArrayLike, relevant: tuple[npt.ArrayLike, npt.ArrayLike], ks: Sequence[int]
) -> dict[int, float]:
    """The share of a query's relevant ads that are among its first k, averaged over queries.

    recall@k = (1/Q) Σ_q |first k of q ∩ relevant to q| / |relevant to q|, over the queries that
    have a relevant ad. With more than k relevant ads its ceiling is below 1.

    Args:
        ranked: [Q, K], ad rows, best first, no ad twice in a query; −1 pads.
        relevant: offsets [Q + 1] and ad rows [M]: those of query q are ads[offsets[q]:offsets[q+1]]
            (an ad listed twice counts once).
        ks: depths, each in 1..K.

    Returns:
        recall by k; NaN if no query has a relevant ad.
    """
    recalls = query_recalls(ranked, relevant, ks)
    return {k: float(of_Q.mean()) if len(of_Q) else float("nan") for k, of_Q in recalls.items()}


def query_recalls(
    ranked: npt.ArrayLike, relevant: tuple[npt.ArrayLike, npt.ArrayLike], ks: Sequence[int]
) -> dict[int, Floats]:
    """Recall of each query that has a relevant ad, in order, by k; see `recall_at_k`."""
    hits_QK, relevant_Q = _hits(ranked, relevant, ks)
    return {k: hits_QK[:, :k].sum(axis=1) / relevant_Q for k in ks}


def query_ndcg(
    ranked: npt.ArrayLike, relevant: tuple[npt.ArrayLike, npt.ArrayLike], k: int
) -> Floats:
    """NDCG@k of each query that has a relevant ad, in order: all of them equally relevant.

    DCG@k = Σ_i≤k hit_i / log2(i + 1), over that of all relevant ads in front (Järvelin and
    Kekäläinen 2002). Arguments as of `recall_at_k`.
    """
    hits_QK, relevant_Q = _hits(ranked, relevant, [k])
    discount_k = 1.0 / np.log2(np.arange(2, k + 2))
    best_k = np.cumsum(discount_k)
    ndcg: Floats = hits_QK[:, :k] @ discount_k / best_k[np.minimum(relevant_Q, k) - 1]
    return ndcg


def _hits(
    ranked: npt.ArrayLike, relevant: tuple[npt.ArrayLike, npt.ArrayLike], ks: Sequence[int]
) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Which ranked ads are relevant [Q', K], and how many are [Q'], of queries that have any."""
    ads_QK = np.asarray(ranked, dtype=np.int64)
    offsets, ads = (np.asarray(part, dtype=np.int64) for part in relevant)
    _check_retrieval(ads_QK, offsets, ads, ks)
    queries = len(ads_QK)
    # One integer a (query, ad) pair turns Q set intersections into a single lookup.
    catalogue = 1 + max(ads_QK.max(initial=0), ads.max(initial=0))
    wanted = np.unique(np.repeat(np.arange(queries), np.diff(offsets)) * catalogue + ads)
    pair_QK = np.where(ads_QK >= 0, np.arange(queries)[:, None] * catalogue + ads_QK, -1)
    relevant_Q = np.bincount(wanted // catalogue, minlength=queries)
    asked = relevant_Q > 0
    return np.isin(pair_QK, wanted)[asked], relevant_Q[asked]


def _check_retrieval(ads_QK: Ints, offsets: Ints, ads: Ints, ks: Sequence[int]) -> None:
    if ads_QK.ndim != 2:
        raise DataError(f"ranked has shape {ads_QK.shape}; it must be queries by ranks")
    queries, depth = ads_QK.shape
    steps = np.diff(offsets, prepend=0, append=len(ads))
    if len(offsets) != queries + 1 or steps[0] or steps[-1] or (steps < 0).any():
        raise DataError(f"relevant offsets must rise from 0 to {len(ads)} in {queries} steps")
    if ads.min(initial=0) < 0:
        raise DataError(f"relevant holds the ad row {ads.min()}; rows count from 0")
    for k in ks:
        if not 1 <= k <= depth:
            raise ConfigError(f"ks holds {k}, but {depth} ads were ranked; choose 1 to {depth}")
    sorted_QK = np.sort(ads_QK, axis=1)
    if ((sorted_QK[:, 1:] == sorted_QK[:, :-1]) & (sorted_QK[:, 1:] >= 0)).any():
        raise DataError("ranked holds an ad twice in one query; a retriever must return it once")
