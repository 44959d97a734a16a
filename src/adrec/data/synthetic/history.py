"""Histories: ads that users met before the log, which show their tastes."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from adrec.data.synthetic.ads import Ads
from adrec.data.synthetic.columns import lists
from adrec.data.synthetic.config import DAY_MS, WorldConfig
from adrec.data.synthetic.drawing import Floats, Groups, Ints, pick
from adrec.data.synthetic.laws import Laws
from adrec.data.synthetic.oracle import IdealObserver
from adrec.data.synthetic.users import Users
from adrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class History:
    """Past ads of all users, one after the other; user u's are `offset_U[u]:offset_U[u + 1]`."""

    offset_U: Ints
    ad_E: Ints
    time_ms_E: Ints

    @classmethod
    def draw(
        cls, config: WorldConfig, laws: Laws, ads: Ads, users: Users, rng: np.random.Generator
    ) -> "History":
        """Ads that ran before the log, drawn by the taste of the day."""
        U = config.n_users
        length_U = np.where(
            users.new_U,
            rng.integers(0, config.new_history_max + 1, size=U),
            rng.integers(config.history_min, config.history_max + 1, size=U),
        )
        user_E = np.repeat(np.arange(U), length_U)
        ago_ms_E = rng.integers(1, config.history_days * DAY_MS + 1, size=len(user_E))
        order = np.lexsort((-ago_ms_E, user_E))
        ago_ms_E = ago_ms_E[order]
        day_E = config.history_days - 1 - (ago_ms_E - 1) // DAY_MS
        taste_E = users.taste_UD[user_E, day_E]
        ran_N = (ads.start_day_N < 0) * ads.weight_N
        topic_E = pick(laws.history_KT, taste_E, rng)
        return cls(
            offset_U=np.concatenate([[0], np.cumsum(length_U)]),
            ad_E=Groups(ads.topic_N, config.n_topics).draw(ran_N, topic_E, rng),
            time_ms_E=config.start_ms - ago_ms_E,
        )

    def table(self) -> pl.DataFrame:
        """Ads and times of each user, oldest first."""
        return pl.DataFrame({
            "history": lists(self.ad_E, self.offset_U),
            "history_times_ms": lists(self.time_ms_E, self.offset_U),
        })  # fmt: skip

    def show(self, observer: IdealObserver, config: WorldConfig, ads: Ads) -> None:
        """Let the observer read every history."""
        length_U = np.diff(self.offset_U)
        column = np.arange(length_U.max(initial=0))
        index_UH = np.minimum(self.offset_U[:-1, None] + column, max(len(self.ad_E) - 1, 0))
        day_E = (self.time_ms_E - config.start_ms) // DAY_MS
        observer.read_histories(
            ads.topic_N[self.ad_E[index_UH]], day_E[index_UH], length_U, -config.history_days
        )


def history_topics(config: WorldConfig, laws: Laws, ads: Ads) -> Floats:
    """P(topic of a past ad | taste) [K, T], over the topics with an ad that ran before the log.

    Raises:
        ConfigError: No ad ran before the log.
    """
    ran_T = np.bincount(ads.topic_N[ads.start_day_N < 0], minlength=config.n_topics) > 0
    if not ran_T.any():
        raise ConfigError("n_ads is too small: no ad ran before the log, so histories are empty")
    weight_KT = np.exp(config.history_sharpness * laws.click_affinity_KT) * ran_T
    topic_KT: Floats = weight_KT / weight_KT.sum(axis=1, keepdims=True)
    return topic_KT
