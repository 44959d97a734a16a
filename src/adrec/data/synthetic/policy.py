"""The logging policy: slates at random, with known propensities."""

from copy import copy

import numpy as np

from adrec.data.synthetic.columns import REACHES_DL, TARGETS
from adrec.data.synthetic.drawing import Bools, Floats, Groups, Ints, pick, stable_hash
from adrec.data.synthetic.laws import Laws
from adrec.errors import ConfigError


class LoggingPolicy:
    """Fills slates at random, with known propensities, from what is observable.

    Ads are hashed into S slot groups. A request draws a rotation r; position s draws from group
    (s + r) mod S, so a slate has no ad twice. Within the group a stratum (category, target) is
    drawn from `exploration · uniform + (1 − exploration) · preference of the segment`, the latter
    shared between a category's targets by weight; then an ad, in proportion to its weight. Only
    eligible ads and strata that have one take part. As r is uniform, the propensity of an ad at any
    position is the probability of its draw within its group, divided by S.
    """

    def __init__(
        self,
        *,
        preference_RC: Floats,
        category_N: Ints,
        target_N: Ints,
        weight_N: Floats,
        slate_size: int,
        exploration: float,
    ) -> None:
        """All ads are eligible until `refresh`.

        Args:
            preference_RC: Preference of segments over categories; rows sum to one.
            category_N: Category of each ad.
            target_N: Index into `TARGETS` of each ad.
            weight_N: Weight of each ad within its stratum, above zero.
            slate_size: S.
            exploration: Share of draws with a uniform stratum, above zero.
        """
        self._preference_RC = preference_RC
        self.weight_N = weight_N
        self._exploration = exploration
        self._shape_GCL = (slate_size, preference_RC.shape[1], len(TARGETS))
        group_N = stable_hash(np.arange(len(weight_N)), salt=1) % slate_size
        cell = (group_N.astype(np.int64), category_N, target_N)
        self._stratum_N = np.ravel_multi_index(cell, self._shape_GCL)
        self._strata = Groups(self._stratum_N, int(np.prod(self._shape_GCL)))
        self.refresh(np.ones(len(weight_N), dtype=bool))

    def with_weights(self, weight_N: Floats) -> "LoggingPolicy":
        """The same policy with other weights, from its next `refresh` on."""
        other = copy(self)
        other.weight_N = weight_N
        return other

    def refresh(self, eligible_N: Bools) -> None:
        """Set which ads may be shown, all devices considered.

        Raises:
            ConfigError: A slot group has no ad for some device.
        """
        self._live_N = self.weight_N * eligible_N
        self._mass_X = self._strata.mass(self._live_N)
        mass_DGCL = self._mass_X.reshape(self._shape_GCL) * REACHES_DL[:, None, None, :]
        some_DGCL = mass_DGCL > 0.0
        count_DG = some_DGCL.sum(axis=(2, 3))
        if (count_DG == 0).any():
            raise ConfigError("n_ads or budget_ratio is too small: no ad is left for a position")
        mass_DGC = mass_DGCL.sum(axis=3)
        within_DGCL = mass_DGCL / np.maximum(mass_DGC, 1e-300)[..., None]
        wanted_RDGC = self._preference_RC[:, None, None, :] * (mass_DGC > 0.0)
        total_RDG = wanted_RDGC.sum(axis=3, keepdims=True)
        uniform_DGCL = some_DGCL / count_DG[..., None, None]
        # A segment whose preferred categories are all exhausted falls back on the uniform draw.
        preferred = np.where(
            total_RDG[..., None] > 0.0,
            (wanted_RDGC / np.maximum(total_RDG, 1e-300))[..., None] * within_DGCL,
            uniform_DGCL,
        )
        mixed = self._exploration * uniform_DGCL + (1.0 - self._exploration) * preferred
        self._stratum_RDGX = mixed.reshape(*mixed.shape[:3], -1)

    def propensity(self, segment_B: Ints, device_B: Ints, ad_B: Ints) -> Floats:
        """Exact probability of each ad at any one position; 0 where it is not eligible."""
        group, within = np.divmod(self._stratum_N[ad_B], np.prod(self._shape_GCL[1:]))
        mass_B = self._mass_X[self._stratum_N[ad_B]]
        share_B = self._live_N[ad_B] / np.where(mass_B > 0.0, mass_B, 1.0)
        p_B: Floats = self._stratum_RDGX[segment_B, device_B, group, within] * share_B
        return p_B / self._shape_GCL[0]

    def draw(self, segment_Q: Ints, device_Q: Ints, rng: np.random.Generator) -> Ints:
        """Slates of ads for Q requests, [Q, S]."""
        S = self._shape_GCL[0]
        group_QS = (np.arange(S) + rng.integers(S, size=len(segment_Q))[:, None]) % S
        table = self._stratum_RDGX
        row_QS = np.ravel_multi_index(
            (segment_Q[:, None], device_Q[:, None], group_QS), table.shape[:3]
        )
        within = pick(table.reshape(-1, table.shape[3]), row_QS.ravel(), rng)
        stratum = group_QS.ravel() * table.shape[3] + within
        return self._strata.draw(self._live_N, stratum, rng).reshape(-1, S)


def preferences(laws: Laws, category_T: Ints, strong_KT: Bools, n_categories: int) -> Floats:
    """The policy's preference of each segment over categories [R, C]; rows sum to one.

    ∝ Σ_taste P(taste | segment) · (strong topics in the category)³, what a policy that learns from
    clicks by segment would come to.
    """
    strong_KC = np.zeros((len(strong_KT), n_categories))
    np.add.at(strong_KC.T, category_T, strong_KT.T.astype(np.float64))
    wanted_RC = laws.prior_RK @ strong_KC**3
    preference_RC: Floats = wanted_RC / wanted_RC.sum(axis=1, keepdims=True)
    return preference_RC
