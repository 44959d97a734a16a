"""The commands that serve a version over HTTP, and use what it logged."""

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adrec.console import count, notes, out, show_load, write_json
from adrec.options import JsonFile, Run
from adrec.progress import Progress

if TYPE_CHECKING:
    from adrec.data.event_log import EventLog

Events = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL of the event log; else a file in the run.")
]

ServerSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting of the server: --set batching.at_once=4."),
]

log = typer.Typer(help="What a server logged: train on it, check it.", no_args_is_help=True)


def serve(
    folder: Run,
    host: Annotated[str | None, typer.Option(help="Address to listen at.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the requests; 0: any.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the admin; 0: any.")] = None,
    events: Events = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that serve on the same ports.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML with settings of the server.")
    ] = None,
    settings: ServerSettings = None,
) -> None:
    """Answer requests for ads over HTTP; the page /docs tells all of them.

    Listens at 127.0.0.1 unless told otherwise. Tokens come from the environment:
    ADREC_EVENTS_TOKEN to report events, to change ads and to read what is known of a user,
    ADREC_ADMIN_TOKEN for the admin's port.
    A host that other machines reach needs both, or `--set open=true` where something else keeps
    strangers out.
    """
    from adrec.bundle import run_of
    from adrec.config import load_settings, parse_overrides
    from adrec.serving.config import TOKENS, ServerConfig
    from adrec.serving.logs import log_to_stderr
    from adrec.serving.run import listen_on, run
    from adrec.serving.service import Service
    from adrec.serving.versions import first_version
    from adrec.serving.workers import my_place, run_workers

    flags: dict[str, Any] = {
        "host": host, "port": port, "admin_port": admin_port, "events": events,
        "workers": workers, **{field: os.environ.get(name) for field, name in TOKENS.items()},
    }  # fmt: skip
    given = {name: value for name, value in flags.items() if value is not None}
    given |= parse_overrides(settings or [])
    config = load_settings(ServerConfig, config_file, given)
    event_log = _event_log(folder, config.events)
    log_to_stderr()
    if (place := my_place()) is not None:
        place.end_with_parent()
        begun = run_of(folder) / "versions" / place.version
        service = Service(begun, event_log, config, since=place.since)
        run(service, place.listeners, ready=place.tell_ready, drain=place.drain)
        return
    listeners = listen_on(config)

    def ready(version: str) -> None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        requests, admin = (f"http://{host}:{one.getsockname()[1]}" for one in listeners)
        out.print(f"version {version} answers at {requests}", soft_wrap=True)
        out.print(f"requests: {requests}/docs, console: {requests}/console", soft_wrap=True)
        out.print(f"admin: {admin}/docs", soft_wrap=True)

    notes.print(f"loading {folder}")
    if config.workers > 1:
        marks = event_log.marks()
        version = first_version(folder, marks.wanted).name
        event_log.close()
        run_workers(
            config.workers, listeners, version, marks.versions, ready=lambda: ready(version)
        )
    else:
        service = Service(folder, event_log, config)
        run(service, listeners, ready=lambda: ready(service.current.name))
    notes.print("stopped")


def loadtest(
    url: Annotated[str, typer.Argument(help="Of a server: http://127.0.0.1:8000.")],
    rate: Annotated[float, typer.Option(min=0.01, help="Requests a second, on average.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long.")] = 30.0,
    users: Annotated[
        Path | None, typer.Option(help="File with a user's id on each line; else 1 to 1000.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Ads a request.")] = 10,
    reported: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of answers whose ads were shown.")
    ] = 0.0,
    timeout_ms: Annotated[
        float | None, typer.Option(help="Deadline that requests bring; else the server's own.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Send a server requests that come at random instants, and report how it did.

    They come whether or not earlier ones are answered, as users do. With --reported, events follow
    as clients report them; they go into the server's log, so do this to one that is there for it.
    """
    import asyncio

    from adrec.errors import ConfigError
    from adrec.serving.config import TOKENS
    from adrec.serving.loadtest import Load, run_load

    ids = [str(i) for i in range(1, 1001)]
    if users is not None:
        ids = [line.strip() for line in users.read_text().splitlines() if line.strip()]
        if not ids:
            raise ConfigError(f"{users}: no user's id stands in it; give one on each line")
    load = Load(rate, seconds, ids, k=k, reported=reported, timeout_ms=timeout_ms)
    token = os.environ.get(TOKENS["events_token"])
    with Progress(notes).track("load", round(seconds), "s") as advance:
        found = asyncio.run(run_load(url, load, token=token, tell=lambda s: advance(1, "")))
    summary = found.summary()
    show_load(summary)
    write_json(json_file, summary)
    if summary["failed"] or summary["events_failed"]:
        raise typer.Exit(1)


@log.command(epilog="Example: adrec log export runs/mine --out data/next")
def export(
    folder: Run,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder to train on next.")],
    events: Events = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Leave out the log that the version learned from.")
    ] = False,
) -> None:
    """Write what was served, and the log that the version learned from, as a folder to train on.

    An impression is written once its outcomes are settled: after the longest delay of the schema's
    tasks. The same command again brings the folder up to date. `train.yaml` beside them has the
    version's settings for this log.
    """
    from adrec.bundle import find_version, run_of
    from adrec.config import for_log, load_config, write_config
    from adrec.data.log_export import export_log
    from adrec.pipeline import open_log

    version = find_version(folder)
    config = load_config(version / "config.json", {})
    known = open_log(config.data)
    event_log = _event_log(folder, events)
    now_ms = time.time_ns() // 1_000_000
    done = export_log(
        event_log, known, out_folder, now_ms=now_ms, progress=Progress(notes), only_new=only_new
    )
    found = f"{count(done.impressions, 'impression')} of {count(len(done.days), 'day')}"
    out.print(
        f"{found}; {done.unsettled:,} are left until their outcomes are settled", soft_wrap=True
    )
    settings = out_folder / "train.yaml"
    header = f"# The settings of version {version.name}, for what it served.\n"
    write_config(settings, for_log(config, out_folder), header=header)
    then = "the log has nothing to add yet"
    if done.impressions:
        command = ["adrec", "train", "--config", str(settings), "--out", str(run_of(folder))]
        then = f"train on it: {shlex.join(command)}"
    notes.print(f"wrote {out_folder}; {then}", soft_wrap=True, markup=False)


@log.command(epilog="Example: adrec log check runs/mine")
def check(folder: Run, events: Events = None) -> None:
    """Compare what the models were told while serving with what they would learn from the log.

    A server keeps what the models were told of a sample of answers (`adrec serve --set
    sample=0.01`). A difference, which ends this with code 1, means that models serve on other
    numbers than they learn from: mostly, that outcomes come later than the `delay_ms` of their task
    allows.
    """
    from adrec.bundle import find_version
    from adrec.serving.loaded import load
    from adrec.serving.skew import measure_skew

    event_log, now_ms = _event_log(folder, events), time.time_ns() // 1_000_000
    recommender, known = load(find_version(folder), event_log, clock=lambda: now_ms)
    skew = measure_skew(recommender, event_log, after_ms=known.log_end_ms, until_ms=now_ms)
    out.print(f"{skew.checked:,} answers compared, {skew.different:,} differ")
    for part, answers in skew.parts.most_common():
        out.print(f"  in {part}: {answers:,}", highlight=False)
    if skew.different:
        out.print(f"  for example: {', '.join(skew.examples)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1)


def _event_log(folder: Path, url: str | None) -> "EventLog":
    """The log at a URL, or the one in the run."""
    from adrec.bundle import run_of
    from adrec.data.event_log import EventLog

    return EventLog.in_file(run_of(folder) / "events.db") if url is None else EventLog(url)
