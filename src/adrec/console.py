"""What the command line prints and parses: tables, JSON, errors, the footer, requests, sizes.

Results go to stdout through `out`; what a person follows the work by goes to stderr, `notes`.
"""

import json
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from adrec.doctor import Finding
    from adrec.features.dataset import Dataset
    from adrec.slates import Request, Slate

out = Console(soft_wrap=False)
notes = Console(stderr=True)

_LOAD = {  # what a load test found: names of its figures, and their units
    "sent": "requests",
    "answered": "requests",
    "refused": "requests",
    "failed": "requests",
    "degraded": "requests",
    "goodput": "/s",
    "p50_ms": "ms",
    "p99_ms": "ms",
    "p999_ms": "ms",
    "refused_p99_ms": "ms",
    "events": "reports",
    "events_unwell": "reports",
    "events_failed": "reports",
    "events_p99_ms": "ms",
    "late_p99_ms": "ms",
    "generator_cpu": "processors",
}

_CODES: dict[type[AdRecError], int] = {
    ConfigError: 2,
    DataError: 3,
    CheckpointError: 4,
    BundleError: 4,
    RequestError: 5,
}


class Commands(TyperGroup):
    """Turns errors into one line and an exit code, and Ctrl-C into what to do next."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except AdRecError as error:
            notes.print(
                f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(_CODES.get(type(error), 2)) from error
        except KeyboardInterrupt as stopped:
            notes.print(f"stopped. {stopped}", markup=False, highlight=False)
            raise typer.Exit(130) from stopped


def write_json(path: Path | None, content: Any) -> None:
    """Write a result for scripts, where a path is given for it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))


def describe(dataset: "Dataset") -> None:
    """Sizes of a prepared log's periods and of its catalogue, on stderr."""
    for split in ("train", "valid", "test"):
        requests = dataset.requests(split)
        rows = len(dataset.rows_of(requests))
        notes.print(f"{split}: {rows:,} impressions in {len(requests):,} requests")
    once = dataset.shown_once()
    ads = len(dataset.catalogue) - 1
    notes.print(f"ads: {ads:,}, of which {once:.1%} were shown exactly once")


def show_load(summary: Mapping[str, float]) -> None:
    """What came of a load test, on stdout."""
    table = Table(title="load test", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, unit in _LOAD.items():
        digits = 0 if unit in ("requests", "reports") else 2
        what = name.removesuffix("_ms").replace("_", " ")
        table.add_row(what, f"{summary[name]:,.{digits}f} {unit}")
    out.print(table)


def show_slate(slate: "Slate") -> None:
    """A table of the ads, and the time of each stage, on stdout."""
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


def slate_json(slate: "Slate") -> dict[str, Any]:
    """The slate as `adrec recommend --json` prints it."""
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


def parse_request(text: str) -> "Request":
    """A request from JSON, or from a bare user id.

    Raises:
        RequestError: JSON with keys that a request does not have.
    """
    from adrec.slates import Request

    text = text.strip()
    if not text.startswith("{"):
        return Request(user=text.strip('"'))
    try:
        content = json.loads(text)
        return Request(**content)
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"not a request: {error}; keys are user, context, profile, at_ms, exclude, only, never"
        ) from error


def parse_pairs(settings: list[str]) -> dict[str, str]:
    """`FIELD=VALUE` of each --context.

    Raises:
        ConfigError: no '=' in one.
    """
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--context {setting}: expected FIELD=VALUE")
        pairs[key] = value
    return pairs


def parse_sizes(text: str | None) -> list[int] | None:
    """Sizes of layers from `512,256`.

    Raises:
        ConfigError: not numbers with commas between.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--hidden-sizes {text}: expected numbers with commas between") from error


def footer(begun: float, rows: int | None = None) -> None:
    """Seconds, rows a second and peak memory of the command, on stderr."""
    seconds = time.monotonic() - begun
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = f", {rows / seconds:,.0f} rows/s" if rows is not None else ""
    notes.print(f"{seconds:.1f} s{rate}, peak memory {peak_mb:,.0f} MB", highlight=False)


def escape(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")


def count(number: int, thing: str) -> str:
    """`1 problem`, `2 problems`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def show_latency(
    title: str,
    stages: Mapping[str, Mapping[str, float]],
    rates: Mapping[str, float],
    *,
    threads: int,
    index_mb: float,
) -> list[dict[str, Any]]:
    """What `adrec bench` measured, on stdout.

    Args:
        title: of the table.
        stages: milliseconds p50, p95 and p99 of each stage.
        rates: requests a second, by how they were asked.
        threads: of the models.
        index_mb: megabytes of the index in memory.

    Returns:
        The same numbers as rows for JSON: case, metric, value, unit.
    """
    table = Table(title=title)
    for column in ("stage", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    measured = []
    for stage, ms in stages.items():
        table.add_row(stage, *(f"{ms[q]:.2f}" for q in ("p50", "p95", "p99")))
        measured += [(stage, quantile, value, "ms") for quantile, value in ms.items()]
    out.print(table)
    for case, rate in rates.items():
        out.print(f"{case}: {rate:,.0f} requests/s, {threads} threads")
        measured.append((case, "rate", rate, "requests/s"))
    out.print(f"index memory: {index_mb:,.2f} MB")
    measured.append(("index", "memory", index_mb, "MB"))
    return [dict(zip(("case", "metric", "value", "unit"), row, strict=True)) for row in measured]


def show_findings(findings: Sequence["Finding"]) -> None:
    """What the doctor found, with what to do about it, on stdout."""
    marks = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}
    for finding in findings:
        out.print(f"{marks[finding.status]} {finding.what}: {finding.found}", highlight=False)
        if finding.advice:
            out.print(f"     {finding.advice}", highlight=False, markup=False)
