"""The two-tower: unit vectors and a bias, a pool that is counted right, a loss that falls."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adrec.features.batches import UNKNOWN_GAP, Batch, Fields, HistoryItems, Past, Query, query_of
from adrec.features.dataset import Dataset
from adrec.features.transforms import Layout
from adrec.models import two_tower as module
from adrec.models.layers import Constant
from adrec.models.losses import binary_loss, log_expected_count
from adrec.models.two_tower import (
    Draws,
    Positives,
    Shares,
    TwoTower,
    TwoTowerConfig,
    embed_ads,
)
from adrec.training.objectives import positive_shares

SMALL = TwoTowerConfig(
    embedding_dim=4, hidden=(32,), output_dim=16, history_dim=8, history_heads=2, dropout=0.0
)


@pytest.fixture(scope="module")
def layout(tiny_dataset: Dataset) -> Layout:
    return tiny_dataset.features.layout


@pytest.fixture(scope="module")
def period(tiny_dataset: Dataset) -> int:
    """The last one of training: much is known of the ads when it begins."""
    return int(tiny_dataset.periods(tiny_dataset.requests("train"))[-1])


@pytest.fixture(scope="module")
def shares(tiny_dataset: Dataset, period: int) -> Shares:
    clicks_PA, histories_A = positive_shares(tiny_dataset)
    return Shares(torch.from_numpy(clicks_PA[period]), torch.from_numpy(histories_A))


@pytest.fixture
def model(layout: Layout) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(SMALL, layout)


@pytest.fixture(scope="module")
def batch(tiny_dataset: Dataset, period: int) -> Batch:
    """64 requests of one period with and without clicks, some with two; a part of the impressions
    left out."""
    train = tiny_dataset.requests("train")
    train = train[tiny_dataset.periods(train) == period]
    clicks = tiny_dataset.labels_NK[:, 0].reshape(-1, 4)[train].sum(axis=1)
    chosen = np.concatenate([train[clicks == 2][:8], train[clicks == 1][:24], train[clicks == 0]])
    keep_N = np.random.default_rng(0).random(len(tiny_dataset.labels_NK)) < 0.8
    batch = tiny_dataset.batch(chosen[:64], keep_N)
    assert not batch.candidates.mask_BN.all()
    return batch


def draws_of(dataset: Dataset, batch: Batch, rows: list[int] | np.ndarray) -> Draws:
    """A pool of some ads, as they and those of the batch stood when its period began.

    Of those that are not in the batch, every third was shown later, every sixth never.
    """
    at = np.asarray(rows, np.int64)
    standing_AS = dataset.standing_PAS[int(batch.period_B[0])]
    elsewhere = ~np.isin(at, batch.ad_row_BN.numpy())
    return Draws(
        row_U=torch.from_numpy(at),
        ads=Fields.of(dataset.catalogue.encoded.take(at)),
        later_U=torch.from_numpy(elsewhere & (at % 3 == 0)),
        never_U=torch.from_numpy(elsewhere & (at % 6 == 0)),
        standing_US=torch.from_numpy(standing_AS[at]),
        standing_BNS=torch.from_numpy(standing_AS[batch.ad_row_BN.numpy()]),
        cut_B=torch.rand(len(batch.query), generator=torch.Generator().manual_seed(0)),
    )


def uniform(dataset: Dataset, batch: Batch, count: int = 100) -> Draws:
    rng = np.random.default_rng(1)
    return draws_of(dataset, batch, rng.integers(1, len(dataset.catalogue), count))


def everything(dataset: Dataset, batch: Batch) -> Draws:
    return draws_of(dataset, batch, np.arange(1, len(dataset.catalogue)))


def standing(dataset: Dataset, period: int) -> torch.Tensor:
    """How all ads stood when a period began, [A, S]."""
    return torch.from_numpy(np.array(dataset.standing_PAS[period]))


# --- shapes and sizes ---------------------------------------------------------------------------


def test_users_and_ads_have_a_direction_of_length_one(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, period: int
) -> None:
    encoded = Fields.of(tiny_dataset.catalogue.encoded)
    with torch.inference_mode():
        users = model.users(batch.query)
        known, unknown = (model.ads(encoded, s) for s in (standing(tiny_dataset, period), None))
    assert users.shape == (64, 16)
    assert known.shape == unknown.shape == (len(tiny_dataset.catalogue), 16)
    for vectors in (users, known, unknown):
        lengths = vectors[:, :-1].norm(dim=-1)
        np.testing.assert_allclose(lengths, np.ones(len(vectors)), rtol=1e-5)
    assert (users[:, -1] == 1.0).all()


def test_the_bias_of_an_ad_is_as_many_logits_at_any_temperature(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, period: int
) -> None:
    # u.a / t = direction . direction / t + b, so that a's last dimension must be b t.
    at = Fields.of(tiny_dataset.catalogue.encoded), standing(tiny_dataset, period)
    with torch.inference_mode():
        users = model.users(batch.query)
        before, cold = model.ads(*at), model.log_temperature.exp().item()
        model.log_temperature += math.log(3.0)
        after, hot = model.ads(*at), model.log_temperature.exp().item()
        described = torch.cat([model.ad_fields(at[0]), at[1], torch.ones(len(at[1]), 1)], dim=1)
        bias = model.ad_bias(described)[:, 0]
    assert (cold, hot) == (pytest.approx(0.07), pytest.approx(0.21))
    assert bias.std() > 0.01
    for ads, temperature in ((before, cold), (after, hot)):
        cosine = users[:, :-1] @ ads[:, :-1].T
        found = users @ ads.T / temperature
        np.testing.assert_allclose(found, cosine / temperature + bias, atol=1e-4)
    np.testing.assert_allclose(after[:, :-1], before[:, :-1], atol=1e-6)


def test_ads_that_stand_otherwise_have_other_vectors(
    model: TwoTower, tiny_dataset: Dataset, period: int
) -> None:
    """How an ad stands moves its direction and its bias; not known is not the same as nothing."""
    ads = Fields.of(tiny_dataset.catalogue.encoded)
    zeros = torch.zeros(len(tiny_dataset.catalogue), model.standing)
    with torch.inference_mode():
        known = model.ads(ads, standing(tiny_dataset, period))
        never_shown, not_known = model.ads(ads, zeros), model.ads(ads, None)
    shown = standing(tiny_dataset, period).any(dim=1)
    assert 100 < shown.sum() < len(shown)
    for part in (slice(None, -1), slice(-1, None)):
        assert (known[shown, part] != never_shown[shown, part]).any(dim=1).all()
        assert (not_known[:, part] != never_shown[:, part]).any(dim=1).all()
    assert torch.equal(known[~shown], never_shown[~shown])


def test_ads_of_a_slate_have_the_vectors_of_the_catalogue(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, period: int
) -> None:
    draws = uniform(tiny_dataset, batch)
    with torch.inference_mode():
        slates = model.ads(batch.candidates.ads, draws.standing_BNS)
        pool = model.ads(draws.ads, draws.standing_US)
    catalogue = embed_ads(model, tiny_dataset.catalogue.encoded, tiny_dataset.standing_PAS[period])
    np.testing.assert_allclose(slates, catalogue[batch.ad_row_BN], atol=1e-6)
    np.testing.assert_allclose(pool, catalogue[draws.row_U], atol=1e-6)


def test_the_catalogue_is_embedded_in_pieces(
    layout: Layout, tiny_dataset: Dataset, period: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TwoTower(SMALL.model_copy(update={"dropout": 0.5}), layout)
    encoded, stand = tiny_dataset.catalogue.encoded, tiny_dataset.standing_PAS[period]
    whole = embed_ads(model, encoded, stand)
    assert model.training  # as before; meanwhile nothing was dropped:
    np.testing.assert_array_equal(embed_ads(model, encoded, stand), whole)
    monkeypatch.setattr(module, "_CHUNK_ADS", 150)
    np.testing.assert_allclose(embed_ads(model, encoded, stand), whole, atol=1e-6)


def test_the_default_sizes_are_those_of_the_design(layout: Layout) -> None:
    config = TwoTowerConfig()
    assert (*config.hidden, config.output_dim) == (512, 256, 256)
    assert config.pointwise_weight == 0.5
    model = TwoTower(config, layout)
    for tower in (model.user_tower, model.ad_tower):
        layers = [layer for layer in tower if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in layers] == [512, 256, 255]  # and the bias
    assert model.ad_tower[0].in_features == model.ad_fields.width + layout.standing + 1
    assert model.log_temperature.exp().item() == pytest.approx(0.07)


# --- the linear parts and the histories ---------------------------------------------------------


def silence(tower: nn.Sequential, output: torch.Tensor) -> None:
    """Let a tower say the same of everyone."""
    with torch.no_grad():
        tower[-1].weight.zero_()
        tower[-1].bias.copy_(output)


def test_the_linear_part_of_users_by_loops(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch
) -> None:
    same = torch.linspace(-1.0, 1.0, 15)
    silence(model.user_tower, same)
    sizes = set()
    with torch.inference_mode():
        found = model.users(batch.query)
        ads = model.ad_fields(Fields.of(tiny_dataset.catalogue.encoded))
        for b in range(len(batch.query)):
            vector = same
            for history, project in zip(batch.query.histories, model.sums, strict=True):
                items = [row for row in history.row_BL[b].tolist() if row]
                summed = sum((ads[row] for row in items), torch.zeros(model.ad_fields.width))
                vector = vector + project.weight @ summed / math.sqrt(1 + len(items))
                sizes.add(len(items))
            np.testing.assert_allclose(found[b, :-1], vector / vector.norm(), atol=1e-5)
    assert len(sizes) > 5


def test_the_linear_part_of_ads_by_loops(
    model: TwoTower, tiny_dataset: Dataset, period: int
) -> None:
    same = torch.linspace(-1.0, 1.0, 15)
    silence(model.ad_tower, same)
    ads = Fields.of(tiny_dataset.catalogue.encoded)
    with torch.inference_mode():
        found = model.ads(ads, standing(tiny_dataset, period))
        for row, fields in enumerate(model.ad_fields(ads)):
            vector = same + model.ad_linear.weight @ fields
            np.testing.assert_allclose(found[row, :-1], vector / vector.norm(), atol=1e-5)


@pytest.mark.parametrize("sequence", [0, 1])
def test_padding_of_histories_does_not_matter(model: TwoTower, batch: Batch, sequence: int) -> None:
    """Neither what stands in the empty places nor how many there are."""

    def with_it(history: HistoryItems) -> Query:
        histories = list(batch.query.histories)
        histories[sequence] = history
        return replace(batch.query, histories=tuple(histories))

    history = batch.query.histories[sequence]
    padded = ~history.mask_BL
    noise = replace(
        history,
        place_BL=torch.where(padded, history.place_BL.max(), history.place_BL),
        row_BL=torch.where(padded, 7, history.row_BL),
        gap_BL=torch.where(padded, 3.0, history.gap_BL),
        outcomes_BL=torch.where(padded, 5, history.outcomes_BL),
    )
    length = history.mask_BL.shape[1]
    recent = replace(history, mask_BL=history.mask_BL & (torch.arange(length) >= length - 9))
    assert padded.any()
    assert not torch.equal(recent.mask_BL, history.mask_BL)
    with torch.inference_mode():
        expected = model.users(with_it(history))
        assert torch.equal(model.users(with_it(noise)), expected)
        few, masked = model.users(with_it(history.last(9))), model.users(with_it(recent))
        np.testing.assert_allclose(few, masked, atol=1e-6)
        cut_B = torch.linspace(0.0, 0.99, 64)
        past, other = (model._past_positives(with_it(h), sequence, cut_B) for h in (history, noise))
    for one, two in zip(past, other, strict=True):
        assert torch.equal(one, two)


def test_what_came_of_a_history_moves_users_through_the_tower_alone(
    model: TwoTower, batch: Batch
) -> None:
    def users(sequence: int, bits: int) -> torch.Tensor:
        histories = list(batch.query.histories)
        outcomes = torch.full_like(histories[sequence].outcomes_BL, bits)
        histories[sequence] = replace(histories[sequence], outcomes_BL=outcomes)
        with torch.inference_mode():
            return model.users(replace(batch.query, histories=tuple(histories)))

    for sequence in (0, 1):
        some = batch.query.histories[sequence].mask_BL.any(dim=1)
        nothing = users(sequence, 0)
        for bits in (1, 2, 4):
            assert ((users(sequence, bits) != nothing).any(dim=1) == some).all()
        assert torch.equal(users(sequence, 8), nothing)  # there is no task 3
    silence(model.user_tower, torch.linspace(-1.0, 1.0, 15))
    assert torch.equal(users(1, 7), users(1, 0))  # the linear part sees ads


def test_a_share_of_the_items_is_dropped_in_training_alone(layout: Layout) -> None:
    torch.manual_seed(0)
    mask = torch.rand(100, 50) < 0.6
    model = TwoTower(SMALL.model_copy(update={"dropout": 0.25}), layout)
    thinned = model._thinned(mask)
    assert not (thinned & ~mask).any()
    # 3,000 items: the standard deviation is .008.
    assert abs(float(thinned[mask].float().mean()) - 0.75) < 0.03
    assert not torch.equal(model._thinned(mask), thinned)
    assert torch.equal(model.eval()._thinned(mask), mask)
    assert torch.equal(TwoTower(SMALL, layout)._thinned(mask), mask)


# --- the loss -----------------------------------------------------------------------------------


def softmax_by_loops(
    users: torch.Tensor,
    catalogue: torch.Tensor,
    temperature: float,
    positives: list[tuple[int, int, set[int]]],
    pool: list[int],
    away: list[bool],
    share: torch.Tensor | None,
) -> float:
    """Mean loss of positives (user, ad, ads that are no negatives), one pool entry at a time.

    An entry of the pool that is away is no negative, unless it is another's positive as well.

    The pool is of uniform ads, which the positives join, each ad less the log of its expected
    count; without shares it is the whole catalogue, and nothing is sampled.
    """
    drawn = [row for row, gone in zip(pool, away, strict=True) if not gone]
    entries, counts = drawn, torch.zeros(len(catalogue))
    if share is not None:
        entries = sorted({ad for _, ad, _ in positives}) + drawn
        counts = log_expected_count(share.double(), len(positives), len(pool), len(share) - 1)
    total = 0.0
    for user, own, spared in positives:
        logits = {
            row: float(users[user, :-1] @ catalogue[row, :-1]) / temperature
            + float(catalogue[row, -1]) / temperature  # b: a's last dimension is b t
            - float(counts[row])
            for row in {own, *entries}
        }
        others = [logits[row] for row in entries if row not in spared]
        total += math.log(math.exp(logits[own]) + sum(map(math.exp, others))) - logits[own]
    return total / len(positives)


@pytest.mark.parametrize("pool", [uniform, everything])
def test_the_loss_by_loops(
    model: TwoTower,
    tiny_dataset: Dataset,
    batch: Batch,
    shares: Shares,
    period: int,
    pool: Callable[[Dataset, Batch], Draws],
) -> None:
    draws, sampled = pool(tiny_dataset, batch), pool is uniform
    ads = Fields.of(tiny_dataset.catalogue.encoded)
    with torch.inference_mode():
        model.ad_bias[-1].weight *= 20.0  # else all ads are alike, a twentieth of a logit apart
        users = model.users(batch.query).double()
        standing_now = model.ads(ads, standing(tiny_dataset, period)).double()
        not_known = model.ads(ads, None).double()  # how ads stood when a history grew
        found = float(model.loss(batch, draws, shares))
        past = model._past_positives(batch.query, 0, draws.cut_B)
    real = batch.candidates.mask_BN.nonzero().tolist()
    scale, bias = model.scale.item(), model.bias.item()
    temperature = model.log_temperature.exp().item()
    pointwise, clicked = 0.0, []
    for b, n in real:
        ad, click = int(batch.ad_row_BN[b, n]), bool(batch.labels_BNK[b, n, 0] > 0)
        p = 1 / (1 + math.exp(-(scale * float(users[b] @ standing_now[ad]) + bias)))
        pointwise -= math.log(p if click else 1 - p)
        if click:
            clicked.append((b, ad))
    of_request = [{ad for at, ad in clicked if at == b} for b in range(64)]
    click_part = softmax_by_loops(
        users,
        standing_now,
        temperature,
        [(b, ad, of_request[b]) for b, ad in clicked],
        draws.row_U.tolist(),
        draws.later_U.tolist(),
        shares.clicks_A if sampled else None,
    )
    step = 2 if sampled else 1  # half of a sample does
    history_part = softmax_by_loops(
        past.users_PD.double(),
        not_known,
        temperature,
        [(i, int(past.row_P[i]), set(past.own_PM[i].tolist())) for i in range(len(past.row_P))],
        draws.row_U[::step].tolist(),
        draws.never_U[::step].tolist(),
        shares.histories_A if sampled else None,
    )
    weight = model.config.history_weight
    expected = 0.5 * pointwise / len(real) + 0.5 * (click_part + weight * history_part)
    assert found == pytest.approx(expected, rel=1e-4)


def test_nothing_is_sampled_from_the_whole_catalogue(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    """How often an ad is a positive corrects for sampling alone."""
    equal = Shares(*(torch.full_like(share, 1 / len(share)) for share in shares))
    for pool, differs in ((uniform, True), (everything, False)):
        draws = pool(tiny_dataset, batch)
        with torch.inference_mode():
            one, other = (float(model.loss(batch, draws, s)) for s in (shares, equal))
        assert (abs(one - other) > 0.01) == differs


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
            target = model.ads(Fields.of(encoded.take(np.array([ad]))), None)
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
            model.sums[1].load_state_dict(model.sums[0].state_dict())
            first = model.user_tower[0].weight
            first[:, -16:] = first[:, -32:-16]
        histories = batch.query.histories[::-1] if swapped else batch.query.histories
        other = replace(batch, query=replace(batch.query, histories=histories))
        with torch.inference_mode():
            return float(model.loss(other, uniform(tiny_dataset, batch), shares))

    first_met, second_met = loss((False, True), False), loss((True, False), True)
    assert first_met == pytest.approx(second_met, rel=1e-5)
    # If nothing tells what was met, clicks alone are left: less loss.
    none = loss((True, True), False)
    assert none < first_met - 0.5


def test_padded_ads_are_never_positives(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    draws = uniform(tiny_dataset, batch)
    padded = ~batch.candidates.mask_BN[..., None]
    noise = replace(
        batch,
        candidates=replace(
            batch.candidates,
            ads=Fields(
                torch.where(padded, 2, batch.candidates.ads.categorical),
                torch.where(padded, 9.0, batch.candidates.ads.dense),
            ),
        ),
        labels_BNK=torch.where(padded, 1.0, batch.labels_BNK),
    )
    standing_too = draws._replace(standing_BNS=torch.where(padded, 9.0, draws.standing_BNS))
    with torch.inference_mode():
        expected = model.loss(batch, draws, shares)
        assert torch.equal(model.loss(noise, standing_too, shares), expected)


def test_a_batch_without_a_click_has_the_pointwise_loss_alone(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    none = replace(batch, labels_BNK=torch.zeros_like(batch.labels_BNK))
    model.config = model.config.model_copy(update={"history_weight": 0.0})
    mask, draws = batch.candidates.mask_BN, uniform(tiny_dataset, batch)
    with torch.inference_mode():
        found = model.loss(none, draws, shares)
        products = torch.einsum(
            "bd,bnd->bn",
            model.users(batch.query),
            model.ads(batch.candidates.ads, draws.standing_BNS),
        )
        logits = products[mask] * model.scale + model.bias
        expected = 0.5 * binary_loss(logits, torch.zeros_like(logits)).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_clicked_ads_in_the_pool_are_no_negatives(
    tiny_dataset: Dataset, layout: Layout, shares: Shares
) -> None:
    one = replace(
        tiny_dataset.batch(tiny_dataset.requests("train")[-1:]),
        labels_BNK=torch.tensor([[[1.0, 0, 0], [1.0, 0, 0], [0, 0, 0], [0, 0, 0]]]),
    )
    clicked = one.ad_row_BN[0, :2].tolist()
    # The request clicked both ads of the pool: its positives have nothing to lose against.
    draws = draws_of(tiny_dataset, one, clicked * 5)
    only = SMALL.model_copy(update={"pointwise_weight": 0.0, "history_weight": 0.0})
    torch.manual_seed(0)
    pure = TwoTower(only, layout)
    with torch.inference_mode():
        assert float(pure.loss(one, draws, shares)) == pytest.approx(0.0, abs=1e-6)
        assert float(pure.loss(one, uniform(tiny_dataset, one), shares)) > 0.1
        # In the whole catalogue each of the two is spared the other: 399 ads, one of them its own.
        whole = everything(tiny_dataset, one)
        users, ads = pure.users(one.query), pure.ads(whole.ads, whole.standing_US)
        logits = (users @ ads.T / pure.log_temperature.exp())[0]
        expected = 0.0
        for own, other in (clicked, clicked[::-1]):
            there = ~whole.later_U
            there[other - 1] = False
            left = logits[there]
            expected += float(left.logsumexp(0) - logits[own - 1]) / 2
        assert float(pure.loss(one, whole, shares)) == pytest.approx(expected, rel=1e-5)


def test_one_ad_met_by_many_is_in_the_pool_once(model: TwoTower) -> None:
    # Every positive is of the same ad, and no ad is drawn: a pool of one, whose softmax is 1.
    rng = torch.Generator().manual_seed(0)
    users = torch.nn.functional.normalize(torch.randn((6, 16), generator=rng), dim=-1)
    same = Positives(users, users[:1].expand(6, 16), torch.full((6,), 7), torch.full((6, 1), 7))
    none, row_U = torch.zeros((0, 16)), torch.zeros(0, dtype=torch.int64)
    with torch.inference_mode():
        found = model._softmax(same, none, row_U, row_U.bool(), torch.full((10,), 0.1))
    assert float(found) == pytest.approx(0.0, abs=1e-6)


def test_gradients_reach_every_parameter(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    model.loss(batch, uniform(tiny_dataset, batch), shares).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_no_gradient_depends_on_the_order_of_threads(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    # The gradient of x[rows] is added up by all threads at once: where a row comes twice, in
    # whatever order they come. (With 7 users of 343 clicks one run in four differed.)
    loss = model.loss(batch, uniform(tiny_dataset, batch), shares)
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
    draws = uniform(tiny_dataset, batch)
    with torch.inference_mode():
        exact = float(model.loss(batch, draws, shares))
        with torch.autocast("cpu", torch.bfloat16):
            short = float(model.loss(batch, draws, shares))
    assert short == pytest.approx(exact, rel=0.01)


def test_the_loss_falls(
    model: TwoTower, tiny_dataset: Dataset, batch: Batch, shares: Shares
) -> None:
    draws = uniform(tiny_dataset, batch)
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
        ads = model.ads(batch.candidates.ads, draws.standing_BNS)
        product = torch.einsum("bd,bnd->bn", users, ads)
    real, clicks = batch.candidates.mask_BN, batch.labels_BNK[..., 0] > 0
    assert product[real & clicks].mean() > product[real & ~clicks].mean() + 0.2


def test_a_log_may_lack_histories_user_fields_and_counters(layout: Layout) -> None:
    torch.manual_seed(0)
    bare = replace(
        layout, user_sizes=(), request_sizes=(), history_lengths=(), impressions=(), standing=0
    )
    model = TwoTower(SMALL, bare)
    assert isinstance(model.user_tower[0], Constant)
    nothing = Fields(torch.zeros((3, 0), dtype=torch.int32), torch.zeros((3, 0)))
    ads = Fields(
        torch.zeros((3, len(layout.ad_sizes)), dtype=torch.int32),
        torch.zeros((3, layout.ad_dense)),
    )
    with torch.inference_mode():
        users = model.users(Query(nothing, nothing, ads, ()))
        vectors = model.ads(ads, torch.zeros((3, 0)))
    for found in (users, vectors):
        assert found.shape == (3, 16)
        np.testing.assert_allclose(found[:, :-1].norm(dim=-1), np.ones(3), rtol=1e-5)
