"""The command that serves a version over HTTP."""

from typing import Annotated, Any

import typer

from adrec.console import notes, out
from adrec.options import Run, Settings


def serve(
    folder: Run,
    host: Annotated[str | None, typer.Option(help="Address to listen at.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the requests; 0: any.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the admin; 0: any.")] = None,
    events: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL of the event log; else a file in the run.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Answer requests for ads over HTTP; the page /docs tells all of them.

    Listens at 127.0.0.1 unless told otherwise. Tokens come from the environment:
    ADREC_EVENTS_TOKEN to report events and to change ads, ADREC_ADMIN_TOKEN for the admin's port.
    """
    import os

    from adrec.bundle import run_of
    from adrec.config import parse_overrides, settings_of
    from adrec.data.event_log import EventLog
    from adrec.serving.config import ServerConfig
    from adrec.serving.run import run
    from adrec.serving.service import Service

    flags: dict[str, Any] = {
        "host": host, "port": port, "admin_port": admin_port, "events": events,
        "events_token": os.environ.get("ADREC_EVENTS_TOKEN"),
        "admin_token": os.environ.get("ADREC_ADMIN_TOKEN"),
    }  # fmt: skip
    given = {name: value for name, value in flags.items() if value is not None}
    given |= parse_overrides(settings or [])
    config = settings_of(ServerConfig, given, source="adrec serve")
    log = (
        EventLog.in_file(run_of(folder) / "events.db")
        if config.events is None
        else EventLog(config.events)
    )
    notes.print(f"loading {folder}")
    service = Service(folder, log, config)

    def ready(requests: str, admin: str) -> None:
        out.print(f"version {service.current.name} answers at {requests}", soft_wrap=True)
        out.print(f"requests: {requests}/docs, admin: {admin}/docs", soft_wrap=True)

    run(service, ready=ready)
    notes.print("stopped")
