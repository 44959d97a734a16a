"""The command that chooses the index of a version."""

import time
from pathlib import Path
from typing import Annotated

import typer

from adrec.console import footer, notes, out, write_json
from adrec.options import JsonFile
from adrec.progress import Progress


def index(
    folder: Annotated[
        Path, typer.Option("--bundle", "-b", help="Folder of a run or of a published version.")
    ],
    recall: Annotated[
        float, typer.Option(help="Share of the exact best that has to be found.")
    ] = 0.98,
    k: Annotated[int, typer.Option("--k", "-k", help="How many best ads are looked for.")] = 500,
    memory_mb: Annotated[
        float | None, typer.Option(help="Most memory of the index, millions of bytes.")
    ] = None,
    queries: Annotated[int, typer.Option(help="Requests after training to measure with.")] = 300,
    threads: Annotated[int, typer.Option(help="Threads to build with; searches have one.")] = 1,
    publishes: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Publish a version with the index.")
    ] = True,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder of frontier.png and index.yaml; the run's index/ if left out."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Choose the fastest index that finds enough, by measuring on real users, and publish it.

    `index.yaml` holds the settings that were chosen, for `adrec train --config`.
    """
    import yaml

    from adrec.bundle import run_of
    from adrec.reindexing import publish_with, reindex
    from adrec.retrieval.frontier import frontier_table, plot_frontier

    begun = time.monotonic()
    found = reindex(
        folder,
        recall=recall,
        k=k,
        memory_mb=memory_mb,
        queries=queries,
        threads=threads,
        progress=Progress(notes),
    )
    out.print(frontier_table(found.measured, found.chosen, k))
    report = report or run_of(folder) / "index"
    report.mkdir(parents=True, exist_ok=True)
    plot_frontier(found.measured, found.chosen, k, report / "frontier.png")
    chosen = found.chosen.config.model_dump(exclude_defaults=True)
    (report / "index.yaml").write_text(yaml.safe_dump({"index": chosen}))
    out.print(f"frontier and settings: {report.resolve()}", soft_wrap=True, highlight=False)
    if publishes:
        version = publish_with(folder, found)
        out.print(f"published {version}", soft_wrap=True, highlight=False)
    write_json(json_file, [one.as_row() for one in found.measured])
    footer(begun)
