"""The balanced rotation keeps products and spreads the variance."""

import numpy as np
import pytest

from adrec.retrieval.rotation import balanced_rotation


def decaying(rows: int, width: int) -> np.ndarray:
    """Vectors whose variance falls from direction to direction by a power law, then rotated."""
    rng = np.random.default_rng(0)
    scale = (1.0 + np.arange(width)) ** -1.5
    mixed = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return ((rng.normal(size=(rows, width)) * scale) @ mixed).astype(np.float32)


@pytest.mark.parametrize("parts", [1, 4, 16])
def test_products_stay_what_they_were(parts: int) -> None:
    vectors = decaying(500, 16)
    rotation = balanced_rotation(vectors, parts)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-5)
    turned = vectors @ rotation.T
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, atol=1e-5)


def test_parts_hold_as_much_each() -> None:
    """By the product of variances: 16 directions in 4 parts. The variances fall as (1 + i)^-3, so
    their logs sum to -3 log 16! = -92, and a part should have about -23."""
    vectors = decaying(20_000, 16)
    turned = vectors @ balanced_rotation(vectors, 4).T
    logs = np.log((turned**2).mean(axis=0)).reshape(4, 4).sum(axis=1)
    assert abs(logs.sum() + 92) < 1
    assert np.ptp(logs) < 1.5
    as_it_is = np.log(np.linalg.eigvalsh(vectors.T @ vectors / len(vectors))).reshape(4, 4)
    assert np.ptp(as_it_is.sum(axis=1)) > 15


def test_columns_of_zeros_and_single_vectors() -> None:
    vectors = np.zeros((1, 32), np.float32)
    vectors[0, 3] = 1.0
    rotation = balanced_rotation(vectors, 8)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(32), atol=1e-6)
