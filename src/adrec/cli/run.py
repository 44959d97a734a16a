"""Commands that make a version of the models and judge it."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from adrec.console import (
    footer,
    notes,
    out,
    parse_sizes,
    show_slate,
    write_json,
)
from adrec.errors import ConfigError
from adrec.options import (
    ConfigFile,
    Data,
    EvaluationSettings,
    FoldMethod,
    JsonFile,
    LayoutName,
    Out,
    Resume,
    Rows,
    Run,
    SchemaFile,
    Settings,
    data_flags,
    evaluation_config,
    given,
    read_config,
)
from adrec.progress import Progress


def demo(
    folder: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the world and of training.")] = 0,
    settings: Settings = None,
    resume: Resume = True,
) -> None:
    """Everything on a synthetic world: generate, train both stages, evaluate, recommend, report."""
    from adrec import pipeline
    from adrec.data.layouts import synthetic_schema
    from adrec.data.synthetic import PRESETS, generate, write_world
    from adrec.evaluation.tables import summary_table

    begun = time.monotonic()
    world = (folder / f"world-{seed}").absolute()
    if not (world / "schema.yaml").exists():  # written last: without it the world is not whole
        preset = PRESETS["demo"]
        shown = preset.n_requests * preset.slate_size
        sizes = f"{preset.n_users:,} users, {preset.n_ads:,} ads, {shown:,} impressions"
        notes.print(f"generating the demo world: {sizes}", highlight=False)
        made = generate(preset, seed)
        write_world(made, world, layout="generic", schema_yaml=synthetic_schema().dump())
    overrides = {
        "data.path": str(world),
        "data.layout": "synthetic",
        "training.two_tower.seed": seed,
        "training.ranker.seed": seed,
        # Small enough that two slow cores install, train and judge it within five minutes: a
        # narrow ranker has no use for a preranker, whose teaching takes as long as its training.
        "ranker.width": 128,
        "ranker.layers": 2,
        "ranker.feed_forward": 512,
        "serving.considered": "all",
        "training.two_tower.epochs": 2,
        "training.ranker.epochs": 1,
        "evaluation.slices": ["new user", "new ad", "device"],
    }
    config = read_config(None, overrides, settings)
    progress = Progress(notes)
    pipeline.run(config, folder, progress=progress, resume=resume)
    recommender, dataset, result = pipeline.evaluate_run(config, folder, progress=progress)
    out.print(summary_table(result))
    latest = recommender.state.users.id(int(dataset.user_R[dataset.requests("test")[-1]]))
    show_slate(recommender.recommend(latest, context={"device": "mobile", "place": "feed"}))
    out.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False)
    footer(begun)


def train(
    folder: Out,
    config_file: ConfigFile = None,
    data: Data = None,
    layout: LayoutName = None,
    schema: SchemaFile = None,
    rows: Rows = None,
    two_tower_epochs: Annotated[int | None, typer.Option(help="Epochs of retrieval.")] = None,
    ranker_epochs: Annotated[int | None, typer.Option(help="Epochs of the ranker.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Impressions a step, both stages.")] = None,
    embedding_size: Annotated[int | None, typer.Option(help="Floats a categorical field.")] = None,
    hidden_sizes: Annotated[
        str | None, typer.Option(help="Hidden layers of the towers, e.g. 512,256.")
    ] = None,
    output_size: Annotated[int | None, typer.Option(help="Width where users and ads meet.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that prepare batches.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything random.")] = None,
    settings: Settings = None,
    resume: Resume = True,
) -> None:
    """Prepare, train both stages, calibrate, index and publish a version.

    Stopped at any time, by Ctrl-C, kill or a power cut, the same command goes on where it was.
    """
    from adrec import pipeline

    begun = time.monotonic()
    both = {"batch_rows": batch_size, "device": device, "workers": workers, "seed": seed}
    flags: dict[str, Any] = {
        "training.two_tower.epochs": two_tower_epochs,
        "training.ranker.epochs": ranker_epochs,
        "two_tower.embedding_dim": embedding_size,
        "ranker.embedding_dim": embedding_size,
        "two_tower.hidden": parse_sizes(hidden_sizes),
        "two_tower.output_dim": output_size,
    }
    for stage in ("two_tower", "ranker"):
        flags |= {f"training.{stage}.{name}": value for name, value in both.items()}
    flags = data_flags(data, layout, schema, rows) | given(flags)
    config = read_config(config_file, flags, settings)
    pipeline.run(config, folder, progress=Progress(notes), resume=resume)
    footer(begun)


def evaluate(
    folder: Run,
    against: Annotated[
        Path | None, typer.Option(help="Another run: compare the two, paired by user.")
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="A field to look closer by; numbers by fifths."),
    ] = None,
    rivals: Annotated[
        bool | None, typer.Option("--rivals/--no-rivals", help="Train the rivals too, as is usual.")
    ] = None,
    replicates: Annotated[int | None, typer.Option(help="Bootstrap replicates; 0: none.")] = None,
    settings: EvaluationSettings = None,
    json_file: JsonFile = None,
    report: Annotated[Path | None, typer.Option(help="Where to write the HTML report.")] = None,
) -> None:
    """Judge a run on its test period, which no model has seen, beside its rivals."""
    from adrec import pipeline
    from adrec.bundle import run_of
    from adrec.evaluation.offline import compare
    from adrec.evaluation.tables import comparison_table, result_tables
    from adrec.features.dataset import Dataset
    from adrec.recommender import Recommender

    begun = time.monotonic()
    of_one = given({"--slice": slices or None, "--report": report, "--rivals": rivals})
    if against is not None and of_one:
        raise ConfigError(
            f"--against compares two versions and prints one table; {', '.join(of_one)} "
            "belongs to the evaluation of one, so leave out the one or the other"
        )
    flags = {"rivals": rivals, "slices": slices or None, "replicates": replicates}
    config = evaluation_config(folder, given(flags), settings)
    if against is not None:
        pair = Recommender.load(folder), Recommender.load(against)
        result = compare(*pair, Dataset(run_of(folder) / "dataset"), config.evaluation)
        out.print(comparison_table(result))
    else:
        progress = Progress(notes)
        _, _, result = pipeline.evaluate_run(config, folder, progress=progress, report=report)
        for table in result_tables(result):
            out.print(table)
    write_json(json_file, result)
    footer(begun)


def crossvalidate(
    folder: Out,
    config_file: ConfigFile = None,
    data: Data = None,
    layout: LayoutName = None,
    schema: SchemaFile = None,
    rows: Rows = None,
    method: Annotated[
        FoldMethod, typer.Option(help="Earlier and earlier ends of the log, or folds of users.")
    ] = "rolling",
    folds: Annotated[
        int | None, typer.Option(help="How many; 3 rolling ones or 5 of users if left out.")
    ] = None,
    rivals: Annotated[
        bool, typer.Option("--rivals/--no-rivals", help="Train the rivals in each fold, too.")
    ] = False,
    settings: Settings = None,
    resume: Resume = True,
    json_file: JsonFile = None,
) -> None:
    """Train and judge on several folds of a log: each metric's mean, and how far it varies.

    Stopped at any time, the same command goes on where it was; folds that are done are kept.
    """
    from dataclasses import asdict

    from adrec import crossvalidation
    from adrec.evaluation.folds import fold_tables

    begun = time.monotonic()
    config = read_config(config_file, data_flags(data, layout, schema, rows), settings)
    found = crossvalidation.crossvalidate(
        config,
        folder,
        method=method,
        folds=folds,
        rivals=rivals,
        progress=Progress(notes),
        resume=resume,
    )
    for table in fold_tables(found):
        out.print(table)
    write_json(json_file, [asdict(row) for row in found])
    footer(begun)
