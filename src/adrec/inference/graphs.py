"""Both models as graphs of plain tensors. Free are the numbers of requests B and of candidates N,
and no others.

    PrerankGraph                  request, candidates ─► guesses      ┐
    ScoreGraph                    request, candidates ─► predictions  ├ OpenVINO compiles these
    UserGraph                     request ─► vector of the two-tower  ┘
    PrefixGraph, CandidateGraph   ScoreGraph in two steps             ┐
    AdGraph                       what depends on an ad alone         ┴ these are exported

Of ads they read `AdRows` in 8 bits, or, for exact scores, the same halves in float32 with scales of
1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from adrec.features.batches import Candidates, Fields, Query
from adrec.models.preranker import Preranker
from adrec.models.ranker import Opening, Prefix, Ranker, history_lengths, recent_items
from adrec.models.two_tower import Met, TwoTower, item_weights


class RequestInputs(NamedTuple):
    """What graphs of the ranker read of B requests with S recent history items."""

    user_codes: NDArray[np.int32]
    user_dense: NDArray[np.float32]
    request_codes: NDArray[np.int32]
    request_dense: NDArray[np.float32]
    history_lengths: NDArray[np.float32]
    item_codes: NDArray[np.int8] | NDArray[np.float32]
    """Token half of the ads' rows, [B, S, D]."""
    item_scales: NDArray[np.float32]
    """[B, S]."""
    item_gaps: NDArray[np.float32]
    item_outcomes: NDArray[np.uint8]
    item_mask: NDArray[np.bool_]

    @classmethod
    def of(cls, ranker: Ranker, query: Query) -> "RequestInputs":
        """Gather them; items are always exact."""
        items = recent_items(query, ranker.config.history_tokens)
        items_BSD = ranker.item_tokens(query, items)
        return cls(
            query.user.categorical.numpy(),
            query.user.dense.numpy(),
            query.request.categorical.numpy(),
            query.request.dense.numpy(),
            history_lengths(query).numpy(),
            items_BSD.numpy(),
            np.ones(items.place_BL.shape, np.float32),
            items.gap_BL.numpy(),
            items.outcomes_BL.numpy(),
            items.mask_BL.numpy(),
        )


class CandidateInputs(NamedTuple):
    """What graphs of the ranker read of N candidates of each request."""

    ad_codes: NDArray[np.int8] | NDArray[np.float32]
    """[B, N, 2D]."""
    ad_scales: NDArray[np.float32]
    """[B, N, 2]."""
    together: NDArray[np.float32]
    """`known_together`."""
    position: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        ranker: Ranker,
        together_BNX: Tensor,
        candidates: Candidates,
        stored: tuple[NDArray[np.int8], NDArray[np.float32]] | None,
    ) -> "CandidateInputs":
        """Gather them.

        Args:
            ranker: frozen.
            together_BNX: `known_together`.
            candidates: N of B requests.
            stored: their codes and scales of `AdRows`; None: exact ones.
        """
        position_BN = candidates.position_BN.numpy()
        if stored is None:
            exact_BNP = ranker.ads(candidates.ads).numpy()
            ones = np.ones((*position_BN.shape, 2), np.float32)
            return cls(exact_BNP, ones, together_BNX.numpy(), position_BN)
        codes, scales = stored
        return cls(codes, scales, together_BNX.numpy(), position_BN)


FreeAxes = tuple[tuple[int, ...], ...]
"""Of each input of a graph, the axes along which its size may change."""
REQUEST_FREE: FreeAxes = ((0,),) * len(RequestInputs._fields)
SCORE_FREE: FreeAxes = (*REQUEST_FREE, *((0, 1),) * len(CandidateInputs._fields))
PRERANK_FREE: FreeAxes = (*REQUEST_FREE, *((0, 1),) * 3)


class PrefixGraph(nn.Module):
    """`RequestInputs` to keys, values, mask and summary of `ranker.Prefix`."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, *request: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode requests."""
        prefix = self.ranker.encode(_opening(self.ranker, request))
        return prefix.keys_JBHTE, prefix.values_JBHTE, prefix.mask_BT, prefix.summary_BD


class CandidateGraph(nn.Module):
    """What `PrefixGraph` makes, and `CandidateInputs`, to predictions [B, N, K], uncalibrated."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        summary: Tensor,
        ad_codes: Tensor,
        ad_scales: Tensor,
        together: Tensor,
        position: Tensor,
    ) -> Tensor:
        """Score candidates."""
        ads = _ads(ad_codes, ad_scales)
        outputs = self.ranker.judge(Prefix(keys, values, mask, summary), ads, together, position)
        return self.ranker.heads.predictions(outputs)


class ScoreGraph(nn.Module):
    """`RequestInputs` and `CandidateInputs` to predictions [B, N, K], uncalibrated."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, *inputs: Tensor) -> Tensor:
        """Score candidates."""
        *request, ad_codes, ad_scales, together, position = inputs
        outputs = self.ranker.judge_at_once(
            _opening(self.ranker, request), _ads(ad_codes, ad_scales), together, position
        )
        return self.ranker.heads.predictions(outputs)


def _opening(ranker: Ranker, request: Sequence[Tensor]) -> Opening:
    """What the ranker makes of `RequestInputs` before the blocks."""
    user_codes, user_dense, request_codes, request_dense, lengths, *items = request
    item_codes, item_scales, item_gaps, item_outcomes, item_mask = items
    return ranker.opening(
        Fields(user_codes, user_dense),
        Fields(request_codes, request_dense),
        lengths,
        item_codes.float() * item_scales[..., None],
        item_gaps,
        item_outcomes,
        item_mask,
    )


def _ads(ad_codes: Tensor, ad_scales: Tensor) -> Tensor:
    """`Ranker.ads` of codes and scales."""
    token, cross = ad_codes.float().chunk(2, dim=-1)
    return torch.cat([token * ad_scales[..., :1], cross * ad_scales[..., 1:]], dim=-1)


class PrerankGraph(nn.Module):
    """`RequestInputs`, the cross half of `AdRows` and `known_together` of candidates, to the
    preranker's guesses [B, N, K]."""

    def __init__(self, ranker: Ranker, preranker: Preranker) -> None:
        super().__init__()
        self.ranker, self.preranker = ranker, preranker

    def forward(self, *inputs: Tensor) -> Tensor:
        """Guess."""
        *request, ad_codes, ad_scales, together = inputs
        summary = _opening(self.ranker, request).summary_BD
        return self.guess(summary, ad_codes, ad_scales, together)

    def guess(
        self, summary: Tensor, ad_codes: Tensor, ad_scales: Tensor, together: Tensor
    ) -> Tensor:
        """The same of what the cross stream takes of requests, [B, D]."""
        cross = ad_codes.float() * ad_scales[..., None]
        crossed = self.ranker.crossed(summary, cross, self.ranker.scores(together))
        guessed: Tensor = self.preranker(crossed)
        return guessed


class UserGraph(nn.Module):
    """`user_inputs` to vectors of users, [B, output_dim]."""

    def __init__(self, two_tower: TwoTower) -> None:
        super().__init__()
        self.two_tower = two_tower

    def forward(
        self,
        user_codes: Tensor,
        user_dense: Tensor,
        request_codes: Tensor,
        request_dense: Tensor,
        *histories: Tensor,
    ) -> Tensor:
        """Embed. Of each history: encoded ads [B, L, W], gaps, outcomes, mask."""
        met = []
        for start in range(0, len(histories), 4):
            ads_BLW, gap_BL, outcomes_BL, mask_BL = histories[start : start + 4]
            summed_BW = (ads_BLW * item_weights(mask_BL)[..., None]).sum(1)
            items_BLH = self.two_tower.items(ads_BLW)
            met.append(Met(items_BLH, summed_BW, gap_BL, outcomes_BL, mask_BL))
        user, request = Fields(user_codes, user_dense), Fields(request_codes, request_dense)
        return self.two_tower.encode(user, request, met)


def user_inputs(two_tower: TwoTower, query: Query) -> list[NDArray[np.generic]]:
    """What `UserGraph` reads of B requests."""
    ads_DW = two_tower.ad_fields(query.history_ads)
    user, request = query.user, query.request
    tensors = [user.categorical, user.dense, request.categorical, request.dense]
    for history in query.histories:
        ads_BLW = functional.embedding(history.place_BL, ads_DW)
        tensors += [ads_BLW, history.gap_BL, history.outcomes_BL, history.mask_BL]
    return [tensor.numpy() for tensor in tensors]


class AdGraph(nn.Module):
    """Fields of ads to what `AdRows` keeps of them, before rounding, [A, 2D]."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, ad_codes: Tensor, ad_dense: Tensor) -> Tensor:
        """Encode ads."""
        return self.ranker.ads(Fields(ad_codes, ad_dense))


def tensors(arrays: Sequence[NDArray[np.generic]]) -> tuple[Tensor, ...]:
    """Arrays as tensors that share their memory."""
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
