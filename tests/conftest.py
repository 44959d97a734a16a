"""Fixtures that many tests share: a small synthetic world, written and prepared once a session."""

from pathlib import Path

import pytest
from hypothesis import settings

from adrec.data.layouts import open_layout, synthetic_schema
from adrec.data.splits import SplitConfig
from adrec.data.synthetic import PRESETS, generate, write_world
from adrec.features.dataset import Dataset, prepare
from adrec.features.transforms import FeatureConfig

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
