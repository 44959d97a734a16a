"""Fixtures that many tests share, made once a session: a small synthetic world, and a run on it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from adrec import pipeline
from adrec.config import RunConfig, load_config
from adrec.data.layouts import open_layout, synthetic_schema
from adrec.data.splits import SplitConfig
from adrec.data.synthetic import PRESETS, generate, write_world
from adrec.features.dataset import Dataset, prepare
from adrec.features.fitting import FeatureConfig

settings.register_profile("adrec", deadline=None)  # a busy machine is not a failure
settings.load_profile("adrec")


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `tiny` synthetic world: 500 users, 400 ads, 2,000 requests of 4 ads."""
    directory = tmp_path_factory.mktemp("tiny_world")
    world = generate(PRESETS["tiny"], seed=0)
    write_world(world, directory, layout="generic", schema_yaml=synthetic_schema().dump())
    return directory


@pytest.fixture(scope="session")
def tiny_dataset(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The `tiny` world prepared: 80 % train, 10 % validation, 10 % test."""
    return prepare(
        open_layout("synthetic", tiny_world),
        tmp_path_factory.mktemp("tiny_dataset") / "dataset",
        split=SplitConfig(),
        config=FeatureConfig(),
    )


SMALL: dict[str, Any] = {
    "two_tower.embedding_dim": 4,
    "two_tower.hidden": [16],
    "two_tower.output_dim": 16,
    "two_tower.history_dim": 8,
    "two_tower.history_heads": 2,
    "two_tower.uniform_negatives": 64,
    "ranker.embedding_dim": 4,
    "ranker.width": 16,
    "ranker.layers": 1,
    "ranker.heads": 2,
    "ranker.feed_forward": 32,
    "ranker.field_tokens": 2,
    "ranker.cross_layers": 1,
    "ranker.cross_rank": 4,
    "ranker.head_hidden": 16,
    "training.two_tower.epochs": 1,
    "training.two_tower.batch_rows": 512,
    "training.ranker.epochs": 1,
    "training.ranker.batch_rows": 256,
    "training.ranker.learning_rate": 0.005,
    "serving.candidates": 100,
    "serving.engine": "torch",  # OpenVINO has tests of its own; compiling takes seconds
    "serving.precision": "float32",
    "serving.considered": "all",  # so has the preranker
}
"""Settings of models so small that a run on the tiny world takes seconds."""


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: weights depend on the number, and the tests share the processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def on_one_thread() -> Iterator[None]:
    """As `one_thread`, for a test."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def small_config(tiny_world: Path) -> Callable[..., RunConfig]:
    """Makes settings of a small run on the tiny world; changes are {"path.of.one": value}."""

    def make(changes: dict[str, Any] | None = None) -> RunConfig:
        return load_config(None, {"data.path": str(tiny_world)} | SMALL | (changes or {}))

    return make


@pytest.fixture(scope="session")
def small_flags(tiny_world: Path) -> list[str]:
    """The same settings for a command line."""
    values = {key: str(value).replace(" ", "") for key, value in SMALL.items()}
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return ["--data", str(tiny_world), *sets]


@pytest.fixture(scope="session")
def tiny_run(
    small_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run's folder with one published version, for reading only: copy it to change it."""
    folder = tmp_path_factory.mktemp("tiny_run")
    with one_thread():
        pipeline.run(small_config(), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_refit(
    tiny_run: Path,
    small_config: Callable[..., RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny run, refitted through its validation period; likewise for reading only."""
    folder = tmp_path_factory.mktemp("tiny_refit") / "run"
    shutil.copytree(tiny_run, folder)
    with one_thread():
        pipeline.run(small_config({"training.refit": True}), folder)
    return folder
