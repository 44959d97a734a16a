"""Commands that use a version: recommend, time it; and look at the machine."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adrec.console import (
    notes,
    parse_pairs,
    parse_request,
    show_findings,
    show_latency,
    show_slate,
    slate_json,
    write_json,
)
from adrec.errors import ConfigError
from adrec.options import (
    JsonFile,
    Run,
)


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
    from adrec.inference.threads import use_threads
    from adrec.recommender import Recommender
    from adrec.slates import Request

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
    use_threads(1)
    recommender = Recommender.load(folder)
    for start in range(0, len(asked), 16):
        for slate in recommender.recommend_batch(asked[start : start + 16], k):
            if as_json:
                typer.echo(json.dumps(slate_json(slate)))
            else:
                show_slate(slate)


def bench(
    folder: Run,
    requests: Annotated[int, typer.Option(min=1, help="Requests to time.")] = 200,
    batch: Annotated[
        int, typer.Option(min=1, help="Requests answered together in the batch row.")
    ] = 16,
    k: Annotated[int, typer.Option("-k", help="Ads a request.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a request.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Time a bundle in this process, end to end and by stage."""
    from adrec.evaluation.latency import batch_rate, stage_latency
    from adrec.inference.threads import use_threads
    from adrec.recommender import Recommender
    from adrec.slates import Request

    use_threads(threads)
    recommender = Recommender.load(folder)
    ids = recommender.state.users.ids[:: max(1, len(recommender.state.users.ids) // requests)]
    asked = [Request(user=user) for user in ids[:requests]] or [Request()] * requests
    found = stage_latency(recommender, asked, k)
    together = batch_rate(recommender, asked, k, batch)
    rows = show_latency(
        f"{recommender.serving.candidates} of {len(recommender.index):,} ads",
        found["stages"],
        {"one at a time": found["requests_per_s"], f"batches of {batch}": together},
        threads=threads,
        index_mb=recommender.index.memory_bytes / 1e6,
    )
    write_json(json_file, rows)


def export(
    folder: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
) -> None:
    """Write the ranker as ONNX files, for other runtimes (docs/export.md)."""
    import shutil

    from adrec.bundle import CALIBRATION, Bundle
    from adrec.inference.onnx_export import export_onnx, sample_requests

    bundle = Bundle.open(folder)
    query, candidates = sample_requests(bundle.state(), bundle.manifest.log_end_ms + 1)
    interface = export_onnx(
        bundle.ranker(),
        query,
        candidates,
        out,
        version=bundle.manifest.version,
        tasks=[task.name for task in bundle.features.schema.tasks],
    )
    shutil.copy(bundle.path / CALIBRATION, out / CALIBRATION)
    for graph in interface.graphs:
        notes.print(f"wrote {out / graph.file}", highlight=False)


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
