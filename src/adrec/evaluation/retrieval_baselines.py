"""What retrieval is compared with: the most clicked ads, and ads that go together with past ones.

All rivals are fitted on the training and validation periods and asked what `queries` asks our own
model: as of a user's first request of the test period, which ads does that user click in it that
are not yet in the user's past?

Shapes: Q queries, U users, A ads with a positive ("active"), M ads in all lists, L history items.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, issparse, vstack

from adrec.errors import ConfigError, DataError
from adrec.features.dataset import Dataset
from adrec.training.objectives import thin

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]

EASE_ADS = 10_000
"""Active ads up to which EASE is practical: its weights take 4 A² bytes (400 MB), its fit about
30 A² bytes (3 GB) and A³ operations (half a minute on one core)."""

_CHUNK_SCORES = 1 << 24
_TAIL = 1e-6  # of popularity: orders what has no other score, too small to change any that has


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
    test, visitor_R = dataset.requests("test"), _visitors(dataset)
    owner_P, ad_P = _positives(dataset, test)
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


class PopularAds:
    """The ads with the most positives of the first task in the training and validation periods."""

    name = "popular ads"

    def fit(self, dataset: Dataset) -> None:
        """Count."""
        _, ads_P = _positives(dataset, _before_test(dataset))
        self._ads_A = _most_frequent(ads_P, len(dataset.catalogue))

    def rank(self, histories: AdLists, k: int) -> Ints:
        """The same order for all; see `RetrievalRival`."""
        order_A = -np.arange(len(self._ads_A), dtype=np.float32)
        return _rank(self._ads_A, histories, k, lambda part: np.tile(order_A, (part.shape[0], 1)))


class _ItemToItem(ABC):
    """Scores an ad by its weights from the ads in the history: history [Q, A] times weights [A, A].

    The weights come from who met what: histories as of the start of the test period and of the log
    (not those of impressions), and the first task's positives of the training and validation
    periods. Without a known ad in the history, and among ads of equal score, popularity decides.
    """

    _max_ads: int | None = None

    @abstractmethod
    def _weights(self, met_UA: csr_matrix) -> Any:
        """[A, A] from what each user met, dense or sparse."""

    def fit(self, dataset: Dataset) -> None:
        """Learn the weights.

        Raises:
            DataError: no user in the log met any ad.
        """
        users_P, ads_P = user_item_pairs(dataset)
        if not len(ads_P):
            raise DataError(
                "No user has a history or a positive before the test period: item-to-item rivals "
                "have nothing to learn from; compare with PopularAds"
            )
        self._ads_A = _most_frequent(ads_P, len(dataset.catalogue))[: self._max_ads]
        self._weights_AA = self._weights(_matrix(users_P, ads_P, self._ads_A))

    def rank(self, histories: AdLists, k: int) -> Ints:
        """Ads by score; see `RetrievalRival`."""
        active = len(self._ads_A)
        tail_A = (_TAIL * np.linspace(1.0, 0.0, active)).astype(np.float32)

        def score(part: csr_matrix) -> Floats:
            scores = part @ self._weights_AA
            dense: Floats = scores.toarray() if issparse(scores) else scores
            return dense + tail_A

        return _rank(self._ads_A, histories, k, score)


class Ease(_ItemToItem):
    """EASE (Steck 2019, "Embarrassingly shallow autoencoders for sparse data")."""

    name = "EASE"

    def __init__(self, *, regulariser: float = 500.0, max_ads: int = EASE_ADS) -> None:
        """Choose how strongly to regularise, and how many ads to keep: the most frequent.

        Raises:
            ConfigError: one of them is not positive.
        """
        if not (regulariser > 0 and max_ads > 0):
            raise ConfigError(
                f"regulariser is {regulariser} and max_ads {max_ads}; EASE needs both above 0"
            )
        self._regulariser, self._max_ads = regulariser, max_ads

    def _weights(self, met_UA: csr_matrix) -> Any:
        return ease_weights(met_UA, self._regulariser)


class ItemKnn(_ItemToItem):
    """Nearest neighbours of ads by cosine (Sarwar et al. 2001; Deshpande and Karypis 2004)."""

    name = "item kNN"

    def __init__(self, *, shrinkage: float = 10.0, neighbours: int = 200) -> None:
        """Choose the shrinkage and how many neighbours of each ad to keep.

        Raises:
            ConfigError: a negative shrinkage, or no neighbours.
        """
        if shrinkage < 0 or neighbours < 1:
            raise ConfigError(
                f"shrinkage is {shrinkage} and neighbours {neighbours}; at least 0 and 1 are needed"
            )
        self._shrinkage, self._neighbours = shrinkage, neighbours

    def _weights(self, met_UA: csr_matrix) -> Any:
        return cosine_weights(met_UA, self._shrinkage, self._neighbours)


def retrieval_rivals(dataset: Dataset) -> tuple[RetrievalRival, ...]:
    """All that a log allows, not fitted yet: without users there is no item-to-item."""
    if not len(user_item_pairs(dataset)[1]):
        return (PopularAds(),)
    return PopularAds(), item_to_item(dataset)


def item_to_item(dataset: Dataset) -> Ease | ItemKnn:
    """EASE where it can hold all active ads, else item kNN; not fitted yet."""
    active = len(np.unique(user_item_pairs(dataset)[1]))
    return Ease() if active <= EASE_ADS else ItemKnn()


def ease_weights(met_UA: csr_matrix, regulariser: float) -> Floats:
    """Item-to-item weights in closed form.

    B = argmin ‖X − XB‖² + λ‖B‖² with diag(B) = 0: for P = (XᵀX + λI)⁻¹, B_ij = −P_ij / P_jj for
    i ≠ j (Steck 2019, equations 1 and 8).

    Args:
        met_UA: [U, A], 1 where a user met an ad.
        regulariser: λ > 0.

    Returns:
        [A, A] float32.
    """
    gram_AA = (met_UA.T @ met_UA).toarray().astype(np.float64)
    gram_AA[np.diag_indices_from(gram_AA)] += regulariser
    # XᵀX + λI is positive definite, and its transpose, itself, has the order that LAPACK wants.
    factor, _ = lapack.dpotrf(gram_AA.T, overwrite_a=1)
    upper, _ = lapack.dpotri(factor, overwrite_c=1)
    scale_A = -np.diag(upper)
    inverse_AA = np.triu(upper)
    inverse_AA += np.triu(upper, 1).T
    weights_AA: Floats = (inverse_AA / scale_A).astype(np.float32)
    np.fill_diagonal(weights_AA, 0.0)
    return weights_AA


def cosine_weights(met_UA: csr_matrix, shrinkage: float, neighbours: int) -> csr_matrix:
    """Shrunk cosine of ads, the largest of each ad kept.

    S_ij = c_ij / (√(c_i c_j) + h) for i ≠ j, where c_ij users met both and c_i met i (Ferrari
    Dacrema et al. 2019, "Are we really making much progress?", section 3.1).

    Args:
        met_UA: [U, A], 1 where a user met an ad.
        shrinkage: h, in users; lowers what rests on few of them.
        neighbours: how many ads i may speak for each ad j: those with the largest S_ij.

    Returns:
        [A, A] sparse float32, row i, column j.
    """
    met_AU = met_UA.T.tocsr()
    norm_A = np.sqrt(np.diff(met_AU.indptr).astype(np.float64))
    parts = []
    for start in range(0, met_AU.shape[0], 4096):
        both = (met_AU[start : start + 4096] @ met_UA).tocoo()
        other = both.row + start != both.col
        ad, peer, count = both.row[other], both.col[other], both.data[other]
        value = count / (norm_A[ad + start] * norm_A[peer] + shrinkage)
        order = np.lexsort((peer, -value, ad))
        ad, peer, value = ad[order], peer[order], value[order]
        place = np.arange(len(ad)) - np.searchsorted(ad, ad)
        kept = place < neighbours
        shape = (both.shape[0], both.shape[1])
        parts.append(csr_matrix((value[kept].astype(np.float32), (ad[kept], peer[kept])), shape))
    return vstack(parts).T.tocsr()


def user_item_pairs(dataset: Dataset) -> tuple[Ints, Ints]:
    """Who met what before the test period, by histories and positives: users [P] and ads [P].

    Pairs are distinct; requests without a user are left out.
    """
    pairs = _past(dataset)
    for history in dataset.state("test").met:
        user_P, place_P = np.nonzero(history.ads_UL)
        pairs.append((user_P, history.ads_UL[user_P, place_P].astype(np.int64)))
    user, ad = _join(pairs)
    size = len(dataset.catalogue)
    distinct = np.unique((user * size + ad)[user > 0])
    return distinct // size, distinct % size


def _visitors(dataset: Dataset) -> Ints:
    """[R] user of each request; where it has none, a negative number of its own."""
    user_R = np.asarray(dataset.user_R)
    visitors: Ints = np.where(user_R > 0, user_R, -1 - np.arange(len(user_R)))
    return visitors


def _before_test(dataset: Dataset) -> Ints:
    return np.concatenate([dataset.requests("train"), dataset.requests("valid")])


def _positives(dataset: Dataset, requests_B: Ints) -> tuple[Ints, Ints]:
    """Visitor and ad of each impression of some requests that is positive for the first task."""
    rows = dataset.rows_of(requests_B)
    rows = rows[dataset.labels_NK[rows, 0] > 0]
    request = np.searchsorted(dataset.offset_R, rows, side="right") - 1
    return _visitors(dataset)[request], dataset.ad_N[rows].astype(np.int64)


def _histories(dataset: Dataset, requests_B: Ints) -> tuple[Ints, Ints]:
    """Visitor and ad of each item that was met positively, in histories as of some requests."""
    owner_B = _visitors(dataset)[requests_B]
    pairs = [(owner_B[:0], owner_B[:0])]
    for past in dataset.met:
        ads_BL = past.ads[requests_B]
        row, place = np.nonzero(ads_BL)
        pairs.append((owner_B[row], ads_BL[row, place].astype(np.int64)))
    return _join(pairs)


def _past(dataset: Dataset) -> list[tuple[Ints, Ints]]:
    """Pairs known from each user's first request in the log, and from positives before the test."""
    first = np.unique(dataset.user_R, return_index=True)[1]  # requests are in time order
    first = first[first < dataset.requests("test")[0]]
    return [_histories(dataset, first), _positives(dataset, _before_test(dataset))]


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


def _most_frequent(ads_P: Ints, size: int) -> Ints:
    """Ads that occur, most frequent first, then by row."""
    count_A = np.bincount(ads_P, minlength=size)
    order: Ints = np.argsort(-count_A, kind="stable")
    return order[: np.count_nonzero(count_A)]


def _matrix(rows_P: Ints, ads_P: Ints, ads_A: Ints) -> csr_matrix:
    """[U, A] ones where a row holds an active ad; rows without one are dropped."""
    column_of = np.full(1 + int(max(ads_A.max(), ads_P.max())), -1)
    column_of[ads_A] = np.arange(len(ads_A))
    column_P = column_of[ads_P]
    row_P = np.unique(rows_P[column_P >= 0], return_inverse=True)[1]
    ones = np.ones(len(row_P), np.float32)
    return csr_matrix((ones, (row_P, column_P[column_P >= 0])), (row_P.max() + 1, len(ads_A)))


def _rank(ads_A: Ints, histories: AdLists, k: int, score: Callable[[csr_matrix], Floats]) -> Ints:
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
