"""The crew: workers that train trials side by side, and what each says."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Self

from adrec.tuning.trial import Draw
from adrec.tuning.worker import Message, Setup, work

_TIME_TO_STOP_S = 60.0  # a step and a checkpoint
_TIME_TO_LEAVE_S = 10.0


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    draw: Draw | None = None


class Crew:
    """Up to so many workers. Leaving it by an exception stops them, each with a checkpoint."""

    def __init__(self, setup: Setup, workers: int) -> None:
        """Args: what all trials have in common; how many may run at a time."""
        self._setup, self._size = setup, workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()
            if kind is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_TIME_TO_LEAVE_S if kind is None else _TIME_TO_STOP_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    @property
    def running(self) -> list[Draw]:
        """The trials that run."""
        return [worker.draw for worker in self._workers if worker.draw is not None]

    @property
    def has_room(self) -> bool:
        """Whether another trial may begin."""
        return len(self.running) < self._size

    def begin(self, draw: Draw) -> None:
        """Give a trial to an idle worker, or to a new one."""
        idle = [worker for worker in self._workers if worker.draw is None]
        worker = idle[0] if idle else self._start()
        worker.draw = draw
        with suppress(OSError):  # if it has died, `listen` says so
            worker.connection.send(draw)

    def listen(self) -> tuple[Draw, Message]:
        """Wait for the next that a worker has to say. An `epoch` wants an answer."""
        busy = [worker for worker in self._workers if worker.draw is not None]
        ready = wait([worker.connection for worker in busy])[0]
        worker = next(worker for worker in busy if worker.connection is ready)
        draw = worker.draw
        assert draw is not None
        try:
            message: Message = worker.connection.recv()
        except (EOFError, OSError):
            message = self._bury(worker)
        if message.kind != "epoch":
            worker.draw = None
        return draw, message

    def answer(self, draw: Draw, *, go_on: bool) -> None:
        """Let a trial go on after an epoch, or end it."""
        worker = next(worker for worker in self._workers if worker.draw is draw)
        with suppress(OSError):
            worker.connection.send(go_on)

    def _start(self) -> _Worker:
        context = get_context("spawn")  # a fork of a process with threads of torch may hang
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(self._setup, theirs))
        with _without_ctrl_c():
            process.start()
        theirs.close()  # else its end would not be seen
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def _bury(self, worker: _Worker) -> Message:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Message(kind="died", problem=f"its process ended by {how}")


@contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Ctrl-C waits for the end of what is done in here.

    Raised in the middle of a library's callback it would come out as that library's own error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        raise KeyboardInterrupt


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A process that is started in here does not hear Ctrl-C, which a terminal sends to all: the
    crew stops it. Training, which knows what to do, listens for it again.

    It is kept back, not ignored: this process hears it afterwards, and the other one once `work`
    has seen to it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
