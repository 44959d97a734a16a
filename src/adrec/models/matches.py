"""Matches: what the ads of a request's histories have in common with each candidate.

B batch, N candidates, L history items, F categorical fields, X numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adrec.features.batches import Candidates, Query, of_rows

_FADE = 0.85  # of an item's weight for each that came after it
_NO_CODE = 2**31 - 1  # larger than any code: a missing value matches nothing


class History(NamedTuple):
    """One sequence of B requests, as candidates are compared with it: codes of the items' ads
    [B, L, F], which places hold an ad, and, in a sequence of impressions, which are known to have
    been positive for the first task."""

    codes_BLF: Tensor
    mask_BL: Tensor
    clicked_BL: Tensor | None = None


def histories_of(query: Query, impressions: Sequence[bool]) -> tuple[History, ...]:
    """The histories of B requests as candidates are compared with them.

    Args:
        query: what is known of the requests.
        impressions: which histories hold all that was shown; those also tell clicks.
    """
    codes_DF = query.history_ads.categorical
    return tuple(
        History(
            of_rows(codes_DF[None], items.place_BL),
            items.mask_BL,
            (items.outcomes_BL & 1).bool() if shown else None,
        )
        for items, shown in zip(query.histories, impressions, strict=True)
    )


def known_together(histories: Sequence[History], candidates: Candidates) -> Tensor:
    """What is known of user and ad together, [B, N, X]: counters, then matches of histories."""
    if not histories:
        return candidates.counters_BNC
    return torch.cat(
        [candidates.counters_BNC, *history_matches(histories, candidates.ads.categorical)], dim=-1
    )


def history_matches(histories: Sequence[History], codes_BNF: Tensor) -> list[Tensor]:
    """For each categorical field, how many items of a history share the candidate's value.

    A missing value (code 0) matches nothing.

    Args:
        histories: sequences of B requests, at least one.
        codes_BNF: of the candidates.

    Returns:
        For each history [B, N, 3F]: log(1 + count), the share of the items, and the same share with
        each item weighing 0.85 of the one after it, so that the latest count most. For a history
        that tells clicks, [B, N, 5F]: also log(1 + count) of the clicked items, and their share of
        the items, weighed in this way.
    """
    weights = [_weights(history) for history in histories]
    widths = [weight_BLW.shape[-1] for weight_BLW in weights]
    matched = torch.split(_summed_by_code(histories, weights, codes_BNF), widths, dim=-1)
    found = []
    for weight_BLW, matched_BNFW in zip(weights, matched, strict=True):
        total_B12 = weight_BLW[..., :2].sum(1, keepdim=True).clamp(min=1e-6)
        shares_BNF2 = matched_BNFW[..., :2] / total_B12[:, None]
        parts = [matched_BNFW[..., 0].log1p(), shares_BNF2.flatten(2)]
        if weight_BLW.shape[-1] > 2:
            clicked_BNF = matched_BNFW[..., 3] / total_B12[..., 1:]
            parts += [matched_BNFW[..., 2].log1p(), clicked_BNF]
        found.append(torch.cat(parts, dim=-1))
    return found


def _weights(history: History) -> Tensor:
    """What each item counts, [B, L, 2]: 1, and less the older it is; for a history that tells
    clicks, [B, L, 4]: then the same of the clicked ones."""
    mask_BL = history.mask_BL
    length = mask_BL.shape[1]
    fade_L = _FADE ** torch.arange(length - 1, -1, -1, device=mask_BL.device)
    weight_BL2 = torch.stack([mask_BL.float(), mask_BL * fade_L], dim=-1)
    if history.clicked_BL is None:
        return weight_BL2
    return torch.cat([weight_BL2, weight_BL2 * history.clicked_BL[..., None]], dim=-1)


def _summed_by_code(
    histories: Sequence[History], weights: Sequence[Tensor], codes_BNF: Tensor
) -> Tensor:
    """Sum of the weights of all items that share each candidate's code, [B, N, F, W]: those of one
    history after those of another, as none counts for the others.

    Items are sorted by code once a request, those of all histories together, so that a candidate
    costs two binary searches a field instead of a comparison with every item.
    """
    codes_BLF = torch.cat([history.codes_BLF for history in histories], dim=1)
    mask_BL = torch.cat([history.mask_BL for history in histories], dim=1)
    counts_BLF = mask_BL[..., None] & (codes_BLF != 0)
    codes_BFL = codes_BLF.masked_fill(~counts_BLF, _NO_CODE).transpose(1, 2).contiguous()
    sorted_BFL, order_BFL = codes_BFL.sort(dim=-1, stable=True)
    batch, fields, length = sorted_BFL.shape
    lists = torch.arange(batch * fields, device=mask_BL.device).view(batch, fields, 1)
    running_BFLW = _rows(_side_by_side(weights), order_BFL + lists // fields * length).cumsum(2)
    running = functional.pad(running_BFLW, (0, 0, 1, 0))
    wanted_BFN = codes_BNF.transpose(1, 2).contiguous()
    first, past = (
        _rows(
            running,
            torch.searchsorted(sorted_BFL, wanted_BFN, right=right) + lists * (length + 1),
        )
        for right in (False, True)
    )
    return (past - first).transpose(1, 2)


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """Weights of all items, [B, L, W], with a column for each of each history's weights."""
    width, before, parts = sum(part.shape[-1] for part in weights), 0, []
    for part in weights:
        after = width - before - part.shape[-1]
        parts.append(functional.pad(part, (before, after)))
        before += part.shape[-1]
    return torch.cat(parts, dim=1)


def _rows(of: Tensor, place: Tensor) -> Tensor:
    """Rows of [..., W], numbered throughout, at some places."""
    return functional.embedding(place, of.flatten(0, -2))
