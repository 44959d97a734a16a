"""Versions to measure speed on: both stages, of full size, trained on a synthetic world of any
number of ads.

Its log is short and each stage sees it once: arithmetic takes as long whatever the weights, and
retrieval needs vectors that are spread as training spreads them, not the best ones.
"""

from pathlib import Path

from rich.console import Console

from adrec import pipeline
from adrec.bundle import find_version
from adrec.config import load_config
from adrec.data.layouts import synthetic_schema
from adrec.data.synthetic import PRESETS, WorldConfig, generate, write_world
from adrec.errors import BundleError
from adrec.progress import Progress

_REQUESTS = 25_000


def version_with(ads: int, work: Path, *, small: bool = False) -> Path:
    """A run whose catalogue has so many ads, made in `work` if it is not there.

    Args:
        ads: of the world.
        work: folder of worlds and runs.
        small: narrow networks, for a smoke run.
    """
    folder = work / f"{'small-' if small else ''}{ads}-ads"
    try:
        find_version(folder)
    except BundleError:
        pass
    else:
        return folder
    sizes = {"n_ads": ads, "n_requests": _REQUESTS}
    if small:
        sizes |= {"n_users": 1_000, "n_requests": 2_000}
    world = generate(WorldConfig.model_validate(PRESETS["demo"].model_dump() | sizes), 0)
    write_world(world, folder / "world", layout="generic", schema_yaml=synthetic_schema().dump())
    settings: dict[str, object] = {
        "data.path": str((folder / "world").absolute()),
        "training.two_tower.epochs": 1,
        "training.ranker.epochs": 1,
    }
    if small:
        settings |= {"two_tower.hidden": [64], "ranker.width": 64, "ranker.layers": 2}
    pipeline.run(load_config(None, settings), folder, progress=Progress(Console(stderr=True)))
    return folder
