"""Exploration: which candidates are shown, and with what probability.

A log of what the best model chose tells nothing of what others would. Now and then a slate is drawn
at random; the probability with which each ad stood in its place makes the log worth learning and
judging from (Bottou et al. 2013).

Shapes: B requests, N candidates, K places.
"""

import threading

import numpy as np
from numpy.typing import NDArray


class EpsilonGreedy:
    """The best K of each request, but with probability epsilon K drawn evenly, in any order.

    Ad a stands in place j with probability (1 - epsilon) [a is the j-th best] + epsilon / M, where
    M is the number of candidates that may be shown. Safe to use from many threads.
    """

    def __init__(self, epsilon: float, rng: np.random.Generator) -> None:
        self._epsilon, self._rng, self._lock = epsilon, rng, threading.Lock()

    def choose(
        self, order_BN: NDArray[np.float64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Candidates to show, and the propensity of each.

        Args:
            order_BN: what they are ranked by; -inf for those that may not be shown.
            k: places of a slate.

        Returns:
            Places among the candidates and propensities, [B, min(K, N)], of the first place first.
            Where fewer may be shown, those that may not come last.
        """
        place_BK = np.argsort(-order_BN, axis=1, kind="stable")[:, :k]
        share_BK = np.ones(place_BK.shape)
        if self._epsilon == 0.0:
            return place_BK, share_BK
        greedy_BK = place_BK.copy()
        for b, order_N in enumerate(order_BN):
            may_M = np.flatnonzero(np.isfinite(order_N))
            shown = min(place_BK.shape[1], len(may_M))
            if shown == 0:
                continue
            with self._lock:
                if self._rng.random() < self._epsilon:
                    place_BK[b, :shown] = self._rng.choice(may_M, shown, replace=False)
            as_greedy = place_BK[b] == greedy_BK[b]
            share_BK[b] = (1.0 - self._epsilon) * as_greedy + self._epsilon / len(may_M)
        return place_BK, share_BK
