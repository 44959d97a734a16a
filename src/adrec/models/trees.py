"""Boosted trees beside the ranker: the same request and candidates as a table, a forest a task.

Networks and trees err differently on the counters that decide most clicks, so the average of their
log odds is better than either. The columns come out of what the ranker is given, in training as in
serving:

    target means of each categorical field │ numbers of fields │ what is known of user and ad
    together (counters, matches of histories) │ how long, how recent and how good each history is

Sources: gradient boosting by LightGBM (Ke et al. 2017); trees with counters for clicks, and beside
another model: He et al. 2014.

Shapes: B requests, N candidates, X columns, K tasks.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file
from torch import Tensor

from adrec.errors import ConfigError
from adrec.features.batches import Candidates, Query
from adrec.features.target_means import Means
from adrec.features.transforms import Layout
from adrec.models.matches import histories_of, known_together
from adrec.schema import Strict

_LAST_HOUR = math.log(2)  # of log(1 + hours)


class TreesConfig(Strict):
    """Whether trees score beside the ranker, and how they are grown."""

    rounds: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=1)], ...] = 0
    """Trees of each task at most, or a number for each; 0: none, the ranker scores alone."""
    patience: int = Field(default=60, ge=1)
    """Trees without a better validation loss after which growing stops; the best count is kept."""
    learning_rate: float = Field(default=0.05, gt=0.0)
    """Weight of each tree."""
    leaves: int = Field(default=15, ge=2)
    """Leaves of a tree."""
    column_share: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the columns that each tree may look at."""
    min_leaf: int = Field(default=100, ge=1)
    """Training impressions a leaf."""
    max_rows: int = Field(default=500_000, ge=1)
    """Training impressions at most, the most recent ones: 300 columns of them take 1 GB."""
    folds: int = Field(default=5, ge=2)
    """Training rows get target means of the other folds, or they would see their own label."""
    seed: int = Field(default=0, ge=0)
    """Of folds, and of the columns and rows that each tree sees."""

    @property
    def wanted(self) -> bool:
        """Whether there are any."""
        return self.rounds != 0

    def rounds_of(self, tasks: int) -> tuple[int, ...]:
        """Trees of each task at most, [K].

        Raises:
            ConfigError: numbers for other than all tasks.
        """
        rounds = (self.rounds,) * tasks if isinstance(self.rounds, int) else self.rounds
        if len(rounds) != tasks:
            raise ConfigError(
                f"trees.rounds is {list(rounds)}; give one number, or one for each of {tasks} tasks"
            )
        return rounds

    def settings(self, threads: int) -> dict[str, Any]:
        """The same in LightGBM's names."""
        return {
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_leaf,
            "feature_fraction": self.column_share,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "num_threads": threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }


@dataclass(frozen=True)
class Trees:
    """A forest a task, and the target means that its table needs.

    means: of each categorical field, the user's, then the request's, then the ad's. models:
    LightGBM boosters. scales: what each booster's output is multiplied by.
    """

    means: tuple[Means, ...]
    models: tuple[Any, ...]
    scales: tuple[float, ...]
    impressions: tuple[bool, ...]

    @property
    def rounds(self) -> tuple[int, ...]:
        """Trees of each task."""
        return tuple(model.current_iteration() for model in self.models)

    def predict(self, query: Query, candidates: Candidates) -> NDArray[np.float64]:
        """Probability or expected value of each task, [B, N, K]."""
        shape = candidates.mask_BN.shape
        codes = codes_of(query, candidates)
        read = [means.read(code.numpy()) for means, code in zip(self.means, codes, strict=True)]
        numbers = numbers_of(query, candidates, self.impressions).numpy()
        table = np.concatenate([*read, numbers], axis=-1).reshape(shape.numel(), -1)
        threads = torch.get_num_threads()
        scores = [
            scale * model.predict(table, num_threads=threads)
            for model, scale in zip(self.models, self.scales, strict=True)
        ]
        return np.stack(scores, axis=-1).reshape(*shape, -1)

    def save(self, directory: Path) -> None:
        """Write LightGBM's text files, and the means as safetensors."""
        directory.mkdir(parents=True, exist_ok=True)
        tables = {f"{i:04d}": means.table for i, means in enumerate(self.means)}
        save_file(tables, directory / "means.safetensors")
        for k, model in enumerate(self.models):
            (directory / f"task_{k}.txt").write_text(model.model_to_string())
        (directory / "trees.json").write_text(json.dumps({"scales": self.scales}))

    @classmethod
    def load(cls, directory: Path, layout: Layout) -> Self:
        """Read what `save` wrote.

        Raises:
            ConfigError: LightGBM is not installed.
        """
        lightgbm = load_lightgbm()
        tables = load_file(directory / "means.safetensors")
        scales = json.loads((directory / "trees.json").read_text())["scales"]
        files = [directory / f"task_{k}.txt" for k in range(len(scales))]
        return cls(
            means=tuple(Means(tables[name]) for name in sorted(tables)),
            models=tuple(lightgbm.Booster(model_str=file.read_text()) for file in files),
            scales=tuple(scales),
            impressions=layout.impressions,
        )


def codes_of(query: Query, candidates: Candidates) -> list[Tensor]:
    """Code of each categorical field for each candidate, F of [B, N]."""
    shape = candidates.mask_BN.shape
    of_request = [query.user.categorical, query.request.categorical]
    spread = [code_B[:, None].expand(shape) for side in of_request for code_B in side.unbind(-1)]
    return [*spread, *candidates.ads.categorical.unbind(-1)]


def numbers_of(query: Query, candidates: Candidates, impressions: Sequence[bool]) -> Tensor:
    """All numbers that are known of each candidate, [B, N, X], as float32."""
    histories = histories_of(query, impressions)
    lately = [_lately(query, i) for i in range(len(histories))]
    of_request = torch.cat([query.user.dense, query.request.dense, *lately], dim=-1)
    shape = candidates.mask_BN.shape
    return torch.cat(
        [
            of_request[:, None].expand(*shape, -1),
            candidates.ads.dense,
            known_together(histories, candidates),
            candidates.position_BN[..., None].clamp(min=1).float(),  # unknown: on top
        ],
        dim=-1,
    )


def _lately(query: Query, sequence: int) -> Tensor:
    """What a history tells by itself, [B, 3 + 8]: items, items within the hour, log(1 + hours)
    since the last one, and what came of that (a bit a task)."""
    items = query.histories[sequence]
    recent_B = ((items.gap_BL < _LAST_HOUR) & (items.gap_BL >= 0) & items.mask_BL).sum(1)
    length_B = items.mask_BL.sum(1)
    if not items.mask_BL.shape[1]:
        return torch.zeros(len(query), 11)
    bits_B8 = items.outcomes_BL[:, -1:] >> torch.arange(8) & 1
    counts = torch.stack([length_B, recent_B], dim=-1).float()
    return torch.cat([counts, items.gap_BL[:, -1:], bits_B8.float()], dim=-1)


def load_lightgbm() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module("lightgbm")
    except ImportError as error:
        raise ConfigError(
            'LightGBM is not installed; run `pip install "adrec[trees]"`, or do without trees '
            "(trees.rounds=0)"
        ) from error
