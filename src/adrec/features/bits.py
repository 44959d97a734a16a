"""Outcome bits: what came of an impression, a bit a task, and from when on each bit is known.

Bit k is set where task k came out above 0. Only the first 8 tasks have a bit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_TASKS = 8
"""Tasks that have a bit, at most."""
UNKNOWN_MS = -1
"""Time of an item whose time the log does not tell."""


def outcome_bits(labels_NK: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Bits of N impressions, [N], from their outcomes [N, K]."""
    weights = 1 << np.arange(min(labels_NK.shape[1], MOST_TASKS))
    bits: NDArray[np.int64] = (labels_NK[:, : len(weights)] > 0) @ weights
    return bits.astype(np.uint8)


def known_bits(
    bits: NDArray[np.uint8],
    times_ms: NDArray[np.int64],
    at_ms: NDArray[np.int64],
    delays_ms: Sequence[int],
) -> NDArray[np.uint8]:
    """The bits that are known at an instant: bit k where time + delay k lies strictly before it.

    Items of unknown time are from before the log: their bits are known.

    Args:
        bits: of the items, any shape.
        times_ms: when each item was shown, in the same shape.
        at_ms: the instant, in a shape that fits.
        delays_ms: delay of each task, [K].
    """
    age_ms = np.where(times_ms == UNKNOWN_MS, np.iinfo(np.int64).max, at_ms - times_ms)
    known = np.zeros(bits.shape, np.uint8)
    for k, delay_ms in enumerate(delays_ms[:MOST_TASKS]):
        known |= (age_ms > delay_ms).astype(np.uint8) << np.uint8(k)
    return bits & known


def known_first(bits: NDArray[np.uint8], delays_ms: Sequence[int]) -> NDArray[np.uint8]:
    """The same bits in another order: the higher, the sooner known.

    Items that are sorted by it never stand in an order that tells of a bit not yet known.
    """
    delays_ms = delays_ms[:MOST_TASKS]
    moved = np.zeros_like(bits)
    for place, k in enumerate(sorted(range(len(delays_ms)), key=delays_ms.__getitem__)):
        moved |= (bits >> np.uint8(k) & np.uint8(1)) << np.uint8(MOST_TASKS - 1 - place)
    return moved
