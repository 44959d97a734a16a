"""The stages: two-tower, then ranker, then where they are wanted the trees, each trained but once.

Each leaves its result in a folder of its own, and is skipped where it is there already for the same
settings and data.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from adrec.config import RunConfig
from adrec.features.dataset import Dataset
from adrec.keys import has_key, key_of, write_key
from adrec.models.ranker import Ranker
from adrec.models.trees import Trees, load_lightgbm
from adrec.models.two_tower import TwoTower
from adrec.progress import Progress
from adrec.training.boosting import grow_trees
from adrec.training.checkpoint import fingerprint
from adrec.training.config import TrainConfig
from adrec.training.loop import OnEpoch, Position, train
from adrec.training.objectives import (
    Objective,
    RankerObjective,
    TwoTowerObjective,
    weights_of_tasks,
)
from adrec.training.optimiser import choose_device

INCIDENTAL = {"workers", "device", "checkpoint_every_s"}
"""Settings of a training that change how it goes, but not where it ends."""


@dataclass(frozen=True)
class Trained:
    """Both stages, and how their training went."""

    two_tower: TwoTower
    ranker: Ranker
    trees: Trees | None
    two_tower_run: Position
    ranker_run: Position


def train_stages(
    config: RunConfig, dataset: Dataset, folder: Path, *, progress: Progress, resume: bool = True
) -> Trained:
    """Train the two-tower and the ranker into `folder`, or take up where an earlier run stopped."""
    _refuse_early(config, dataset)
    two_tower, tower_run = train_two_tower(
        config, dataset, folder, progress=progress, resume=resume
    )
    ranker, ranker_run = train_ranker(
        config, dataset, folder, two_tower, progress=progress, resume=resume
    )
    trees = None
    if config.trees.wanted:
        trees = _grow_trees(config, dataset, folder / "trees", progress, resume)
    return Trained(two_tower.cpu(), ranker.cpu(), trees, tower_run, ranker_run)


def _refuse_early(config: RunConfig, dataset: Dataset) -> None:
    """What would be refused after one stage or two must not cost their training."""
    layout = dataset.features.layout
    config.serving.ordered_by(dataset.features.schema)
    weights_of_tasks(config.training.task_weights, layout)
    if config.trees.wanted:
        config.trees.rounds_of(len(layout.task_kinds))
        load_lightgbm()


def train_two_tower(
    config: RunConfig,
    dataset: Dataset,
    folder: Path,
    *,
    progress: Progress,
    resume: bool = True,
    on_epoch: OnEpoch | None = None,
) -> tuple[TwoTower, Position]:
    """Train the two-tower into `folder/two-tower`, or take up where an earlier run stopped."""
    settings = config.training.two_tower
    torch.manual_seed(settings.seed)
    two_tower = TwoTower(config.two_tower, dataset.features.layout)
    objective = TwoTowerObjective(
        two_tower,
        dataset,
        positive_weight=settings.positive_weight,
        valid_requests=settings.valid_requests,
        device=choose_device(settings.device),
    )
    key = key_of(config.two_tower, _what_matters(settings), _prepared(dataset))
    done = _train_stage(
        "two-tower", objective, settings, dataset, folder, key, progress, resume, on_epoch
    )
    return two_tower, done


def train_ranker(
    config: RunConfig,
    dataset: Dataset,
    folder: Path,
    two_tower: TwoTower,
    *,
    progress: Progress,
    resume: bool = True,
    on_epoch: OnEpoch | None = None,
) -> tuple[Ranker, Position]:
    """Train the ranker into `folder/ranker`, or take up where an earlier run stopped.

    `two_tower` is where its embeddings start, where `start_from_two_tower` says so.
    """
    settings, layout = config.training.ranker, dataset.features.layout
    torch.manual_seed(settings.seed)
    ranker = Ranker(config.ranker, layout)
    objective = RankerObjective(
        ranker,
        dataset,
        positive_weights=[settings.positive_weight] * len(layout.task_kinds),
        negative_rate=settings.negative_rate,
        task_weights=config.training.task_weights,
        valid_requests=settings.valid_requests,
        device=choose_device(settings.device),
    )
    if config.ranker.start_from_two_tower:
        ranker.start_from(two_tower.embeddings)
    of_ranker = config.ranker, _what_matters(settings), config.training.task_weights
    key = key_of(*of_ranker, _prepared(dataset), fingerprint(two_tower))
    done = _train_stage(
        "ranker", objective, settings, dataset, folder, key, progress, resume, on_epoch
    )
    return ranker, done


def _grow_trees(
    config: RunConfig, dataset: Dataset, directory: Path, progress: Progress, resume: bool
) -> Trees:
    """The trees in `directory`, grown if they are not there for these settings."""
    key = key_of(config.trees, _prepared(dataset))
    if resume and has_key(directory, key):
        return Trees.load(directory, dataset.features.layout)
    shutil.rmtree(directory, ignore_errors=True)
    trees = grow_trees(config.trees, dataset, progress=progress)
    trees.save(directory)
    write_key(directory, key)  # last: now they are whole
    return trees


def _train_stage(
    name: str,
    objective: Objective,
    settings: TrainConfig,
    dataset: Dataset,
    folder: Path,
    key: str,
    progress: Progress,
    resume: bool,
    on_epoch: OnEpoch | None,
) -> Position:
    directory = folder / name
    if directory.exists() and not (resume and has_key(directory, key)):
        why = "settings or data have changed, " if resume else ""
        progress.say(f"{name}: {why}training afresh")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_key(directory, key)
    done = train(
        objective, dataset, settings, directory, name=name, progress=progress, on_epoch=on_epoch
    )
    rate = done.rows / max(done.seconds, 1e-9)
    progress.say(f"{name}: {done.rows:,} rows in {done.seconds:,.0f} s, {rate:,.0f} rows/s")
    return done


def _prepared(dataset: Dataset) -> str:
    """Which prepared log this is, and which part of it is trained on."""
    return f"{(dataset.directory / 'run.json').read_text()} {dataset.split}{dataset.fold}"


def _what_matters(settings: TrainConfig) -> str:
    """Settings without those that change how a run goes but not where it ends."""
    return settings.model_dump_json(exclude=INCIDENTAL)
