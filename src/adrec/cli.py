"""The command line: the composition root. Each command reads settings and calls the package.

Exit codes: 0 done; 1 problems found (`validate`, `doctor`); 2 wrong usage or settings; 3 wrong
data; 4 a damaged or missing checkpoint or bundle; 5 a request that cannot be answered; 130 stopped
by Ctrl-C, to be resumed by the same command.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from adrec.errors import (
    AdRecError,
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    RequestError,
)
from adrec.progress import Progress
from adrec.version import __version__

if TYPE_CHECKING:
    from adrec.config import RunConfig
    from adrec.features.dataset import Dataset
    from adrec.recommender import Recommender, Request, Slate

_CODES: dict[type[AdRecError], int] = {
    ConfigError: 2,
    DataError: 3,
    CheckpointError: 4,
    BundleError: 4,
    RequestError: 5,
}


class _Commands(TyperGroup):
    """Turns errors into one line and an exit code, and Ctrl-C into what to do next."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except AdRecError as error:
            notes.print(
                f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(_CODES.get(type(error), 2)) from error
        except KeyboardInterrupt as stopped:
            notes.print(f"stopped. {stopped}", markup=False, highlight=False)
            raise typer.Exit(130) from stopped


app = typer.Typer(
    name="adrec",
    cls=_Commands,
    help="A two-stage ad recommender: train on an impression log, prove it offline, recommend.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: adrec demo",
)
out = Console(soft_wrap=False)
notes = Console(stderr=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML with any of the settings.")
]
Data = Annotated[Path | None, typer.Option("--data", "-d", help="Folder of the log.")]
LayoutName = Annotated[
    str | None,
    typer.Option(
        help="generic, synthetic, criteo, kuairand, movielens or open_bandit; guessed if left out."
    ),
]
SchemaFile = Annotated[
    Path | None, typer.Option("--schema", help="Schema of a generic log (YAML).")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run and its versions.")]
Rows = Annotated[int | None, typer.Option(help="Read only the first ROWS impressions.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting by its path: --set training.ranker.epochs=3."),
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Take up what an earlier run left.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON.")]
Run = Annotated[Path, typer.Argument(help="Folder of a run or of a published version.")]


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


@app.command()
def demo(
    folder: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the world and of training.")] = 0,
    settings: Settings = None,
    resume: Resume = True,
) -> None:
    """Everything on a synthetic world: generate, train both stages, evaluate, recommend, report."""
    from adrec import pipeline
    from adrec.config import load_config, parse_overrides
    from adrec.data.layouts import synthetic_schema
    from adrec.data.synthetic import PRESETS, generate, write_world
    from adrec.evaluation.tables import summary_table

    begun = time.monotonic()
    world = folder / "world"
    if not (world / "impressions.parquet").exists():
        notes.print("generating the demo world: 8,000 users, 20,000 ads, 200,000 impressions")
        made = generate(PRESETS["demo"], seed)
        write_world(made, world, layout="generic", schema_yaml=synthetic_schema().dump())
    overrides = {
        "data.path": str(world),
        "data.layout": "synthetic",
        "training.two_tower.seed": seed,
        "training.ranker.seed": seed,
        "evaluation.slices": ["new user", "new ad", "device"],
    }
    config = load_config(None, overrides | parse_overrides(settings or []))
    progress = Progress(notes)
    pipeline.run(config, folder, progress=progress, resume=resume)
    recommender, dataset, result = _evaluate(folder, config, progress)
    out.print(summary_table(result))
    busiest = recommender.state.users.id(int(dataset.user_R[dataset.requests("test")[-1]]))
    _show_slate(recommender.recommend(busiest, context={"device": "mobile", "place": "feed"}))
    out.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False)
    _footer(begun)


@app.command()
def synth(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    preset: Annotated[str, typer.Option(help="tiny, demo or standard.")] = "demo",
    layout: Annotated[
        str, typer.Option(help="generic (Parquet tables and a schema) or criteo (train.txt).")
    ] = "generic",
    seed: Annotated[int, typer.Option(help="The same seed gives the same world.")] = 0,
) -> None:
    """Write a synthetic world whose true probabilities are known."""
    from adrec.data.layouts import synthetic_schema
    from adrec.data.synthetic import PRESETS, generate, write_world

    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: choose from {', '.join(PRESETS)}")
    if layout not in ("generic", "criteo"):
        raise ConfigError(f"--layout {layout}: choose generic or criteo")
    begun = time.monotonic()
    world = generate(PRESETS[preset], seed)
    if layout == "criteo":  # which brings its own schema
        write_world(world, folder, layout="criteo")
    else:
        write_world(world, folder, layout="generic", schema_yaml=synthetic_schema().dump())
    notes.print(f"wrote {folder}")
    _footer(begun, world.impressions.height)


@app.command()
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
    config = _config(config_file, _data_flags(data, layout, schema, rows), settings)
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
            out.print(_escape(str(problem)), soft_wrap=True, highlight=False)
    if problems:
        notes.print(f"{len(problems)} problems")
        raise typer.Exit(1)
    assert tables is not None
    _footer(begun, tables.rows())
    notes.print("no problems")


@app.command()
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
    config = _config(config_file, _data_flags(data, layout, schema, rows), settings)
    dataset = pipeline.prepare_log(config, folder, progress=Progress(notes), resume=resume)
    _describe(dataset)
    _footer(begun, len(dataset.ad_N))


@app.command()
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
    both = {
        "batch_rows": batch_size,
        "device": device,
        "workers": workers,
        "seed": seed,
    }
    flags: dict[str, Any] = {
        "training.two_tower.epochs": two_tower_epochs,
        "training.ranker.epochs": ranker_epochs,
        "two_tower.embedding_dim": embedding_size,
        "ranker.embedding_dim": embedding_size,
        "two_tower.hidden": _sizes(hidden_sizes),
        "two_tower.output_dim": output_size,
    }
    for stage in ("two_tower", "ranker"):
        flags |= {f"training.{stage}.{name}": value for name, value in both.items()}
    given = {key: value for key, value in flags.items() if value is not None}
    config = _config(config_file, _data_flags(data, layout, schema, rows) | given, settings)
    progress = Progress(notes)
    dataset = pipeline.prepare_log(config, folder, progress=progress, resume=resume)
    trained = pipeline.train_stages(config, dataset, folder, progress=progress, resume=resume)
    for name, run in (("two-tower", trained.two_tower_run), ("ranker", trained.ranker_run)):
        rate = run.rows / max(run.seconds, 1e-9)
        notes.print(f"{name}: {run.rows:,} rows in {run.seconds:,.0f} s, {rate:,.0f} rows/s")
    pipeline.publish_run(config, dataset, trained, folder, progress=progress)
    _footer(begun)


@app.command()
def evaluate(
    folder: Run,
    against: Annotated[
        Path | None, typer.Option(help="Another run: compare the two, paired by user.")
    ] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="A categorical field to look closer by.")
    ] = None,
    rivals: Annotated[bool, typer.Option(help="Train the rivals too.")] = True,
    replicates: Annotated[int | None, typer.Option(help="Bootstrap replicates; 0: none.")] = None,
    settings: Settings = None,
    json_file: JsonFile = None,
    report: Annotated[Path | None, typer.Option(help="Where to write the HTML report.")] = None,
) -> None:
    """Judge a run on its test period, which no model has seen, beside its rivals."""
    from adrec.config import parse_overrides
    from adrec.evaluation.offline import compare
    from adrec.evaluation.tables import comparison_table, result_tables
    from adrec.features.dataset import Dataset
    from adrec.recommender import Recommender

    begun = time.monotonic()
    flags: dict[str, Any] = {"evaluation.rivals": rivals}
    if slices:
        flags["evaluation.slices"] = slices
    if replicates is not None:
        flags["evaluation.replicates"] = replicates
    config = _run_config(folder, flags | parse_overrides(settings or []))
    if against is not None:
        pair = Recommender.load(folder), Recommender.load(against)
        result = compare(*pair, Dataset(_run_of(folder) / "dataset"), config.evaluation)
        out.print(comparison_table(result))
    else:
        _, _, result = _evaluate(folder, config, Progress(notes), report)
        for table in result_tables(result):
            out.print(table)
    _write_json(json_file, result)
    _footer(begun)


@app.command()
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

    if sum(given is not None for given in (user, request, users)) != 1:
        raise ConfigError("give one of --user, --request and --users")
    if context and user is None:
        raise ConfigError("--context belongs to --user; put it into the JSON request")
    if user is not None:
        asked = [Request(user=user, context=_pairs(context or []))]
    elif request is not None:
        asked = [_request(sys.stdin.read() if request == "-" else request)]
    else:
        assert users is not None
        asked = [_request(line) for line in users.read_text().splitlines() if line.strip()]
    recommender = Recommender.load(folder)
    for start in range(0, len(asked), 16):
        for slate in recommender.recommend_batch(asked[start : start + 16], k):
            if as_json:
                typer.echo(json.dumps(_slate_json(slate)))
            else:
                _show_slate(slate)


@app.command()
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
    table = Table(title=f"{recommender.serving.candidates} of {len(recommender.index):,} ads")
    for column in ("stage", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    rows = []
    for stage, ms in found["stages"].items():
        table.add_row(stage, *(f"{ms[q]:.2f}" for q in ("p50", "p95", "p99")))
        rows += [
            {"case": stage, "metric": quantile, "value": value, "unit": "ms"}
            for quantile, value in ms.items()
        ]
    out.print(table)
    rates = {"one at a time": found["requests_per_s"], f"batches of {batch}": together}
    for case, rate in rates.items():
        out.print(f"{case}: {rate:,.0f} requests/s, {torch.get_num_threads()} threads")
        rows.append({"case": case, "metric": "rate", "value": rate, "unit": "requests/s"})
    _write_json(json_file, rows)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine offers and what is missing."""
    from adrec.doctor import diagnose

    findings = diagnose()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings], indent=1))
    else:
        marks = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}
        for finding in findings:
            out.print(f"{marks[finding.status]} {finding.what}: {finding.found}", highlight=False)
            if finding.advice:
                out.print(f"     {finding.advice}", highlight=False)
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)


def _config(path: Path | None, flags: Mapping[str, Any], settings: list[str] | None) -> "RunConfig":
    from adrec.config import load_config, parse_overrides

    return load_config(path, {**flags, **parse_overrides(settings or [])})


def _run_config(folder: Path, overrides: Mapping[str, Any]) -> "RunConfig":
    """The settings that a version was made with, changed by `overrides`."""
    from adrec.bundle import find_version
    from adrec.config import load_config

    return load_config(find_version(folder) / "config.json", overrides)


def _data_flags(
    data: Path | None, layout: str | None, schema: Path | None, rows: int | None
) -> dict[str, Any]:
    flags = {
        "data.path": None if data is None else str(data),
        "data.layout": layout,
        "data.schema_file": None if schema is None else str(schema),
        "data.rows": rows,
    }
    return {key: value for key, value in flags.items() if value is not None}


def _evaluate(
    folder: Path, config: "RunConfig", progress: Progress, report: Path | None = None
) -> "tuple[Recommender, Dataset, dict[str, Any]]":
    """Evaluate the current version of a run and write its report and JSON."""
    from adrec.bundle import find_version
    from adrec.data.synthetic import read_truth
    from adrec.evaluation.baselines import ranking_rivals
    from adrec.evaluation.offline import evaluate as judge
    from adrec.evaluation.report import write_report
    from adrec.evaluation.retrieval_baselines import retrieval_rivals
    from adrec.features.dataset import Dataset
    from adrec.recommender import Recommender

    run = _run_of(folder)
    dataset = Dataset(run / "dataset")
    recommender = Recommender.load(folder)
    rivals = config.evaluation.rivals
    truth = read_truth(config.data.path) if config.data.path is not None else {}
    result = judge(
        recommender,
        dataset,
        config.evaluation,
        ranking_rivals=ranking_rivals() if rivals else (),
        retrieval_rivals=retrieval_rivals(dataset) if rivals else (),
        references=truth,
        progress=progress,
    )
    title = f"adrec: {dataset.features.schema.name}"
    path = report or run / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    training = find_version(folder) / "training"
    write_report(result, path, title=title, training=training)
    _write_json(run / "evaluation.json", result)
    progress.say(f"report: {path.resolve()}")
    return recommender, dataset, result


def _run_of(folder: Path) -> Path:
    """The run that a version belongs to: its folder of versions."""
    from adrec.bundle import find_version

    return find_version(folder).absolute().parents[1]


def _write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))


def _describe(dataset: "Dataset") -> None:
    for split in ("train", "valid", "test"):
        requests = dataset.requests(split)
        rows = len(dataset.rows_of(requests))
        notes.print(f"{split}: {rows:,} impressions in {len(requests):,} requests")
    once = dataset.shown_once()
    ads = len(dataset.catalogue) - 1
    notes.print(f"ads: {ads:,}, of which {once:.1%} were shown exactly once")


def _show_slate(slate: "Slate") -> None:
    tasks = list(slate.ads[0].scores) if slate.ads else []
    priced = bool(slate.ads) and slate.ads[0].value_micros is not None
    table = Table(title=f"user {slate.user}: top {len(slate.ads)} of {slate.candidates} candidates")
    for column in ("rank", "ad", *tasks, *(["bid x click, micros"] if priced else [])):
        table.add_column(column, justify="right")
    for rank, ad in enumerate(slate.ads, start=1):
        scores = [
            f"{score:.4f}" if score < 100 else f"{score:,.0f}" for score in ad.scores.values()
        ]
        value = [f"{ad.value_micros:,.0f}"] if ad.value_micros is not None else []
        table.add_row(str(rank), ad.ad_id, *scores, *value)
    out.print(table)
    stages = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in slate.stage_ms.items())
    out.print(f"{stages}; version {slate.version}", highlight=False)


def _slate_json(slate: "Slate") -> dict[str, Any]:
    return {
        "user": slate.user,
        "version": slate.version,
        "candidates": slate.candidates,
        "ads": [
            {"ad_id": ad.ad_id, "scores": dict(ad.scores), "value_micros": ad.value_micros}
            for ad in slate.ads
        ],
        "stage_ms": dict(slate.stage_ms),
    }


def _request(text: str) -> "Request":
    """A request from JSON, or from a bare user id.

    Raises:
        RequestError: JSON with keys that a request does not have.
    """
    from adrec.recommender import Request

    text = text.strip()
    if not text.startswith("{"):
        return Request(user=text.strip('"'))
    try:
        content = json.loads(text)
        return Request(**content)
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"not a request: {error}; keys are user, context, profile, at_ms, exclude"
        ) from error


def _pairs(settings: list[str]) -> dict[str, str]:
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--context {setting}: expected FIELD=VALUE")
        pairs[key] = value
    return pairs


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--hidden-sizes {text}: expected numbers with commas between") from error


def _footer(begun: float, rows: int | None = None) -> None:
    """Seconds, rows a second and peak memory of the command, on stderr."""
    seconds = time.monotonic() - begun
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = f", {rows / seconds:,.0f} rows/s" if rows is not None else ""
    notes.print(f"{seconds:.1f} s{rate}, peak memory {peak_mb:,.0f} MB", highlight=False)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
