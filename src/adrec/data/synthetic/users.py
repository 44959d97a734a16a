"""Users: what may be observed of them, and tastes that drift."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from adrec.data.synthetic.columns import AGES, GENDERS, SPENDING, names
from adrec.data.synthetic.config import WorldConfig
from adrec.data.synthetic.drawing import Bools, Ints, pick
from adrec.data.synthetic.laws import Laws


@dataclass(frozen=True, kw_only=True)
class Users:
    """The users as arrays; spending is `len(SPENDING)` where unknown."""

    segment_U: Ints
    age_U: Ints
    gender_U: Ints
    region_U: Ints
    spending_U: Ints
    new_U: Bools
    taste_UD: Ints
    """Taste on each day, from `history_days` before the log to its end: hidden."""

    @classmethod
    def draw(cls, config: WorldConfig, laws: Laws, rng: np.random.Generator) -> "Users":
        """Age, gender and spending power go with the segment, the region with nothing."""
        U, R = config.n_users, config.n_segments
        segment_U = rng.integers(R, size=U)
        age_RA = rng.dirichlet(np.full(len(AGES), 4.0), R)
        gender_RG = rng.dirichlet(np.array([12.0, 12.0, 1.0]), R)
        spending_RX = rng.dirichlet(np.full(len(SPENDING), 6.0), R)
        new_U = np.zeros(U, dtype=bool)
        new_U[rng.permutation(U)[: round(config.new_user_share * U)]] = True
        missing_U = rng.random(U) < config.missing_share
        return cls(
            segment_U=segment_U,
            age_U=pick(age_RA, segment_U, rng),
            gender_U=pick(gender_RG, segment_U, rng),
            region_U=rng.integers(config.n_regions, size=U),
            spending_U=np.where(missing_U, len(SPENDING), pick(spending_RX, segment_U, rng)),
            new_U=new_U,
            taste_UD=_taste_paths(config, laws, segment_U, rng),
        )

    def table(self, config: WorldConfig) -> pl.DataFrame:
        """What may be observed of the users, histories aside."""
        spending = pl.Series([*SPENDING, None], dtype=pl.String)
        return pl.DataFrame({
            "user_id": np.arange(len(self.segment_U)),
            "segment": names("segment", config.n_segments).gather(self.segment_U),
            "age": pl.Series(AGES).gather(self.age_U),
            "gender": pl.Series(GENDERS).gather(self.gender_U),
            "region": names("region", config.n_regions).gather(self.region_U),
            "spending": spending.gather(self.spending_U),
        })  # fmt: skip


def _taste_paths(
    config: WorldConfig, laws: Laws, segment_U: Ints, rng: np.random.Generator
) -> Ints:
    """The hidden Markov chain of each user's taste, day by day [U, D]."""
    taste_U = pick(laws.prior_RK, segment_U, rng)
    days = [taste_U]
    for _ in range(config.history_days + config.days - 1):
        jumps_U = rng.random(len(segment_U)) < config.taste_jump
        taste_U = np.where(jumps_U, pick(laws.prior_RK, segment_U, rng), taste_U)
        days.append(taste_U)
    return np.stack(days, axis=1)
