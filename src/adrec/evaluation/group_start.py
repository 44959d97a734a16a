"""Ranking within a user's day without what the day itself has taught.

Where a log has no requests, GAUC groups by user and day. Once one impression of the day is known to
be positive, features that learn from it rightly raise what is expected of this user; but among the
others of the group there are then fewer positives than chance has it, so the better the features
learn, the lower the GAUC. Here every impression of a group is scored with histories, session and
counters of the user as they were when the group began.

Shapes: R requests of one impression each, N impressions, K tasks, C counter features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adrec import metrics
from adrec.evaluation.columns import counter_columns, key_codes, request_of
from adrec.evaluation.judged import BY_DAY, Impressions, Scores
from adrec.evaluation.views import Excerpt
from adrec.features.dataset import Dataset
from adrec.schema import USER_ID

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupStart:
    """The impressions of groups that hold both outcomes of a task, with features of their start."""

    part: Excerpt
    rows_N: Ints
    group_N: Ints

    @classmethod
    def of(cls, dataset: Dataset, shown: Impressions) -> "GroupStart | None":
        """None where groups are requests, whose features are of one moment anyway; or where no
        group holds both outcomes."""
        kinds = [task.kind for task in dataset.features.schema.tasks]
        mixed_N = _mixed(shown, np.array(kinds) == "binary")
        if shown.grouped_by != BY_DAY or not mixed_N.any():
            return None
        part = Excerpt(dataset, request_of(dataset, shown.rows_N[mixed_N]))
        group_N = shown.group_N[mixed_N]
        return cls(frozen(part, group_N), part.every_row(), group_N)

    def judge(self, score: Callable[[Dataset, Ints], Scores]) -> list[dict[str, Any] | None]:
        """GAUC of each task by a model's scores; None for a value task.

        Args:
            score: from a log and rows of it to [N, K].
        """
        predicted, labels = score(self.part, self.rows_N), self.part.labels_NK[self.rows_N]
        found: list[dict[str, Any] | None] = []
        for k, task in enumerate(self.part.features.schema.tasks):
            if task.kind != "binary":
                found.append(None)
                continue
            grouped = metrics.gauc(predicted[:, k], labels[:, k], self.group_N)
            found.append(
                {"estimate": grouped.value, "groups": grouped.groups, "rows": grouped.rows}
            )
        return found


def frozen(part: Excerpt, group_R: Ints) -> Excerpt:
    """The same requests with what is known of the user as it was when the request's group began.

    A counter of the user and something else is that of the group's first impression with the same
    thing: nothing of the group has gone into it by then. All else stays.

    Args:
        part: requests of one impression each, in time order.
        group_R: the group of each request.
    """
    first_R = _first_of(group_R)
    counters = part.counters_NC.copy()
    rows_N = np.arange(len(part))
    for spec, columns in counter_columns(part.features.schema):
        if USER_ID not in spec.columns:
            continue
        others = [key_codes(part, rows_N, name) for name in spec.columns if name != USER_ID]
        counters[:, columns] = part.counters_NC[_first_of(group_R, *others), columns]
    return part.changed(
        histories=tuple(past.take(first_R) for past in part.histories),
        counters_NC=counters,
        as_of_R=part.as_of_R[first_R],
    )


def _first_of(*keys: npt.NDArray[np.integer[Any]]) -> Ints:
    """For each place, the first place with the same keys."""
    _, first, place = np.unique(
        np.stack(keys, axis=1), axis=0, return_index=True, return_inverse=True
    )
    firsts: Ints = first[place.reshape(-1)]
    return firsts


def _mixed(shown: Impressions, binary_K: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which impressions are in a group that holds positives and others of a binary task, [N]."""
    groups, place_N = np.unique(shown.group_N, return_inverse=True)
    size_G = np.bincount(place_N)
    mixed_G = np.zeros(len(groups), bool)
    for label_N in shown.labels_NK[:, binary_K].T:
        positive_G = np.bincount(place_N, label_N > 0)
        mixed_G |= (positive_G > 0) & (positive_G < size_G)
    mixed: npt.NDArray[np.bool_] = mixed_G[place_N]
    return mixed
