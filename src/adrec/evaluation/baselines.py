"""What ranking is compared with: an ad's mean outcome, and boosted trees on everything we know.

Shapes: N impressions, K tasks, F columns.
"""

from importlib.util import find_spec
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field

from adrec.evaluation.impression_table import Floats, ImpressionTable, Ints
from adrec.features.dataset import Dataset
from adrec.features.target_means import Means
from adrec.models.trees import TreesConfig, load_lightgbm
from adrec.progress import Progress
from adrec.training.boosting import boost

_CHUNK_ROWS = 100_000


class RankingRival(Protocol):
    """Something that predicts the outcomes of impressions."""

    @property
    def name(self) -> str:
        """For tables."""

    def fit(self, dataset: Dataset) -> None:
        """Learn from the training period; the validation period may choose when to stop."""

    def score(self, dataset: Dataset, rows_N: Ints) -> Floats:
        """Predictions for impressions, as `Dataset.rows_of` gives them.

        Returns:
            [N, K]: a probability for a binary task, the expected value for a value task.
        """


class Popularity:
    """An ad's smoothed mean outcome in the training period; the overall mean for a new ad.

    (Σ y + s p) / (n + s), with n impressions of the ad, p the mean over all, s = 20.
    """

    name = "popularity"

    def __init__(self, *, refit: bool = False) -> None:
        """Choose whether to average the validation period, too."""
        self._refit = refit

    def fit(self, dataset: Dataset) -> None:
        """Average the training period."""
        known = dataset.through_validation() if self._refit else dataset
        rows = dataset.rows_of(known.requests("train"))
        labels_NK = dataset.labels_NK[rows].astype(np.float64)
        self._means = Means.of(dataset.ad_N[rows], labels_NK, labels_NK.mean(axis=0))

    def score(self, dataset: Dataset, rows_N: Ints) -> Floats:
        """The ad's means; see `RankingRival`."""
        return self._means.read(dataset.ad_N[rows_N])[:, 1:]


class LightGBMConfig(TreesConfig):
    """How the trees are grown, and on what."""

    rounds: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], ...] = 2000
    """Trees a task at most."""
    learning_rate: float = Field(default=0.04, gt=0.0)
    """Weight of each tree."""
    counters: bool = True
    """Whether counters and what the user did lately are columns, beside fields and histories."""
    refit: bool = False
    """Whether as many trees as were best are then grown on the training and validation periods."""


class LightGBM:
    """Gradient-boosted trees (Ke et al. 2017), one model a task, stopped by the validation period.

    A categorical field, large or small, becomes its training count and mean outcomes (of the other
    folds, for a training row). LightGBM's own splits on codes overfit: on KuaiRand the click AUC
    fell from .752 to .747 when fields of up to 1,000 codes were given as they are as well.
    """

    def __init__(self, config: LightGBMConfig | None = None) -> None:
        """Choose how to grow.

        Raises:
            ConfigError: LightGBM is not installed.
        """
        self._config = config or LightGBMConfig()
        load_lightgbm()

    @property
    def name(self) -> str:
        """`LightGBM`, and what it lacks."""
        return "LightGBM" if self._config.counters else "LightGBM without counters"

    def fit(self, dataset: Dataset) -> None:
        """Grow the trees."""
        train = dataset.rows_of(dataset.requests("train"))
        valid = dataset.rows_of(dataset.requests("valid"))
        rounds = self._grow(self._config, dataset, train, valid)
        if self._config.refit:
            fixed = self._config.model_copy(update={"rounds": rounds})
            self._grow(fixed, dataset, np.concatenate([train, valid]), valid[:0])

    def _grow(
        self, config: LightGBMConfig, dataset: Dataset, train: Ints, valid: Ints
    ) -> tuple[int, ...]:
        """Learn from rows, stopped by others if there are any; the number of trees of each task."""
        train = train[-config.max_rows :]
        rng = np.random.default_rng(config.seed)
        fold_N = rng.integers(0, config.folds, len(train))
        counters = config.counters
        self._table, train_NF = ImpressionTable.fit(dataset, train, fold_N, counters=counters)
        held_out = None
        if len(valid):
            valid = valid[-config.max_rows :]
            held_out = self._table.read(dataset, valid), dataset.labels_NK[valid]
        self._models, self._scales = boost(
            config,
            dataset.features.schema.tasks,
            (train_NF, dataset.labels_NK[train]),
            held_out,
            progress=Progress(),
        )
        return tuple(model.current_iteration() for model in self._models)

    def score(self, dataset: Dataset, rows_N: Ints) -> Floats:
        """What the trees say; see `RankingRival`."""
        scores_NK = np.zeros((len(rows_N), len(self._models)))
        for start in range(0, len(rows_N), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            table_NF = self._table.read(dataset, rows_N[part])
            for k, (model, scale) in enumerate(zip(self._models, self._scales, strict=True)):
                predicted_N = model.predict(table_NF, num_threads=torch.get_num_threads())
                scores_NK[part, k] = scale * predicted_N
        return scores_NK


def ranking_rivals(*, refit: bool = False) -> tuple[RankingRival, ...]:
    """All that this machine has, not fitted yet: LightGBM where it is installed, refitted through
    the validation period where our models are."""
    if find_spec("lightgbm") is None:
        return (Popularity(refit=refit),)
    return Popularity(refit=refit), LightGBM(LightGBMConfig(refit=refit))
