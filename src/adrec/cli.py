"""The command line: the composition root. Each command reads settings and calls the package.

Exit codes: 0 done; 1 problems found (`validate`, `doctor`); 2 wrong usage or settings; 3 wrong
data; 4 a damaged or missing checkpoint or bundle; 5 a request that cannot be answered; 130 stopped
by Ctrl-C, to be resumed by the same command.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from adrec.console import (
    Commands,
    count,
    describe,
    escape,
    footer,
    notes,
    out,
    parse_pairs,
    parse_request,
    parse_sizes,
    show_findings,
    show_latency,
    show_slate,
    slate_json,
    write_json,
)
from adrec.errors import ConfigError, DataError
from adrec.options import (
    ConfigFile,
    Data,
    EvaluationSettings,
    JsonFile,
    LayoutName,
    Out,
    Preset,
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
from adrec.version import __version__

app = typer.Typer(
    name="adrec",
    cls=Commands,
    help="A two-stage ad recommender: train on an impression log, prove it offline, recommend.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: adrec demo",
)


def main() -> None:
    """Run the command line."""
    # Idle OpenMP threads must sleep: torch and FAISS each have a pool, and spinning starves both.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """A two-stage ad recommender: train on an impression log, prove it offline, recommend."""
    if show:
        typer.echo(f"adrec {__version__}")
        raise typer.Exit


@app.command(epilog="Example: adrec demo --out runs/demo")
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


@app.command(epilog="Example: adrec synth --preset demo --out data/world")
def synth(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    preset: Annotated[Preset, typer.Option(help="Size of the world; clear is easy.")] = "demo",
    layout: Annotated[
        Literal["generic", "criteo"],
        typer.Option(help="Parquet tables and a schema, or Criteo's train.txt."),
    ] = "generic",
    seed: Annotated[int, typer.Option(help="The same seed gives the same world.")] = 0,
) -> None:
    """Write a synthetic world whose true probabilities are known."""
    from adrec.data.layouts import synthetic_schema
    from adrec.data.synthetic import PRESETS, generate, write_world

    begun = time.monotonic()
    world = generate(PRESETS[preset], seed)
    if layout == "criteo":  # which brings its own schema
        write_world(world, folder, layout="criteo")
    else:
        write_world(world, folder, layout="generic", schema_yaml=synthetic_schema().dump())
    notes.print(f"wrote {folder}")
    footer(begun, world.impressions.height)


@app.command(epilog="Example: adrec validate --data data/world")
def validate(
    config_file: ConfigFile = None,
    data: Data = None,
    layout: LayoutName = None,
    schema: SchemaFile = None,
    rows: Rows = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print problems as JSON.")] = False,
) -> None:
    """Compare a log with its schema and list every problem: file, column, row, remedy."""
    from dataclasses import asdict

    from adrec.data.checks import check_tables
    from adrec.pipeline import open_log

    begun = time.monotonic()
    config = read_config(config_file, data_flags(data, layout, schema, rows), settings)
    try:
        tables = open_log(config.data)
        problems = check_tables(tables)
    except DataError as error:
        if not error.problems:
            raise
        problems, tables = list(error.problems), None
    if as_json:
        typer.echo(json.dumps([asdict(problem) for problem in problems], indent=1))
    else:
        for problem in problems:
            out.print(escape(str(problem)), soft_wrap=True, highlight=False)
    if problems:
        notes.print(count(len(problems), "problem"), highlight=False)
        raise typer.Exit(1)
    assert tables is not None
    footer(begun, tables.rows())
    notes.print("no problems")


@app.command(epilog="Example: adrec prepare --data data/world --out runs/mine")
def prepare(
    folder: Out,
    config_file: ConfigFile = None,
    data: Data = None,
    layout: LayoutName = None,
    schema: SchemaFile = None,
    rows: Rows = None,
    settings: Settings = None,
    resume: Resume = True,
) -> None:
    """Fit the features and turn a log into arrays, one pass in time order."""
    from adrec import pipeline

    begun = time.monotonic()
    config = read_config(config_file, data_flags(data, layout, schema, rows), settings)
    dataset = pipeline.prepare_log(config, folder, progress=Progress(notes), resume=resume)
    describe(dataset)
    footer(begun, len(dataset.ad_N))


@app.command(epilog="Example: adrec train --data data/world --out runs/mine --ranker-epochs 2")
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


@app.command(epilog="Example: adrec evaluate runs/mine --slice device")
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


@app.command(epilog="Example: adrec recommend runs/mine --user 17 -k 5")
def recommend(
    folder: Run,
    user: Annotated[str | None, typer.Option(help="A user's id.")] = None,
    request: Annotated[
        str | None,
        typer.Option(help='JSON: {"user": "17", "context": {"device": "mobile"}}; - reads stdin.'),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="File with a user id or a JSON request a line."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Ads a request.")] = 10,
    context: Annotated[
        list[str] | None, typer.Option(help="Context of --user: FIELD=VALUE.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a request.")] = False,
) -> None:
    """Print the top ads for a user, a JSON request, or a file of them."""
    from adrec.recommender import Recommender, Request

    if sum(one is not None for one in (user, request, users)) != 1:
        raise ConfigError("give one of --user, --request and --users")
    if context and user is None:
        raise ConfigError("--context belongs to --user; put it into the JSON request")
    if user is not None:
        asked = [Request(user=user, context=parse_pairs(context or []))]
    elif request is not None:
        asked = [parse_request(sys.stdin.read() if request == "-" else request)]
    else:
        assert users is not None
        asked = [parse_request(line) for line in users.read_text().splitlines() if line.strip()]
    recommender = Recommender.load(folder)
    for start in range(0, len(asked), 16):
        for slate in recommender.recommend_batch(asked[start : start + 16], k):
            if as_json:
                typer.echo(json.dumps(slate_json(slate)))
            else:
                show_slate(slate)


@app.command(epilog="Example: adrec bench runs/mine --requests 500")
def bench(
    folder: Run,
    requests: Annotated[int, typer.Option(min=1, help="Requests to time.")] = 200,
    batch: Annotated[
        int, typer.Option(min=1, help="Requests answered together in the batch row.")
    ] = 16,
    k: Annotated[int, typer.Option("-k", help="Ads a request.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the models.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Time a bundle in this process, end to end and by stage."""
    import torch

    from adrec.evaluation.latency import batch_rate, stage_latency
    from adrec.recommender import Recommender, Request

    if threads is not None:
        torch.set_num_threads(threads)
    recommender = Recommender.load(folder)
    ids = recommender.state.users.ids[:: max(1, len(recommender.state.users.ids) // requests)]
    asked = [Request(user=user) for user in ids[:requests]] or [Request()] * requests
    found = stage_latency(recommender, asked, k)
    together = batch_rate(recommender, asked, k, batch)
    rows = show_latency(
        f"{recommender.serving.candidates} of {len(recommender.index):,} ads",
        found["stages"],
        {"one at a time": found["requests_per_s"], f"batches of {batch}": together},
        threads=torch.get_num_threads(),
        index_mb=recommender.index.memory_bytes / 1e6,
    )
    write_json(json_file, rows)


@app.command(epilog="Example: adrec doctor")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine offers and what is missing."""
    from adrec.doctor import diagnose

    findings = diagnose()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings], indent=1))
    else:
        show_findings(findings)
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
