"""Rows of ads as the ranker reads them: rounded by at most half a step, and added to at no loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adrec.features.batches import Fields
from adrec.features.dataset import Dataset
from adrec.features.transforms import Encoded
from adrec.models.ad_rows import AdRows
from adrec.models.ranker import Ranker, RankerConfig

WIDTH = 32
SMALL = RankerConfig(embedding_dim=4, width=WIDTH, heads=4, layers=1, feed_forward=32)


@pytest.fixture(scope="module")
def ranker(tiny_dataset: Dataset) -> Ranker:
    torch.manual_seed(0)
    return Ranker(SMALL, tiny_dataset.features.layout).eval().requires_grad_(False)


@pytest.fixture
def ads(tiny_dataset: Dataset) -> Encoded:
    return tiny_dataset.catalogue.encoded


def halves(ranker: Ranker, ads: Encoded) -> NDArray[np.float32]:
    """What is rounded, [A, 2, D]."""
    return ranker.ads(Fields.of(ads)).numpy().reshape(len(ads), 2, -1)


def assert_rounded(rows: AdRows, ranker: Ranker, ads: Encoded) -> None:
    codes, scales = rows.take(np.arange(len(ads)))
    exact = halves(ranker, ads)
    stored = codes.reshape(exact.shape) * scales[..., None]
    assert (np.abs(stored - exact) <= scales[..., None] * 0.5001).all()
    np.testing.assert_allclose(scales, np.abs(exact).max(axis=2) / 127, rtol=1e-5)


def test_a_row_is_what_the_ranker_makes_of_the_ad_up_to_half_a_step(
    ranker: Ranker, ads: Encoded
) -> None:
    assert_rounded(AdRows.of(ranker, ads), ranker, ads)


def test_rows_come_in_any_shape(ranker: Ranker, ads: Encoded) -> None:
    rows = AdRows.of(ranker, ads)
    codes, scales = rows.take(np.array([[3, 0], [3, 7]]))
    assert codes.shape == (2, 2, 2 * WIDTH)
    assert scales.shape == (2, 2, 2)
    assert np.array_equal(codes[0, 0], codes[1, 0])


def test_memory_is_a_byte_a_number_with_two_scales_and_a_place(
    ranker: Ranker, ads: Encoded
) -> None:
    assert AdRows.of(ranker, ads).memory_bytes == len(ads) * (2 * WIDTH + 2 * 4 + 4)


def test_round_trip(ranker: Ranker, ads: Encoded, tmp_path: Path) -> None:
    rows = AdRows.of(ranker, ads).with_ads(ranker, ads, np.array([5]))
    rows.save(tmp_path / "rows")
    assert_rounded(AdRows.load(tmp_path / "rows"), ranker, ads)


def test_memory_is_that_of_the_ads_however_often_they_change(ranker: Ranker, ads: Encoded) -> None:
    rows = AdRows.of(ranker, ads)
    once, changed = rows.memory_bytes, np.arange(1, 11)
    for _ in range(200):
        rows = rows.with_ads(ranker, ads, changed)
    assert rows.memory_bytes < 4 * once
    assert_rounded(rows, ranker, ads)


def test_ads_that_come_and_change_leave_earlier_values_as_they_are(
    ranker: Ranker, ads: Encoded
) -> None:
    """Many small changes, so that the room for them runs out more than once."""
    rng = np.random.default_rng(0)
    now, rows = ads, AdRows.of(ranker, ads)
    past = []
    for _ in range(30):
        past.append((rows, now))
        changed = rng.choice(np.arange(1, len(now)), 20, replace=False)
        size = len(now) + 5
        grown = np.append(np.arange(len(now)), rng.integers(1, len(now), 5))
        now = now.take(grown)
        now.categorical[changed] = now.categorical[rng.permutation(changed)]
        rows = rows.with_ads(ranker, now, np.append(changed, np.arange(size - 5, size)))
        assert len(rows) == size
        assert_rounded(rows, ranker, now)
    for earlier, then in past:
        assert_rounded(earlier, ranker, then)
