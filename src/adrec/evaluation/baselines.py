"""What ranking is compared with: an ad's mean outcome, and boosted trees on everything we know.

The trees get the strongest table that a dataset allows: codes, numbers, counters, position, and by
hand what a sequence model has to learn: how much of the history matches the candidate. All of it is
as old as the dataset's arrays say, strictly before the request.

Shapes: N impressions, K tasks, F columns, V values of a field, L history items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from adrec.errors import ConfigError
from adrec.features.counters import outcomes
from adrec.features.dataset import Dataset
from adrec.features.past import count_strictly_before, order_events
from adrec.schema import Strict

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

_HOUR_MS = 3_600_000
_CHUNK_ROWS = 100_000
_SMOOTHING = 20.0  # impressions' worth of prior in each mean, as in the counters


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

    def fit(self, dataset: Dataset) -> None:
        """Average the training period."""
        rows = dataset.rows_of(dataset.requests("train"))
        labels_NK = dataset.labels_NK[rows].astype(np.float64)
        self._means = _Means.of(dataset.ad_N[rows], labels_NK, labels_NK.mean(axis=0))

    def score(self, dataset: Dataset, rows_N: Ints) -> Floats:
        """The ad's means; see `RankingRival`."""
        return self._means.read(dataset.ad_N[rows_N])[:, 1:]


class LightGBMConfig(Strict):
    """How the trees are grown."""

    threads: int = Field(default=1, ge=1)
    """CPU threads."""
    max_rows: int = Field(default=500_000, ge=1)
    """Training impressions at most: the most recent ones. Bounds memory at about 1 GB."""
    rounds: int = Field(default=2000, ge=1)
    """Trees a task at most."""
    patience: int = Field(default=100, ge=1)
    """Trees without a better validation loss after which growing stops; the best count is kept."""
    learning_rate: float = Field(default=0.03, gt=0.0)
    """Weight of each tree."""
    leaves: int = Field(default=31, ge=2)
    """Leaves of a tree."""
    min_leaf: int = Field(default=100, ge=1)
    """Training impressions a leaf."""
    native_values: int = Field(default=1000, ge=0)
    """Most codes of a field that LightGBM gets as they are; a larger one becomes means and counts
    (out of fold for training rows)."""
    folds: int = Field(default=5, ge=2)
    """Folds of those means."""
    seed: int = 0
    """Of folds, and of the columns and rows that each tree sees."""


class LightGBM:
    """Gradient-boosted trees (Ke et al. 2017), one model a task, stopped by the validation period.

    A value task gets the Tweedie loss (Jørgensen 1987; compound Poisson-gamma, power 1.5): it has
    a mass at zero and a long tail, as revenue has, and what it fits is the mean itself. Squared
    error on log(1 + value) would fit the mean of the logarithm, whose exponential is too low.
    """

    name = "LightGBM"

    def __init__(self, config: LightGBMConfig | None = None) -> None:
        """Choose how to grow.

        Raises:
            ConfigError: LightGBM is not installed.
        """
        self._config = config or LightGBMConfig()
        self._lightgbm = _load_lightgbm()

    def fit(self, dataset: Dataset) -> None:
        """Grow the trees."""
        config = self._config
        train = dataset.rows_of(dataset.requests("train"))[-config.max_rows :]
        valid = dataset.rows_of(dataset.requests("valid"))
        rng = np.random.default_rng(config.seed)
        self._table = _Table(dataset, train, config.native_values)
        fold_N = rng.integers(0, config.folds, len(train))
        sides = (train, self._table.read(dataset, train, fold_N)), (valid, None)
        self._scales, self._models = [], []
        columns = {"feature_name": self._table.names, "categorical_feature": self._table.native}
        train_set, valid_set = (
            self._lightgbm.Dataset(
                self._table.read(dataset, rows) if table is None else table,
                free_raw_data=False,
                **columns,
            )
            for rows, table in sides
        )
        valid_set.set_reference(train_set)
        for k, task in enumerate(dataset.features.schema.tasks):
            labels_NK = dataset.labels_NK[:, k]
            scale = 1.0
            if task.kind == "value":  # a mean of 1 keeps the gradients of every currency alike
                scale = float(labels_NK[train].mean()) or 1.0
            train_set.set_label(labels_NK[train] / scale)
            valid_set.set_label(labels_NK[valid] / scale)
            self._scales.append(scale)
            self._models.append(self._grow(train_set, valid_set, task.kind))

    def score(self, dataset: Dataset, rows_N: Ints) -> Floats:
        """What the trees say; see `RankingRival`."""
        scores_NK = np.zeros((len(rows_N), len(self._models)))
        for start in range(0, len(rows_N), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            table = self._table.read(dataset, rows_N[part])
            for k, (model, scale) in enumerate(zip(self._models, self._scales, strict=True)):
                predicted = model.predict(table, num_threads=self._config.threads)
                scores_NK[part, k] = scale * predicted
        return scores_NK

    def importance(self) -> list[dict[str, float]]:
        """Loss that the splits on each column saved, largest first; one mapping a task."""
        found = []
        for model in self._models:
            gain = model.feature_importance("gain")
            order = np.argsort(-gain, kind="stable")
            found.append({self._table.names[i]: float(gain[i]) for i in order})
        return found

    def _grow(self, train_set: Any, valid_set: Any, kind: str) -> Any:
        config = self._config
        settings = {
            "objective": "binary" if kind == "binary" else "tweedie",
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
        stop = self._lightgbm.early_stopping(config.patience, verbose=False)
        return self._lightgbm.train(
            settings, train_set, config.rounds, valid_sets=[valid_set], callbacks=[stop]
        )


def _load_lightgbm() -> Any:
    try:
        return import_module("lightgbm")
    except ImportError as error:
        raise ConfigError(
            "LightGBM is not installed; run `pip install adrec[rivals]`, or leave this rival out"
        ) from error


@dataclass(frozen=True)
class _Means:
    """Count and smoothed mean outcome of each value of a field: [V + 1, 1 + K], the last unknown."""

    table: Floats

    @classmethod
    def of(cls, code_N: npt.NDArray[Any], outcome_NK: Floats, prior_K: Floats) -> "_Means":
        count_V = np.append(np.bincount(code_N), 0.0)
        size = len(count_V)
        columns = [count_V]
        for outcome_N, prior in zip(outcome_NK.T, prior_K, strict=True):
            sum_V = np.bincount(code_N, outcome_N, minlength=size)
            columns.append((sum_V + _SMOOTHING * prior) / (count_V + _SMOOTHING))
        return cls(np.stack(columns, axis=1))

    def read(self, code_N: npt.NDArray[Any]) -> Floats:
        """[N, 1 + K] of each row's value."""
        return self.table[np.minimum(code_N, len(self.table) - 1)]


class _Table:
    """Impressions as columns of numbers for trees."""

    def __init__(self, dataset: Dataset, train_N: Ints, native_values: int) -> None:
        features = dataset.features
        groups = (("user", features.user), ("request", features.request), ("ad", features.ad))
        sizes = [size for _, group in groups for size in group.categorical_sizes]
        fields = [f"{side} {name}" for side, group in groups for name in group.categorical_names]
        self._small = np.flatnonzero(np.array(sizes, np.int64) <= native_values)
        self._large = [*np.setdiff1d(np.arange(len(sizes)), self._small).tolist(), -2, -1]
        self._names = [*fields, "user row", "ad row"]
        self._outcomes = outcomes(dataset.labels_NK[train_N], features.schema.tasks)
        self._prior_K = self._outcomes.mean(axis=0)
        self._codes_train = _codes(dataset, train_N)
