"""Drawing at random: a column of a table, an item of a group, a stable hash."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]


def pick(table_XY: Floats, row_B: Ints, rng: np.random.Generator) -> Ints:
    """A column for each row index, drawn with the probabilities of that row of the table."""
    width = table_XY.shape[1]
    cumulative_XY = np.cumsum(table_XY, axis=1)
    cumulative_XY /= cumulative_XY[:, -1:]
    ladder = (cumulative_XY + np.arange(len(table_XY))[:, None]).ravel()
    # Below 1, so that rounding never climbs into the next row.
    chance_B = rng.random(len(row_B)) * (1.0 - 1e-9)
    picked: Ints = np.searchsorted(ladder, row_B + chance_B, side="right") - row_B * width
    return picked


class Groups:
    """Items by group, to draw an item within a group in proportion to weights that change."""

    def __init__(self, group_N: Ints, n_groups: int) -> None:
        """Sort the items by group, once."""
        self._order = np.argsort(group_N, kind="stable")
        self._edges = np.searchsorted(group_N[self._order], np.arange(n_groups + 1))

    def mass(self, weight_N: Floats) -> Floats:
        """Sum of the weights in each group."""
        padded = np.append(weight_N[self._order], 0.0)
        summed = np.add.reduceat(padded, self._edges[:-1])
        result: Floats = np.where(np.diff(self._edges) > 0, summed, 0.0)
        return result

    def draw(self, weight_N: Floats, group_B: Ints, rng: np.random.Generator) -> Ints:
        """An item for each group index."""
        cumulative = np.concatenate([[0.0], np.cumsum(weight_N[self._order])])
        low = cumulative[self._edges[group_B]]
        high = cumulative[self._edges[group_B + 1]]
        goal = low + (high - low) * rng.random(len(group_B)) * (1.0 - 1e-9)
        drawn: Ints = self._order[np.searchsorted(cumulative[1:], goal, side="right")]
        return drawn


def stable_hash(values: Ints, salt: int) -> npt.NDArray[np.uint64]:
    """A stable 64-bit mix of integers (splitmix64: Steele, Lea and Flood, OOPSLA 2014)."""
    x = values.astype(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
