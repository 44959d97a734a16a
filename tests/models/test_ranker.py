"""The ranker: a cached prefix gives what the whole does, and a score does not see the slate."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from adrec.features.batches import Batch, Candidates, Fields, HistoryItems, Query, candidates_of
from adrec.features.dataset import Dataset
from adrec.features.transforms import Layout
from adrec.models.layers import SharedPrefixBlock
from adrec.models.matches import histories_of, known_together
from adrec.models.ranker import Prefix, Ranker, RankerConfig
from adrec.models.two_tower import TwoTower, TwoTowerConfig
from adrec.training.checkpoint import load_weights, save_weights

SMALL = RankerConfig(
    embedding_dim=4,
    width=32,
    layers=3,
    heads=4,
    feed_forward=64,
    cross_rank=8,
    head_hidden=16,
    history_tokens=30,
)
REQUESTS = 2
# Two layouts of the same float32 sums: errors of 1e-6 on outputs of size 1, 2e-5 with room.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def layout(tiny_dataset: Dataset) -> Layout:
    return tiny_dataset.features.layout


@pytest.fixture
def ranker(layout: Layout, tiny_dataset: Dataset) -> Ranker:
    """A small ranker with scales and weights that make every part of it matter."""
    torch.manual_seed(0)
    model = Ranker(SMALL, layout).eval()
    model.fit_numbers([tiny_dataset.batch(tiny_dataset.requests("train")[::8])])
    with torch.no_grad():
        model.heads.position.weight.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def batch(tiny_dataset: Dataset) -> Batch:
    """Two late requests with their slates of 4; histories of different lengths."""
    requests = tiny_dataset.requests("test")
    lengths = sum((past.ads[requests] != 0).sum(axis=1) for past in tiny_dataset.histories)
    assert lengths.min() < lengths.max()
    batch = tiny_dataset.batch(requests[[lengths.argmin(), lengths.argmax()]])
    assert (batch.query.histories[1].outcomes_BL & 1).any()
    return batch


@pytest.fixture
def threads() -> "Threads":
    return Threads()


class Threads:
    """Set torch's threads; tests put them back."""

    def __init__(self) -> None:
        self.before = torch.get_num_threads()

    def run(self, count: int, model: Ranker, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """The full forward, and a cached prefix scored, under `count` threads."""
        torch.set_num_threads(count)
        try:
            with torch.inference_mode():
                return model(batch), judged(model, model.prefix(batch.query), batch)
        finally:
            torch.set_num_threads(self.before)


def judged(model: Ranker, prefix: Prefix, batch: Batch) -> list[Tensor]:
    """The batch's candidates with a prefix that was encoded before."""
    c = batch.candidates
    together = known_together(histories_of(batch.query, model.layout.impressions), c)
    return model.judge(prefix, model.ads(c.ads), together, c.position_BN)


def with_candidates(dataset: Dataset, batch: Batch, count: int) -> Batch:
    """The same requests, each with `count` ads drawn from the catalogue, with counters."""
    rng = np.random.default_rng(count)
    shape = (len(batch.query), count)
    rows = rng.integers(1, len(dataset.catalogue), shape)
    counters = rng.normal(size=(*shape, dataset.counters_NC.shape[1])).astype(np.float32)
    position = rng.integers(0, 5, shape).astype(np.int32)
    return replace(
        batch, candidates=candidates_of(dataset.catalogue.encoded, rows, counters, position)
    )


def pick(candidates: Candidates, places: Tensor) -> Candidates:
    """The candidates at some places of the slate."""
    return Candidates(
        ads=Fields(candidates.ads.categorical[:, places], candidates.ads.dense[:, places]),
        counters_BNC=candidates.counters_BNC[:, places],
        position_BN=candidates.position_BN[:, places],
        mask_BN=candidates.mask_BN[:, places],
    )


def naive(model: Ranker, batch: Batch, request: int, place: int) -> list[Tensor]:
    """One candidate's outputs from one explicit sequence [prefix; candidate], nothing shared."""
    query, config = batch.query, model.config
    fields = torch.cat([model.user_fields(query.user), model.request_fields(query.request)], -1)
    lengths = [int(history.mask_BL[request].sum()) for history in query.histories]
    known = torch.cat([fields[request], torch.tensor([math.log1p(n) / 2 for n in lengths])])
    tokens = list(model.field_tokens(known).view(config.field_tokens, config.width))
    past, shared = [], []
    c = batch.candidates
    for i, history in enumerate(query.histories):
        ads = Fields(*(of_ads[history.place_BL] for of_ads in vars(query.history_ads).values()))
        items = model.ad_token(model.ad_fields(ads)) + model.gap(history.gap_BL)
        for k in range(3):  # click, engagement, revenue
            positive = (history.outcomes_BL // 2**k % 2)[..., None]
            items = items + positive * model.outcomes.of_bits.weight[:, k]
        latest = list(zip(items[request], history.mask_BL[request], strict=True))
        for item, there in latest[-config.history_tokens :]:
            if there:  # what is masked is simply not in the sequence
                past.append(item + model.sequence.weight[i])
        own, there = c.ads.categorical[request, place], history.mask_BL[request]
        fade = 0.85 ** torch.arange(len(there) - 1, -1, -1)
        matches = (ads.categorical[request] == own) & there[:, None] & (own != 0)
        counts = matches.sum(0)
        recent = (matches * fade[:, None]).sum(0) / max(1e-6, float((there * fade).sum()))
        shared += [math.log1p(count) for count in counts]
        for count, share in zip(counts, recent, strict=True):
            shared += [float(count) / max(1, int(there.sum())), float(share)]
        if i == 1:  # the sequence of impressions tells clicks, too
            matches &= (history.outcomes_BL[request] % 2 == 1)[:, None]
            shared += [math.log1p(count) for count in matches.sum(0)]
            recent = (matches * fade[:, None]).sum(0) / max(1e-6, float((there * fade).sum()))
            shared += recent.tolist()
    ad = model.ad_fields(c.ads)[request, place]
    numbers = [*c.counters_BNC[request, place].tolist(), *shared]
    means, spreads = model.scores.mean_X.tolist(), model.scores.spread_X.tolist()
    crosses = torch.tensor(
        [
            min(max((number - mean) / spread, -10.0), 10.0)
            for number, mean, spread in zip(numbers, means, spreads, strict=True)
        ]
    )
    x_TD = torch.stack([*tokens, *past, model.ad_token(ad) + model.cross_token(crosses)])
    for block in model.blocks:
        x_TD = naive_block(block, x_TD)
    mean = torch.stack(past).mean(0) if past else torch.zeros(config.width)
    x0 = (
        model.request_cross(known)
        + model.history_cross(mean)
        + model.ad_cross(ad)
        + model.pair_cross(crosses)
    )
    crossed = x0
    for layer in model.cross:
        crossed = x0 * layer.up(layer.down(crossed)) + crossed
    both = model.norm(torch.cat([x_TD[-1], crossed]))
    return [
        t[0, 0] for t in model.heads(both[None, None], c.position_BN[None, None, request, place])
    ]


def naive_block(block: SharedPrefixBlock, x_TD: Tensor) -> Tensor:
    """Softmax attention in which all tokens read the prefix and only the last reads itself."""
    count, dim = x_TD.shape
    allowed = torch.ones((count, count), dtype=torch.bool)
    allowed[:-1, -1] = False
    size = dim // block.heads
    qkv = block.qkv(block.norm_attention(x_TD)).view(count, 3, block.heads, size)
    scores = torch.einsum("ihd,jhd->hij", qkv[:, 0], qkv[:, 1]) / size**0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    x_TD = x_TD + block.out(torch.einsum("hij,jhd->ihd", weights, qkv[:, 2]).flatten(1))
    fed: Tensor = x_TD + block.feed(block.norm_feed(x_TD))
    return fed


# --- parity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 100, 499, 500, 2000])
def test_full_forward_is_prefix_then_score_and_both_are_the_naive_sequence(
    ranker: Ranker, tiny_dataset: Dataset, batch: Batch, threads: Threads, count: int
) -> None:
    many = with_candidates(tiny_dataset, batch, count)
    one_thread = threads.run(1, ranker, many)
    two_threads = threads.run(2, ranker, many)
    for full, cached in (one_thread, two_threads):
        for k, parameters in enumerate(full):
            assert parameters.shape == (REQUESTS, count, 1 if k < 2 else 3)
            assert torch.equal(parameters, cached[k])
            np.testing.assert_allclose(parameters, one_thread[0][k], atol=TOLERANCE)
    with torch.inference_mode():
        for request in range(REQUESTS):
            for place in {0, count // 2, count - 1}:
                for k, expected in enumerate(naive(ranker, many, request, place)):
                    found = one_thread[0][k][request, place]
                    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_score_does_not_depend_on_the_slate(
    ranker: Ranker, tiny_dataset: Dataset, batch: Batch
) -> None:
    many = with_candidates(tiny_dataset, batch, 60)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        prefix = ranker.prefix(many.query)
        whole = judged(ranker, prefix, many)
        for places in (shuffled, shuffled[:7], torch.tensor([41])):
            some = replace(many, candidates=pick(many.candidates, places))
            part = judged(ranker, prefix, some)
            for k in range(len(whole)):
                np.testing.assert_allclose(part[k], whole[k][:, places], atol=TOLERANCE)


def test_a_request_does_not_depend_on_its_batch(
    ranker: Ranker, tiny_dataset: Dataset, batch: Batch
) -> None:
    requests = tiny_dataset.requests("test")[:16]
    with torch.inference_mode():
        together = ranker(tiny_dataset.batch(requests))
        for i in (0, 7, 15):
            alone = ranker(tiny_dataset.batch(requests[i : i + 1]))
            for k in range(len(alone)):
                np.testing.assert_allclose(alone[k][0], together[k][i], atol=TOLERANCE)


def test_what_stands_in_the_padding_of_a_history_does_not_matter(
    ranker: Ranker, batch: Batch
) -> None:
    assert not any(history.mask_BL.all() for history in batch.query.histories)
    changed = tuple(
        replace(
            history,
            place_BL=torch.where(history.mask_BL, history.place_BL, 3),
            gap_BL=torch.where(history.mask_BL, history.gap_BL, 5.0),
            outcomes_BL=torch.where(history.mask_BL, history.outcomes_BL, 7),
        )
        for history in batch.query.histories
    )
    with torch.inference_mode():
        before = ranker(batch)
        after = ranker(replace(batch, query=replace(batch.query, histories=changed)))
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_an_unknown_position_is_read_as_the_top_one(
    ranker: Ranker, tiny_dataset: Dataset, batch: Batch
) -> None:
    def at(position: int) -> list[Tensor]:
        many = with_candidates(tiny_dataset, batch, 9)
        shown = torch.full_like(many.candidates.position_BN, position)
        moved = replace(many.candidates, position_BN=shown)
        with torch.inference_mode():
            return ranker(replace(many, candidates=moved))

    assert all(torch.equal(unknown, top) for unknown, top in zip(at(0), at(1), strict=True))
    assert not any(torch.equal(second, top) for second, top in zip(at(2), at(1), strict=True))
    # A position lower than any seen in training has the bias of the lowest seen (the world has 4).
    assert all(torch.equal(far, last) for far, last in zip(at(99), at(4), strict=True))


def test_what_came_of_a_history_moves_the_scores(ranker: Ranker, batch: Batch) -> None:
    def scores(history: int, bits: int) -> list[Tensor]:
        histories = list(batch.query.histories)
        outcomes = torch.full_like(histories[history].outcomes_BL, bits)
        histories[history] = replace(histories[history], outcomes_BL=outcomes)
        with torch.inference_mode():
            return ranker(replace(batch, query=replace(batch.query, histories=tuple(histories))))

    for history in (0, 1):
        for bits in (1, 2, 4):
            assert not torch.equal(scores(history, bits)[0], scores(history, 0)[0])
        assert torch.equal(scores(history, 8)[0], scores(history, 0)[0])  # there is no task 3


# --- the scales of what is known together -------------------------------------------------------


def test_numbers_are_scaled_by_the_real_impressions_of_all_batches(
    ranker: Ranker, tiny_dataset: Dataset
) -> None:
    batches = [ragged(tiny_dataset, 24), tiny_dataset.batch(tiny_dataset.requests("train")[-40:])]
    rows = []
    for batch in batches:
        known = known_together(histories_of(batch.query, (False, True)), batch.candidates)
        rows += [known[b, n].tolist() for b, n in batch.candidates.mask_BN.nonzero().tolist()]
    assert len(rows) == sum(batch.rows for batch in batches) < 64 * 4
    ranker.fit_numbers(iter(batches))
    np.testing.assert_allclose(ranker.scores.mean_X, np.mean(rows, axis=0), atol=1e-5)
    spread = np.maximum(np.std(rows, axis=0), 1e-3)
    np.testing.assert_allclose(ranker.scores.spread_X, spread, rtol=1e-3, atol=1e-5)
    with torch.inference_mode():
        scores = ranker.scores(torch.tensor(rows))
    assert (scores > 4.0).any()
    assert float(scores.abs().max()) <= 10.0


def test_padding_has_no_part_in_the_scales(ranker: Ranker, tiny_dataset: Dataset) -> None:
    batch = ragged(tiny_dataset)
    ranker.fit_numbers([batch])
    before = [buffer.clone() for buffer in ranker.scores.buffers()]
    ranker.fit_numbers([other_padding(batch)])
    assert all(map(torch.equal, ranker.scores.buffers(), before))
    everything = replace(batch.candidates, mask_BN=torch.ones_like(batch.candidates.mask_BN))
    ranker.fit_numbers([replace(batch, candidates=everything)])  # ... as it would have with it
    assert not torch.equal(ranker.scores.mean_X, before[0])


def test_scaling_draws_nothing_and_touches_nothing_else(
    ranker: Ranker, tiny_dataset: Dataset
) -> None:
    batch = ragged(tiny_dataset)
    ranker.fit_numbers([batch])
    once = {name: value.clone() for name, value in ranker.state_dict().items()}
    ranker.train()
    drawn = torch.get_rng_state()
    ranker.fit_numbers([batch])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert ranker.training
    again = ranker.state_dict()
    assert list(again) == list(once)
    assert all(torch.equal(again[name], value) for name, value in once.items())


def test_the_scales_decide_on_scores_and_are_saved_with_the_weights(
    ranker: Ranker, layout: Layout, batch: Batch, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    save_weights(ranker, tmp_path / "model.safetensors")
    torch.manual_seed(9)
    other = Ranker(SMALL, layout).eval()
    load_weights(tmp_path / "model.safetensors", other)
    with torch.inference_mode():
        expected = ranker(batch)
        assert all(map(torch.equal, other(batch), expected))
        other.fit_numbers([ragged(tiny_dataset)])
        assert not torch.equal(other(batch)[0], expected[0])


@pytest.mark.parametrize("history", [0, 1])
def test_the_length_of_a_history_is_known_beyond_its_tokens(
    layout: Layout, tiny_dataset: Dataset, history: int
) -> None:
    # No item becomes more than the one token of the latest, which stays; ads that share nothing
    # with the history match nothing. What is left to tell 5 items from 2 is their number.
    torch.manual_seed(0)
    model = Ranker(SMALL.model_copy(update={"history_tokens": 1}), layout).eval()
    batch = tiny_dataset.batch(tiny_dataset.requests("test")[-2:])
    histories = list(batch.query.histories)
    places = torch.arange(histories[history].mask_BL.shape[1])
    missing = torch.zeros_like(batch.candidates.ads.categorical)
    strange = replace(batch.candidates, ads=replace(batch.candidates.ads, categorical=missing))

    def scores(items: int) -> Tensor:
        mask_BL = (places >= len(places) - items).expand(2, -1)
        histories[history] = replace(histories[history], mask_BL=mask_BL)
        query = replace(batch.query, histories=tuple(histories))
        with torch.inference_mode():
            outputs: list[Tensor] = model(replace(batch, query=query, candidates=strange))
        return outputs[0]

    five, two = scores(5), scores(2)
    assert not torch.equal(five, two)
    with torch.no_grad():  # without the weights of the lengths they are the same
        for layer in (model.field_tokens, model.request_cross):
            layer.weight[:, -2:] = 0.0
    np.testing.assert_allclose(scores(5), scores(2), atol=TOLERANCE)


def test_it_can_start_from_the_two_towers_embeddings(layout: Layout) -> None:
    torch.manual_seed(1)
    tower = TwoTower(TwoTowerConfig(embedding_dim=4, hidden=(8,), output_dim=4), layout)
    shorter = TwoTower(TwoTowerConfig(embedding_dim=2, hidden=(8,), output_dim=4), layout)
    model = Ranker(SMALL, layout)
    before = model.ad_fields.table.weight.clone()
    model.start_from(shorter.embeddings)  # nothing to take over
    assert torch.equal(model.ad_fields.table.weight, before)
    model.start_from(tower.embeddings)
    for name, encoder in tower.embeddings.items():
        own = getattr(model, name).table.weight
        assert torch.equal(own, encoder.table.weight)
        assert own.data_ptr() != encoder.table.weight.data_ptr()  # a copy, not shared


def test_of_longer_embeddings_it_starts_from_what_tells_most(layout: Layout) -> None:
    """Eight numbers that are four, turned: their products are all there."""
    torch.manual_seed(1)
    tower = TwoTower(TwoTowerConfig(embedding_dim=8, hidden=(8,), output_dim=4), layout)
    turn_48 = torch.linalg.qr(torch.randn(8, 8)).Q[:4]
    for encoder in tower.embeddings.values():
        weight = encoder.table.weight
        weight.data.copy_(weight.data[:, :4] @ turn_48)
    model = Ranker(SMALL, layout)
    model.start_from(tower.embeddings)
    for name, encoder in tower.embeddings.items():
        own, known = getattr(model, name).table.weight, encoder.table.weight
        torch.testing.assert_close(own @ own.T, known @ known.T, atol=1e-5, rtol=1e-4)
        assert torch.equal((own == 0).all(1), (known == 0).all(1))  # missing values stay zeros


# --- the loss -----------------------------------------------------------------------------------

WEIGHTS, POSITIVE = (1.0, 0.5, 0.3), (1.0, 1.0, 1.0)


def ragged(dataset: Dataset, requests: int = 32) -> Batch:
    """A batch with outcomes of every task in which some impressions are left out."""
    train = dataset.requests("train")
    good = train[(dataset.labels_NK[:, 2] > 0).reshape(-1, 4)[: len(train)].any(axis=1)]
    keep_N = np.random.default_rng(0).random(len(dataset.labels_NK)) < 0.6
    batch = dataset.batch(good[:requests], keep_N)
    assert not batch.candidates.mask_BN.all()
    assert (batch.labels_BNK[batch.candidates.mask_BN] > 0).any(dim=0).all()
    return batch


def test_the_loss_is_the_weighted_sum_of_the_means_over_impressions(
    ranker: Ranker, tiny_dataset: Dataset
) -> None:
    batch = ragged(tiny_dataset)
    with torch.inference_mode():
        outputs = ranker(batch)
        losses = ranker.heads.losses(outputs, batch.labels_BNK, POSITIVE)
        found = float(ranker.loss(batch, WEIGHTS, POSITIVE))
    expected = 0.0
    for weight, loss in zip(WEIGHTS, losses, strict=True):
        real = [
            float(loss[b, n])
            for b in range(loss.shape[0])
            for n in range(loss.shape[1])
            if batch.candidates.mask_BN[b, n]
        ]
        expected += weight * sum(real) / len(real)
    assert found == pytest.approx(expected, rel=1e-5)


def other_padding(batch: Batch) -> Batch:
    """The same impressions, with something else in the places that hold none."""
    mask = batch.candidates.mask_BN[..., None]
    return replace(
        batch,
        candidates=replace(
            batch.candidates,
            ads=Fields(
                torch.where(mask, batch.candidates.ads.categorical, 2),
                torch.where(mask, batch.candidates.ads.dense, 50.0),
            ),
            counters_BNC=torch.where(mask, batch.candidates.counters_BNC, -50.0),
        ),
        labels_BNK=torch.where(mask, batch.labels_BNK, 7.0),
    )


def test_the_loss_ignores_padded_candidates(ranker: Ranker, tiny_dataset: Dataset) -> None:
    batch = ragged(tiny_dataset)
    with torch.inference_mode():
        expected = ranker.loss(batch, WEIGHTS, POSITIVE)
        assert torch.equal(ranker.loss(other_padding(batch), WEIGHTS, POSITIVE), expected)


def test_a_positive_weight_counts_positives_more(ranker: Ranker, tiny_dataset: Dataset) -> None:
    batch = ragged(tiny_dataset)
    with torch.inference_mode():
        once = ranker.heads.losses(ranker(batch), batch.labels_BNK, POSITIVE)[0]
        five = ranker.heads.losses(ranker(batch), batch.labels_BNK, (5.0, 1.0, 1.0))[0]
    positive = batch.labels_BNK[..., 0] > 0
    np.testing.assert_allclose(five[positive], 5 * once[positive], rtol=1e-6)
    assert torch.equal(five[~positive], once[~positive])


def test_gradients_reach_every_parameter(tiny_dataset: Dataset, layout: Layout) -> None:
    torch.manual_seed(0)
    model = Ranker(SMALL, layout)
    model.loss(ragged(tiny_dataset), WEIGHTS, POSITIVE).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_the_loss_falls(tiny_dataset: Dataset, layout: Layout) -> None:
    torch.manual_seed(0)
    model, batch = Ranker(SMALL, layout), ragged(tiny_dataset, 64)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(batch, WEIGHTS, POSITIVE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_bf16_is_close_to_float32(ranker: Ranker, tiny_dataset: Dataset, batch: Batch) -> None:
    many = with_candidates(tiny_dataset, batch, 200)
    with torch.inference_mode():
        exact = ranker.predict(many.query, many.candidates)
        with torch.autocast("cpu", torch.bfloat16):
            short = ranker.predict(many.query, many.candidates)
    assert short.dtype == torch.float32
    # bf16 keeps 8 bits: 0.4 % a product. Through 3 blocks and a head a logit is off by about 0.02,
    # a probability by as much of itself.
    relative = ((short - exact) / exact).abs()
    assert float(relative.mean()) < 0.02
    assert float(relative.max()) < 0.15


# --- predictions, sizes -------------------------------------------------------------------------


def test_predictions_are_probabilities_and_values(
    ranker: Ranker, batch: Batch, layout: Layout
) -> None:
    with torch.inference_mode():
        found = ranker.predict(batch.query, batch.candidates)
        outputs = ranker(batch)
    assert found.shape == (REQUESTS, 4, 3)
    assert ((found[..., :2] > 0) & (found[..., :2] < 1)).all()
    logit, mu, raw = outputs[2].unbind(-1)
    sigma = torch.nn.functional.softplus(raw)
    value = torch.sigmoid(logit) * torch.exp(mu + sigma**2 / 2) * layout.value_scales[2]
    np.testing.assert_allclose(found[..., 2], value, rtol=1e-5)


def test_it_starts_at_the_rates_of_the_log(tiny_dataset: Dataset, layout: Layout) -> None:
    torch.manual_seed(0)
    model = Ranker(RankerConfig(), layout).eval()
    batch = tiny_dataset.batch(tiny_dataset.requests("train")[:64])
    with torch.inference_mode():
        mean = model.predict(batch.query, batch.candidates).mean((0, 1))
    for k in (0, 1):  # within a third: the last layer's weights are random, its bias is the rate
        assert float(mean[k]) == pytest.approx(layout.task_means[k], rel=0.33)


def test_the_default_sizes_are_those_of_the_design(layout: Layout) -> None:
    config = RankerConfig()
    assert (config.layers, config.heads, config.width) == (3, 8, 256)
    assert (config.feed_forward, config.dropout) == (1024, 0.1)
    assert config.width // config.heads == 32
    model = Ranker(config, layout)
    blocks = list(model.blocks)
    assert len(blocks) == 3
    assert blocks[0].qkv.weight.shape == (3 * 256, 256)
    assert blocks[0].feed[0].weight.shape == (1024, 256)
    assert blocks[0].dropout.share == 0.1


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"heads \(3\) must divide width \(32\)"):
        RankerConfig(width=32, heads=3)


def test_a_log_may_lack_histories_counters_positions_and_fields(
    layout: Layout, tmp_path: Path
) -> None:
    bare = replace(
        layout,
        user_sizes=(),
        request_sizes=(),
        history_lengths=(),
        impressions=(),
        counters=0,
        positions=0,
        task_kinds=("binary",),
        task_weights=(1.0,),
        task_means=(0.1,),
        value_scales=(1.0,),
    )
    torch.manual_seed(0)
    model = Ranker(SMALL, bare)
    rng = np.random.default_rng(0)
    ads = Fields(
        torch.from_numpy(rng.integers(0, 60, (2, 3, len(layout.ad_sizes)))),
        torch.zeros((2, 3, layout.ad_dense)),
    )
    nothing = Fields(torch.zeros((2, 0), dtype=torch.int32), torch.zeros((2, 0)))
    batch = Batch(
        query=Query(nothing, nothing, Fields(ads.categorical[0, :0], ads.dense[0, :0]), ()),
        candidates=Candidates(
            ads,
            torch.zeros((2, 3, 0)),
            torch.zeros((2, 3), dtype=torch.int32),
            torch.ones((2, 3), dtype=torch.bool),
        ),
        ad_row_BN=torch.ones((2, 3), dtype=torch.int64),
        period_B=torch.zeros(2, dtype=torch.int64),
        labels_BNK=torch.zeros((2, 3, 1)),
    )
    model.fit_numbers([batch])  # of which there are none
    loss = model.loss(batch, (1.0,), (1.0,))
    loss.backward()
    assert torch.isfinite(loss)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(tmp_path / "model.safetensors", Ranker(SMALL, bare))


def test_the_last_items_of_a_history() -> None:
    history = HistoryItems(
        place_BL=torch.arange(4, 8)[None],
        row_BL=torch.arange(4)[None],
        gap_BL=torch.arange(4.0)[None],
        outcomes_BL=torch.arange(4, dtype=torch.uint8)[None],
        mask_BL=torch.ones((1, 4), dtype=torch.bool),
    )
    last = history.last(2)
    assert last.row_BL.tolist() == [[2, 3]]
    assert last.gap_BL.tolist() == [[2.0, 3.0]]
    assert last.outcomes_BL.tolist() == [[2, 3]]
    assert last.place_BL.tolist() == [[6, 7]]


def test_a_thinned_click_weighs_the_other_tasks_back(tiny_dataset: Dataset) -> None:
    # Keep a quarter of the impressions without a click: the engagement's mean loss over those left,
    # each standing for four, is that over all if those left out are like those left.
    model = Ranker(SMALL, tiny_dataset.features.layout).eval()
    batch = tiny_dataset.batch(tiny_dataset.requests("train")[:64])
    only_engagement = (0.0, 1.0, 0.0)
    losses = model.heads.losses(model(batch), batch.labels_BNK, POSITIVE)[1]
    mask = batch.candidates.mask_BN
    weight = torch.where(batch.labels_BNK[..., 0] > 0, 1.0, 4.0)
    expected = (losses * weight)[mask].sum() / weight[mask].sum()
    found = model.loss(batch, only_engagement, POSITIVE, negative_rate=0.25)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
