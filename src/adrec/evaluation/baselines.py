"""What ranking is compared with: an ad's mean outcome, and boosted trees on everything we know.

Shapes: N impressions, K tasks, F columns.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from adrec.errors import ConfigError
from adrec.evaluation.impression_table import Floats, ImpressionTable, Ints, Means
from adrec.features.dataset import Dataset
from adrec.schema import Strict

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


class LightGBMConfig(Strict):
    """How the trees are grown."""

    threads: int = Field(default=1, ge=1)
    """CPU threads."""
    max_rows: int = Field(default=500_000, ge=1)
    """Training impressions at most: the most recent ones. 250 columns of them take 1 GB."""
    rounds: int = Field(default=2000, ge=1)
    """Trees a task at most."""
    patience: int = Field(default=60, ge=1)
    """Trees without a better validation loss after which growing stops; the best count is kept."""
    learning_rate: float = Field(default=0.04, gt=0.0)
    """Weight of each tree."""
    leaves: int = Field(default=31, ge=2)
    """Leaves of a tree."""
    min_leaf: int = Field(default=100, ge=1)
    """Training impressions a leaf."""
    counters: bool = True
    """Whether counters and what the user did lately are columns, beside fields and histories."""
    refit: bool = False
    """Whether as many trees as were best are then grown on the training and validation periods."""
    folds: int = Field(default=5, ge=2)
    """Training rows get the mean outcomes of the other folds, or they would see their own label."""
    seed: int = 0
    """Of folds, and of the columns and rows that each tree sees."""


class LightGBM:
    """Gradient-boosted trees (Ke et al. 2017), one model a task, stopped by the validation period.

    A categorical field, large or small, becomes its training count and mean outcomes (of the other
    folds, for a training row). LightGBM's own splits on codes overfit: on KuaiRand the click AUC
    fell from .752 to .747 when fields of up to 1,000 codes were given as they are as well.

    A value task gets the Tweedie loss (Jørgensen 1987; compound Poisson-gamma, power 1.5): it has
    a mass at zero and a long tail, as revenue has, and what it fits is the mean itself. Squared
    error on log(1 + value) would fit the mean of the logarithm, whose exponential is too low.
    """

    def __init__(self, config: LightGBMConfig | None = None) -> None:
        """Choose how to grow.

        Raises:
            ConfigError: LightGBM is not installed.
        """
        self._config = config or LightGBMConfig()
        self._lightgbm = _load_lightgbm()

    @property
    def name(self) -> str:
        """`LightGBM`, and what it lacks."""
        return "LightGBM" if self._config.counters else "LightGBM without counters"

    def fit(self, dataset: Dataset) -> None:
        """Grow the trees."""
        train = dataset.rows_of(dataset.requests("train"))
        valid = dataset.rows_of(dataset.requests("valid"))
        tasks = len(dataset.features.schema.tasks)
        rounds = self._grow(dataset, train, valid, [self._config.rounds] * tasks)
        if self._config.refit:
            self._grow(dataset, np.concatenate([train, valid]), valid[:0], rounds)

    def _grow(
        self, dataset: Dataset, train: Ints, valid: Ints, rounds_K: Sequence[int]
    ) -> list[int]:
        """Learn from rows, stopped by others if there are any; the number of trees of each task."""
        train = train[-self._config.max_rows :]
        rng = np.random.default_rng(self._config.seed)
        fold_N = rng.integers(0, self._config.folds, len(train))
        self._table, train_NF = ImpressionTable.fit(
            dataset, train, fold_N, counters=self._config.counters
        )
        settings = self._settings()
        seen = self._lightgbm.Dataset(train_NF, params=settings).construct()
        checked = None
        if len(valid):
            valid_NF = self._table.read(dataset, valid)
            checked = self._lightgbm.Dataset(valid_NF, reference=seen, params=settings).construct()
        self._models, self._scales = [], []
        for k, task in enumerate(dataset.features.schema.tasks):
            train_N = dataset.labels_NK[train, k].astype(float)
            # A mean of 1 keeps the gradients of every currency alike.
            scale = 1.0 if task.kind == "binary" else float(train_N.mean()) or 1.0
            seen.set_label(train_N / scale)
            stops = {}
            if checked is not None:
                checked.set_label(dataset.labels_NK[valid, k].astype(float) / scale)
                stop = self._lightgbm.early_stopping(self._config.patience, verbose=False)
                stops = {"valid_sets": [checked], "callbacks": [stop]}
            objective = "binary" if task.kind == "binary" else "tweedie"
            model = self._lightgbm.train(
                settings | {"objective": objective}, seen, rounds_K[k], **stops
            )
            self._models.append(model)
            self._scales.append(scale)
        return [model.best_iteration or model.num_trees() for model in self._models]

    def score(self, dataset: Dataset, rows_N: Ints) -> Floats:
        """What the trees say; see `RankingRival`."""
        scores_NK = np.zeros((len(rows_N), len(self._models)))
        for start in range(0, len(rows_N), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            table_NF = self._table.read(dataset, rows_N[part])
            for k, (model, scale) in enumerate(zip(self._models, self._scales, strict=True)):
                predicted_N = model.predict(table_NF, num_threads=self._config.threads)
                scores_NK[part, k] = scale * predicted_N
        return scores_NK

    def _settings(self) -> dict[str, Any]:
        config = self._config
        return {
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_leaf,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "num_threads": config.threads,
            "seed": config.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }


def ranking_rivals(threads: int = 1, *, refit: bool = False) -> tuple[RankingRival, ...]:
    """All that this machine has, not fitted yet: LightGBM where it is installed, refitted through
    the validation period where our models are."""
    if find_spec("lightgbm") is None:
        return (Popularity(refit=refit),)
    return Popularity(refit=refit), LightGBM(LightGBMConfig(threads=threads, refit=refit))


def _load_lightgbm() -> Any:
    try:
        return import_module("lightgbm")
    except ImportError as error:
        raise ConfigError(
            "LightGBM is not installed; run `pip install adrec[rivals]`, or leave this rival out"
        ) from error
