"""What each feature is worth to our ranker: how much worse it does when that one is permuted.

A feature's values are dealt anew among requests, or among impressions where it is of the candidate,
so it says nothing any more but is distributed as before; the model stays as it was trained (Breiman
2001, section 10; Fisher, Rudin and Dominici 2019, section 3). Of features that say the same, each
looks unimportant: the others stand in.

Shapes: R requests, N impressions, C counter features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adrec import metrics
from adrec.evaluation.bootstrap import Replicated, replicate
from adrec.evaluation.columns import counter_columns, request_of
from adrec.evaluation.judged import EvaluationConfig, Scores
from adrec.evaluation.views import Excerpt
from adrec.features.encoders import Vocabulary
from adrec.features.transforms import Encoded, FieldGroup

Ints = npt.NDArray[np.int64]
Kind = Literal["user field", "request field", "ad field", "counter", "history", "position"]

_REPLICATES = 100


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What is permuted together."""

    kind: Kind
    name: str
    columns: slice
    """Of the group's `categorical` or `dense`, or of the counters; of histories the place."""
    categorical: bool = False

    @property
    def of_request(self) -> bool:
        """Whether it is the same for all impressions of a request."""
        return self.kind in ("user field", "request field", "history")


def features_of(part: Excerpt) -> Iterator[Feature]:
    """All that the ranker is told, feature by feature."""
    groups: tuple[tuple[Kind, FieldGroup], ...] = (
        ("user field", part.features.user),
        ("request field", part.features.request),
        ("ad field", part.features.ad),
    )
    for kind, group in groups:
        place = {True: 0, False: 0}
        for encoder in group.encoders:
            categorical = isinstance(encoder, Vocabulary)
            width = 1 if isinstance(encoder, Vocabulary) else encoder.width
            columns = slice(place[categorical], place[categorical] + width)
            place[categorical] += width
            yield Feature(kind=kind, name=encoder.name, columns=columns, categorical=categorical)
    for spec, columns in counter_columns(part.features.schema):
        yield Feature(kind="counter", name=spec.name, columns=columns)
    for i, field in enumerate(part.features.schema.sequences):
        yield Feature(kind="history", name=field.name, columns=slice(i, i + 1))
    if part.features.layout.positions:
        yield Feature(kind="position", name="position", columns=slice(0, 1))


def permuted(apart: Excerpt, feature: Feature, rng: np.random.Generator) -> Excerpt:
    """The same log with one feature dealt anew.

    Args:
        apart: what `Excerpt.apart` returned.
        feature: one of its `features_of`.
        rng: deals.
    """
    if feature.of_request:
        order = rng.permutation(len(apart))
    else:
        order = np.arange(len(apart.ad_N))
        known = np.flatnonzero(apart.ad_N)
        order[known] = rng.permutation(known)
    match feature.kind:
        case "user field":
            return apart.changed(static=_dealt(apart.static, feature, order))
        case "request field":
            return apart.changed(request=_dealt(apart.request, feature, order))
        case "ad field":
            return apart.changed(ads=_dealt(apart.catalogue.encoded, feature, order))
        case "counter":
            counters = apart.counters_NC.copy()
            counters[:, feature.columns] = counters[order, feature.columns]
            return apart.changed(counters_NC=counters)
        case "history":
            histories = list(apart.histories)
            histories[feature.columns.start] = histories[feature.columns.start].take(order)
            return apart.changed(histories=tuple(histories))
        case "position":
            return apart.changed(position_N=apart.position_N[order])


def _dealt(encoded: Encoded, feature: Feature, order: Ints) -> Encoded:
    """The last things of a group, as many as are in the order, get each other's values."""
    categorical, dense = encoded.categorical.copy(), encoded.dense.copy()
    first = len(encoded) - len(order)
    part: npt.NDArray[Any] = (categorical if feature.categorical else dense)[first:]
    part[:, feature.columns] = part[order, feature.columns]
    return Encoded(categorical, dense)


def judge_importance(
    part: Excerpt, score: Callable[[Excerpt], Scores], config: EvaluationConfig
) -> dict[str, Any]:
    """Each feature's worth for the first task.

    Args:
        part: some test requests.
        score: a model's scores [N, K] of a log's impressions, in the order of `rows_of`.
        config: the seed, and how many replicates an interval has (100 at most).

    Returns:
        `task`, `requests`, `impressions`, `AUC` and `log loss` as they are, and `features`, the
        most important first: `feature`, `kind`, `AUC drop` (with an interval over users, or over
        requests where there are none) and `log loss rise`.
    """
    apart = part.apart()
    rows_N = apart.every_row()
    request_N = request_of(part, rows_N)
    unit_N = request_N if part.features.schema.user_id is None else part.user_R[request_N]
    labels_N = apart.labels_NK[rows_N, 0].astype(np.float64)
    whole_N = score(apart)[:, 0]
    auc_drop = _drop(whole_N, unit_N, labels_N, config)
    found = []
    for place, feature in enumerate(features_of(apart)):
        rng = np.random.default_rng([config.seed, place])  # a new one must not change the others
        without_N = score(permuted(apart, feature, rng))[:, 0]
        found.append(
            {
                "feature": feature.name,
                "kind": feature.kind,
                "AUC drop": auc_drop(without_N),
                "log loss rise": _log_loss(without_N, labels_N) - _log_loss(whole_N, labels_N),
            }
        )
    return {
        "task": part.features.schema.click.name,
        "requests": len(part),
        "impressions": len(rows_N),
        "AUC": metrics.auc(whole_N, labels_N),
        "log loss": _log_loss(whole_N, labels_N),
        "features": sorted(found, key=lambda one: -np.nan_to_num(one["AUC drop"]["estimate"])),
    }


def _drop(
    whole_N: Scores, unit_N: Ints, labels_N: Scores, config: EvaluationConfig
) -> Callable[[Scores], dict[str, Any]]:
    """From scores without a feature to the AUC with it less the AUC without, and its interval."""
    replicates = min(config.replicates, _REPLICATES)
    if not replicates or len(np.unique(unit_N)) < 2:
        whole = metrics.auc(whole_N, labels_N)
        return lambda without_N: {"estimate": whole - metrics.auc(without_N, labels_N)}

    def replicated(scores_N: Scores) -> Replicated:
        rng = np.random.default_rng(config.seed)
        return replicate(metrics.auc, (scores_N, labels_N), unit_N, replicates, rng)

    of_whole = replicated(whole_N)

    def drop(without_N: Scores) -> dict[str, Any]:
        found = of_whole.less(replicated(without_N))
        return {"estimate": found.estimate, "low": found.low, "high": found.high}

    return drop


def _log_loss(predicted_N: Scores, labels_N: Scores) -> float:
    return metrics.log_loss(np.clip(predicted_N, 1e-7, 1 - 1e-7), labels_N)
