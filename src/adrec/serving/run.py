"""Run: both applications of a service on their ports, until a signal ends them.

On SIGTERM or Ctrl-C no more connections are taken, requests in work are answered, what waits is
written to the log, and the process ends. On SIGUSR1 it drains: it is ready no more.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from adrec.errors import ConfigError
from adrec.serving.admin import create_admin_app
from adrec.serving.app import create_app
from adrec.serving.config import ServerConfig
from adrec.serving.metrics import Metrics
from adrec.serving.service import Service

_BACKLOG = 2_048
_REFRESH_S = 1.0
_SWITCH_S = 0.002  # after which a thread that computes in Python lets one that answers go on


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named; else each
    # answer on a connection in use waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {host}, port {port}: {error.strerror}") from error
    listener.listen(_BACKLOG)
    return listener


def listen_on(config: ServerConfig) -> list[socket.socket]:
    """The sockets of the requests and of the admin.

    Raises:
        ConfigError: an address cannot be had.
    """
    return [listen(config.host, config.port), listen(config.host, config.admin_port)]


def run(
    service: Service,
    listeners: list[socket.socket],
    *,
    ready: Callable[[], None],
    drain: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; the service is closed then.

    Args:
        service: what answers.
        listeners: of the requests and of the admin.
        ready: called once requests are answered.
        drain: as `create_admin_app` takes it.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()  # looking through all that is loaded, again and again, holds up requests
    config = service.config
    app = create_app(service)
    apps = [app, create_admin_app(service, app.state.metrics, drain=drain)]
    servers = [
        _Server(
            uvicorn.Config(
                one,
                log_config=None,
                access_log=False,
                proxy_headers=False,
                timeout_graceful_shutdown=round(config.drain_s),
                lifespan="off",
            )
        )
        for one in apps
    ]

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            for server in servers:
                server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGUSR1, service.drain)
        ready()
        refreshing = asyncio.create_task(_refresh(app.state.metrics))
        await asyncio.gather(
            *(server.serve([one]) for server, one in zip(servers, listeners, strict=True))
        )
        refreshing.cancel()

    try:
        with asyncio.Runner(loop_factory=servers[0].config.get_loop_factory()) as runner:
            runner.run(serve())
    finally:
        service.close()


async def _refresh(metrics: Metrics) -> None:
    """Keep what other workers show of this one up to date."""
    while True:
        metrics.refresh()
        await asyncio.sleep(_REFRESH_S)


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to us: two of them run in one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
