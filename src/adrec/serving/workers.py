"""Workers: several processes that serve on the same ports.

The parent listens and starts the workers, which accept on its sockets; it prints the addresses once
all are ready, starts one anew that died, passes SIGTERM and SIGUSR1 (drain) on, and ends when all
have ended; they end when it does. What one worker takes in the others follow through the event log
(`versions.py`), and through Redis where there is one (`news.py`). Each maps the index from disk, so
that its pages are in memory once.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from prometheus_client import multiprocess

from adrec.errors import AdRecError
from adrec.serving.metrics import FOLDER

_PLACE = "ADREC_WORKER"
_READY_S = 600.0
_PAUSE_S = 1.0  # before a worker that died is started anew

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What a worker is given by its parent."""

    listeners: list[socket.socket]
    """Of the requests and of the admin."""
    version: str
    """Name of the version that the parent began with."""
    since: int
    """Changes of the version when the parent began; see `Versions`."""
    ready: int
    """Descriptor to tell on that it answers."""
    parent: int
    """Its process id."""
    alive: int
    """Descriptor that ends when the parent does."""

    def end_with_parent(self) -> None:
        """Have this process stop as soon as the parent is gone, however that ended: nobody would
        replace it or pass signals on, and its ports would stay taken."""

        def wait() -> None:
            os.read(self.alive, 1)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, name="parent", daemon=True).start()

    def tell_ready(self) -> None:
        """Tell the parent that this worker answers."""
        with contextlib.suppress(BrokenPipeError):  # a parent that replaces one does not wait
            os.write(self.ready, b".")
        os.close(self.ready)

    def drain(self) -> None:
        """Have all workers drain."""
        if os.getppid() == self.parent:
            os.kill(self.parent, signal.SIGUSR1)


def my_place() -> Place | None:
    """What this process was given, if it is a worker."""
    given = os.environ.pop(_PLACE, None)
    if given is None:
        return None
    *numbers, version = given.split(",", 6)
    first, second, ready, alive, parent, since = map(int, numbers)
    listeners = [socket.socket(fileno=fd) for fd in (first, second)]
    return Place(listeners, version, since, ready, parent, alive)


def run_workers(
    count: int,
    listeners: list[socket.socket],
    version: str,
    since: int,
    *,
    ready: Callable[[], None],
) -> None:
    """Serve with so many processes until SIGTERM or SIGINT.

    Args:
        count: of workers; each runs this process's own command.
        listeners: of the requests and of the admin.
        version: name of the one to begin with.
        since: changes of the version so far; see `Versions`.
        ready: called once all answer.

    Raises:
        AdRecError: a worker could not start.
    """
    with tempfile.TemporaryDirectory(prefix="adrec-metrics-") as folder:
        _Parent(count, listeners, (since, version), folder).run(ready)


class _Parent:
    def __init__(
        self, count: int, listeners: list[socket.socket], begun: tuple[int, str], metrics: str
    ) -> None:
        self._count, self._listeners = count, listeners
        self._begun, self._metrics = begun, metrics
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopping = self._draining = False
        self._alive, self._never_closed = os.pipe()  # until this process ends

    def run(self, ready: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._drain)
        try:
            pipes = [self._start() for _ in range(self._count)]
            answers = [self._wait_for(pipe) for pipe in pipes]
            if not all(answers):
                if self._stopping:
                    return
                raise AdRecError("a worker could not start; it says above why")
            ready()
            while not self._stopping:
                self._replace_dead()
                time.sleep(0.1)
        finally:
            self._stop(signal.SIGTERM, None)
            for one in self._listeners:  # else connections would be taken that nobody answers
                one.close()
            for worker in self._running:
                worker.wait()

    def _start(self) -> int:
        """Start a worker; the descriptor on which it tells that it is ready."""
        reading, writing = os.pipe()
        passed = [*(one.fileno() for one in self._listeners), writing, self._alive]
        place = ",".join(map(str, [*passed, os.getpid(), *self._begun]))
        environment = os.environ | {_PLACE: place, FOLDER: self._metrics}
        command = [sys.executable, "-m", "adrec.cli", *sys.argv[1:]]
        self._running.append(subprocess.Popen(command, env=environment, pass_fds=passed))
        os.close(writing)
        return reading

    def _wait_for(self, pipe: int) -> bool:
        """Whether a worker has become ready; False if it ended before."""
        try:
            found, _, _ = select.select([pipe], [], [], _READY_S)
            return bool(found) and os.read(pipe, 1) == b"."
        finally:
            os.close(pipe)

    def _replace_dead(self) -> None:
        for worker in [one for one in self._running if one.poll() is not None]:
            self._running.remove(worker)
            multiprocess.mark_process_dead(worker.pid, self._metrics)  # type: ignore[no-untyped-call]
            _log.error("worker %d ended with code %s", worker.pid, worker.returncode)
            time.sleep(_PAUSE_S)
            if self._stopping or self._draining:  # who came now would be ready
                return
            _log.info("another worker is started")
            os.close(self._start())

    def _drain(self, number: int, frame: FrameType | None) -> None:
        self._draining = True
        self._signal(signal.SIGUSR1)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._running:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(number)
