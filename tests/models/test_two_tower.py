"""The two-tower: unit vectors, a pool that is counted right, and a loss that falls."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adrec.features.batches import UNKNOWN_GAP, Batch, Fields, Past, Query, query_of
from adrec.features.dataset import Dataset
from adrec.features.transforms import Layout
from adrec.models.losses import binary_loss, log_expected_count
from adrec.models.two_tower import Draws, Positives, Shares, TwoTower, TwoTowerConfig
from adrec.training.objectives import positive_shares

SMALL = TwoTowerConfig(
    embedding_dim=4, hidden=(32,), output_dim=16, history_dim=8, history_heads=2, dropout=0.0
)


@pytest.fixture(scope="module")
def layout(tiny_dataset: Dataset) -> Layout:
    return tiny_dataset.features.layout


@pytest.fixture(scope="module")
def shares(tiny_dataset: Dataset) -> Shares:
    return Shares(*(torch.from_numpy(share) for share in positive_shares(tiny_dataset)))


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


def draws_of(dataset: Dataset, rows: list[int] | np.ndarray, requests: int = 64) -> Draws:
    at = np.asarray(rows, np.int64)
    cuts = torch.rand(requests, generator=torch.Generator().manual_seed(0))
    return Draws(torch.from_numpy(at), Fields.of(dataset.catalogue.encoded.take(at)), cuts)


def uniform(dataset: Dataset, count: int = 100, requests: int = 64) -> Draws:
    rng = np.random.default_rng(1)
    return draws_of(dataset, rng.integers(1, len(dataset.catalogue), count), requests)


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


def softmax_by_loops(
    users: torch.Tensor,
    catalogue: torch.Tensor,
    temperature: float,
    positives: list[tuple[int, int, set[int]]],
    uniform: list[int],
    share: torch.Tensor,
) -> float:
    """Mean loss of positives (user, ad, ads that are no negatives), one pool entry at a time."""
    entries = sorted({ad for _, ad, _ in positives}) + uniform
    counts = log_expected_count(share.double(), len(positives), len(uniform), len(share) - 1)
    total = 0.0
    for user, own, spared in positives:
        logits = {
            row: float(users[user] @ catalogue[row] / temperature - counts[row])
            for row in {own, *entries}
        }
        others = [logits[row] for row in entries if row not in spared]
        total += math.log(math.exp(logits[own]) + sum(map(math.exp, others))) - logits[own]
    return total / len(positives)


def test_the_loss_by_loops(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    draws = uniform(tiny_dataset)
    with torch.inference_mode():
        users = model.users(batch.query).double()
        catalogue = model.ads(Fields.of(tiny_dataset.catalogue.encoded)).double()
        found = float(model.loss(batch, draws, shares))
        past = model._past_positives(batch.query, 0, draws.cut_B)
    real = batch.candidates.mask_BN.nonzero().tolist()
    scale, bias = model.scale.item(), model.bias.item()
    temperature = model.log_temperature.exp().item()
    pointwise, clicked = 0.0, []
    for b, n in real:
        ad, click = int(batch.ad_row_BN[b, n]), bool(batch.labels_BNK[b, n, 0] > 0)
        p = 1 / (1 + math.exp(-(scale * float(users[b] @ catalogue[ad]) + bias)))
        pointwise -= math.log(p if click else 1 - p)
        if click:
            clicked.append((b, ad))
    of_request = [{ad for at, ad in clicked if at == b} for b in range(64)]
    sides = users, catalogue, temperature
    click_part = softmax_by_loops(
        *sides,
        [(b, ad, of_request[b]) for b, ad in clicked],
        draws.row_U.tolist(),
        shares.clicks_A,
    )
    history_part = softmax_by_loops(
        past.users_PD.double(),
        *sides[1:],
        [(i, int(past.row_P[i]), set(past.own_PM[i].tolist())) for i in range(len(past.row_P))],
        draws.row_U.tolist(),
        shares.histories_A,
    )
    weight = model.config.history_weight
    expected = 0.5 * pointwise / len(real) + 0.5 * (click_part + weight * history_part)
    assert found == pytest.approx(expected, rel=1e-4)


def with_history(
    dataset: Dataset, rows_BL: np.ndarray, gap_BL: np.ndarray, shown: bool = False
) -> Query:
    """The first training request with another history, every other item of it clicked.

    `shown`: the other sequence, of all that was shown, is not empty, but the same.
    """
    request = dataset.requests("train")[:1]
    past = Past(rows_BL, gap_BL, (np.arange(rows_BL.shape[1], dtype=np.uint8) % 2)[None])
    known = np.where(dataset.user_R[request] < len(dataset.static), dataset.user_R[request], 0)
    return query_of(
        dataset.static.take(known),
        dataset.request.take(request),
        dataset.catalogue.encoded,
        [past, past if shown else past._replace(ads=np.zeros_like(rows_BL))],
    )


def test_an_item_of_a_history_is_told_from_the_items_before_it_alone(
    model: TwoTower, tiny_dataset: Dataset
) -> None:
    # A history of 5 places: nothing, nothing, then ads 3, 1, 2 that were met 9, 5 and 1 hours ago.
    rows = np.array([[0, 0, 3, 1, 2]], np.int32)
    hours = np.array([[0.0, 0.0, 9.0, 5.0, 1.0]], np.float32)
    known = np.where(rows != 0, np.log1p(hours), UNKNOWN_GAP).astype(np.float32)
    encoded = tiny_dataset.catalogue.encoded
    query = with_history(tiny_dataset, rows, known, shown=True)
    # The first third of [0, 1) draws ad 3, the second ad 1, the last ad 2.
    for cut, ad, before, ago in (
        (0.0, 3, [0, 0, 0, 0, 0], [0.0] * 5),
        (0.5, 1, [0, 0, 3, 0, 0], [0.0, 0.0, 4.0, 0.0, 0.0]),  # 9 - 5 hours before
        (0.99, 2, [0, 0, 3, 1, 0], [0.0, 0.0, 8.0, 4.0, 0.0]),  # 9 - 1 and 5 - 1
    ):
        at = np.array([before], np.int32)
        gap = np.where(at != 0, np.log1p(np.array([ago])), UNKNOWN_GAP).astype(np.float32)
        nothing = query.request
        earlier = replace(
            with_history(tiny_dataset, at, gap),
            request=Fields(torch.zeros_like(nothing.categorical), torch.zeros_like(nothing.dense)),
        )
        with torch.inference_mode():
            found = model._past_positives(query, 0, torch.tensor([cut]))
            expected = model.users(earlier)
            target = model.ads(Fields.of(encoded.take(np.array([ad]))))
        assert found.row_P.tolist() == [ad]
        np.testing.assert_allclose(found.users_PD, expected, atol=1e-5)
        np.testing.assert_allclose(found.ads_PD, target, atol=1e-6)
        assert found.own_PM.tolist() == rows.tolist()  # nothing the user ever met is a negative


def test_users_without_a_history_give_no_past_positive(
    model: TwoTower, tiny_dataset: Dataset
) -> None:
    query = tiny_dataset.batch(tiny_dataset.requests("train")[:3]).query
    history = query.histories[0]
    mask = history.mask_BL.clone()
    mask[1] = False
    query = replace(query, histories=(replace(history, mask_BL=mask), *query.histories[1:]))
    with torch.inference_mode():
        found = model._past_positives(query, 0, torch.zeros(3))
    assert len(found.row_P) == 2
    assert (found.row_P > 0).all()


def test_past_positives_come_from_what_was_met_not_from_what_was_shown(
    layout: Layout, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    def loss(impressions: tuple[bool, bool], swapped: bool) -> float:
        torch.manual_seed(0)
        model = TwoTower(SMALL, replace(layout, impressions=impressions))
        with torch.no_grad():  # so that it does not matter which sequence is which
            model.pools[1].load_state_dict(model.pools[0].state_dict())
            first = model.user_tower[0].weight
            first[:, -16:] = first[:, -32:-16]
        histories = batch.query.histories[::-1] if swapped else batch.query.histories
        other = replace(batch, query=replace(batch.query, histories=histories))
        with torch.inference_mode():
            return float(model.loss(other, uniform(tiny_dataset), shares))

    first_met, second_met = loss((False, True), False), loss((True, False), True)
    assert first_met == pytest.approx(second_met, rel=1e-5)
    # If nothing tells what was met, clicks alone are left: less loss.
    none = loss((True, True), False)
    assert none < first_met - 0.5


def test_padded_ads_are_never_positives(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    draws = uniform(tiny_dataset)
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
        assert torch.equal(model.loss(batch, draws, shares), model.loss(noise, draws, shares))


def test_a_batch_without_a_click_has_the_pointwise_loss_alone(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    none = replace(batch, labels_BNK=torch.zeros_like(batch.labels_BNK))
    model.config = model.config.model_copy(update={"history_weight": 0.0})
    mask = batch.candidates.mask_BN
    with torch.inference_mode():
        found = model.loss(none, uniform(tiny_dataset), shares)
        cosines = torch.einsum(
            "bd,bnd->bn", model.users(batch.query), model.ads(batch.candidates.ads)
        )
        logits = cosines[mask] * model.scale + model.bias
        expected = 0.5 * binary_loss(logits, torch.zeros_like(logits)).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_clicked_ads_in_the_uniform_pool_are_no_negatives(
    tiny_dataset: Dataset, layout: Layout, shares: Shares
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
    draws = draws_of(tiny_dataset, clicked * 5, 1)
    only = SMALL.model_copy(update={"pointwise_weight": 0.0, "history_weight": 0.0})
    torch.manual_seed(0)
    pure = TwoTower(only, layout)
    with torch.inference_mode():
        assert float(pure.loss(one, draws, shares)) == pytest.approx(0.0, abs=1e-6)
        assert float(pure.loss(one, uniform(tiny_dataset, 100, 1), shares)) > 0.1


def test_one_ad_met_by_many_is_in_the_pool_once(model: TwoTower) -> None:
    # Every positive is of the same ad, and no ad is drawn: a pool of one, whose softmax is 1.
    rng = torch.Generator().manual_seed(0)
    users = torch.nn.functional.normalize(torch.randn((6, 16), generator=rng), dim=-1)
    same = Positives(users, users[:1].expand(6, 16), torch.full((6,), 7), torch.full((6, 1), 7))
    none, row_U = torch.zeros((0, 16)), torch.zeros(0, dtype=torch.int64)
    with torch.inference_mode():
        found = model._softmax(same, none, row_U, torch.full((10,), 0.1))
    assert float(found) == pytest.approx(0.0, abs=1e-6)


def test_gradients_reach_every_parameter(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    model.loss(batch, uniform(tiny_dataset), shares).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_no_gradient_depends_on_the_order_of_threads(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    # The gradient of x[rows] is added up by all threads at once: where a row comes twice, in
    # whatever order they come. (With 7 users of 343 clicks one run in four differed.)
    loss = model.loss(batch, uniform(tiny_dataset), shares)
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
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    draws = uniform(tiny_dataset)
    with torch.inference_mode():
        exact = float(model.loss(batch, draws, shares))
        with torch.autocast("cpu", torch.bfloat16):
            short = float(model.loss(batch, draws, shares))
    assert short == pytest.approx(exact, rel=0.01)


def test_the_loss_falls(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    draws = uniform(tiny_dataset)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(batch, draws, shares)
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
    bare = replace(layout, user_sizes=(), request_sizes=(), history_lengths=(), impressions=())
    assert TwoTower(SMALL, bare).user_tower[0].in_features == 0
