"""Target means: how often a value of a field occurred in training, and what came of it on average.

Shapes: N rows, K tasks, V values of the field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adrec.features.counters import SMOOTHING

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Means:
    """Count and smoothed mean outcomes of each value of a field, [V + 1, 1 + K].

    The mean of n impressions is (Σ y + s p) / (n + s). The last row is a value never seen.
    """

    table: Floats

    @classmethod
    def of(cls, code_N: npt.NDArray[Any], outcome_NK: Floats, prior_K: Floats) -> "Means":
        count_V = np.append(np.bincount(code_N), 0).astype(np.float64)
        columns = [count_V]
        for outcome_N, prior in zip(outcome_NK.T, prior_K, strict=True):
            sum_V = np.bincount(code_N, outcome_N, minlength=len(count_V))
            columns.append((sum_V + SMOOTHING * prior) / (count_V + SMOOTHING))
        return cls(np.stack(columns, axis=1))

    def read(self, code_N: npt.NDArray[Any]) -> Floats:
        """[N, 1 + K] of each row's value."""
        means: Floats = self.table[np.minimum(code_N, len(self.table) - 1)]
        return means


def out_of_fold(
    codes_FN: Sequence[npt.NDArray[Any]], outcome_NK: Floats, fold_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """What `Means` say of training rows when each row's own fold is left out, [N, F (1 + K)].

    With its own label in its features, a row would teach that the label can be read off them.

    Args:
        codes_FN: code of each of F fields.
        outcome_NK: what is averaged.
        fold_N: fold of each row, from 0.
    """
    width, folds = 1 + outcome_NK.shape[1], int(fold_N.max()) + 1
    prior_K = outcome_NK.mean(axis=0)
    table_NX = np.empty((len(fold_N), len(codes_FN) * width), np.float32)
    for fold in range(folds):
        own = fold_N == fold
        for i, code_N in enumerate(codes_FN):
            others = Means.of(code_N[~own], outcome_NK[~own], prior_K).read(code_N[own])
            others[:, 0] *= folds / (folds - 1)  # counts as large as all folds'
            table_NX[own, i * width : (i + 1) * width] = others
    return table_NX
