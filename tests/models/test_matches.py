"""What histories have in common with candidates: counted by hand, and one by one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adrec.features.batches import Fields
from adrec.features.dataset import Dataset
from adrec.models.matches import History, histories_of, history_matches, known_together

# Two fields. The history holds (5, 1), (5, 0), (6, 2), and a (5, 1) that is masked.
MET = History(
    torch.tensor([[[5, 1], [5, 0], [6, 2], [5, 1]]]), torch.tensor([[True, True, True, False]])
)
# The second and the third item were clicked, and so was the masked one.
SHOWN = MET._replace(clicked_BL=torch.tensor([[False, True, True, True]]))
TOTAL = 0.85**3 + 0.85**2 + 0.85  # of the weights


def test_history_matches_by_hand() -> None:
    # (5, 1): twice and once of 3. (7, 0): never, and a missing value matches nothing.
    (found,) = history_matches([MET], torch.tensor([[[5, 1], [7, 0]]]))
    # Of the weights .85^3, .85^2, .85 the first two hold a 5, the first a 1.
    shares = [2 / 3, (0.85**3 + 0.85**2) / TOTAL, 1 / 3, 0.85**3 / TOTAL]
    expected = [[math.log(3), math.log(2), *shares], [0.0] * 6]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_clicks_among_the_matches_by_hand() -> None:
    codes = torch.tensor([[[5, 1], [7, 0], [6, 2]]])
    (found,) = history_matches([SHOWN], codes)
    assert torch.equal(found[..., :6], history_matches([MET], codes)[0])
    # (5, 1): one of the 5s was clicked, no 1. (6, 2): the only one was, and is the latest.
    expected = [
        [math.log(2), 0.0, 0.85**2 / TOTAL, 0.0],
        [0.0] * 4,
        [math.log(2), math.log(2), 0.85 / TOTAL, 0.85 / TOTAL],
    ]
    np.testing.assert_allclose(found[0, :, 6:], expected, rtol=1e-6)


def test_nothing_matches_an_empty_history() -> None:
    for length in (3, 0):
        history = History(
            torch.ones((1, length, 2), dtype=torch.int32),
            torch.zeros((1, length), dtype=torch.bool),
        )
        (found,) = history_matches([history], torch.ones((1, 5, 2), dtype=torch.int32))
        assert torch.equal(found, torch.zeros((1, 5, 6)))


def one_by_one(history: History, codes_BNF: Tensor) -> Tensor:
    """The same by comparing each candidate with each item."""
    length = history.mask_BL.shape[1]
    weight_BL = history.mask_BL * 0.85 ** torch.arange(length - 1, -1, -1)
    same_BNLF = (codes_BNF[:, :, None] == history.codes_BLF[:, None]) & (codes_BNF != 0)[:, :, None]
    same_BNLF = same_BNLF & history.mask_BL[:, None, :, None]
    total_B1 = weight_BL.sum(1)[:, None, None]
    count_BNF = same_BNLF.sum(2)
    faded_BNF = (same_BNLF * weight_BL[:, None, :, None]).sum(2) / total_B1
    share_BNF = count_BNF / history.mask_BL.sum(1)[:, None, None]
    found = [count_BNF.log1p(), torch.stack([share_BNF, faded_BNF], dim=-1).flatten(2)]
    if history.clicked_BL is not None:
        clicked_BNLF = same_BNLF & history.clicked_BL[:, None, :, None]
        found.append(clicked_BNLF.sum(2).log1p())
        found.append((clicked_BNLF * weight_BL[:, None, :, None]).sum(2) / total_B1)
    return torch.cat(found, dim=-1)


@pytest.mark.parametrize("clicks", [(True,), (False, True), (True, False, True)])
def test_several_histories_of_several_requests_are_compared_as_one_by_one(
    clicks: tuple[bool, ...],
) -> None:
    draw = torch.Generator().manual_seed(len(clicks))
    histories = []
    for i, of_impressions in enumerate(clicks):
        length = 4 + 3 * i
        codes_BLF = torch.randint(0, 6, (5, length, 3), generator=draw, dtype=torch.int32)
        starts_B1 = torch.randint(0, length, (5, 1), generator=draw)
        clicked_BL = torch.rand((5, length), generator=draw) < 0.5 if of_impressions else None
        histories.append(History(codes_BLF, torch.arange(length) >= starts_B1, clicked_BL))
    codes_BNF = torch.randint(0, 7, (5, 9, 3), generator=draw, dtype=torch.int32)
    found = history_matches(histories, codes_BNF)
    assert len(found) == len(histories)
    for history, of_history in zip(histories, found, strict=True):
        torch.testing.assert_close(of_history, one_by_one(history, codes_BNF))


def test_what_is_known_together_is_counters_then_matches_in_order_of_the_sequences(
    tiny_dataset: Dataset,
) -> None:
    batch = tiny_dataset.batch(tiny_dataset.requests("train")[-40:])
    c = batch.candidates
    impressions = tiny_dataset.features.layout.impressions
    assert impressions == (False, True)
    histories = histories_of(batch.query, impressions)
    found = known_together(histories, c)
    fields = c.ads.categorical.shape[-1]
    widths = [c.counters_BNC.shape[-1], 3 * fields, 5 * fields]  # the impressions tell clicks, too
    counters, met, shown = found.split(widths, dim=-1)
    assert torch.equal(counters, c.counters_BNC)
    torch.testing.assert_close(met, one_by_one(histories[0], c.ads.categorical).nan_to_num())
    torch.testing.assert_close(shown, one_by_one(histories[1], c.ads.categorical).nan_to_num())
    assert torch.equal(known_together((), c), c.counters_BNC)


def test_a_request_is_compared_alike_alone_and_among_others(tiny_dataset: Dataset) -> None:
    batch = tiny_dataset.batch(tiny_dataset.requests("train")[-40:])
    impressions = tiny_dataset.features.layout.impressions
    together = known_together(histories_of(batch.query, impressions), batch.candidates)
    for b in range(0, len(batch.query), 7):
        alone = replace(
            batch.query,
            histories=tuple(
                replace(
                    items,
                    **{name: value[b : b + 1] for name, value in vars(items).items()},
                )
                for items in batch.query.histories
            ),
        )
        c = batch.candidates
        its = replace(
            c,
            ads=Fields(c.ads.categorical[b : b + 1], c.ads.dense[b : b + 1]),
            counters_BNC=c.counters_BNC[b : b + 1],
        )
        assert torch.equal(known_together(histories_of(alone, impressions), its), together[b][None])
