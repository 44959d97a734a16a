"""Impressions as columns for trees: means of every categorical field, and every number we know.

Also by hand what a sequence model has to learn: how much of each history matches the candidate.
Nothing in a row of the test period is younger than its request.

Shapes: N impressions, K tasks, F columns, V values of a field, L history items.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adrec.evaluation.columns import request_of, sides
from adrec.evaluation.views import moments
from adrec.features.counters import outcomes
from adrec.features.dataset import Dataset
from adrec.features.encoders import Vocabulary
from adrec.features.past import count_strictly_before, order_events
from adrec.features.target_means import Means, out_of_fold

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

_HOUR_MS = 3_600_000
_CHUNK_ROWS = 100_000


@dataclass(frozen=True)
class ImpressionTable:
    """Impressions as columns for trees: means of each categorical field, then numbers."""

    names: tuple[str, ...]
    means: tuple[Means, ...]
    counters: bool

    @classmethod
    def fit(
        cls, dataset: Dataset, rows_N: Ints, fold_N: Ints, *, counters: bool
    ) -> tuple["ImpressionTable", npt.NDArray[np.float32]]:
        """Learn the means from training rows; also returns those rows' table, out of fold."""
        tasks = dataset.features.schema.tasks
        outcome_NK = outcomes(dataset.labels_NK[rows_N], tasks)
        prior_K = outcome_NK.mean(axis=0)
        codes = _codes(dataset, rows_N)
        means = tuple(Means.of(code_N, outcome_NK, prior_K) for code_N in codes.values())
        parts = ("count", *(f"mean {task.name}" for task in tasks))
        names = [f"{field} {part}" for field in codes for part in parts]
        names += _numbers(dataset, rows_N[:1], counters)
        of_fields = out_of_fold(list(codes.values()), outcome_NK, fold_N)
        table_NF = np.empty((len(rows_N), len(names)), np.float32)
        table_NF[:, : of_fields.shape[1]] = of_fields
        _fill_numbers(dataset, rows_N, table_NF[:, of_fields.shape[1] :], counters)
        return cls(tuple(names), means, counters), table_NF

    def read(self, dataset: Dataset, rows_N: Ints) -> npt.NDArray[np.float32]:
        """[N, F] of rows after the training period."""
        table_NF = np.empty((len(rows_N), len(self.names)), np.float32)
        width = self.means[0].table.shape[1]
        for i, (code_N, means) in enumerate(
            zip(_codes(dataset, rows_N).values(), self.means, strict=True)
        ):
            table_NF[:, i * width : (i + 1) * width] = means.read(code_N)
        _fill_numbers(dataset, rows_N, table_NF[:, len(self.means) * width :], self.counters)
        return table_NF


def _fill_numbers(
    dataset: Dataset, rows_N: Ints, out_NF: npt.NDArray[np.float32], counters: bool
) -> None:
    for start in range(0, len(rows_N), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        for i, column_N in enumerate(_numbers(dataset, rows_N[part], counters).values()):
            out_NF[part, i] = column_N


def _codes(dataset: Dataset, rows_N: Ints) -> dict[str, npt.NDArray[Any]]:
    """[N] code of each categorical field, and the rows of the user and of the ad."""
    codes: dict[str, npt.NDArray[Any]] = {
        f"{side.name} {name}": side.codes(name)
        for side in sides(dataset, rows_N)
        for name in side.group.categorical_names
    }
    codes["user row"] = dataset.user_R[request_of(dataset, rows_N)]
    codes["ad row"] = dataset.ad_N[rows_N]
    return codes


def _numbers(dataset: Dataset, rows_N: Ints, counters: bool) -> dict[str, npt.NDArray[Any]]:
    """[N] of each number that is known of the rows."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for side in sides(dataset, rows_N):
        dense = [encoder for encoder in side.group.encoders if not isinstance(encoder, Vocabulary)]
        names = [f"{side.name} {e.name} {i}" for e in dense for i in range(e.width)]
        columns |= dict(zip(names, side.encoded.dense[side.thing_N].T, strict=True))
    schema = dataset.features.schema
    names = [
        f"counter {spec.name} {half} {part}"
        for spec in schema.counters
        for half in spec.half_lives_hours
        for part in ("count", *(task.name for task in schema.tasks))
    ]
    if counters:
        columns |= dict(zip(names, dataset.counters_NC[rows_N].T, strict=True))
    request_N = request_of(dataset, rows_N)
    columns["position"] = dataset.position_N[rows_N]
    columns["hour UTC"] = dataset.time_ms_R[request_N] / _HOUR_MS % 24
    if counters:
        columns |= _session(*moments(dataset, request_N))
    for field, whole in zip(schema.sequences, dataset.histories, strict=True):
        past = whole.take(request_N)
        columns[f"{field.name} gap"] = past.gap[:, -1]
        found = _matches(dataset, past.ads, dataset.ad_N[rows_N])
        columns |= {f"{field.name} {name}": column_N for name, column_N in found.items()}
        if field.of_impressions:
            clicked_NL = np.where(past.outcomes & 1, past.ads, 0)
            found = _matches(dataset, clicked_NL, dataset.ad_N[rows_N])
            columns |= {
                f"{field.name} clicked {name}": column_N for name, column_N in found.items()
            }
    return columns


def _session(dataset: Dataset, request_N: Ints) -> dict[str, npt.NDArray[Any]]:
    """[N] hours since the user's last earlier request, NaN if none, and requests in that hour."""
    distinct, group_N = np.unique(dataset.user_R[request_N], return_inverse=True)
    events = np.flatnonzero(np.isin(dataset.user_R, distinct[distinct > 0]))
    group_E = np.searchsorted(distinct, dataset.user_R[events])
    time_E, time_N = dataset.time_ms_R[events], dataset.time_ms_R[request_N]
    order = order_events(group_E, time_E)
    group_E, time_E = group_E[order], time_E[order]
    before_N = count_strictly_before(group_E, time_E, group_N, time_N)
    hour_ago_N = count_strictly_before(group_E, time_E, group_N, time_N - _HOUR_MS)
    hours_N = np.full(len(request_N), np.nan)
    found = before_N > np.searchsorted(group_E, group_N)
    hours_N[found] = (time_N[found] - time_E[before_N[found] - 1]) / _HOUR_MS
    return {"hours since last request": hours_N, "requests in last hour": before_N - hour_ago_N}


def _matches(
    dataset: Dataset, ads_NL: npt.NDArray[np.int32], ad_N: npt.NDArray[np.int32]
) -> dict[str, npt.NDArray[Any]]:
    """[N] history items: all, of this very ad, and with the candidate's value of each ad field.

    Code 0, of a missing value and of padding, matches nothing.
    """
    found = {"length": (ads_NL != 0).sum(axis=1), "same ad": (ads_NL == ad_N[:, None]).sum(axis=1)}
    codes_AF = dataset.catalogue.encoded.categorical
    for i, name in enumerate(dataset.features.ad.categorical_names):
        code_NL = codes_AF[ads_NL, i]
        same_NL = code_NL == codes_AF[ad_N, i][:, None]
        found[f"same {name}"] = (same_NL & (code_NL != 0)).sum(axis=1)
    return found
