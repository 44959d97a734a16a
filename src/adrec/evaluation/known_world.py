"""What is known of a log that is a synthetic world's, in the log's own numbers.

Of its impressions the world's folder tells (`known_scores`); of pairs that were never shown the
world itself, drawn again (`KnownWorld`).

Shapes: Q requests, B pairs of a request and an ad, K ads a request.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adrec.data.synthetic import WorldTruth, read_truth
from adrec.errors import DataError
from adrec.evaluation.judged import Scores
from adrec.evaluation.retrieval_queries import Ints, Queries
from adrec.features.dataset import Dataset
from adrec.progress import Progress

WORLD_TASKS = ("click", "engagement", "revenue")
"""What is known of each impression of a world, in this order."""


class KnownWorld:
    """What is true of any ad of the catalogue in any request of the log, shown or not."""

    def __init__(self, dataset: Dataset, truth: WorldTruth) -> None:
        """Line a world up with a log.

        Raises:
            DataError: the log is not this world's.
        """
        times_ms = truth.request_times_ms[: len(dataset)]
        if not np.array_equal(times_ms, dataset.time_ms_R):
            raise DataError(
                f"{dataset.directory} was not prepared from the world that stands where its log "
                "was: the world was made anew; run `adrec train` on it again"
            )
        self._truth = truth
        self._id_A = np.array([-1, *map(int, dataset.catalogue.directory.ids)])
        self._row_of = np.zeros(self._id_A.max() + 2, np.int64)
        """Row of each id; its last place is of -1, no ad."""
        self._row_of[self._id_A] = np.arange(len(self._id_A))
        self._row_of[-1] = -1

    def true(self, requests_B: NDArray[np.int64], ads_B: NDArray[np.int64]) -> Scores:
        """Probabilities and expected revenue on top of the slate, by task [B, 3]."""
        return self._truth.true(requests_B, self._id_A[ads_B])

    def best(self, requests_B: NDArray[np.int64], ads_B: NDArray[np.int64]) -> Scores:
        """The ideal observer's forecast of the same, as of the test period's start [B, 3]."""
        return self._truth.best(requests_B, self._id_A[ads_B])

    def rank(self, asked: Queries, k: int) -> Ints:
        """The ideal observer's ads for each query, best first [Q, k]; -1 where there are fewer."""
        offsets, ads = asked.seen
        seen = [self._id_A[ads[low:high]] for low, high in pairwise(offsets.tolist())]
        found: Ints = self._row_of[self._truth.rank(asked.requests_Q, seen, k)]
        return found


def known_scores(folder: Path, dataset: Dataset, rows: int | None) -> dict[str, Scores]:
    """What is known of each impression of the log [N, 3], by name.

    Args:
        folder: of the world.
        dataset: its log, prepared.
        rows: how many impressions of the log were read; None: all.

    Raises:
        DataError: the truth is of a log of another length.
    """
    truth = {name: scores_NK[:rows] for name, scores_NK in read_truth(folder).items()}
    for scores_NK in truth.values():
        if len(scores_NK) != len(dataset.ad_N):
            raise DataError(
                f"{folder / 'truth.parquet'} has {len(scores_NK):,} rows, the prepared log "
                f"{len(dataset.ad_N):,}: the world was made anew; run `adrec train` on it again"
            )
    return truth


def known_world(folder: Path, dataset: Dataset, progress: Progress) -> KnownWorld | None:
    """The world as of the start of the test period; says so and is None if it cannot be drawn.

    Raises:
        DataError: the log is not that world's.
    """
    try:
        truth = WorldTruth.read(folder, dataset.split.test_from_ms)
    except DataError as error:
        progress.say(f"{error}; without it, retrieval has no best possible")
        return None
    if truth is None:
        progress.say(f"{folder} has no world.json: retrieval has no best possible")
        return None
    return KnownWorld(dataset, truth)
