"""What ranking is compared with: an ad's mean outcome, and boosted trees on everything we know.

The trees get the strongest table that a dataset allows: mean outcomes of every categorical field,
numbers, counters, position, and by hand what a sequence model has to learn: how much of the history
matches the candidate. Nothing in a row of the test period is younger than its request.

Shapes: N impressions, K tasks, F columns, V values of a field, L history items.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from adrec.errors import ConfigError
from adrec.features.counters import SMOOTHING, outcomes
from adrec.features.dataset import Dataset
from adrec.features.encoders import Vocabulary
from adrec.features.past import count_strictly_before, order_events
from adrec.features.transforms import Encoded, FieldGroup
from adrec.schema import Strict

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

_HOUR_MS = 3_600_000
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
        train = dataset.rows_of(dataset.requests("train"))[-self._config.max_rows :]
        valid = dataset.rows_of(dataset.requests("valid"))
        rng = np.random.default_rng(self._config.seed)
        fold_N = rng.integers(0, self._config.folds, len(train))
        self._table, train_NF = _Table.fit(dataset, train, fold_N)
        settings = self._settings()
        seen = self._lightgbm.Dataset(train_NF, params=settings).construct()
        checked = self._lightgbm.Dataset(
            self._table.read(dataset, valid), reference=seen, params=settings
        ).construct()
        self._models, self._scales = [], []
        for k, task in enumerate(dataset.features.schema.tasks):
            train_N, valid_N = (dataset.labels_NK[rows, k].astype(float) for rows in (train, valid))
            # A mean of 1 keeps the gradients of every currency alike.
            scale = 1.0 if task.kind == "binary" else float(train_N.mean()) or 1.0
            seen.set_label(train_N / scale)
            checked.set_label(valid_N / scale)
            objective = "binary" if task.kind == "binary" else "tweedie"
            stop = self._lightgbm.early_stopping(self._config.patience, verbose=False)
            model = self._lightgbm.train(
                settings | {"objective": objective},
                seen,
                self._config.rounds,
                valid_sets=[checked],
                callbacks=[stop],
            )
            self._models.append(model)
            self._scales.append(scale)

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


def ranking_rivals(threads: int = 1) -> tuple[RankingRival, ...]:
    """All that this machine has, not fitted yet: LightGBM where it is installed."""
    if find_spec("lightgbm") is None:
        return (Popularity(),)
    return Popularity(), LightGBM(LightGBMConfig(threads=threads))


def _load_lightgbm() -> Any:
    try:
        return import_module("lightgbm")
    except ImportError as error:
        raise ConfigError(
            "LightGBM is not installed; run `pip install adrec[rivals]`, or leave this rival out"
        ) from error


@dataclass(frozen=True)
class _Means:
    """Count and smoothed mean outcomes of each value of a field, [V + 1, 1 + K].

    The mean of n impressions is (Σ y + s p) / (n + s). The last row is a value never seen.
    """

    table: Floats

    @classmethod
    def of(cls, code_N: npt.NDArray[Any], outcome_NK: Floats, prior_K: Floats) -> "_Means":
        count_V = np.append(np.bincount(code_N), 0).astype(np.float64)
        columns = [count_V]
        for outcome_N, prior in zip(outcome_NK.T, prior_K, strict=True):
            sum_V = np.bincount(code_N, outcome_N, minlength=len(count_V))
            columns.append((sum_V + SMOOTHING * prior) / (count_V + SMOOTHING))
        return cls(np.stack(columns, axis=1))

    def read(self, code_N: npt.NDArray[Any]) -> Floats:
        """[N, 1 + K] of each row's value."""
        means: Floats = self.table[np.minimum(code_N, len(self.table) - 1)]
        return means


@dataclass(frozen=True)
class _Table:
    """Impressions as columns for trees: means of each categorical field, then numbers."""

    names: tuple[str, ...]
    means: tuple[_Means, ...]

    @classmethod
    def fit(
        cls, dataset: Dataset, rows_N: Ints, fold_N: Ints
    ) -> tuple["_Table", npt.NDArray[np.float32]]:
        """Learn the means from training rows; also returns those rows' table, out of fold."""
        tasks = dataset.features.schema.tasks
        outcome_NK = outcomes(dataset.labels_NK[rows_N], tasks)
        prior_K = outcome_NK.mean(axis=0)
        codes = _codes(dataset, rows_N)
        means = tuple(_Means.of(code_N, outcome_NK, prior_K) for code_N in codes.values())
        parts = ("count", *(f"mean {task.name}" for task in tasks))
        names = [f"{field} {part}" for field in codes for part in parts]
        names += _numbers(dataset, rows_N[:1])
        table_NF = np.empty((len(rows_N), len(names)), np.float32)
        width = len(parts)
        folds = int(fold_N.max()) + 1
        for fold in range(folds):
            own = fold_N == fold
            for i, code_N in enumerate(codes.values()):
                others = _Means.of(code_N[~own], outcome_NK[~own], prior_K).read(code_N[own])
                others[:, 0] *= folds / (folds - 1)  # counts as large as all folds'
                table_NF[own, i * width : (i + 1) * width] = others
        _fill_numbers(dataset, rows_N, table_NF[:, len(codes) * width :])
        return cls(tuple(names), means), table_NF

    def read(self, dataset: Dataset, rows_N: Ints) -> npt.NDArray[np.float32]:
        """[N, F] of rows after the training period."""
        table_NF = np.empty((len(rows_N), len(self.names)), np.float32)
        width = self.means[0].table.shape[1]
        for i, (code_N, means) in enumerate(
            zip(_codes(dataset, rows_N).values(), self.means, strict=True)
        ):
            table_NF[:, i * width : (i + 1) * width] = means.read(code_N)
        _fill_numbers(dataset, rows_N, table_NF[:, len(self.means) * width :])
        return table_NF


def _fill_numbers(dataset: Dataset, rows_N: Ints, out_NF: npt.NDArray[np.float32]) -> None:
    for start in range(0, len(rows_N), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        for i, column_N in enumerate(_numbers(dataset, rows_N[part]).values()):
            out_NF[part, i] = column_N


def _sides(dataset: Dataset, rows_N: Ints) -> list[tuple[str, FieldGroup, Encoded]]:
    """The three groups of fields and what they hold for each row."""
    request_N = _request_of(dataset, rows_N)
    user_N = dataset.user_R[request_N]
    known_N = np.where(user_N < len(dataset.static), user_N, 0)
    features = dataset.features
    return [
        ("user", features.user, dataset.static.take(known_N)),
        ("request", features.request, dataset.request.take(request_N)),
        ("ad", features.ad, dataset.catalogue.encoded.take(dataset.ad_N[rows_N])),
    ]


def _codes(dataset: Dataset, rows_N: Ints) -> dict[str, npt.NDArray[Any]]:
    """[N] code of each categorical field, and the rows of the user and of the ad."""
    codes: dict[str, npt.NDArray[Any]] = {
        f"{side} {name}": encoded.categorical[:, i]
        for side, group, encoded in _sides(dataset, rows_N)
        for i, name in enumerate(group.categorical_names)
    }
    codes["user row"] = dataset.user_R[_request_of(dataset, rows_N)]
    codes["ad row"] = dataset.ad_N[rows_N]
    return codes


def _numbers(dataset: Dataset, rows_N: Ints) -> dict[str, npt.NDArray[Any]]:
    """[N] of each number that is known of the rows."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for side, group, encoded in _sides(dataset, rows_N):
        dense = [encoder for encoder in group.encoders if not isinstance(encoder, Vocabulary)]
        names = [f"{side} {e.name} {i}" for e in dense for i in range(e.width)]
        columns |= dict(zip(names, encoded.dense.T, strict=True))
    schema = dataset.features.schema
    names = [
        f"counter {spec.name} {half} {part}"
        for spec in schema.counters
        for half in spec.half_lives_hours
        for part in ("count", *(task.name for task in schema.tasks))
    ]
    columns |= dict(zip(names, dataset.counters_NC[rows_N].T, strict=True))
    columns["position"] = dataset.position_N[rows_N]
    request_N = _request_of(dataset, rows_N)
    columns["hour UTC"] = dataset.time_ms_R[request_N] / _HOUR_MS % 24
    columns |= _session(dataset, request_N)
    for field, whole in zip(schema.sequences, dataset.histories, strict=True):
        past = whole.take(request_N)
        columns[f"{field.name} gap"] = past.gap[:, -1]
        found = _matches(dataset, past.ads, dataset.ad_N[rows_N])
        columns |= {f"{field.name} {name}": column_N for name, column_N in found.items()}
        if field.of_impressions:
            clicked_NL = np.where(past.outcomes & 1, past.ads, 0)
            found = _matches(dataset, clicked_NL, dataset.ad_N[rows_N])
            columns |= {
                f"{field.name} clicked {name}": column_N for name, column_N in found.items()
            }
    return columns


def _session(dataset: Dataset, request_N: Ints) -> dict[str, npt.NDArray[Any]]:
    """[N] hours since the user's last earlier request, NaN if none, and requests in that hour."""
    distinct, group_N = np.unique(dataset.user_R[request_N], return_inverse=True)
    events = np.flatnonzero(np.isin(dataset.user_R, distinct[distinct > 0]))
    group_E = np.searchsorted(distinct, dataset.user_R[events])
    time_E, time_N = dataset.time_ms_R[events], dataset.time_ms_R[request_N]
    order = order_events(group_E, time_E)
    group_E, time_E = group_E[order], time_E[order]
    before_N = count_strictly_before(group_E, time_E, group_N, time_N)
    hour_ago_N = count_strictly_before(group_E, time_E, group_N, time_N - _HOUR_MS)
    hours_N = np.full(len(request_N), np.nan)
    found = before_N > np.searchsorted(group_E, group_N)
    hours_N[found] = (time_N[found] - time_E[before_N[found] - 1]) / _HOUR_MS
    return {"hours since last request": hours_N, "requests in last hour": before_N - hour_ago_N}


def _matches(
    dataset: Dataset, ads_NL: npt.NDArray[np.int32], ad_N: npt.NDArray[np.int32]
) -> dict[str, npt.NDArray[Any]]:
    """[N] history items: all, of this very ad, and with the candidate's value of each ad field.

    Code 0, of a missing value and of padding, matches nothing.
    """
    found = {"length": (ads_NL != 0).sum(axis=1), "same ad": (ads_NL == ad_N[:, None]).sum(axis=1)}
    codes_AF = dataset.catalogue.encoded.categorical
    for i, name in enumerate(dataset.features.ad.categorical_names):
        code_NL = codes_AF[ads_NL, i]
        same_NL = code_NL == codes_AF[ad_N, i][:, None]
        found[f"same {name}"] = (same_NL & (code_NL != 0)).sum(axis=1)
    return found


def _request_of(dataset: Dataset, rows_N: Ints) -> Ints:
    requests: Ints = np.searchsorted(dataset.offset_R, rows_N, side="right") - 1
    return requests
