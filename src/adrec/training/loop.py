"""One training loop for both models.

Everything random (order, sampling, dropout) is a function of seed, epoch and step, so a run that is
interrupted anywhere and resumed ends with the very weights of one that was not.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from adrec.errors import ConfigError
from adrec.features.batches import Batch, forget_ads, forget_users, to_device
from adrec.features.dataset import Dataset, cut
from adrec.progress import Advance, Progress
from adrec.training.checkpoint import (
    load_checkpoint,
    load_weights,
    remove_checkpoint,
    save_checkpoint,
)
from adrec.training.config import TrainConfig
from adrec.training.curves import plot_curves
from adrec.training.objectives import Objective
from adrec.training.optimiser import build_optimiser, choose_bf16, choose_device, learning_rate


@dataclass
class Position:
    """Where training is. With the weights and moments, all that a resumed run needs."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    best: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics of each epoch, with the mean training loss."""
    loss_sum: float = 0.0
    rows: int = 0
    """Impressions seen, over all epochs."""
    seconds: float = 0.0
    """Time spent training, validation included."""
    waited_s: float = 0.0
    """Of that, time in which training stood still for want of a batch."""
    done: bool = False


OnEpoch = Callable[[Position], None]
"""Called with where training is: its history has the validation metrics of every epoch so far."""


def train(
    objective: Objective,
    dataset: Dataset,
    config: TrainConfig,
    directory: Path,
    *,
    name: str,
    progress: Progress | None = None,
    resume: bool = True,
    on_epoch: OnEpoch | None = None,
) -> Position:
    """Train, and leave the weights of the best epoch in the model.

    Writes into `directory`: checkpoints `last` and `best`, `log.jsonl` with a line every step and
    every epoch, and `curves.png`. With `resume=False`, what an earlier run left there is removed.

    `on_epoch` is called after each epoch, once its checkpoint is written, and at the start where an
    earlier run left some. An exception that it raises stops training.

    Raises:
        CheckpointError: what is there cannot be resumed.
        ConfigError: the loss or its gradient is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    run = _Run(objective, dataset, config, directory, name, progress or Progress())
    if resume:
        run.resume()
    else:
        run.discard()
    tell = on_epoch or _ignore
    if run.position.history:
        tell(run.position)
    with _interruptible() as stop:
        while not run.position.done:
            run.epoch(stop)
            tell(run.position)
    load_weights(directory / "best" / "model.safetensors", objective.model)
    return run.position


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        objective: Objective,
        dataset: Dataset,
        config: TrainConfig,
        directory: Path,
        name: str,
        progress: Progress,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._objective, self._dataset, self._config = objective, dataset, config
        self._directory, self._name, self._progress = directory, name, progress
        self._device = choose_device(config.device)
        self._bf16 = choose_bf16(config.precision, self._device)
        objective.model.to(self._device)
        self._optimiser = build_optimiser(objective.model, config)
        self._log = directory / "log.jsonl"
        self._saved_at = time.monotonic()
        self.position = Position()

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        found = load_checkpoint(self._directory / "last", self._objective.model, self._optimiser)
        if found is None:
            return
        self.position = Position(**found)
        if not self.position.done:
            at = f"epoch {self.position.epoch + 1}, step {self.position.step}"
            self._progress.say(f"{self._name}: resuming at {at}")

    def discard(self) -> None:
        """Remove the checkpoints of an earlier run, so that none of it is ever resumed."""
        for which in ("last", "best"):
            remove_checkpoint(self._directory / which)

    def epoch(self, stop: threading.Event) -> None:
        """Run what is left of the current epoch, then validate."""
        if self.position.epoch == 0 and self.position.step == 0:
            self._log.write_text("")
        config, at = self._config, self.position
        plan, rows, keep_N = self._plan(at.epoch)
        what = f"{self._name} epoch {at.epoch + 1}/{_passes(config)}"
        done = sum(rows[: at.step * config.accumulate])
        with self._progress.track(what, sum(rows), done=done) as advance:
            self._steps(plan, keep_N, stop, advance)
        self._finish_epoch()
        self._leave(stop)

    def _plan(
        self, epoch: int
    ) -> tuple[list[NDArray[np.int64]], list[int], NDArray[np.bool_] | None]:
        """Requests and number of impressions of each batch; which impressions are kept."""
        rng = np.random.default_rng([self._config.seed, epoch])
        dataset = self._dataset
        keep_N = None
        used_N = dataset.ad_N != 0
        if self._config.negative_rate < 1.0:
            labels_NK = dataset.labels_NK
            keep_N = rng.random(len(labels_NK), dtype=np.float32) < self._config.negative_rate
            keep_N |= labels_NK[:, 0] > 0
            used_N &= keep_N
        used_R = np.add.reduceat(used_N, dataset.offset_R[:-1], dtype=np.int64)
        requests = dataset.requests("train")
        shuffled = rng.permutation(requests[used_R[requests] > 0])
        groups = self._objective.groups(shuffled)
        plan = [
            part
            for group in np.unique(groups[groups >= 0])
            for part in cut(
                shuffled[groups == group],
                dataset.slate_R[shuffled[groups == group]],
                self._config.batch_rows,
            )
        ]
        plan = [plan[i] for i in rng.permutation(len(plan))]
        return plan, [int(used_R[part].sum()) for part in plan], keep_N

    def _steps(
        self,
        plan: Sequence[NDArray[np.int64]],
        keep_N: NDArray[np.bool_] | None,
        stop: threading.Event,
        advance: Advance,
    ) -> None:
        config, at, model = self._config, self.position, self._objective.model
        model.train()
        steps = math.ceil(len(plan) / config.accumulate)
        batches = self._batches(plan[at.step * config.accumulate :], keep_N)
        while at.step < steps:
            begun = time.monotonic()
            self._seed(at.epoch, at.step)
            rng = np.random.default_rng([config.seed, at.epoch, at.step, 1])
            rate = self._set_rate(at.epoch * steps + at.step, config.epochs * steps)
            parts = min(config.accumulate, len(plan) - at.step * config.accumulate)
            loss, rows = 0.0, 0
            for _ in range(parts):
                asked = time.monotonic()
                batch = next(batches)
                at.waited_s += time.monotonic() - asked
                batch = self._forget(batch, rng)
                rows += batch.rows
                part = self._loss(to_device(batch, self._device), rng) / parts
                part.backward()  # type: ignore[no-untyped-call]
                loss += float(part.detach())
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm))
            if not math.isfinite(loss + norm):
                raise ConfigError(
                    f"{self._name}: the loss is {loss} and its gradient's norm {norm} at epoch "
                    f"{at.epoch + 1}, step {at.step + 1}; lower learning_rate or use "
                    "precision=float32"
                )
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
            at.step += 1
            at.loss_sum += loss
            at.rows += rows
            at.seconds += time.monotonic() - begun
            advance(rows, f"loss {at.loss_sum / at.step:.4f}")
            self._write_log({"loss": loss, "learning_rate": rate, "rows": at.rows})
            self._checkpoint(stop)

    def _forget(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Let some users and ads of the batch pass for new ones."""
        config, layout = self._config, self._dataset.features.layout
        if config.new_user_share:
            of_user = np.array(layout.user_counters, bool)
            batch = forget_users(batch, config.new_user_share, of_user, rng)
        if config.new_ad_share:
            of_ad = np.array(layout.ad_counters, bool)
            batch = forget_ads(batch, config.new_ad_share, of_ad, layout.ad_id_buckets, rng)
        return batch

    def _loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return self._objective.loss(batch, rng)

    def _batches(
        self, plan: Sequence[NDArray[np.int64]], keep_N: NDArray[np.bool_] | None
    ) -> Iterator[Batch]:
        source = _Planned(self._dataset, plan, keep_N)
        loader: DataLoader[Batch] = DataLoader(
            source, batch_size=None, num_workers=self._config.workers, collate_fn=_as_it_is
        )
        return iter(loader)

    def _seed(self, epoch: int, step: int) -> None:
        sequence = np.random.SeedSequence([self._config.seed, epoch, step])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def _set_rate(self, step: int, steps: int) -> float:
        rate = learning_rate(self._config, step, steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        return rate

    def _checkpoint(self, stop: threading.Event) -> None:
        due = time.monotonic() - self._saved_at > self._config.checkpoint_every_s
        if due or stop.is_set():
            self._save("last")
        self._leave(stop)

    def _leave(self, stop: threading.Event) -> None:
        if stop.is_set():
            raise KeyboardInterrupt(f"{self._name} stopped; the same command resumes it")

    def _save(self, which: str) -> None:
        position = asdict(self.position)
        model = self._objective.model
        save_checkpoint(self._directory / which, model, self._optimiser, position)
        self._saved_at = time.monotonic()

    def _finish_epoch(self) -> None:
        at, config = self.position, self._config
        begun = time.monotonic()
        metrics = dict(self._objective.validate())
        at.seconds += time.monotonic() - begun
        loss = at.loss_sum / max(1, at.step)
        at.history.append({"epoch": at.epoch + 1, "loss": loss} | metrics)
        self._write_log(at.history[-1])
        shown = "".join(f", {name} {number:.4f}" for name, number in metrics.items())
        self._progress.say(f"{self._name} epoch {at.epoch + 1}: loss {loss:.4f}{shown}")
        chosen_by, value = next(iter(metrics.items()), (None, math.inf))
        better = chosen_by is None or value > at.best or at.best_epoch < 0
        if better:
            at.best, at.best_epoch = -math.inf if math.isnan(value) else value, at.epoch
        at.done = at.epoch + 1 >= _passes(config) or at.epoch - at.best_epoch >= config.patience
        at.epoch, at.step, at.loss_sum = at.epoch + 1, 0, 0.0
        if better:
            self._save("best")
        self._save("last")
        plot_curves(self._log, self._directory / "curves.png", chosen_by)

    def _write_log(self, values: dict[str, Any]) -> None:
        at = self.position
        line = {"epoch": at.epoch + 1, "step": at.step, "seconds": round(at.seconds, 2)} | values
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")


class _Planned(TorchDataset[Batch]):
    """The batches of a plan, by number."""

    def __init__(
        self,
        dataset: Dataset,
        plan: Sequence[NDArray[np.int64]],
        keep_N: NDArray[np.bool_] | None,
    ) -> None:
        self._dataset, self._plan, self._keep_N = dataset, plan, keep_N

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, number: int) -> Batch:
        return self._dataset.batch(self._plan[number], self._keep_N)


def _passes(config: TrainConfig) -> int:
    """Most passes over the training period."""
    return min(config.epochs, config.stop_after or config.epochs)


def _ignore(position: Position) -> None:
    del position


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        del frame
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
