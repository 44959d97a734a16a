"""One tiny world for all tests of its package; nobody writes to it."""

import polars as pl
import pytest

from adrec.data.synthetic import PRESETS, World, generate


@pytest.fixture(scope="package")
def world() -> World:
    return generate(PRESETS["tiny"], seed=0)


@pytest.fixture(scope="package")
def rows(world: World) -> pl.DataFrame:
    """Impressions with their truth and their ads' columns."""
    return world.impressions.hstack(world.truth.drop("request_id", "position")).join(
        world.ads, on="ad_id", how="left", maintain_order="left"
    )
