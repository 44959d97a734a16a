"""What retrieval is compared with: the most clicked ads, and models of who met what.

All rivals are fitted on the training and validation periods and asked what `queries` asks our own
model.
"""

from importlib.util import find_spec

import numpy as np

from adrec.evaluation.collaborative import EASE_ADS, IALS_PAIRS, Ease, Ials, IalsConfig, ItemKnn
from adrec.evaluation.retrieval_queries import (
    AdLists,
    Ints,
    RetrievalRival,
    before_test,
    most_frequent,
    positives,
    rank_ads,
    user_item_pairs,
)
from adrec.features.dataset import Dataset


class PopularAds:
    """The ads with the most positives of the first task in the training and validation periods."""

    name = "popular ads"

    def fit(self, dataset: Dataset) -> None:
        """Count."""
        _, ads_P = positives(dataset, before_test(dataset))
        self._ads_A = most_frequent(ads_P, len(dataset.catalogue))

    def rank(self, histories: AdLists, k: int) -> Ints:
        """The same order for all; see `RetrievalRival`."""
        order_A = -np.arange(len(self._ads_A), dtype=np.float32)
        return rank_ads(
            self._ads_A, histories, k, lambda part: np.tile(order_A, (part.shape[0], 1))
        )


def retrieval_rivals(dataset: Dataset, threads: int = 1) -> tuple[RetrievalRival, ...]:
    """All that a log and this machine allow, not fitted yet.

    Popular ads; where users met anything, EASE or item kNN; and iALS where it is installed and the
    log has at most `IALS_PAIRS` pairs for it.
    """
    pairs = len(user_item_pairs(dataset)[1])
    if not pairs:
        return (PopularAds(),)
    rivals = PopularAds(), item_to_item(dataset)
    if pairs > IALS_PAIRS or find_spec("implicit") is None:
        return rivals
    return *rivals, Ials(IalsConfig(threads=threads))


def item_to_item(dataset: Dataset) -> Ease | ItemKnn:
    """EASE where it can hold all active ads, else item kNN; not fitted yet."""
    active = len(np.unique(user_item_pairs(dataset)[1]))
    return Ease() if active <= EASE_ADS else ItemKnn()
