"""Layers against naive implementations with the same weights."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adrec.features.batches import UNKNOWN_GAP, Fields
from adrec.models.layers import (
    AttentionPool,
    CrossLayer,
    Dropout,
    FieldEncoder,
    GapEmbedding,
    OutcomeEmbedding,
    SharedPrefixBlock,
    StandardScore,
    evaluating,
    masked_softmax,
    mlp,
)
from adrec.training.checkpoint import load_weights, save_weights

BATCH, PREFIX, CANDIDATES, WIDTH, HEADS = 3, 7, 5, 24, 4
# Sums of a few dozen float32 products in another order: 1e-6 each, 1e-5 with room.
TOLERANCE = 1e-5


@pytest.fixture
def block() -> SharedPrefixBlock:
    torch.manual_seed(0)
    return SharedPrefixBlock(WIDTH, HEADS, 32, dropout=0.1).eval()


@pytest.fixture
def prefix() -> Tensor:
    return torch.randn((BATCH, PREFIX, WIDTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn((BATCH, CANDIDATES, WIDTH), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def mask() -> Tensor:
    mask = torch.rand((BATCH, PREFIX), generator=torch.Generator().manual_seed(3)) < 0.6
    mask[:, 0] = True
    assert not mask.all()
    return mask


def naive_block(block: SharedPrefixBlock, x_TD: Tensor, mask_T: Tensor) -> Tensor:
    """Plain causal-free pre-norm attention over one sequence whose last token is a candidate.

    The prefix does not see the candidate: row i of the explicit mask is what token i may read.
    """
    count, dim = x_TD.shape
    allowed = mask_T[None, :].repeat(count, 1)
    allowed[:-1, -1] = False
    q, k, v = block.qkv(block.norm_attention(x_TD)).chunk(3, dim=-1)
    size, parts = dim // block.heads, []
    for h in range(block.heads):
        at = slice(h * size, (h + 1) * size)
        scores = q[:, at] @ k[:, at].T / math.sqrt(size)
        weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
        parts.append(weights @ v[:, at])
    x_TD = x_TD + block.out(torch.cat(parts, dim=-1))
    fed: Tensor = x_TD + block.feed(block.norm_feed(x_TD))
    return fed


def run(
    block: SharedPrefixBlock, prefix: Tensor, mask: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        advanced, k, v = block.prefix(prefix, mask)
        return advanced, block.candidates(tokens, k, v, mask)


# --- the block ----------------------------------------------------------------------------------


def test_block_equals_one_whole_sequence_for_each_candidate(
    block: SharedPrefixBlock, prefix: Tensor, mask: Tensor, tokens: Tensor
) -> None:
    advanced, scored = run(block, prefix, mask, tokens)
    itself = torch.ones(1, dtype=torch.bool)
    for b in range(BATCH):
        for n in range(CANDIDATES):
            whole = torch.cat([prefix[b], tokens[b, n : n + 1]])
            with torch.no_grad():
                expected = naive_block(block, whole, torch.cat([mask[b], itself]))
            np.testing.assert_allclose(scored[b, n], expected[-1], atol=TOLERANCE)
            there = mask[b]  # a token that is not there is never read: what it becomes is free
            np.testing.assert_allclose(advanced[b][there], expected[:-1][there], atol=TOLERANCE)


def test_prefix_and_candidates_at_once_become_what_they_do_one_after_the_other(
    block: SharedPrefixBlock, prefix: Tensor, mask: Tensor, tokens: Tensor
) -> None:
    advanced, scored = run(block, prefix, mask, tokens)
    with torch.no_grad():
        advanced_at_once, scored_at_once = block.both(prefix, mask, tokens)
        scored_last = block.last_of_both(prefix, mask, tokens)
    np.testing.assert_allclose(advanced_at_once, advanced, atol=TOLERANCE)
    np.testing.assert_allclose(scored_at_once, scored, atol=TOLERANCE)
    np.testing.assert_allclose(scored_last, scored, atol=TOLERANCE)


def test_keys_and_values_alone_are_those_of_the_whole_prefix_pass(
    block: SharedPrefixBlock, prefix: Tensor, mask: Tensor
) -> None:
    with torch.no_grad():
        _, k, v = block.prefix(prefix, mask)
        only_k, only_v = block.keys_values(prefix)
    assert k.shape == (BATCH, HEADS, PREFIX, WIDTH // HEADS)
    np.testing.assert_allclose(only_k, k, atol=TOLERANCE)
    np.testing.assert_allclose(only_v, v, atol=TOLERANCE)


def test_candidates_do_not_see_each_other(
    block: SharedPrefixBlock, prefix: Tensor, mask: Tensor, tokens: Tensor
) -> None:
    _, before = run(block, prefix, mask, tokens)
    changed = tokens.clone()
    changed[:, 2] = 100.0
    _, after = run(block, prefix, mask, changed)
    others = [0, 1, 3, 4]
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_masked_tokens_have_no_influence(
    block: SharedPrefixBlock, prefix: Tensor, mask: Tensor, tokens: Tensor
) -> None:
    advanced, scored = run(block, prefix, mask, tokens)
    noise = torch.where(mask[..., None], prefix, 1000.0)
    advanced_noise, scored_noise = run(block, noise, mask, tokens)
    assert torch.equal(scored, scored_noise)
    assert torch.equal(advanced[mask], advanced_noise[mask])


def test_masked_tokens_get_no_gradient(
    block: SharedPrefixBlock, prefix: Tensor, mask: Tensor, tokens: Tensor
) -> None:
    prefix.requires_grad_()
    advanced, k, v = block.prefix(prefix, mask)
    scored = block.candidates(tokens, k, v, mask)
    (advanced[mask].sum() + scored.square().sum()).backward()
    assert prefix.grad is not None
    assert (prefix.grad[~mask] == 0).all()
    assert (prefix.grad[mask] != 0).any(dim=-1).all()


def test_a_candidate_without_any_prefix_reads_itself_alone(
    block: SharedPrefixBlock, prefix: Tensor, tokens: Tensor
) -> None:
    nothing = torch.zeros((BATCH, PREFIX), dtype=torch.bool)
    _, scored = run(block, prefix, nothing, tokens)
    with torch.no_grad():
        expected = naive_block(block, tokens[0, :1], torch.ones(1, dtype=torch.bool))
    np.testing.assert_allclose(scored[0, 0], expected[0], atol=TOLERANCE)


def test_masked_softmax_of_nothing_is_zero_and_gives_no_nan_gradient() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    weights = masked_softmax(scores, torch.tensor([[False, False], [True, False]]), dim=1)
    assert weights.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    weights.square().sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


# --- the rest -----------------------------------------------------------------------------------


def test_cross_layer_by_hand() -> None:
    layer = CrossLayer(2, 1)
    with torch.no_grad():
        layer.down.weight.copy_(torch.tensor([[1.0, 2.0]]))  # U
        layer.up.weight.copy_(torch.tensor([[3.0], [-1.0]]))  # V
        layer.up.bias.copy_(torch.tensor([0.5, 0.0]))  # b
        # U x = 1*1 + 2*2 = 5; V U x + b = [15.5, -5]; x0 * that + x = [2*15.5+1, 3*-5+2]
        found = layer(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    assert found.tolist() == [32.0, -13.0]


def test_fields_do_not_share_rows_of_the_table() -> None:
    encoder = FieldEncoder((3, 4), dense=1, embedding_dim=2)
    assert encoder.width == 2 * 2 + 1
    assert encoder.table.num_embeddings == 7
    with torch.no_grad():
        encoder.table.weight.copy_(torch.arange(14.0).view(7, 2))
    codes = torch.tensor([[0, 0], [2, 3]], dtype=torch.int32)
    found = encoder(Fields(codes, torch.tensor([[0.5], [0.25]])))
    # Field 0 has rows 0 to 2, field 1 rows 3 to 6; row r holds [2r, 2r + 1].
    assert found.tolist() == [[0, 1, 6, 7, 0.5], [4, 5, 12, 13, 0.25]]


def test_fields_of_any_shape_are_encoded_place_by_place() -> None:
    torch.manual_seed(0)
    encoder = FieldEncoder((5, 6), dense=2, embedding_dim=3)
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 5, (2, 4, 2), generator=rng, dtype=torch.int32)
    dense = torch.randn((2, 4, 2), generator=rng)
    whole = encoder(Fields(codes, dense))
    assert whole.shape == (2, 4, encoder.width)
    assert torch.equal(whole[1, 3], encoder(Fields(codes[1, 3], dense[1, 3])))


def test_missing_values_start_neutral() -> None:
    torch.manual_seed(0)
    encoder = FieldEncoder((3, 4), dense=0, embedding_dim=2)
    missing = Fields(torch.zeros((1, 2), dtype=torch.int32), torch.zeros((1, 0)))
    assert encoder(missing).abs().sum() == 0.0
    assert (encoder.table.weight[[1, 2, 4, 5, 6]] != 0).all()


def test_a_group_without_fields_encodes_to_nothing() -> None:
    encoder = FieldEncoder((), dense=0, embedding_dim=4)
    nothing = Fields(torch.zeros((3, 0), dtype=torch.int32), torch.zeros((3, 0)))
    assert encoder(nothing).shape == (3, 0)


def test_gaps_fall_into_buckets_and_the_unknown_has_one_of_its_own() -> None:
    torch.manual_seed(0)
    gap = GapEmbedding(2)
    rows = gap.table.weight
    # Buckets of 0.35: 0 and 0.3 share the first, 0.4 is in the second, 99 in the last.
    found = gap(torch.tensor([[UNKNOWN_GAP, 0.0, 0.3, 0.4, 99.0]]))[0]
    assert torch.equal(found, rows[[0, 1, 1, 2, 24]])


def test_outcomes_add_a_vector_for_each_task_that_is_known_as_positive() -> None:
    torch.manual_seed(0)
    outcomes = OutcomeEmbedding(3, 2)
    click, like, sale = outcomes.of_bits.weight.T
    found = outcomes(torch.tensor([[0, 1, 2, 5, 7, 8]], dtype=torch.uint8))[0]  # 8: no task 3
    expected = torch.stack([0 * click, click, like, click + sale, click + like + sale, 0 * click])
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-7)


def test_only_the_first_8_tasks_have_an_outcome() -> None:
    torch.manual_seed(0)
    outcomes = OutcomeEmbedding(11, 2)
    assert outcomes.of_bits.in_features == 8
    found = outcomes(torch.tensor([[128, 255]], dtype=torch.uint8))[0]
    weight_DK = outcomes.of_bits.weight
    expected = torch.stack([weight_DK[:, 7], weight_DK.sum(1)])
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-6)


def test_numbers_are_standard_scores_by_hand() -> None:
    # 1, 2, 3, 6: a mean of 3, squares of 4 + 1 + 0 + 9 = 14 over 4. The second is always 5.
    scores = StandardScore(2)
    scores.fit(torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [6.0, 5.0]]))
    spread = math.sqrt(14 / 4)
    assert scores.mean_X.tolist() == [3.0, 5.0]
    np.testing.assert_allclose(scores.spread_X, [spread, 1.0], rtol=1e-6)
    found = scores(torch.tensor([[[1.0, 5.0], [6.0, 5.0]], [[30.0, 4.0], [-30.0, 6.0]]]))
    # 30 and -30 are more than 10 spreads of 1.87 away.
    expected = [[[-2 / spread, 0.0], [3 / spread, 0.0]], [[10.0, -1.0], [-10.0, 1.0]]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_constant_number_scores_nothing_however_it_is_rounded() -> None:
    scores = StandardScore(1)
    constant = torch.full((10_001, 1), 0.1)
    scores.fit(constant)
    np.testing.assert_allclose(scores(constant[:3]), np.zeros((3, 1)), atol=1e-6)


def test_numbers_before_they_are_fitted_are_left_as_they_are() -> None:
    x = torch.tensor([[0.0, -3.5, 4.0]])
    assert torch.equal(StandardScore(3)(x), x)
    assert StandardScore(0)(torch.zeros((2, 0))).shape == (2, 0)


def test_the_scales_of_numbers_are_saved_with_the_weights_but_not_trained(tmp_path: Path) -> None:
    scores, other = StandardScore(2), StandardScore(2)
    sample = torch.randn((50, 2), generator=torch.Generator().manual_seed(0)) * 3 + 1
    scores.fit(sample)
    assert not list(scores.parameters())
    save_weights(scores, tmp_path / "scores.safetensors")
    load_weights(tmp_path / "scores.safetensors", other)
    assert torch.equal(other(sample), scores(sample))
    assert not torch.equal(other(sample), sample)


def test_numbers_of_a_single_row_are_constant() -> None:
    scores = StandardScore(2)
    scores.fit(torch.tensor([[3.0, 0.0]]))
    assert scores(torch.tensor([[3.0, 7.0]])).tolist() == [[0.0, 7.0]]


def test_the_gradient_goes_through_a_score_unless_it_is_clamped() -> None:
    scores = StandardScore(1)
    scores.fit(torch.tensor([[0.0], [4.0]]))  # a mean of 2, a spread of 2
    x = torch.tensor([[3.0], [50.0]], requires_grad=True)
    scores(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.flatten(), [0.5, 0.0], rtol=1e-6)


def test_attention_pool_of_nothing_is_zero_and_of_one_is_that_one() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(4, heads=2)
    items = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False, False, False], [False, True, False]])
    found = pool(items, mask)
    assert found.shape == (2, 8)
    assert (found[0] == 0).all()
    np.testing.assert_allclose(found[1].detach(), items[1, 1].repeat(2), rtol=1e-6)


def test_attention_pool_ignores_masked_items() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(4, heads=2)
    items = torch.randn((1, 3, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False]])
    changed = items.clone()
    changed[0, 2] = 1000.0
    assert torch.equal(pool(items, mask), pool(changed, mask))


def test_mlp_has_no_activation_after_the_last_layer() -> None:
    torch.manual_seed(0)
    network = mlp((3, 4, 2), 0.5).eval()
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(0))
    expected = network[3](functional.gelu(network[0](x)))
    assert torch.equal(network(x), expected)


@pytest.mark.filterwarnings("error")
def test_an_mlp_may_take_nothing_in() -> None:
    # A schema without counters: the layer is its bias, and torch need not warn of it.
    network = mlp((0, 4, 2), 0.0)
    assert network(torch.zeros((3, 0))).shape == (3, 2)


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    units = 200_001  # no multiple of the 4 units that a word of random bits serves
    found = Dropout(share)(torch.ones(units))
    dropped = found == 0
    # 4 standard errors of a share: one seed in 16,000 is further off.
    assert abs(float(dropped.float().mean()) - share) < 4 * math.sqrt(share * (1 - share) / units)
    np.testing.assert_allclose(found[~dropped], 1 / (1 - share), rtol=1e-6)


def test_dropout_is_the_identity_outside_training_and_without_a_share() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_dropout_follows_the_seed_and_neighbours_are_independent() -> None:
    layer, x = Dropout(0.5), torch.ones(40_000)
    torch.manual_seed(7)
    first, second = layer(x), layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    kept = (first > 0).double()
    for lag in (1, 2, 3, 4):  # within a word of random bits and from one to the next
        correlation = float(torch.corrcoef(torch.stack([kept[:-lag], kept[lag:]]))[0, 1])
        assert abs(correlation) < 4 / math.sqrt(len(x))


def test_dropout_passes_the_gradient_of_what_it_kept() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    found = Dropout(0.2)(x)
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, found.detach())


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_also_after_an_error(training: bool) -> None:
    model = mlp((4, 4, 4), 0.5).train(training)

    def broken() -> None:
        with evaluating(model):
            assert not any(layer.training for layer in model.modules())
            assert torch.is_inference_mode_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert all(layer.training == training for layer in model.modules())
    assert not torch.is_inference_mode_enabled()
