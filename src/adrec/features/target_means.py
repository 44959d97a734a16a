"""Target means: how often a value of a field occurred in training, and what came of it on average.

Shapes: N rows, K tasks, V values of the field.
"""

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
