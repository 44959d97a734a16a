"""Growing boosted trees: those that score beside the ranker, and those that compete with it.

The validation period says when to stop; a dataset without one grows as many as the settings say.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adrec.features.counters import outcomes
from adrec.features.dataset import Dataset
from adrec.features.target_means import Means, out_of_fold
from adrec.models.trees import Trees, TreesConfig, codes_of, load_lightgbm, numbers_of
from adrec.progress import Advance, Progress
from adrec.schema import Task

Ints = NDArray[np.int64]
Table = NDArray[np.float32]

_BATCH_ROWS = 8192


def grow_trees(config: TreesConfig, dataset: Dataset, *, progress: Progress) -> Trees:
    """Fit a forest for each task on the training period.

    Args:
        config: how; its rounds must not be 0.
        dataset: the prepared log.
        progress: where to show how far it is.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    train = _most_recent(dataset, dataset.requests("train"), config.max_rows)
    valid = _most_recent(dataset, dataset.requests("valid"), config.max_rows)
    means, train_NX = _table(dataset, train, config)
    labels_NK = dataset.labels_NK[dataset.rows_of(train)]
    held_out = None
    if len(valid):
        held_out = _read(dataset, valid, means), dataset.labels_NK[dataset.rows_of(valid)]
    tasks = dataset.features.schema.tasks
    models, scales = boost(config, tasks, (train_NX, labels_NK), held_out, progress=progress)
    trees = Trees(tuple(means), tuple(models), tuple(scales), dataset.features.layout.impressions)
    counts = ", ".join(f"{t.name} {n}" for t, n in zip(tasks, trees.rounds, strict=True))
    progress.say(f"trees: {train_NX.shape[1]} columns, {len(train_NX):,} rows; trees of {counts}")
    return trees


def boost(
    config: TreesConfig,
    tasks: Sequence[Task],
    train: tuple[Table, NDArray[np.float32]],
    held_out: tuple[Table, NDArray[np.float32]] | None,
    *,
    progress: Progress,
) -> tuple[list[Any], list[float]]:
    """Grow a forest for each task.

    A value task gets the Tweedie loss (Jørgensen 1987; compound Poisson-gamma, power 1.5): it has
    a mass at zero and a long tail, as revenue has, and what it fits is the mean itself. Squared
    error on log(1 + value) would fit the mean of the logarithm, whose exponential is too low.

    Args:
        config: how.
        tasks: of the log, K.
        train: columns [N, X] and labels [N, K].
        held_out: the same of rows that say when to stop; None: grow all of `config.rounds`.
        progress: where to show how far it is.

    Returns:
        LightGBM's boosters, cut after the best tree, and what each one's output is multiplied by.
    """
    lightgbm = load_lightgbm()
    settings = config.settings(torch.get_num_threads())
    seen = lightgbm.Dataset(train[0], params=settings).construct()
    checked = []
    if held_out is not None:
        checked = [lightgbm.Dataset(held_out[0], reference=seen, params=settings).construct()]
    models, scales = [], []
    for k, (task, rounds) in enumerate(zip(tasks, config.rounds_of(len(tasks)), strict=True)):
        label_N = train[1][:, k].astype(np.float64)
        # A mean of 1 keeps the gradients of every currency alike.
        scale = 1.0 if task.kind == "binary" else float(label_N.mean()) or 1.0
        seen.set_label(label_N / scale)
        if held_out is not None:
            checked[0].set_label(held_out[1][:, k].astype(np.float64) / scale)
        objective = "binary" if task.kind == "binary" else "tweedie"
        if not label_N.any():
            objective = "regression"  # of nothing but zeros, which the other losses refuse
        with progress.track(f"trees of {task.name}", rounds, "trees") as advance:
            callbacks = [_shown_by(advance)]
            if checked:
                callbacks.append(lightgbm.early_stopping(config.patience, verbose=False))
            model = lightgbm.train(
                settings | {"objective": objective},
                seen,
                rounds,
                valid_sets=checked,
                callbacks=callbacks,
            )
        best = model.best_iteration or model.num_trees()
        models.append(lightgbm.Booster(model_str=model.model_to_string(num_iteration=best)))
        scales.append(scale)
    return models, scales


def score_with_trees(trees: Trees, dataset: Dataset, requests: Ints) -> NDArray[np.float64]:
    """Predictions for the impressions of some requests, [rows, K]."""
    return np.concatenate(
        [
            trees.predict(batch.query, batch.candidates)[batch.candidates.mask_BN.numpy()]
            for batch in dataset.in_order(requests, _BATCH_ROWS)
        ]
    )


def _most_recent(dataset: Dataset, requests: Ints, most: int) -> Ints:
    """The last requests with at most so many impressions together, at least one."""
    if not len(requests):
        return requests
    after_R = np.cumsum(dataset.slate_R[requests][::-1])[::-1]
    return requests[min(int(np.searchsorted(-after_R, -most)), len(requests) - 1) :]


def _table(dataset: Dataset, requests: Ints, config: TreesConfig) -> tuple[list[Means], Table]:
    """Target means of the training rows, and their table with means out of fold."""
    numbers, codes_FN = _raw(dataset, requests)
    labels_NK = dataset.labels_NK[dataset.rows_of(requests)]
    outcome_NK = outcomes(labels_NK, dataset.features.schema.tasks)
    prior_K = outcome_NK.mean(axis=0)
    means = [Means.of(code_N, outcome_NK, prior_K) for code_N in codes_FN]
    fold_N = np.random.default_rng(config.seed).integers(0, config.folds, len(numbers))
    table_NX = np.concatenate([out_of_fold(codes_FN, outcome_NK, fold_N), numbers], axis=1)
    return means, table_NX


def _read(dataset: Dataset, requests: Ints, means: Sequence[Means]) -> Table:
    """The table of rows after the training period."""
    numbers, codes_FN = _raw(dataset, requests)
    read = [
        of_field.read(code_N).astype(np.float32)
        for of_field, code_N in zip(means, codes_FN, strict=True)
    ]
    return np.concatenate([*read, numbers], axis=1)


def _raw(dataset: Dataset, requests: Ints) -> tuple[Table, list[NDArray[np.int32]]]:
    """Numbers [N, X] and the code of each categorical field, F of [N], of some requests' rows."""
    numbers, codes = [], []
    impressions = dataset.features.layout.impressions
    for batch in dataset.in_order(requests, _BATCH_ROWS):
        mask_BN = batch.candidates.mask_BN
        numbers.append(numbers_of(batch.query, batch.candidates, impressions)[mask_BN].numpy())
        codes.append([c[mask_BN].numpy() for c in codes_of(batch.query, batch.candidates)])
    return np.concatenate(numbers), [np.concatenate(parts) for parts in zip(*codes, strict=True)]


def _shown_by(advance: Advance) -> Callable[[Any], None]:
    def after_tree(_: Any) -> None:
        advance(1, "")

    return after_tree
