"""Rivals that learn from who met what: EASE and item kNN from ad to ad, iALS by factors.

They learn from histories as of the start of the test period and of the log (not those of
impressions), and from the first task's positives of the training and validation periods. Ads that
nobody met are unknown to them.

Shapes: Q queries, U users, A ads with a positive ("active"), P pairs, D factors.
"""

import math
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

import numpy as np
from pydantic import Field
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, issparse, vstack
from threadpoolctl import threadpool_limits

from adrec.errors import ConfigError, DataError
from adrec.evaluation.retrieval_queries import (
    AdLists,
    Floats,
    Ints,
    met_matrix,
    most_frequent,
    rank_ads,
    user_item_pairs,
)
from adrec.features.dataset import Dataset
from adrec.schema import Strict

EASE_ADS = 10_000
"""Active ads up to which EASE is practical: its weights take 4 A² bytes (400 MB), its fit about
30 A² bytes (3 GB) and A³ operations (half a minute on one core)."""

IALS_PAIRS = 5_000_000
"""Pairs up to which iALS is practical: 40 s on one core at 40 pairs a user, four minutes at 2;
millions of users more would also take 512 bytes each."""

_TAIL = 1e-6  # of popularity: orders what has no other score, too small to change any that has


class Collaborative(ABC):
    """Scores all active ads by what a query met, whoever it is.

    Without a known ad in the history, and among ads of equal score, popularity decides.
    """

    _max_ads: int | None = None

    @abstractmethod
    def learn(self, met_UA: csr_matrix) -> None:
        """Learn from what each user met: [U, A], 1 where a user met an ad, else 0."""

    @abstractmethod
    def score(self, met_QA: csr_matrix) -> Floats:
        """[Q, A] from what each query met, in a new array; 0 where it met nothing."""

    def fit(self, dataset: Dataset) -> None:
        """Learn from a log.

        Raises:
            DataError: no user in the log met any ad.
        """
        users_P, ads_P = user_item_pairs(dataset)
        if not len(ads_P):
            raise DataError(
                "No user has a history or a positive before the test period: collaborative rivals "
                "have nothing to learn from; compare with PopularAds"
            )
        self._ads_A = most_frequent(ads_P, len(dataset.catalogue))[: self._max_ads]
        self.learn(met_matrix(users_P, ads_P, self._ads_A))

    def rank(self, histories: AdLists, k: int) -> Ints:
        """Ads by score; see `RetrievalRival`."""
        tail_A = (_TAIL * np.linspace(1.0, 0.0, len(self._ads_A))).astype(np.float32)
        return rank_ads(self._ads_A, histories, k, lambda met_QA: self.score(met_QA) + tail_A)


class _ItemToItem(Collaborative):
    """Scores an ad by its weights from the ads in the history: [Q, A] times weights [A, A]."""

    @abstractmethod
    def _weights(self, met_UA: csr_matrix) -> Any:
        """[A, A] from what each user met, dense or sparse."""

    def learn(self, met_UA: csr_matrix) -> None:
        """Learn the weights; see `Collaborative`."""
        self._weights_AA = self._weights(met_UA)

    def score(self, met_QA: csr_matrix) -> Floats:
        """Add up the weights; see `Collaborative`."""
        scores = met_QA @ self._weights_AA
        dense: Floats = scores.toarray() if issparse(scores) else scores
        return dense


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


class IalsConfig(Strict):
    """How iALS is fitted; where nothing else is said, as Rendle et al. 2022 do.

    "Revisiting the performance of iALS on item recommendation benchmarks", RecSys 2022.
    """

    factors: int = Field(default=128, ge=1)
    """D. The paper gains up to 2,048 and more, at a cost that grows with D²."""
    unobserved: float = Field(default=0.1, gt=0.0)
    """α, the weight of a cell that is no pair if a pair's is 1 + α: a pair weighs c = 1 + 1/α times
    as much, 11 at 0.1. The paper's for MovieLens 20M; Hu et al. 2008 have 41."""
    regulariser: float = Field(default=0.2, gt=0.0, le=1.0)
    """κ, a share of what makes all factors vanish: see `Ials`. On the validation periods of
    KuaiRand and of the demo's world, 0.2 finds more than 0.05; 0.4 far less on KuaiRand."""
    iterations: int = Field(default=16, ge=1)
    """Times that users and ads are solved for."""
    threads: int = Field(default=1, ge=1)
    """CPU threads."""
    seed: int = Field(default=0, ge=0)
    """Of the factors before the first iteration."""


class Ials(Collaborative):
    """Implicit alternating least squares (Hu, Koren and Volinsky 2008), by the library `implicit`.

    For D factors w_u of each user and h_a of each ad, S the pairs, P their number:

        Σ_S c (w_u·h_a − 1)² + Σ_rest (w_u·h_a)² + μ (Σ_u ‖w_u‖² + Σ_a ‖h_a‖²)

    A query is folded in: its factors are solved for as a user's are, from its own history, so
    users that were not there to learn from are scored like any others.

    All factors are 0 at the optimum exactly if μ ≥ c σ, with σ the largest singular value of the
    [U, A] matrix of pairs, and σ ≥ P / √(U A). So that one setting suits logs of any size,

        μ = κ c P / √(U A)

    The paper's regulariser λ, scaled by frequency (ν = 1), is nearly flat where few cells are
    pairs, and corresponds to κ = λ α U A / P: 0.03 to 0.08 on its four data sets, of up to 8,192
    factors.
    """

    name = "iALS"

    def __init__(self, config: IalsConfig | None = None) -> None:
        """Choose how to fit.

        Raises:
            ConfigError: `implicit` is not installed.
        """
        self._config = config or IalsConfig()
        self._als = _load("implicit.cpu.als")

    @property
    def ad_factors(self) -> Floats:
        """[A, D] of the ads that it learned from."""
        factors_AD: Floats = self._model.item_factors
        return factors_AD

    def learn(self, met_UA: csr_matrix) -> None:
        """Solve for users and ads in turn; see `Collaborative`."""
        config, confidence = self._config, 1.0 + 1.0 / self._config.unobserved
        mean_strength = met_UA.nnz / math.sqrt(met_UA.shape[0] * met_UA.shape[1])
        with self._one_blas_thread():
            self._model = self._als.AlternatingLeastSquares(
                factors=config.factors,
                regularization=config.regulariser * confidence * mean_strength,
                alpha=confidence,
                iterations=config.iterations,
                num_threads=config.threads,
                random_state=config.seed,
            )
            self._model.fit(met_UA, show_progress=False)

    def score(self, met_QA: csr_matrix) -> Floats:
        """Fold the queries in; see `Collaborative`."""
        with self._one_blas_thread():
            factors_QD = self._model.recalculate_user(np.arange(met_QA.shape[0]), met_QA)
        # In double precision: a query's scores must not depend on which others are asked with it.
        scores_QA = factors_QD.astype(np.float64) @ self.ad_factors.T.astype(np.float64)
        found: Floats = scores_QA.astype(np.float32)
        return found

    def _one_blas_thread(self) -> threadpool_limits:
        """The library runs threads of its own, and warns where BLAS has several in each of them."""
        return threadpool_limits(1, user_api="blas")


def _load(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            "iALS needs the library implicit, which is not installed; run `pip install "
            "adrec[rivals]`, or leave this rival out"
        ) from error


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
