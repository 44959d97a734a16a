"""Commands about a log: make one, check one, prepare one."""

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from adrec.console import (
    count,
    describe,
    escape,
    footer,
    notes,
    out,
)
from adrec.errors import DataError
from adrec.options import (
    ConfigFile,
    Data,
    LayoutName,
    Out,
    Preset,
    Resume,
    Rows,
    SchemaFile,
    Settings,
    data_flags,
    read_config,
)
from adrec.progress import Progress


def synth(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    preset: Annotated[
        Preset, typer.Option(help="Which world: sizes, and how clear tastes are (docs/data.md).")
    ] = "demo",
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
