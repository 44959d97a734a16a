"""A worker: a process that trains trial after trial and asks after each epoch whether to go on.

It is stopped like any training: SIGTERM lets it write a checkpoint first. If the process that leads
the search dies, it ends at once, so that it is in nobody's way when the search is resumed.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

import torch

from adrec.config import RunConfig, with_settings
from adrec.errors import AdRecError
from adrec.features.dataset import Dataset
from adrec.models.two_tower import TwoTower
from adrec.progress import Progress
from adrec.stages import train_ranker, train_two_tower
from adrec.training.checkpoint import load_weights, remove_checkpoint
from adrec.training.loop import Position
from adrec.tuning.space import Stage
from adrec.tuning.trial import Draw

FOLDERS: dict[Stage, str] = {"ranker": "ranker", "two_tower": "two-tower"}
"""What a stage is called in a run's folder."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trials of a search have in common."""

    config: RunConfig
    stage: Stage
    dataset: Path
    """The prepared log."""
    tower: Path | None
    """Weights that rankers start from, if any does."""
    folder: Path
    """Of the trials' own folders."""
    threads: int
    """Of torch, each worker."""

    def place(self, number: int) -> Path:
        """A trial's folder."""
        return self.folder / f"{number:04d}"


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a worker says of its trial, or what is said for it once it has died."""

    kind: Literal["epoch", "done", "pruned", "failed", "died"]
    history: tuple[dict[str, float], ...] = ()
    best_epoch: int = -1
    seconds: float = 0.0
    problem: str | None = None


class _PrunedError(Exception):
    """The trial is not worth another epoch."""


def work(setup: Setup, connection: Connection) -> None:
    """Train trials as they come, until the connection is closed or the process is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it was kept back until here
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(setup.threads)
    dataset = Dataset(setup.dataset)
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):  # the search is gone, or stopped
        while True:
            draw: Draw = connection.recv()
            connection.send(_try(setup, dataset, draw, connection))


def forget_weights(setup: Setup, number: int) -> None:
    """Remove a trial's checkpoints; its log and curves stay."""
    for which in ("last", "best"):
        remove_checkpoint(setup.place(number) / FOLDERS[setup.stage] / which)


def _try(setup: Setup, dataset: Dataset, draw: Draw, connection: Connection) -> Message:
    stands: list[Message] = [Message(kind="failed")]

    def tell(position: Position) -> None:
        stands.append(_message("epoch", position))
        if not position.done:
            connection.send(stands[-1])
            if not connection.recv():
                raise _PrunedError

    try:
        return _message("done", _train(setup, dataset, draw, tell))
    except _PrunedError:
        last = stands[-1]
        return Message(
            kind="pruned", history=last.history, best_epoch=last.best_epoch, seconds=last.seconds
        )
    except AdRecError as error:
        return Message(kind="failed", problem=str(error))
    except (EOFError, OSError):
        raise  # the search is gone, or the disk is full
    except Exception as error:  # out of memory, say: the other trials may yet fit
        return Message(kind="failed", problem=f"{type(error).__name__}: {error}")


def _train(
    setup: Setup, dataset: Dataset, draw: Draw, tell: Callable[[Position], None]
) -> Position:
    config = with_settings(setup.config, draw.settings, source=f"trial {draw.number}")
    folder, quiet = setup.place(draw.number), Progress()
    if setup.stage == "two_tower":
        return train_two_tower(config, dataset, folder, progress=quiet, on_epoch=tell)[1]
    torch.manual_seed(config.training.two_tower.seed)
    tower = TwoTower(config.two_tower, dataset.features.layout)
    if setup.tower is not None:
        load_weights(setup.tower, tower)
    return train_ranker(config, dataset, folder, tower, progress=quiet, on_epoch=tell)[1]


def _message(kind: Literal["epoch", "done"], position: Position) -> Message:
    return Message(
        kind=kind,
        history=tuple(position.history),
        best_epoch=position.best_epoch,
        seconds=position.seconds,
    )


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
