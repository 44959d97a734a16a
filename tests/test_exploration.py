"""Epsilon-greedy exploration: what is shown, and its propensity."""

from itertools import permutations

import numpy as np
import pytest

from adrec.exploration import EpsilonGreedy

NONE = -np.inf


def test_without_exploration_the_best_are_shown():
    policy = EpsilonGreedy(0.0, np.random.default_rng(0))
    place_BK, share_BK = policy.choose(np.array([[1.0, 3.0, NONE, 2.0], [0.0, NONE, NONE, 5.0]]), 2)
    assert place_BK.tolist() == [[1, 3], [3, 0]]
    assert share_BK.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_propensities_by_hand():
    """Of 4 that may be shown, with epsilon .4: each place has .1 for any, and .6 for the best."""
    policy, seen = EpsilonGreedy(0.4, np.random.default_rng(0)), {}
    order_BN = np.array([[4.0, 1.0, 3.0, NONE, 2.0]])
    for _ in range(300):
        place_BK, share_BK = policy.choose(order_BN, 2)
        seen[tuple(place_BK[0].tolist())] = tuple(share_BK[0].round(9).tolist())
    assert set(seen) == set(permutations([0, 1, 2, 4], 2))
    assert seen[0, 2] == (0.7, 0.7)
    assert seen[0, 4] == (0.7, 0.1)
    assert seen[2, 0] == (0.1, 0.1)


def test_propensities_are_the_shares_with_which_ads_are_shown():
    policy = EpsilonGreedy(0.5, np.random.default_rng(1))
    order_BN = np.tile(np.array([3.0, 2.0, 1.0, 0.0]), (20_000, 1))
    place_BK, share_BK = policy.choose(order_BN, 3)
    for j in range(3):
        for ad in range(4):
            here = place_BK[:, j] == ad
            # five standard deviations of a share of 20,000 draws are below .018
            assert here.mean() == pytest.approx(share_BK[here, j][0], abs=0.018)


def test_fewer_than_places():
    policy = EpsilonGreedy(1.0, np.random.default_rng(0))
    place_BK, share_BK = policy.choose(np.array([[NONE, 1.0, NONE], [NONE, NONE, NONE]]), 2)
    assert place_BK[0, 0] == 1
    assert share_BK[0, 0] == 1.0
    assert place_BK.shape == (2, 2)
