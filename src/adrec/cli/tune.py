"""The command that searches for better settings."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from adrec.console import footer, notes, out, write_json
from adrec.options import (
    ConfigFile,
    Data,
    JsonFile,
    LayoutName,
    Out,
    Resume,
    Rows,
    SchemaFile,
    Settings,
    data_flags,
    given,
    read_config,
)
from adrec.progress import Progress


def tune(
    folder: Out,
    config_file: ConfigFile = None,
    data: Data = None,
    layout: LayoutName = None,
    schema: SchemaFile = None,
    rows: Rows = None,
    stage: Annotated[
        Literal["ranker", "two_tower"], typer.Option(help="Which model trials train.")
    ] = "ranker",
    trials: Annotated[int, typer.Option(help="Trials in total, earlier runs' included.")] = 20,
    space: Annotated[
        Path | None, typer.Option(help="YAML with the settings to try and their ranges.")
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "grid"], typer.Option(help="How settings are drawn.")
    ] = "tpe",
    metric: Annotated[
        Literal["auc", "log_loss", "recall"] | None,
        typer.Option(help="What trials are judged by; auc for the ranker, recall for the other."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Stop trials early that lag behind.")
    ] = True,
    workers: Annotated[int, typer.Option(help="Trials at a time, each in a process.")] = 1,
    timeout_minutes: Annotated[
        float | None, typer.Option(help="Begin no trial after so long.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes which settings are drawn.")] = 0,
    settings: Settings = None,
    resume: Resume = True,
    json_file: JsonFile = None,
) -> None:
    """Search for better settings of one stage, judged on the validation period.

    Stopped at any time, the same command goes on; with more --trials, a finished one does too.
    """
    from adrec.schema import parse_config
    from adrec.tuning import search
    from adrec.tuning.config import TuneConfig
    from adrec.tuning.space import default_space, read_space
    from adrec.tuning.tables import result_tables

    begun = time.monotonic()
    config = read_config(config_file, data_flags(data, layout, schema, rows), settings)
    how: dict[str, Any] = {
        "stage": stage,
        "trials": trials,
        "sampler": sampler,
        "metric": metric,
        "prune": prune,
        "workers": workers,
        "timeout_minutes": timeout_minutes,
        "seed": seed,
    }
    tuned = search.tune(
        config,
        parse_config(TuneConfig, given(how), source="options"),
        default_space(stage) if space is None else read_space(space),
        folder,
        source=str(space or "the default space"),
        progress=Progress(notes),
        resume=resume,
    )
    for table in result_tables(tuned):
        out.print(table)
    best = (folder / "best.yaml").resolve()
    out.print(f"best settings: {best}", soft_wrap=True, highlight=False)
    write_json(json_file, tuned.as_json())
    footer(begun)
