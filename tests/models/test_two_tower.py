"""The two-tower: unit vectors, a pool that is counted right, and a loss that falls."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adrec.features.batches import Batch, Fields
from adrec.features.dataset import Dataset
from adrec.features.transforms import Layout
from adrec.models.losses import binary_loss, log_expected_count
from adrec.models.two_tower import Pool, TwoTower, TwoTowerConfig
from adrec.training.objectives import positive_share

SMALL = TwoTowerConfig(
    embedding_dim=4, hidden=(32,), output_dim=16, history_dim=8, history_heads=2, dropout=0.0
)


@pytest.fixture(scope="module")
def layout(tiny_dataset: Dataset) -> Layout:
    return tiny_dataset.features.layout


@pytest.fixture(scope="module")
def share(tiny_dataset: Dataset) -> torch.Tensor:
    return torch.from_numpy(positive_share(tiny_dataset))


@pytest.fixture
def model(layout: Layout) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(SMALL, layout)


@pytest.fixture(scope="module")
def batch(tiny_dataset: Dataset) -> Batch:
    """64 requests with and without clicks, some with two; a part of the impressions left out."""
    labels = tiny_dataset.labels_NK[:, 0].reshape(-1, 4)
    train = tiny_dataset.requests("train")
    clicks = labels[: len(train)].sum(axis=1)
    chosen = np.concatenate([train[clicks == 2][:8], train[clicks == 1][:24], train[clicks == 0]])
    keep_N = np.random.default_rng(0).random(len(tiny_dataset.labels_NK)) < 0.8
    batch = tiny_dataset.batch(chosen[:64], keep_N)
    assert not batch.candidates.mask_BN.all()
    return batch


def pool_of(dataset: Dataset, rows: list[int] | np.ndarray) -> Pool:
    at = np.asarray(rows, np.int64)
    return Pool(torch.from_numpy(at), Fields.of(dataset.catalogue.encoded.take(at)))


def uniform(dataset: Dataset, count: int = 100) -> Pool:
    rng = np.random.default_rng(1)
    return pool_of(dataset, rng.integers(1, len(dataset.catalogue), count))


# --- shapes and sizes ---------------------------------------------------------------------------


def test_users_and_ads_have_length_one(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch
) -> None:
    with torch.inference_mode():
        users = model.users(batch.query)
        ads = model.ads(Fields.of(tiny_dataset.catalogue.encoded))
    assert users.shape == (64, 16)
    assert ads.shape == (len(tiny_dataset.catalogue), 16)
    for vectors in (users, ads):
        np.testing.assert_allclose(vectors.norm(dim=-1), np.ones(len(vectors)), rtol=1e-5)


def test_ads_of_a_slate_have_the_vectors_of_the_catalogue(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch
) -> None:
    with torch.inference_mode():
        catalogue = model.ads(Fields.of(tiny_dataset.catalogue.encoded))
        slates = model.ads(batch.candidates.ads)
    np.testing.assert_allclose(slates, catalogue[batch.ad_row_BN], atol=1e-6)


def test_the_default_sizes_are_those_of_the_design(layout: Layout) -> None:
    config = TwoTowerConfig()
    assert (*config.hidden, config.output_dim) == (512, 256, 256)
    assert config.pointwise_weight == 0.5
    model = TwoTower(config, layout)
    for tower in (model.user_tower, model.ad_tower):
        layers = [layer for layer in tower if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in layers] == [512, 256, 256]
    assert model.log_temperature.exp().item() == pytest.approx(0.07)


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_of_both_parts_by_loops(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    """The whole loss again, one positive and one pool entry at a time."""
    pool = uniform(tiny_dataset)
    with torch.inference_mode():
        users = model.users(batch.query).double()
        catalogue = model.ads(Fields.of(tiny_dataset.catalogue.encoded)).double()
        found = float(model.loss(batch, pool, share))
    real = batch.candidates.mask_BN.nonzero().tolist()
    clicked = [(b, n) for b, n in real if batch.labels_BNK[b, n, 0] > 0]
    scale, bias = model.scale.item(), model.bias.item()
    temperature = model.log_temperature.exp().item()
    pointwise = 0.0
    for b, n in real:
        cosine = float(users[b] @ catalogue[batch.ad_row_BN[b, n]])
        p = 1 / (1 + math.exp(-(scale * cosine + bias)))
        pointwise -= math.log(p if (b, n) in clicked else 1 - p)
    entries = sorted({int(batch.ad_row_BN[b, n]) for b, n in clicked}) + pool.rows_U.tolist()
    counts = log_expected_count(share.double(), len(clicked), 100, len(share) - 1)
    softmax = 0.0
    for b, n in clicked:
        own = int(batch.ad_row_BN[b, n])
        ads_of_request = {int(batch.ad_row_BN[x, y]) for x, y in clicked if x == b}

        def logit(row: int, b: int = b) -> float:
            return float(users[b] @ catalogue[row] / temperature - counts[row])

        others = [logit(row) for row in entries if row not in ads_of_request]
        softmax += math.log(sum(map(math.exp, [logit(own), *others]))) - logit(own)
    expected = 0.5 * pointwise / len(real) + 0.5 * softmax / len(clicked)
    assert found == pytest.approx(expected, rel=1e-4)


def test_padded_ads_are_never_positives(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    pool = uniform(tiny_dataset)
    padded = ~batch.candidates.mask_BN
    noise = replace(
        batch,
        candidates=replace(
            batch.candidates,
            ads=Fields(
                torch.where(padded[..., None], 2, batch.candidates.ads.categorical),
                torch.where(padded[..., None], 9.0, batch.candidates.ads.dense),
            ),
        ),
        labels_BNK=torch.where(padded[..., None], 1.0, batch.labels_BNK),
    )
    with torch.inference_mode():
        assert torch.equal(model.loss(batch, pool, share), model.loss(noise, pool, share))


def test_a_batch_without_a_click_has_the_pointwise_loss_alone(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    none = replace(batch, labels_BNK=torch.zeros_like(batch.labels_BNK))
    mask = batch.candidates.mask_BN
    with torch.inference_mode():
        found = model.loss(none, uniform(tiny_dataset), share)
        cosines = torch.einsum(
            "bd,bnd->bn", model.users(batch.query), model.ads(batch.candidates.ads)
        )
        logits = cosines[mask] * model.scale + model.bias
        expected = 0.5 * binary_loss(logits, torch.zeros_like(logits)).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_clicked_ads_in_the_uniform_pool_are_no_negatives(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    one = tiny_dataset.batch(tiny_dataset.requests("train")[:1])
    one = Batch(
        query=one.query,
        candidates=one.candidates,
        ad_row_BN=one.ad_row_BN,
        labels_BNK=torch.tensor([[[1.0, 0, 0], [1.0, 0, 0], [0, 0, 0], [0, 0, 0]]]),
    )
    clicked = one.ad_row_BN[0, :2].tolist()
    # The request clicked both ads of the pool: its positives have nothing to lose against.
    pool = pool_of(tiny_dataset, clicked * 5)
    pure = TwoTower(
        SMALL.model_copy(update={"pointwise_weight": 0.0}), tiny_dataset.features.layout
    )
    with torch.inference_mode():
        assert float(pure.loss(one, pool, share)) == pytest.approx(0.0, abs=1e-6)
        assert float(pure.loss(one, uniform(tiny_dataset), share)) > 0.1


def test_one_ad_clicked_by_many_is_in_the_pool_once(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    # Every positive is of the same ad, and no ad is drawn: a pool of one, whose softmax is 1.
    same = tiny_dataset.batch(tiny_dataset.requests("train")[:6])
    ads = same.candidates.ads
    same = replace(
        same,
        candidates=replace(
            same.candidates,
            ads=Fields(
                ads.categorical[:1, :1].expand(6, 4, -1), ads.dense[:1, :1].expand(6, 4, -1)
            ),
        ),
        ad_row_BN=same.ad_row_BN[:1, :1].expand(6, 4),
        labels_BNK=torch.ones_like(same.labels_BNK),
    )
    with torch.inference_mode():
        found = model._softmax(
            model.users(same.query),
            model.ads(same.candidates.ads),
            torch.ones((6, 4), dtype=torch.bool),
            same,
            pool_of(tiny_dataset, []),
            share.clamp(min=0.01),
        )
    assert float(found) == pytest.approx(0.0, abs=1e-6)


def test_gradients_reach_every_parameter(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    model.loss(batch, uniform(tiny_dataset), share).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_no_gradient_depends_on_the_order_of_threads(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    # The gradient of x[rows] is added up by all threads at once: where a row comes twice, in
    # whatever order they come. (With 7 users of 343 clicks one run in four differed.)
    loss = model.loss(batch, uniform(tiny_dataset), share)
    assert loss.grad_fn is not None
    waiting, seen, indexed = [loss.grad_fn], set(), 0
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting += [before for before, _ in node.next_functions if before is not None]
        if node.name() == "IndexBackward0":
            rows = [rows for rows in node._saved_indices if rows is not None]
            if rows[0].dtype == torch.int64:
                places = torch.stack(rows, dim=-1)
                assert len(torch.unique(places, dim=0)) == len(places)
            indexed += 1
    assert indexed


def test_bf16_keeps_the_logits_of_the_softmax_in_float32(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    pool = uniform(tiny_dataset)
    with torch.inference_mode():
        exact = float(model.loss(batch, pool, share))
        with torch.autocast("cpu", torch.bfloat16):
            short = float(model.loss(batch, pool, share))
    assert short == pytest.approx(exact, rel=0.01)


def test_the_loss_falls(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, share: torch.Tensor
) -> None:
    pool = uniform(tiny_dataset)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(batch, pool, share)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    with torch.inference_mode():
        users = model.users(batch.query)
        ads = model.ads(batch.candidates.ads)
        cosine = torch.einsum("bd,bnd->bn", users, ads)
    real, clicks = batch.candidates.mask_BN, batch.labels_BNK[..., 0] > 0
    assert cosine[real & clicks].mean() > cosine[real & ~clicks].mean() + 0.2


def test_a_log_may_lack_histories_and_user_fields(layout: Layout) -> None:
    torch.manual_seed(0)
    bare = replace(layout, user_sizes=(), request_sizes=(), history_lengths=())
    assert TwoTower(SMALL, bare).user_tower[0].in_features == 0
