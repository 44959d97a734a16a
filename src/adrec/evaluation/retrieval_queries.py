"""What retrieval is asked in the test period, and how a rival turns histories into lists of ads.

A query is a user as of the first request of the test period: which ads does that user click in it
that are not yet in the user's past? Whoever learns, learns from the time before (`positives`,
`user_item_pairs`); whoever scores, leaves it to `rank_ads` to order and to leave out the past.

Shapes: Q queries, U users, A ads with a positive ("active"), M ads in all lists, P pairs,
L history items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from adrec.features.dataset import Dataset
from adrec.training.objectives import thin

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]

_CHUNK_SCORES = 1 << 24


class AdLists(NamedTuple):
    """A list of ads for each query: those of query q are ads[offsets[q]:offsets[q + 1]]."""

    offsets: Ints
    """[Q + 1], from 0."""
    ads: Ints
    """[M] rows of the catalogue."""

    def take(self, chosen_Q: npt.NDArray[np.int64]) -> "AdLists":
        """The lists of some queries, in the order given."""
        sizes = np.diff(self.offsets)[chosen_Q]
        offsets = np.append(0, np.cumsum(sizes))
        shift = np.repeat(self.offsets[:-1][chosen_Q] - offsets[:-1], sizes)
        return AdLists(offsets, self.ads[shift + np.arange(offsets[-1])])


@dataclass(frozen=True, kw_only=True)
class Queries:
    """What retrieval is asked in the test period, in time order, and what would be right."""

    requests_Q: Ints
    """The request of each query: a model may use what is known as of it."""
    seen: AdLists
    """Ads the user met positively before the test period; not to be retrieved again."""
    targets: AdLists
    """Ads not in `seen` that the user clicks in the test period; at least one a query."""

    def take(self, chosen_Q: npt.NDArray[np.int64]) -> "Queries":
        """Some of the queries, in the order given."""
        return Queries(
            requests_Q=self.requests_Q[chosen_Q],
            seen=self.seen.take(chosen_Q),
            targets=self.targets.take(chosen_Q),
        )


class RetrievalRival(Protocol):
    """Something that ranks the catalogue by what a user met before."""

    @property
    def name(self) -> str:
        """For tables."""

    def fit(self, dataset: Dataset) -> None:
        """Learn from the training and validation periods, and from histories before them."""

    def rank(self, histories: AdLists, k: int) -> Ints:
        """The best ads that are not in a query's own history.

        Args:
            histories: the ads that each of Q queries met.
            k: how many ads a query, at least 1.

        Returns:
            [Q, k] catalogue rows, best first; −1 where the rival knows no more ads.
        """


def queries(dataset: Dataset, most: int = 10_000) -> Queries:
    """What the test period asks of retrieval: one query a user with a click on something new.

    A query is the user's first request in the test period. `seen` is what the log tells of the
    time before the test period: histories (not those of impressions) as of the query and as of the
    user's first request in the log, and the first task's positives of the training and
    validation periods. Without a user, each request with a click is a query that has seen nothing.

    Args:
        dataset: a prepared log.
        most: the most queries; more are thinned evenly over time.
    """
    test, visitor_R = dataset.requests("test"), visitors_of(dataset)
    owner_P, ad_P = positives(dataset, test)
    distinct, first = np.unique(visitor_R[test], return_index=True)
    clicked = np.isin(distinct, owner_P)
    visitors_Q, requests_Q = distinct[clicked], test[first[clicked]]
    past_owner_P, past_ad_P = _join([_histories(dataset, requests_Q), *_past(dataset)])
    size = len(dataset.catalogue)
    target = _pairs(visitors_Q, owner_P, ad_P, size)
    seen = _pairs(visitors_Q, past_owner_P, past_ad_P, size)
    target = target[~np.isin(target, seen)]
    targets, seen_lists = (_lists(pairs, len(visitors_Q), size) for pairs in (target, seen))
    asked = np.flatnonzero(np.diff(targets.offsets))
    asked = thin(asked[np.argsort(requests_Q[asked])], most)
    return Queries(
        requests_Q=requests_Q[asked], seen=seen_lists.take(asked), targets=targets.take(asked)
    )


def user_item_pairs(dataset: Dataset) -> tuple[Ints, Ints]:
    """Who met what before the test period, by histories and positives: users [P] and ads [P].

    Pairs are distinct; requests without a user are left out, and so are users who are held out.
    """
    pairs = _past(dataset)
    for history in dataset.state("test").met:
        user_P, place_P = np.nonzero(history.ads_UL)
        pairs.append((user_P, history.ads_UL[user_P, place_P].astype(np.int64)))
    user, ad = _join(pairs)
    size = len(dataset.catalogue)
    distinct = np.unique((user * size + ad)[(user > 0) & ~np.isin(user, dataset.held_users)])
    return distinct // size, distinct % size


def visitors_of(dataset: Dataset) -> Ints:
    """[R] user of each request; where it has none, a negative number of its own."""
    user_R = np.asarray(dataset.user_R)
    visitors: Ints = np.where(user_R > 0, user_R, -1 - np.arange(len(user_R)))
    return visitors


def before_test(dataset: Dataset) -> Ints:
    """Requests of the training and validation periods, in time order."""
    return np.concatenate([dataset.requests("train"), dataset.requests("valid")])


def positives(dataset: Dataset, requests_B: Ints) -> tuple[Ints, Ints]:
    """Visitor and ad of each impression of some requests that is positive for the first task."""
    rows = dataset.rows_of(requests_B)
    rows = rows[dataset.labels_NK[rows, 0] > 0]
    request = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    return visitors_of(dataset)[request], dataset.ad_N[rows].astype(np.int64)


def _histories(dataset: Dataset, requests_B: Ints) -> tuple[Ints, Ints]:
    """Visitor and ad of each item that was met positively, in histories as of some requests."""
    owner_B = visitors_of(dataset)[requests_B]
    pairs = [(owner_B[:0], owner_B[:0])]
    for past in dataset.met:
        ads_BL = past.ads[requests_B]
        row, place = np.nonzero(ads_BL)
        pairs.append((owner_B[row], ads_BL[row, place].astype(np.int64)))
    return _join(pairs)


def _past(dataset: Dataset) -> list[tuple[Ints, Ints]]:
    """Pairs known from each user's first request in the log, and from positives before the test."""
    dataset = dataset.everyone()  # who is held out has a past, too
    first = np.unique(dataset.user_R, return_index=True)[1]  # requests are in time order
    first = first[first < dataset.requests("test")[0]]
    return [_histories(dataset, first), positives(dataset, before_test(dataset))]


def _join(pairs: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    owners, ads = zip(*pairs, strict=True)
    return np.concatenate(owners), np.concatenate(ads)


def _pairs(visitors_Q: Ints, owner_P: Ints, ad_P: Ints, size: int) -> Ints:
    """Distinct q * size + ad of the pairs whose owner is among the visitors (ascending)."""
    place = np.minimum(np.searchsorted(visitors_Q, owner_P), len(visitors_Q) - 1)
    mine = visitors_Q[place] == owner_P if len(visitors_Q) else np.zeros(len(owner_P), bool)
    return np.unique(place[mine] * size + ad_P[mine])


def _lists(pairs_P: Ints, count: int, size: int) -> AdLists:
    """Lists from ascending q * size + ad."""
    return AdLists(np.searchsorted(pairs_P, np.arange(count + 1) * size), pairs_P % size)


def most_frequent(ads_P: Ints, size: int) -> Ints:
    """Ads that occur, most frequent first, then by row."""
    count_A = np.bincount(ads_P, minlength=size)
    order: Ints = np.argsort(-count_A, kind="stable")
    return order[: np.count_nonzero(count_A)]


def met_matrix(rows_P: Ints, ads_P: Ints, ads_A: Ints) -> csr_matrix:
    """[U, A] ones where a row holds an active ad; rows without one are dropped."""
    column_of = np.full(1 + int(max(ads_A.max(), ads_P.max())), -1)
    column_of[ads_A] = np.arange(len(ads_A))
    column_P = column_of[ads_P]
    row_P = np.unique(rows_P[column_P >= 0], return_inverse=True)[1]
    ones = np.ones(len(row_P), np.float32)
    return csr_matrix((ones, (row_P, column_P[column_P >= 0])), (row_P.max() + 1, len(ads_A)))


def rank_ads(
    ads_A: Ints, histories: AdLists, k: int, score: Callable[[csr_matrix], Floats]
) -> Ints:
    """The best k active ads of each query outside its history, [Q, k] catalogue rows or −1.

    Args:
        ads_A: the catalogue row behind each column.
        histories: of Q queries.
        k: how many.
        score: from histories [q, A] of some queries to scores [q, A], which are overwritten.
    """
    column_of = np.full(1 + int(max(ads_A.max(initial=0), histories.ads.max(initial=0))), -1)
    column_of[ads_A] = np.arange(len(ads_A))
    count, active = len(histories.offsets) - 1, len(ads_A)
    ranked = np.full((count, k), -1, np.int64)
    step = max(1, _CHUNK_SCORES // max(active, 1))
    for start in range(0, count, step):
        part = histories.take(np.arange(start, min(start + step, count)))
        column_M = column_of[part.ads]
        row_M = np.repeat(np.arange(len(part.offsets) - 1), np.diff(part.offsets))
        known = column_M >= 0
        cells = np.unique(row_M[known] * active + column_M[known])
        row, column = cells // active, cells % active
        shape = (len(part.offsets) - 1, active)
        scores = score(csr_matrix((np.ones(len(cells), np.float32), (row, column)), shape))
        scores[row, column] = -np.inf
        best = np.argpartition(-scores, min(k, active) - 1, axis=1)[:, :k]
        value = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-value, axis=1, kind="stable")
        ads = np.where(value > -np.inf, ads_A[best], -1)
        ranked[start : start + shape[0], : best.shape[1]] = np.take_along_axis(ads, order, axis=1)
    return ranked
