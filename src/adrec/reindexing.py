"""Another index for a published version: chosen by measuring on its log's last users.

The vectors of the ads are made anew from the version's own two-tower, as training made them; an
index that stores bytes would give them back rounded.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adrec.bundle import Bundle, find_version, publish, run_of
from adrec.config import RunConfig, load_config
from adrec.errors import ConfigError
from adrec.features.dataset import Dataset
from adrec.models.two_tower import embed_ads
from adrec.progress import Progress
from adrec.retrieval.index import AdIndex
from adrec.retrieval.inputs import Floats
from adrec.retrieval.tuning import Point, tune_index
from adrec.training.objectives import embed_requests, thin

_INDEX_FILES = ("index.faiss", "index.faiss.json")


@dataclass(frozen=True, kw_only=True)
class Reindexed:
    """What was measured, what was chosen, and the index of it."""

    measured: list[Point]
    chosen: Point
    index: AdIndex
    config: RunConfig
    """The version's settings with the chosen index."""


def reindex(
    folder: Path,
    *,
    recall: float,
    k: int,
    memory_mb: float | None,
    queries: int,
    threads: int,
    progress: Progress,
) -> Reindexed:
    """Choose an index for a version and build it.

    Args:
        folder: of a run or a version; the run's prepared log has to be there.
        recall, k, memory_mb, threads: as `tune_index`.
        queries: most requests of the test period (of validation where there is none) to ask.
        progress: told what is going on.

    Raises:
        ConfigError: the target cannot be met, or the log has neither period.
        BundleError: no version is there.
        DataError: the prepared log is gone.
    """
    bundle = Bundle.open(folder)
    dataset = Dataset(run_of(folder) / "dataset")
    asked = dataset.requests("test")
    asked = thin(asked if len(asked) else dataset.requests("valid"), queries)
    if len(asked) == 0:
        raise ConfigError("the log has no requests after training: nothing to measure with")
    progress.say(f"embedding {len(bundle.catalogue) - 1:,} ads and {len(asked):,} users")
    vectors = ad_vectors(bundle)
    config = load_config(bundle.path / "config.json", {})
    chosen, measured = tune_index(
        vectors,
        embed_requests(bundle.two_tower(), dataset, asked, torch.device("cpu")),
        config.index,
        recall=recall,
        k=k,
        memory_mb=memory_mb,
        threads=threads,
        progress=progress,
    )
    rows = np.arange(1, len(bundle.catalogue), dtype=np.int64)
    index = AdIndex.build(
        vectors, chosen.config, tower=bundle.manifest.tower, ads=rows, threads=threads
    )
    config = config.model_copy(update={"index": chosen.config})
    return Reindexed(measured=measured, chosen=chosen, index=index, config=config)


def ad_vectors(bundle: Bundle) -> Floats:
    """Vectors of a version's ads at the log's end, [A, D]."""
    standing_AS = bundle.state().standing(bundle.manifest.log_end_ms + 1)
    return embed_ads(bundle.two_tower(), bundle.catalogue.encoded, standing_AS)[1:]


def publish_with(folder: Path, found: Reindexed) -> Path:
    """A new version of the run, the same but for its index; returns its folder."""
    version = find_version(folder)

    def write(unfinished: Path) -> None:
        left_out = shutil.ignore_patterns("manifest.json", "config.json", *_INDEX_FILES)
        shutil.copytree(version, unfinished, dirs_exist_ok=True, ignore=left_out)
        found.index.save(unfinished / _INDEX_FILES[0])
        (unfinished / "config.json").write_text(found.config.model_dump_json(indent=1))

    return publish(run_of(folder), Bundle.open(folder).manifest, write)
