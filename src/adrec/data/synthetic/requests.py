"""Requests: who asks when, where and on which device."""

from dataclasses import dataclass

import numpy as np

from adrec.data.synthetic.columns import DEVICE_PRIOR, PLACES
from adrec.data.synthetic.config import HOUR_MS, WorldConfig
from adrec.data.synthetic.drawing import Bools, Ints, pick
from adrec.data.synthetic.users import Users


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Requests in time order, no two at the same millisecond."""

    user_Q: Ints
    time_ms_Q: Ints
    tick_Q: Ints
    """Hours from the log's start."""
    device_Q: Ints
    place_Q: Ints

    @classmethod
    def draw(cls, config: WorldConfig, users: Users, rng: np.random.Generator) -> "Requests":
        """Devices by user, places alike for all."""
        key = _schedule(config, users.new_U, rng)
        tick, user = key // config.n_users, key % config.n_users
        time_ms = tick * HOUR_MS + rng.integers(HOUR_MS - 60_000, size=len(key))
        order = np.argsort(time_ms, kind="stable")
        steps = np.arange(len(key))
        time_ms = np.maximum.accumulate(time_ms[order] - steps) + steps
        user = user[order]
        device_UD = rng.dirichlet(DEVICE_PRIOR, config.n_users)
        place_P = rng.dirichlet(np.full(len(PLACES), 5.0))
        return cls(
            user_Q=user,
            time_ms_Q=config.start_ms + time_ms,
            tick_Q=tick[order],
            device_Q=pick(device_UD, user, rng),
            place_Q=rng.choice(len(PLACES), len(key), p=place_P),
        )


def _schedule(config: WorldConfig, new_U: Bools, rng: np.random.Generator) -> Ints:
    """Who asks when, as `tick * n_users + user` [Q], all different.

    Everyone has one request (new users on the last day, others before it); further ones go to users
    in proportion to their activity and to hours along a diurnal curve.
    """
    U, last = config.n_users, config.days - 1
    diurnal_H = 1.0 + 0.6 * np.cos((np.arange(24) - 20) * (2 * np.pi / 24))
    diurnal_H /= diurnal_H.sum()

    def hours(n: int) -> Ints:
        return rng.choice(24, n, p=diurnal_H)

    first_day_U = np.where(new_U, last, rng.integers(last, size=U))
    keys = (first_day_U * 24 + hours(U)) * U + np.arange(U)
    order = np.argsort(new_U, kind="stable")
    activity = np.cumsum(np.exp(rng.normal(0.0, config.activity_spread, U))[order])
    old_total = activity[int((~new_U).sum()) - 1]
    while len(keys) < config.n_requests:
        n = config.n_requests - len(keys)
        day = rng.integers(config.days, size=n)
        total = np.where(day == last, activity[-1], old_total)
        user = order[np.searchsorted(activity, rng.random(n) * total, side="right")]
        more = np.unique((day * 24 + hours(n)) * U + user)
        keys = np.concatenate([keys, np.setdiff1d(more, keys, assume_unique=True)])
    return keys
