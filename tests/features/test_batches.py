"""Batches: passing for new users and new ads, and moving to a device."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from adrec.features.batches import Batch, Fields, forget_ads, forget_users, to_device
from adrec.features.dataset import Dataset


def batch_of(dataset: Dataset) -> Batch:
    return dataset.batch(dataset.requests("train")[-200:])


def test_forgetful_users_keep_few_recent_items_and_no_counters(tiny_dataset: Dataset) -> None:
    batch, layout = batch_of(tiny_dataset), tiny_dataset.features.layout
    of_user = np.array(layout.user_counters)
    forgotten = forget_users(batch, 1.0, of_user, np.random.default_rng(0))
    for items, kept in zip(batch.query.histories, forgotten.query.histories, strict=True):
        before, after = items.mask_BL, kept.mask_BL
        assert not (after & ~before).any()
        assert after.sum() < before.sum()
        # What is left is a run that ends at the last place: the most recent items.
        left = after.sum(1)
        length = after.shape[1]
        assert torch.equal(after, before & (torch.arange(length) >= (length - left)[:, None]))
        assert torch.equal(kept.outcomes_BL, items.outcomes_BL)  # of those left, all is known
    left = forgotten.query.histories[0].mask_BL.sum(1)
    # floor(51 u^3) = 0 with probability (1 / 51)^(1/3) = .27; 200 draws: within .1 (3 sd).
    assert abs(float((left == 0).float().mean()) - 0.27) < 0.1
    counters = forgotten.candidates.counters_BNC
    assert (counters[..., of_user] == 0).all()
    assert torch.equal(counters[..., ~of_user], batch.candidates.counters_BNC[..., ~of_user])


def test_no_share_forgets_nothing(tiny_dataset: Dataset) -> None:
    batch, layout = batch_of(tiny_dataset), tiny_dataset.features.layout
    rng = np.random.default_rng(0)
    same = forget_users(batch, 0.0, np.array(layout.user_counters), rng)
    assert torch.equal(same.query.histories[0].mask_BL, batch.query.histories[0].mask_BL)
    same = forget_ads(batch, 0.0, np.array(layout.ad_counters), layout.ad_id_buckets, rng)
    assert torch.equal(same.candidates.ads.categorical, batch.candidates.ads.categorical)
    assert torch.equal(same.candidates.counters_BNC, batch.candidates.counters_BNC)


def test_forgotten_ads_look_new(tiny_dataset: Dataset) -> None:
    batch, layout = batch_of(tiny_dataset), tiny_dataset.features.layout
    of_ad = np.array(layout.ad_counters)
    rng = np.random.default_rng(0)
    forgotten = forget_ads(batch, 0.5, of_ad, layout.ad_id_buckets, rng).candidates
    ids, mask = forgotten.ads.categorical[..., 0], batch.candidates.mask_BN
    new = ids != batch.candidates.ads.categorical[..., 0]
    # 800 candidates, half of them: within .06 (3 sd), less the 1/64 that keep their bucket.
    assert abs(float(new[mask].float().mean()) - 0.5) < 0.06
    assert ((ids[new] >= 1) & (ids[new] <= layout.ad_id_buckets)).all()
    assert (forgotten.counters_BNC[new][:, of_ad] == 0).all()
    kept = ~new & mask & (ids > layout.ad_id_buckets)
    assert torch.equal(forgotten.counters_BNC[kept], batch.candidates.counters_BNC[kept])
    others = forgotten.ads.categorical[..., 1:]
    assert torch.equal(others, batch.candidates.ads.categorical[..., 1:])
    # The batch that went in is untouched: the loader may hand it out again.
    again = batch_of(tiny_dataset)
    untouched = replace(batch.candidates.ads)
    assert torch.equal(untouched.categorical, again.candidates.ads.categorical)


class Pool(NamedTuple):
    """Tensors and a dataclass of them, as what a two-tower draws."""

    row_U: torch.Tensor
    ads: Fields


def test_moving_to_a_device_keeps_the_kind_of_tuples(tiny_dataset: Dataset) -> None:
    meta = torch.device("meta")  # a device that every machine has
    batch = batch_of(tiny_dataset)
    pool = to_device(Pool(torch.arange(3), batch.candidates.ads), meta)
    assert isinstance(pool, Pool)
    assert isinstance(pool.ads, Fields)
    moved = to_device(batch, meta)
    assert type(moved.query.histories) is tuple
    tensors = (
        pool.row_U, pool.ads.dense, moved.period_B, moved.query.histories[0].mask_BL,
        moved.candidates.ads.categorical,
    )  # fmt: skip
    assert [tensor.device for tensor in tensors] == [meta] * len(tensors)
    assert moved.period_B.shape == (200,)
