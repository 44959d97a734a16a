"""The pipeline, from a log to a published and judged model version: the table of contents of adrec.

    open_log       schema and lazily read tables
    prepare_log    features fitted on the past, arrays on disk
    train_stages   two-tower, then ranker; where asked, once more through the validation period
    calibrate      on the validation period
    publish_run    index, bundle
    evaluate_run   metrics beside rivals, report

Each step leaves its result in the run's folder. All but the last are skipped where it is there
already for the same settings, so the same command resumes a run that was stopped anywhere.
"""

import json
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adrec.bundle import (
    CALIBRATION,
    FORMAT,
    GRAPHS,
    PRERANKER,
    Manifest,
    find_version,
    publish,
    run_of,
)
from adrec.calibration import Calibration, fit_calibration
from adrec.config import DataConfig, RunConfig
from adrec.data.criteo import open_criteo
from adrec.data.layouts import detect_layout, open_layout
from adrec.data.tables import Tables
from adrec.errors import ConfigError
from adrec.evaluation.admission import measure_backends
from adrec.evaluation.baselines import ranking_rivals
from adrec.evaluation.known_world import WORLD_TASKS, known_scores, known_world
from adrec.evaluation.offline import evaluate
from adrec.evaluation.preranking import teach
from adrec.evaluation.report import write_report
from adrec.evaluation.retrieval_baselines import retrieval_rivals
from adrec.features.dataset import Dataset, prepare
from adrec.inference.backends import Backend, Engine, Precision, TorchBackend
from adrec.inference.choice import (
    REFERENCE,
    convert,
    convert_preranker,
    example_of,
    is_installed,
    make_backends,
    possible,
)
from adrec.inference.runtime import RESCORED, Runtime
from adrec.keys import alone, files_of, has_key, key_of, write_key
from adrec.models.ad_rows import AdRows
from adrec.models.trees import load_lightgbm
from adrec.models.two_tower import embed_ads
from adrec.progress import Progress
from adrec.recommender import Recommender
from adrec.retrieval.index import AdIndex
from adrec.schema import Schema, load_schema
from adrec.stages import Trained, train_stages
from adrec.training.boosting import score_with_trees
from adrec.training.checkpoint import fingerprint, save_weights
from adrec.training.objectives import score_impressions, thin
from adrec.training.optimiser import has_native_bf16

_CALIBRATION_REQUESTS = 100_000


def run(
    config: RunConfig, out: Path, *, progress: Progress | None = None, resume: bool = True
) -> Path:
    """Do everything that is not done yet, and publish.

    Args:
        config: all settings.
        out: the run's folder; also the folder of versions that `Recommender.load` takes.
        progress: where to show how far it is.
        resume: take up what an earlier run left; else start afresh.

    Returns:
        The published version's folder.

    Raises:
        ConfigError: another process trains in this folder, or a library is missing.
    """
    progress = progress or Progress()
    if config.trees.wanted:
        load_lightgbm()  # rather than miss it once the log is prepared
    with alone(out, "train"):
        dataset = prepare_log(config, out, progress=progress, resume=resume)
        return run_on(config, dataset, out, progress=progress, resume=resume)


def run_on(
    config: RunConfig, dataset: Dataset, out: Path, *, progress: Progress, resume: bool = True
) -> Path:
    """As `run`, of a log that is prepared already, here or elsewhere, or of a view of it."""
    trained = train_stages(config, dataset, out / "training", progress=progress, resume=resume)
    calibration = calibrate(config, dataset, trained)
    if config.training.refit:
        known, fixed = dataset.through_validation(), fixed_epochs(config, trained)
        trained = train_stages(fixed, known, out / "refit", progress=progress, resume=resume)
    return publish_run(config, dataset, trained, calibration, out, progress=progress)


def open_log(config: DataConfig) -> Tables:
    """The tables of the log that a DataConfig names.

    Raises:
        ConfigError: no path, or a layout that does not fit.
        DataError: a file or a column is missing.
    """
    if config.path is None:
        raise ConfigError("data.path is not set: give the log's folder with --data")
    layout = config.layout or detect_layout(config.path)
    if layout == "criteo":
        criteo = config.criteo
        tables = open_criteo(
            config.path,
            user_fields=criteo.user_fields,
            ad_fields=criteo.ad_fields,
            ad_key=criteo.ad_key,
            counter_fields=criteo.counter_fields,
        )
    else:
        schema = load_schema(config.schema_file) if config.schema_file is not None else None
        tables = open_layout(layout, config.path, schema)
    return tables if config.rows is None else tables.head(config.rows)


def prepare_log(
    config: RunConfig, out: Path, *, progress: Progress, resume: bool = True
) -> Dataset:
    """The prepared log in `out/dataset`, made if it is not there for these settings."""
    directory = out / "dataset"
    key = log_key(config)
    if resume and has_key(directory, key):
        progress.say(f"{directory}: prepared already")
        return Dataset(directory)
    with alone(out, "prepare"):
        tables = open_log(config.data)
        progress.say(f"reading {tables.impressions.file}")
        dataset = prepare(
            tables,
            directory,
            split=config.split,
            config=config.features,
            chunk_rows=config.data.chunk_rows,
            progress=progress,
        )
        write_key(directory, key)
    return dataset


def log_key(config: RunConfig) -> str:
    """Changes exactly if the prepared log would: its files, or the settings it is prepared with."""
    data = config.data
    files = files_of(data.path), files_of(data.schema_file)
    return key_of(FORMAT, data, config.split, config.features, *files)


def fixed_epochs(config: RunConfig, chosen: Trained) -> RunConfig:
    """The same settings, but training ends after as many epochs as were best on the validation
    period. Its learning rates stay those of then: planned for fewer epochs, they would be another
    training than the one that was judged."""
    stages = {"two_tower": chosen.two_tower_run, "ranker": chosen.ranker_run}
    epochs = {name: {"stop_after": stage.best_epoch + 1} for name, stage in stages.items()}
    training = {
        name: getattr(config.training, name).model_copy(update=update)
        for name, update in epochs.items()
    }
    update: dict[str, Any] = {"training": config.training.model_copy(update=training)}
    if chosen.trees is not None:
        update["trees"] = config.trees.model_copy(update={"rounds": chosen.trees.rounds})
    return config.model_copy(update=update)


def publish_run(
    config: RunConfig,
    dataset: Dataset,
    trained: Trained,
    calibration: Calibration,
    out: Path,
    *,
    progress: Progress,
) -> Path:
    """Index the ads, find out how exact each way of running the ranker is, publish a version."""
    progress.say(f"indexing {len(dataset.catalogue) - 1:,} ads")
    log_end_ms = int(dataset.time_ms_R[-1])
    state = dataset.state("end")
    standing_AS = state.standing(log_end_ms + 1)
    vectors = embed_ads(trained.two_tower, dataset.catalogue.encoded, standing_AS)
    tower = fingerprint(trained.two_tower)
    rows = np.arange(1, len(dataset.catalogue), dtype=np.int64)
    index = AdIndex.build(
        vectors[1:], config.index, ads=rows, tower=tower, threads=torch.get_num_threads()
    )
    ad_rows = AdRows.of(trained.ranker, dataset.catalogue.encoded)
    example = example_of(state, config.serving.candidates)
    graphs = out / GRAPHS
    shutil.rmtree(graphs, ignore_errors=True)
    if is_installed("openvino") and config.serving.engine != "torch":
        convert(trained.two_tower, trained.ranker, example, graphs)

    def served(
        backend: Backend, rescored: int = RESCORED, *, considered: int | None = None
    ) -> Recommender:
        runtime = Runtime(
            trained.two_tower,
            trained.ranker,
            calibration,
            backend,
            ad_rows=ad_rows,
            trees=trained.trees,
            considered=considered,
            rescored=rescored,
        )
        serving, clock = config.serving, lambda: log_end_ms + 1
        return Recommender(runtime, index, state, serving, version="", clock=clock)

    exact = served(TorchBackend(trained.ranker))
    preranker, preranking = None, None
    if config.serving.considered != "all":
        seed, wanted = config.training.ranker.seed, config.serving.considered
        taught = teach(exact, dataset, wanted, seed=seed, progress=progress)
        if taught is not None:
            preranker, preranking = taught
            convert_preranker(trained.ranker, preranker, example, graphs)
            progress.say(str(preranking))
    others = [one for one in possible(graphs) if one != REFERENCE and _may_serve(config, *one)]
    considered = None if preranking is None else preranking.considered
    as_served = partial(served, considered=considered)
    admissions = measure_backends(
        make_backends(trained.ranker, preranker, graphs, others),
        as_served(TorchBackend(trained.ranker, preranker=preranker)),
        ad_rows,
        as_served,
        dataset,
        RESCORED if config.serving.rescored == "auto" else config.serving.rescored,
    )
    for one in admissions:
        progress.say(str(one))
    manifest = Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        log_end_ms=log_end_ms,
        tower=tower,
        two_tower=config.two_tower,
        ranker=config.ranker,
        trees=trained.trees is not None,
        serving=config.serving,
        preranking=preranking,
        admissions=admissions,
    )

    def write(folder: Path) -> None:
        shutil.copytree(dataset.directory / "features", folder / "features")
        shutil.copytree(dataset.directory / "state", folder / "state")
        dataset.catalogue.save(folder)
        save_weights(trained.two_tower, folder / "two_tower.safetensors")
        save_weights(trained.ranker, folder / "ranker.safetensors")
        ad_rows.save(folder / "ad_rows.safetensors")
        if preranker is not None:
            save_weights(preranker, folder / PRERANKER)
        if graphs.exists():
            graphs.rename(folder / GRAPHS)
        if trained.trees is not None:
            trained.trees.save(folder / "trees")
        (folder / CALIBRATION).write_text(calibration.model_dump_json(indent=1))
        index.save(folder / "index.faiss")
        for stage in ("two-tower", "ranker"):
            (folder / "training").mkdir(exist_ok=True)
            for name in ("log.jsonl", "curves.png"):
                shutil.copy(
                    out / "training" / stage / name, folder / "training" / f"{stage}-{name}"
                )
        (folder / "config.json").write_text(config.model_dump_json(indent=1))

    version = publish(out, manifest, write)
    progress.say(f"published {version}")
    return version


def evaluate_run(
    config: RunConfig,
    folder: Path,
    *,
    progress: Progress,
    report: Path | None = None,
    dataset: Dataset | None = None,
) -> tuple[Recommender, Dataset, dict[str, Any]]:
    """Judge a version on its run's test period; write `evaluation.json` and the HTML report.

    Args:
        config: what the version was made with; its evaluation may differ.
        folder: of the run (its current version is judged) or of a version.
        progress: told what is going on.
        report: where the report goes; None: `report.html` of the run.
        dataset: the log that `run_on` had; None: the run's own.

    Returns:
        The version, the prepared log, and what `evaluate` found.

    Raises:
        DataError: the log is not prepared, or the truth beside it is of another.
    """
    run = run_of(folder)
    dataset = Dataset(run / "dataset") if dataset is None else dataset
    recommender = Recommender.load(folder)
    rivals, threads = config.evaluation.rivals, torch.get_num_threads()
    refit, world = config.training.refit, _world_folder(config.data, dataset.features.schema)
    rows = config.data.rows if config.split.test_to is None else len(dataset.ad_N)
    result = evaluate(
        recommender,
        dataset,
        config.evaluation,
        ranking_rivals=ranking_rivals(refit=refit) if rivals else (),
        retrieval_rivals=retrieval_rivals(dataset, threads=threads) if rivals else (),
        references={} if world is None else known_scores(world, dataset, rows),
        world=None if world is None else known_world(world, dataset, progress),
        refit=refit,
        progress=progress,
    )
    (run / "evaluation.json").write_text(json.dumps(result, indent=1))
    path = report or run / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"adrec: {dataset.features.schema.name}"
    write_report(result, path, title=title, training=find_version(folder) / "training")
    progress.say(f"report: {path.resolve()}")
    return recommender, dataset, result


def calibrate(config: RunConfig, dataset: Dataset, trained: Trained) -> Calibration:
    """Fit the calibration of every task on the validation period, which no model has seen, and how
    much the trees count."""
    requests = thin(dataset.requests("valid"), _CALIBRATION_REQUESTS)
    trees = trained.trees
    return fit_calibration(
        config.calibration,
        score_impressions(trained.ranker, dataset, requests, torch.device("cpu")),
        dataset.labels_NK[dataset.rows_of(requests)],
        dataset.features.layout.task_kinds,
        negative_rate=config.training.ranker.negative_rate,
        positive_weight=config.training.ranker.positive_weight,
        trees_NK=None if trees is None else score_with_trees(trees, dataset, requests),
    )


def _may_serve(config: RunConfig, engine: Engine, precision: Precision) -> bool:
    """Whether the settings leave it to measurements that this backend serves: bf16, where this
    processor has to imitate it, is slower than float32 and takes minutes to measure."""
    serving = config.serving
    of_settings = serving.engine in ("auto", engine) and serving.precision in ("auto", precision)
    imitated = precision == "bf16" and serving.precision == "auto" and not has_native_bf16()
    return of_settings and not imitated


def _world_folder(config: DataConfig, schema: Schema) -> Path | None:
    """The folder of the synthetic world that the log is of, if it is one, still there, and read as
    what it is: what is known of it is of its requests and three tasks."""
    path = config.path
    same = schema.request_id is not None and [t.name for t in schema.tasks] == list(WORLD_TASKS)
    if path is None or not path.exists() or not same:
        return None
    return path if (config.layout or detect_layout(path)) == "synthetic" else None
