"""EASE, item kNN and iALS against other derivations of the same numbers."""

import math
import sys

import numpy as np
import pytest
import threadpoolctl
from pydantic import ValidationError
from scipy.sparse import csr_matrix

from adrec.errors import ConfigError
from adrec.evaluation.collaborative import (
    Ease,
    Ials,
    IalsConfig,
    ItemKnn,
    cosine_weights,
    ease_weights,
)

SMALL = IalsConfig(factors=8, unobserved=0.5, regulariser=0.1, iterations=300)
"""c = 1 + 1 / 0.5 = 3."""


def small_log() -> np.ndarray:
    """What 30 users met of 6 ads."""
    return (np.random.default_rng(0).random((30, 6)) < 0.4).astype(np.float64)


def learned(config: IalsConfig, met: np.ndarray) -> Ials:
    rival = Ials(config)
    rival.learn(sparse(met))
    return rival


def sparse(met: np.ndarray) -> csr_matrix:
    return csr_matrix(met.astype(np.float32))


def solved(met: np.ndarray, other: np.ndarray, regulariser: float) -> np.ndarray:
    """Factors of each row: (Yᵀ C Y + μ I) x = Yᵀ C p, Hu et al. 2008, equation 4, with c = 3."""
    found = []
    for row in met:
        weight = np.where(row > 0, 3.0, 1.0)
        normal = other.T @ (weight[:, None] * other) + regulariser * np.eye(other.shape[1])
        found.append(np.linalg.solve(normal, other.T @ (weight * row)))
    return np.array(found)


def test_ease_is_a_ridge_regression_of_each_ad_on_the_others() -> None:
    rng = np.random.default_rng(0)
    met = (rng.random((30, 6)) < 0.4).astype(np.float64)
    weights = ease_weights(csr_matrix(met.astype(np.float32)), 3.0)
    for ad in range(6):
        others = np.delete(np.arange(6), ad)
        x = met[:, others]
        ridge = np.linalg.solve(x.T @ x + 3.0 * np.eye(5), x.T @ met[:, ad])
        assert weights[others, ad] == pytest.approx(ridge, abs=1e-6)
        assert weights[ad, ad] == 0


def test_cosine_by_hand_and_its_nearest_neighbours() -> None:
    # Users who met each ad: a {0, 1, 2, 3}, b {0, 1}, c {3}; a and b share 2, a and c 1.
    met = csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 1]], np.float32))
    ab, ac = 2 / (np.sqrt(4 * 2) + 1), 1 / (np.sqrt(4 * 1) + 1)
    expected = np.array([[0, ab, ac], [ab, 0, 0], [ac, 0, 0]])
    assert cosine_weights(met, 1.0, 2).toarray() == pytest.approx(expected)
    # With one neighbour each, only b still speaks for a; a speaks for both.
    expected[2, 0] = 0
    assert cosine_weights(met, 1.0, 1).toarray() == pytest.approx(expected)


def test_ials_ends_where_a_dense_solve_of_its_normal_equations_does() -> None:
    """From another start, too: with as many factors as ads the scores of the optimum are unique.

    (Then the loss is convex in them, with the nuclear norm as regulariser: Srebro et al. 2005.)
    """
    met = small_log()
    regulariser = 0.1 * 3 * met.sum() / math.sqrt(30 * 6)  # κ c P / √(U A)
    items = np.random.default_rng(5).normal(size=(6, 8))
    for _ in range(300):
        users = solved(met, items, regulariser)
        items = solved(met.T, users, regulariser)
    expected = solved(met, items, regulariser) @ items.T
    assert expected[met > 0].mean() > expected[met == 0].mean() + 0.2
    # Single precision, and conjugate gradients instead of an exact solve.
    assert learned(SMALL, met).score(sparse(met)) == pytest.approx(expected, abs=2e-3)


def test_ials_folds_in_a_history_that_nobody_had() -> None:
    met = small_log()
    rival = learned(SMALL.model_copy(update={"iterations": 5}), met)
    items = rival.ad_factors
    assert items.shape == (6, 8)
    regulariser = 0.1 * 3 * met.sum() / math.sqrt(30 * 6)
    unseen = np.array([[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]], np.float64)
    assert not (met == unseen[0]).all(axis=1).any()
    scores = rival.score(sparse(unseen))
    assert scores == pytest.approx(solved(unseen, items, regulariser) @ items.T, abs=1e-5)
    assert (scores[1] == 0).all()
    # Asked alone, with others, or again: the same.
    np.testing.assert_array_equal(rival.score(sparse(unseen[2:])), scores[2:])
    np.testing.assert_array_equal(rival.score(sparse(unseen)), scores)


def test_one_seed_fixes_ials_whatever_the_threads() -> None:
    met = small_log()
    few = SMALL.model_copy(update={"iterations": 2})
    once = learned(few, met).ad_factors
    np.testing.assert_array_equal(learned(few, met).ad_factors, once)
    threads = few.model_copy(update={"threads": 2})
    np.testing.assert_array_equal(learned(threads, met).ad_factors, once)
    assert (learned(few.model_copy(update={"seed": 1}), met).ad_factors != once).any()


@pytest.mark.parametrize("share", [0.05, 0.001])
def test_no_regulariser_makes_all_factors_of_ials_vanish(share: float) -> None:
    """However sparse the log: that of κ = 1 is the least that could, and is not reached."""
    met = (np.random.default_rng(1).random((400, 300)) < share).astype(np.float64)
    rival = learned(IalsConfig(factors=16, regulariser=0.9), met)
    assert np.abs(rival.score(sparse(met))).max() > 0.01


def test_ials_says_nothing_and_leaves_blas_as_it_was(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library warns, once a process, where BLAS has threads; here a warning is an error."""
    monkeypatch.setattr("implicit.utils._checked_blas_config", False)

    def blas() -> list[int]:
        found = threadpoolctl.threadpool_info()
        return [pool["num_threads"] for pool in found if pool["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas()
        met = small_log()
        learned(SMALL.model_copy(update={"iterations": 2}), met).score(sparse(met))
        assert blas() == before
    assert max(before) == 2  # else there was nothing to warn of
    assert capfd.readouterr() == ("", "")


def test_without_its_library_ials_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(ConfigError, match=r"pip install adrec\[rivals\]"):
        Ials()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="regulariser is 0"):
        Ease(regulariser=0.0)
    with pytest.raises(ConfigError, match="shrinkage is -1"):
        ItemKnn(shrinkage=-1.0)
    with pytest.raises(ValidationError, match="regulariser"):
        IalsConfig(regulariser=1.5)
