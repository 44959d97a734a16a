"""Bundle: a model version on disk, published atomically and verified at first load.

    models/                      what `publish` is given
      current                    name of the version that is served
      versions/20260112-101500-3f2a9c1b/
        manifest.json            configs, time of the log's end, SHA-256 and size of every file
        features/                schema.yaml, features.json, vocabularies.parquet
        ads.parquet, ads.safetensors
        ad_rows.safetensors      what the ranker makes of each ad by itself
        two_tower.safetensors, ranker.safetensors, calibration.json
        openvino/                the ranker's graphs in OpenVINO's format
        trees/                   boosted trees beside the ranker, where the settings ask for them
        index.faiss, index.faiss.json
        state/                   users, histories and counters at the log's end
        training/                curves and logs

A version is written beside its place, flushed, renamed, and only then named in `current`: a kill at
any instant leaves the last good version loadable. Nothing in it is unpickled.
"""

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from adrec.calibration import Calibration
from adrec.errors import BundleError, ConfigError
from adrec.features.catalogue import Catalogue
from adrec.features.memory import load_state
from adrec.features.state import State
from adrec.features.transforms import Features
from adrec.inference.backends import BackendName, Engine, Precision, Usual
from adrec.inference.choice import (
    Admission,
    Preranking,
    example_of,
    fastest,
    rescored,
    serving_backends,
    user_encoder,
)
from adrec.inference.runtime import Runtime
from adrec.models.ad_rows import AdRows
from adrec.models.preranker import Preranker
from adrec.models.ranker import Ranker, RankerConfig
from adrec.models.trees import Trees
from adrec.models.two_tower import TwoTower, TwoTowerConfig
from adrec.retrieval.index import AdIndex
from adrec.retrieval.live import LiveConfig
from adrec.schema import Schema, Strict
from adrec.training.checkpoint import load_weights, sync
from adrec.version import __version__

CALIBRATION = "calibration.json"
PRERANKER = "preranker.safetensors"
GRAPHS = "openvino"
"""Folder of the ranker's graphs in a version."""
FORMAT = 9
"""Of model versions and prepared logs: those of another one are made again."""


class ServingConfig(Strict):
    """How a bundle answers requests."""

    candidates: int = Field(default=500, ge=1, le=100_000)
    """Ads that retrieval hands to the ranker."""
    rank_by: str = "auto"
    """`ecpm` (bid times click rate), a task's name, or auto: ecpm where ads carry bids, else the
    first task."""
    epsilon: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of requests that are answered with ads drawn evenly from those that the ranker looked
    at, so that the log can tell what other models would earn; each ad carries its propensity."""
    skip_seen: bool = False
    """Whether ads in a user's histories are left out (of impressions: never): for news and video,
    not for ads."""
    engine: Literal["auto", Engine] = "auto"
    """What runs the ranker; auto takes the faster one at start-up, by a short measurement."""
    precision: Literal["auto", Precision] = "auto"
    """Arithmetic of the ranker's pass over what it looks at. auto takes the fastest of those
    that were admitted when the version was made: their AUC and their top 10 are those of float32.
    """
    considered: Literal["auto", "all"] | Annotated[int, Field(ge=1, le=100_000)] = "auto"
    """Candidates of a request, for 10 ads shown, that the ranker looks at: the best as the
    preranker guesses. auto: as few as find the ranker's top 10 of all candidates, measured when the
    version is made. all: every one, without a preranker."""
    rescored: Literal["auto"] | Annotated[int, Field(ge=0, le=100_000)] = "auto"
    """Best candidates that are scored once more in float32 if the first pass was coarser; at least
    twice as many as are shown, or 0 for none. auto: none if 99% of the top 10 are float32's without
    it and scores .2% off on average at most, measured when the version is made; else 20."""
    threads: int = Field(default=1, ge=1, le=1024)
    """OpenVINO's threads that work on one request: more are hardly faster, and other requests want
    them, too."""
    live: LiveConfig = LiveConfig()
    """When the index of ads that were changed while serving is built anew."""

    def ordered_by(self, schema: Schema) -> str:
        """What ads are ordered by under a schema: `ecpm` or a task's name.

        Raises:
            ConfigError: `rank_by` is neither, or is ecpm where ads carry no bids.
        """
        tasks = [task.name for task in schema.tasks]
        choices = tasks if schema.bid_micros is None else ["ecpm", *tasks]
        if self.rank_by == "auto":
            return choices[0]
        if self.rank_by not in choices:
            raise ConfigError(
                f"serving.rank_by is '{self.rank_by}'; choose auto, {', '.join(choices)}"
            )
        return self.rank_by


class FileEntry(Strict):
    """What the manifest says of a file."""

    sha256: str
    bytes: int


class Manifest(Strict):
    """What a version is made of."""

    format: int = FORMAT
    adrec: str = __version__
    version: str = ""
    created_at: str
    log_end_ms: int
    """Time of the last impression that the state has seen, UTC milliseconds."""
    tower: str
    """SHA-256 over the two-tower weights that made the index."""
    two_tower: TwoTowerConfig
    ranker: RankerConfig
    trees: bool = False
    """Whether boosted trees score beside the ranker."""
    serving: ServingConfig
    preranking: Preranking | None = None
    """How many candidates the ranker looks at; None: all."""
    admissions: tuple[Admission, ...] = ()
    """How near to float32 each backend was found to be."""
    files: dict[str, FileEntry] = Field(default_factory=dict)


class Bundle:
    """An opened version. Parts are loaded when asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.features = Features.load(path / "features")
        self.catalogue = Catalogue.load(path)

    @classmethod
    def open(cls, path: Path, *, verified: bool = False) -> "Bundle":
        """Open a version, or the current version of a folder of versions.

        Args:
            path: of either.
            verified: whether its files were compared with the manifest just now.

        Raises:
            BundleError: nothing is there, or a file is missing, changed or of another format.
        """
        version = find_version(path)
        try:
            manifest = Manifest.model_validate_json((version / "manifest.json").read_text())
        except (OSError, ValueError) as error:  # a ValidationError is a ValueError
            raise BundleError(
                f"{version}: no readable manifest ({str(error).splitlines()[0]}); "
                "publish it again with `adrec train`"
            ) from error
        if manifest.format != FORMAT:
            raise BundleError(
                f"{version}: format {manifest.format}, this adrec reads {FORMAT}; train it again"
            )
        if not verified:
            verify_files(version, manifest)
        return cls(version, manifest)

    def runtime(self, *, like: BackendName | None = None) -> Runtime:
        """Both models with their calibration, on the fastest backend: or on the one of this
        name, if it may serve."""
        two_tower = self.two_tower()
        ranker = self.ranker()
        trees = None
        if self.manifest.trees:
            trees = Trees.load(self.path / "trees", self.features.layout)
        text = (self.path / CALIBRATION).read_text()
        calibration = Calibration.model_validate_json(text)
        serving = self.manifest.serving
        ad_rows = AdRows.load(self.path / "ad_rows.safetensors")
        preranking, preranker = self.manifest.preranking, None
        if preranking is not None:
            preranker = Preranker(ranker.config.width, self.features.layout.task_kinds)
            load_weights(self.path / PRERANKER, preranker)
            preranker.eval().requires_grad_(False)
        admissions = self.manifest.admissions
        considered = None if preranking is None else preranking.considered
        candidates = min(serving.candidates, len(self.catalogue) - 1)
        backends = serving_backends(
            ranker,
            preranker,
            self.path / GRAPHS,
            serving,
            admissions,
            like=like,
            usual=Usual(candidates, min(considered or candidates, candidates)),
        )
        users = user_encoder(two_tower, self.path / GRAPHS, serving)
        runtimes = [
            Runtime(
                two_tower,
                ranker,
                calibration,
                backend,
                ad_rows=ad_rows,
                trees=trees,
                users=users,
                considered=considered,
                rescored=rescored(
                    serving.rescored, BackendName(backend.engine, backend.precision), admissions
                ),
            )
            for backend in backends
        ]
        example = example_of(State(self.features, self.catalogue), serving.candidates)
        return fastest(runtimes, example)

    def two_tower(self) -> TwoTower:
        """The two-tower, frozen."""
        two_tower = TwoTower(self.manifest.two_tower, self.features.layout)
        load_weights(self.path / "two_tower.safetensors", two_tower)
        return two_tower.eval().requires_grad_(False)

    def ranker(self) -> Ranker:
        """The ranker, frozen."""
        ranker = Ranker(self.manifest.ranker, self.features.layout)
        load_weights(self.path / "ranker.safetensors", ranker)
        return ranker.eval().requires_grad_(False)

    def index(self, *, mapped: bool | None = None) -> AdIndex:
        """The index of the ads' vectors; `mapped` as `AdIndex.load` takes it."""
        path = self.path / "index.faiss"
        return AdIndex.load(path, tower=self.manifest.tower, mapped=mapped)

    def state(self) -> State:
        """Users, histories and counters at the log's end."""
        return load_state(self.path / "state", self.features, self.catalogue)


def publish(root: Path, manifest: Manifest, write: Callable[[Path], None]) -> Path:
    """Write a version with `write`, then make it the current one.

    Args:
        root: the folder of versions.
        manifest: all but the version's name and its files.
        write: puts the files into the folder that it is given.

    Returns:
        The version's folder.
    """
    versions = root / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    for stale in versions.glob(".unfinished-*"):
        shutil.rmtree(stale)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    unfinished = versions / f".unfinished-{stamp}"
    unfinished.mkdir()
    write(unfinished)
    readable = unfinished.stat().st_mode & 0o666  # some libraries write for their own user only
    for path in unfinished.rglob("*"):
        if path.is_file():
            path.chmod(readable)
    files = {
        str(path.relative_to(unfinished)): FileEntry(sha256=sha256(path), bytes=path.stat().st_size)
        for path in sorted(unfinished.rglob("*"))
        if path.is_file()
    }
    content = "".join(entry.sha256 for entry in files.values())
    version = f"{stamp}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    complete = manifest.model_copy(update={"version": version, "files": files})
    (unfinished / "manifest.json").write_text(complete.model_dump_json(indent=1))
    for path in (*unfinished.rglob("*"), unfinished):
        sync(path)
    final = versions / version
    if final.exists():  # the same content, published within this second
        shutil.rmtree(unfinished)
    else:
        unfinished.rename(final)
    sync(versions)
    make_current(root, version)
    return final


def make_current(root: Path, version: str) -> None:
    """Name the version that is served; atomic."""
    unfinished = root / ".current.unfinished"
    unfinished.write_text(version + "\n")
    sync(unfinished)
    unfinished.replace(root / "current")
    sync(root)


def find_version(path: Path) -> Path:
    """The folder of a version: `path` itself, or what its `current` names.

    Raises:
        BundleError: neither.
    """
    if (path / "manifest.json").exists():
        return path
    try:
        name = (path / "current").read_text().strip()
    except OSError as error:
        raise BundleError(
            f"{path} holds no model; make one with `adrec train --out {path}`"
        ) from error
    return path / "versions" / name


def run_of(folder: Path) -> Path:
    """The run that a version belongs to: its folder of versions.

    Raises:
        BundleError: no version is there.
    """
    return find_version(folder).absolute().parents[1]


def verify_files(version: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest.

    Raises:
        BundleError: one is missing or differs.
    """
    for name, entry in manifest.files.items():
        path = version / name
        if not path.exists():
            raise BundleError(f"{path} is missing; publish the version again with `adrec train`")
        if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
            raise BundleError(
                f"{path} differs from what was published (SHA-256); restore it or train again"
            )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
