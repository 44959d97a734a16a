"""A server of a small model."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from adrec.data.event_log import EventLog
from adrec.serving.admin import create_admin_app
from adrec.serving.app import create_app
from adrec.serving.config import ServerConfig
from adrec.serving.service import Service
from serving.clock import Clock


class Server:
    """Both applications of a service, and its parts."""

    def __init__(self, run: Path, log: Path, clock: Clock, settings: dict[str, Any]) -> None:
        self.run, self.log_file, self.clock = run, log, clock
        self.service = Service(
            run, EventLog.in_file(log), ServerConfig.model_validate(settings), clock=clock
        )
        self.app = create_app(self.service)
        self.http = TestClient(self.app, raise_server_exceptions=False)
        admin = create_admin_app(self.service, self.app.state.metrics)
        self.admin = TestClient(admin, raise_server_exceptions=False)

    def recommend(self, **asked: Any) -> dict[str, Any]:
        """An answer, which must be there."""
        found = self.http.post("/v1/recommend", json=asked)
        assert found.status_code == 200, found.text
        answer: dict[str, Any] = found.json()
        return answer

    def report(self, *events: dict[str, Any]) -> dict[str, Any]:
        """What became of events, which must have been looked at."""
        found = self.http.post("/v1/events", json={"events": events})
        assert found.status_code == 200, found.text
        result: dict[str, Any] = found.json()
        return result


Serve = Callable[..., Server]


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def serve(tiny_run: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts servers, one after the other on the same log; the last is stopped at the end."""
    from adrec.bundle import Bundle

    clock = Clock(Bundle.open(tiny_run).manifest.log_end_ms + 60_000)
    running: list[Server] = []

    def start(run: Path = tiny_run, **settings: Any) -> Server:
        while running:
            running.pop().service.close()
        given = {
            "timeout_ms": 30_000.0,
            "batching": {"at_once": 1},
            "answer_in": "threads",
        } | settings
        running.append(Server(run, tmp_path / "events.db", clock, given))
        return running[-1]

    yield start
    while running:
        running.pop().service.close()


@pytest.fixture
def server(serve: Serve) -> Server:
    """One with the usual settings."""
    return serve()
