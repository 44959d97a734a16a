"""The loop: one seed fixes everything, and a run stopped anywhere ends as if it had not been."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn

from adrec.errors import CheckpointError, ConfigError
from adrec.features.batches import Batch
from adrec.features.dataset import Dataset
from adrec.models.ranker import Ranker, RankerConfig
from adrec.models.two_tower import TwoTower, TwoTowerConfig
from adrec.progress import Progress
from adrec.training.checkpoint import fingerprint
from adrec.training.config import TrainConfig
from adrec.training.curves import read_log
from adrec.training.loop import Position, train
from adrec.training.objectives import Objective, RankerObjective, TwoTowerObjective
from adrec.training.optimiser import (
    build_optimiser,
    choose_bf16,
    choose_device,
    learning_rate,
)

CPU = torch.device("cpu")
RANKER = RankerConfig(
    embedding_dim=4, width=16, layers=1, heads=2, feed_forward=32, cross_rank=4, head_hidden=8
)
TOWER = TwoTowerConfig(
    embedding_dim=4,
    hidden=(16,),
    output_dim=8,
    history_dim=8,
    history_heads=1,
    uniform_negatives=64,
)
# 6,400 impressions of training: 5 batches an epoch. float32 is exact whatever the processor.
CONFIG = TrainConfig(epochs=2, batch_rows=1280, precision="float32", patience=5, learning_rate=5e-3)


class Killed(BaseException):
    """Stands for kill -9: nothing of the loop runs after it, only what is on disk counts."""


class Ranking(RankerObjective):
    """The ranker's objective, with something to do when a certain batch comes."""

    def __init__(self, dataset: Dataset, at: int = -1, do: Callable[[], None] | None = None):
        torch.manual_seed(CONFIG.seed)
        super().__init__(
            Ranker(RANKER, dataset.features.layout),
            dataset,
            positive_weights=(1.0, 1.0, 1.0),
            valid_requests=50,
            device=CPU,
        )
        self._at, self._do, self.batches, self.rows = at, do, 0, [0]

    def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        if self.batches == self._at and self._do is not None:
            self._do()
        self.batches += 1
        self.rows.append(batch.rows)
        return super().loss(batch, rng)


def kill() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(objective: Objective, dataset: Dataset, directory: Path, config: TrainConfig) -> Position:
    return train(objective, dataset, config, directory, name="model")


def trained(dataset: Dataset, directory: Path, config: TrainConfig) -> str:
    """Fingerprint of a ranker trained without a break."""
    objective = Ranking(dataset)
    run(objective, dataset, directory, config)
    return fingerprint(objective.model)


@pytest.fixture(scope="module")
def straight(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> "Straight":
    """A run of CONFIG without a break."""
    directory = tmp_path_factory.mktemp("straight")
    return Straight(trained(tiny_dataset, directory, CONFIG), log_of(directory))


class Straight(NamedTuple):
    """What a run that was stopped must come to."""

    weights: str
    log: list[tuple[int, int, float]]


def log_of(directory: Path) -> list[tuple[int, int, float]]:
    """Epoch, step and loss of each step, once."""
    steps, _ = read_log(directory / "log.jsonl")
    return [(entry["epoch"], entry["step"], entry["loss"]) for entry in steps]


# --- one seed -----------------------------------------------------------------------------------


def test_one_seed_fixes_everything(
    tiny_dataset: Dataset, tmp_path: Path, straight: Straight
) -> None:
    torch.manual_seed(99)  # what was drawn before must not matter
    assert trained(tiny_dataset, tmp_path / "again", CONFIG) == straight.weights
    assert log_of(tmp_path / "again") == straight.log
    other = CONFIG.model_copy(update={"seed": 1})
    assert trained(tiny_dataset, tmp_path / "other", other) != straight.weights


def test_one_seed_fixes_the_two_tower_and_its_sampled_ads(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    def tower(at: int = -1) -> TwoTowerObjective:
        torch.manual_seed(0)
        model = TwoTower(TOWER, tiny_dataset.features.layout)
        return TwoTowerObjective(model, tiny_dataset, valid_requests=50, device=CPU)

    whole = tower()
    position = run(whole, tiny_dataset, tmp_path / "a", CONFIG)
    assert list(position.history[0]) == ["epoch", "loss", "recall@40"]
    broken = tower()
    loss, calls = broken.loss, []

    def until_killed(batch: Batch, rng: np.random.Generator) -> Tensor:
        calls.append(batch)
        if len(calls) == 8:
            raise Killed
        return loss(batch, rng)

    broken.loss = until_killed  # type: ignore[method-assign]
    often = CONFIG.model_copy(update={"checkpoint_every_s": 1e-6})
    with pytest.raises(Killed):
        run(broken, tiny_dataset, tmp_path / "b", often)
    resumed = tower()
    run(resumed, tiny_dataset, tmp_path / "b", CONFIG)
    assert fingerprint(resumed.model) == fingerprint(whole.model)


def test_workers_change_nothing(tiny_dataset: Dataset, tmp_path: Path, straight: Straight) -> None:
    two = CONFIG.model_copy(update={"workers": 2})
    assert trained(tiny_dataset, tmp_path, two) == straight.weights


# --- stopped and resumed ------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "workers": {"workers": 2},
    "sampled": {"negative_rate": 0.4},
    "accumulated": {"accumulate": 2},  # 5 batches an epoch: steps of 2, 2 and 1
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_killed_run_resumes_to_the_same_weights(
    tiny_dataset: Dataset, tmp_path: Path, settings: dict[str, float]
) -> None:
    config = CONFIG.model_copy(update=settings)
    whole = trained(tiny_dataset, tmp_path / "whole", config)
    often = config.model_copy(update={"checkpoint_every_s": 1e-6})  # after every step
    for at in (3, 4):  # in the middle of the first epoch, then of what is left
        with pytest.raises(Killed):
            run(Ranking(tiny_dataset, at, kill), tiny_dataset, tmp_path / "broken", often)
    last = Ranking(tiny_dataset)
    position = run(last, tiny_dataset, tmp_path / "broken", config)
    assert fingerprint(last.model) == whole
    assert last.batches < 10  # it did not start again
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")
    assert [entry["epoch"] for entry in position.history] == [1, 2]


@pytest.mark.parametrize("stop", [interrupt, terminate])
@pytest.mark.parametrize("at", [2, 4, 7])  # 4 is the last batch of the first epoch
def test_a_stopped_run_resumes_where_it_stopped(
    tiny_dataset: Dataset, tmp_path: Path, straight: Straight, stop: Callable[[], None], at: int
) -> None:
    with pytest.raises(KeyboardInterrupt, match="the same command resumes it"):
        run(Ranking(tiny_dataset, at, stop), tiny_dataset, tmp_path, CONFIG)
    last = Ranking(tiny_dataset)
    run(last, tiny_dataset, tmp_path, CONFIG)
    assert fingerprint(last.model) == straight.weights
    assert last.batches == 10 - (at + 1)  # the step under way was finished, none is done twice
    assert log_of(tmp_path) == straight.log


def test_a_second_interrupt_does_not_wait_for_the_step(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt) as found:
        run(Ranking(tiny_dataset, 2, twice), tiny_dataset, tmp_path, CONFIG)
    assert str(found.value) == ""
    assert not (tmp_path / "last").exists()


def test_a_stop_while_the_last_epoch_is_validated_is_heard(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    class StoppedAtTheEnd(Ranking):
        def validate(self) -> Mapping[str, float]:
            interrupt()
            return super().validate()

    one = CONFIG.model_copy(update={"epochs": 1})
    with pytest.raises(KeyboardInterrupt):
        run(StoppedAtTheEnd(tiny_dataset), tiny_dataset, tmp_path, one)
    after = Ranking(tiny_dataset)
    assert run(after, tiny_dataset, tmp_path, one).done
    assert after.batches == 0


def test_handlers_of_signals_are_put_back(tiny_dataset: Dataset, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Killed):
        run(Ranking(tiny_dataset, 0, kill), tiny_dataset, tmp_path, CONFIG)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


PROGRAM = """
import importlib.util, os, signal, sys
from pathlib import Path
test, prepared, directory, name = sys.argv[1:]
spec = importlib.util.spec_from_file_location("test_loop", test)
loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loop)
dataset = loop.Dataset(Path(prepared))
often = loop.CONFIG.model_copy(update={"checkpoint_every_s": 1e-6, "workers": 2})
stop = lambda: os.kill(os.getpid(), getattr(signal, name))
loop.run(loop.Ranking(dataset, 7, stop), dataset, Path(directory), often)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_process_that_is_killed_resumes_to_the_same_weights(
    tiny_dataset: Dataset, tmp_path: Path, straight: Straight, name: str
) -> None:
    here = Path(__file__)
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", PROGRAM),
            *(here, tiny_dataset.directory, tmp_path, name),
        ],
        capture_output=True,
        timeout=300,
        check=False,
    )
    if name == "SIGKILL":
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    else:
        assert b"the same command resumes it" in done.stderr
    last = Ranking(tiny_dataset)
    run(last, tiny_dataset, tmp_path, CONFIG)
    assert last.batches == (3 if name == "SIGKILL" else 2)  # of 10, 7 and 8 were done
    assert fingerprint(last.model) == straight.weights
    assert log_of(tmp_path) == straight.log


def test_a_finished_run_gives_its_weights_again_without_training(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    weights = trained(tiny_dataset, tmp_path, CONFIG)
    again = Ranking(tiny_dataset)
    assert run(again, tiny_dataset, tmp_path, CONFIG).done
    assert again.batches == 0
    assert fingerprint(again.model) == weights


def test_without_resume_nothing_of_the_earlier_run_is_left(
    tiny_dataset: Dataset, tmp_path: Path, straight: Straight
) -> None:
    trained(tiny_dataset, tmp_path, CONFIG)
    fresh = Ranking(tiny_dataset, 1, kill)
    with pytest.raises(Killed):
        train(fresh, tiny_dataset, CONFIG, tmp_path, name="model", resume=False)
    # It was killed before its first checkpoint: the next run must not find the old one.
    last = Ranking(tiny_dataset)
    run(last, tiny_dataset, tmp_path, CONFIG)
    assert last.batches == 10
    assert fingerprint(last.model) == straight.weights
    assert log_of(tmp_path) == straight.log


def test_a_run_of_other_sizes_is_not_resumed(tiny_dataset: Dataset, tmp_path: Path) -> None:
    trained(tiny_dataset, tmp_path, CONFIG)
    other = Ranking(tiny_dataset)
    other.model = Ranker(RANKER.model_copy(update={"width": 32}), tiny_dataset.features.layout)
    with pytest.raises(CheckpointError, match=r"last.*sizes have changed.*--no-resume"):
        run(other, tiny_dataset, tmp_path, CONFIG)


# --- what a step does ---------------------------------------------------------------------------


def test_accumulated_batches_have_the_gradient_of_their_mean(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With nothing dropped or forgotten, two batches of half the rows make the step of the whole.
    clip = nn.utils.clip_grad_norm_
    steps: list[list[Tensor]] = []

    def looked_at(parameters: Iterable[Tensor], norm: float) -> Tensor:
        every = list(parameters)
        steps.append([p.grad.clone() for p in every if p.grad is not None])
        return clip(every, norm)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", looked_at)
    still = RANKER.model_copy(update={"dropout": 0.0})
    for rows, accumulate in ((6400, 1), (3200, 2)):
        objective = Ranking(tiny_dataset)
        torch.manual_seed(0)
        objective.model = Ranker(still, tiny_dataset.features.layout)
        config = CONFIG.model_copy(
            update={
                "epochs": 1,
                "batch_rows": rows,
                "accumulate": accumulate,
                "new_user_share": 0.0,
                "new_ad_share": 0.0,
            }
        )
        run(objective, tiny_dataset, tmp_path / str(rows), config)
        assert objective.batches == accumulate
    whole, halves = (torch.cat([g.flatten() for g in step]) for step in steps)
    # The halves are of 799 and 801 requests and weigh the same: a part in 800. Added instead of
    # averaged they would be twice as long.
    assert float((halves - whole).norm() / whole.norm()) < 0.01
    first, second = (log_of(tmp_path / rows)[0][2] for rows in ("6400", "3200"))
    assert second == pytest.approx(first, rel=0.01)


def test_a_batch_is_of_one_group_and_no_request_of_a_negative_one_is_in_any(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    class Grouped(Ranking):
        """Requests of users 4, 5, 6, ... are of groups -1, 0, 1, 2, -1, 0, ..."""

        def __init__(self, dataset: Dataset) -> None:
            super().__init__(dataset)
            self.group_R = dataset.user_R % 4 - 1
            self.of_ads: dict[tuple[int, ...], set[int]] = {}
            for request in dataset.requests("train").tolist():
                key = tuple(dataset.ad_N[slice(*dataset.offset_R[request : request + 2])].tolist())
                self.of_ads.setdefault(key, set()).add(int(self.group_R[request]))
            self.found: list[int] = []

        def groups(self, requests_R: NDArray[np.int64]) -> NDArray[np.int64]:
            return self.group_R[requests_R]

        def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
            groups = [self.of_ads[tuple(ads)] for ads in batch.ad_row_BN.tolist()]
            (group,) = set.intersection(*groups)  # of a slate that was shown twice one of two
            self.found.append(group)
            return super().loss(batch, rng)

    objective = Grouped(tiny_dataset)
    config = CONFIG.model_copy(update={"new_user_share": 0.0, "batch_rows": 400})
    position = run(objective, tiny_dataset, tmp_path, config)
    train = tiny_dataset.requests("train")
    used = train[objective.group_R[train] >= 0]
    assert 0 < len(used) < len(train)
    assert position.rows == 2 * 4 * len(used)  # 2 epochs, slates of 4
    first, second = np.split(np.array(objective.found), 2)
    for epoch in (first, second):
        assert set(epoch.tolist()) == {0, 1, 2}
        assert (np.diff(epoch) < 0).any()  # batches of the groups come in any order
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_negatives_are_left_out_at_the_rate_and_positives_never(
    tiny_dataset: Dataset, tmp_path: Path, rate: float
) -> None:
    class Counting(Ranking):
        positives, negatives = 0, 0
        by_epoch: ClassVar[list[int]] = []

        def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
            real = batch.candidates.mask_BN
            positive = (batch.labels_BNK > 0).any(-1)
            self.positives += int((real & positive).sum())
            self.negatives += int((real & ~positive).sum())
            return super().loss(batch, rng)

        def validate(self) -> Mapping[str, float]:
            self.by_epoch.append(self.negatives - sum(self.by_epoch))
            return super().validate()

    objective = Counting(tiny_dataset)
    config = CONFIG.model_copy(update={"negative_rate": rate})
    position = run(objective, tiny_dataset, tmp_path, config)
    labels = tiny_dataset.labels_NK[tiny_dataset.rows_of(tiny_dataset.requests("train"))]
    positives = int((labels > 0).any(axis=1).sum())
    negatives = len(labels) - positives
    assert objective.positives == 2 * positives  # 2 epochs
    error = math.sqrt(2 * negatives * rate * (1 - rate))
    assert abs(objective.negatives - 2 * negatives * rate) < 4 * error
    assert position.rows == objective.positives + objective.negatives
    assert objective.by_epoch[0] != objective.by_epoch[1]  # drawn anew each epoch


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_progress_ends_at_its_total_and_a_resumed_run_starts_where_it_was(
    tiny_dataset: Dataset, tmp_path: Path, rate: float
) -> None:
    def lines(objective: Ranking, config: TrainConfig) -> list[tuple[int, int]]:
        path, directory = tmp_path / "out.txt", tmp_path / "run"
        with path.open("w") as file:
            progress = Progress(Console(file=file), every_s=0.0)
            with suppress(KeyboardInterrupt):
                train(objective, tiny_dataset, config, directory, name="m", progress=progress)
        found = re.findall(r"([\d,]+) of ([\d,]+) rows", path.read_text())
        return [(int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in found]

    config = CONFIG.model_copy(update={"epochs": 1, "negative_rate": rate})
    first = Ranking(tiny_dataset, 2, interrupt)
    before = lines(first, config)
    assert [count for count, _ in before] == list(np.cumsum(first.rows)[1:])
    second = Ranking(tiny_dataset)
    after = lines(second, config)
    assert [count for count, _ in after] == list(before[-1][0] + np.cumsum(second.rows)[1:])
    assert after[-1][0] == after[-1][1] == before[0][1]


def test_a_loss_that_is_not_finite_is_an_error_and_no_checkpoint_of_it_is_kept(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    class Breaking(Ranking):
        def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
            loss = super().loss(batch, rng)
            return loss * float("nan") if self.batches == 3 else loss

    often = CONFIG.model_copy(update={"checkpoint_every_s": 1e-6})
    with pytest.raises(ConfigError, match=r"model: the loss is nan.*epoch 1, step 3; lower learn"):
        run(Breaking(tiny_dataset), tiny_dataset, tmp_path, often)
    assert json.loads((tmp_path / "last" / "position.json").read_text())["step"] == 2


def test_a_gradient_that_is_not_finite_is_an_error_before_it_reaches_the_weights(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    class Steep(Ranking):
        def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
            # sqrt has an infinite slope at 0: the loss is finite, its gradient is not.
            zero = next(self.model.parameters()).sum() * 0.0
            return super().loss(batch, rng) + zero.sqrt()

    objective = Steep(tiny_dataset)
    before = fingerprint(objective.model)
    with pytest.raises(ConfigError, match=r"gradient's norm nan at epoch 1, step 1"):
        run(objective, tiny_dataset, tmp_path, CONFIG)
    assert fingerprint(objective.model) == before


# --- the schedule and the optimiser -------------------------------------------------------------


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_share=0.2, final_share=0.1)
    # 10 steps: 2 of warm-up to 1/2 and 2/2, then a cosine over 8: at step 6 it is half way,
    # 0.1 + 0.9 / 2; at step 4 a quarter, 0.1 + 0.9 (1 + cos(pi/4)) / 2.
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.55)
    assert rates[4] == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate(config, 9, 10) > 0.1  # the end itself would be step 10


def test_the_cosine_restarts() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_share=0.0, final_share=0.0, restarts=1)
    rates = [learning_rate(config, step, 8) for step in range(8)]
    # Two cosines of 4 steps: 1, (1 + cos(pi/4)) / 2, 1/2, (1 - cos(pi/4)) / 2, and again.
    once = [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    assert rates == pytest.approx(once * 2)


def test_the_log_holds_the_rate_of_each_step(tiny_dataset: Dataset, tmp_path: Path) -> None:
    trained(tiny_dataset, tmp_path, CONFIG)
    steps, _ = read_log(tmp_path / "log.jsonl")
    rates = [entry["learning_rate"] for entry in steps]
    assert rates == [learning_rate(CONFIG, step, 10) for step in range(10)]


def test_tables_may_learn_at_a_rate_of_their_own(tiny_dataset: Dataset, tmp_path: Path) -> None:
    def moved(rate: float) -> tuple[bool, bool]:
        objective = Ranking(tiny_dataset)
        table, matrix = objective.model.ad_fields.table.weight, objective.model.ad_token.weight
        before = table.clone(), matrix.clone()
        config = CONFIG.model_copy(update={"epochs": 1, "embedding_rate": rate})
        run(objective, tiny_dataset, tmp_path / str(rate), config)
        return (
            bool((table - before[0]).abs().max() > 1e-4),
            bool((matrix - before[1]).abs().max() > 1e-4),
        )

    assert moved(1.0) == (True, True)
    assert moved(1e-6) == (False, True)


def test_biases_and_norms_do_not_decay_and_embeddings_have_their_own(tiny_dataset: Dataset) -> None:
    model = Ranking(tiny_dataset).model
    config = TrainConfig(weight_decay=0.3, embedding_decay=0.1)
    decay = {
        id(p): group["weight_decay"]
        for group in build_optimiser(model, config).param_groups
        for p in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        if "fields.table" in name:
            expected = 0.1
        elif name.endswith("bias") or "norm" in name:
            expected = 0.0
        else:
            expected = 0.3
        assert decay[id(parameter)] == expected, name


# --- which epoch --------------------------------------------------------------------------------


class Scripted:
    """One weight that counts steps, and validation metrics that are given."""

    def __init__(self, metrics: Sequence[float]) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self._metrics = list(metrics)
        self.seen: list[float] = []  # the weight at the end of each epoch

    def groups(self, requests_R: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.zeros(len(requests_R), np.int64)

    def loss(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        return -self.model.weight.sum()

    def validate(self) -> Mapping[str, float]:
        self.seen.append(self.model.weight.item())
        return {"score": self._metrics[len(self.seen) - 1], "other": 0.0}


@pytest.mark.parametrize(
    ("patience", "metrics", "epochs", "best"),
    [
        (1, [0.5, 0.4, 0.9, 0.9], 2, 0),  # stops at the first epoch that is no better
        (2, [0.5, 0.4, 0.3, 0.9], 3, 0),
        (2, [0.5, 0.4, 0.6, 0.5], 4, 2),  # a better one starts the count again
        (3, [0.5, 0.4, 0.3, 0.9], 4, 3),
        (1, [0.1, 0.2, 0.3, 0.4], 4, 3),  # never more than `epochs`
        (1, [0.5, 0.5, 0.9, 0.9], 2, 0),  # the same is no better
        (1, [-2.0, -1.0, -1.5, 0.0], 3, 1),  # metrics may be below zero
        (2, [math.nan, 0.2, 0.1, 0.0], 4, 1),  # a metric that has no value is worse than any
        (2, [math.nan, math.nan, math.nan, 0.0], 3, 0),
    ],
)
def test_training_stops_once_patience_epochs_were_no_better(
    tiny_dataset: Dataset,
    tmp_path: Path,
    patience: int,
    metrics: list[float],
    epochs: int,
    best: int,
) -> None:
    objective = Scripted(metrics)
    config = CONFIG.model_copy(update={"epochs": 4, "patience": patience})
    position = run(objective, tiny_dataset, tmp_path, config)
    assert len(objective.seen) == len(position.history) == epochs
    assert position.best_epoch == best
    assert position.done
    # The weights left are those of the best epoch, not of the last.
    assert objective.model.weight.item() == objective.seen[best]
    assert len(set(objective.seen)) == epochs


def test_training_may_end_earlier_than_its_learning_rates(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """It is then what a longer one was after so many epochs."""
    long, short = Scripted([0.1, 0.2, 0.3]), Scripted([0.1, 0.2])
    config = CONFIG.model_copy(update={"epochs": 3})
    run(long, tiny_dataset, tmp_path / "long", config)
    config = config.model_copy(update={"stop_after": 2})
    position = run(short, tiny_dataset, tmp_path / "short", config)
    assert (position.epoch, position.best_epoch, position.done) == (2, 1, True)
    assert short.seen == long.seen[:2]
    assert short.model.weight.item() == long.seen[1]


def test_it_says_after_each_epoch_how_it_stands(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Resumed or done already, it says at once what it has found."""
    told: list[tuple[int, bool]] = []

    def tell(position: Position) -> None:
        told.append((len(position.history), position.done))
        if len(told) == 2:
            raise Killed

    def go() -> None:
        config = CONFIG.model_copy(update={"epochs": 3})
        train(Scripted([0.1, 0.2, 0.3]), tiny_dataset, config, tmp_path, name="x", on_epoch=tell)

    with pytest.raises(Killed):
        go()
    assert told == [(1, False), (2, False)]
    go()
    go()
    assert told[2:] == [(2, False), (3, True), (3, True)]


def test_without_metrics_the_last_epoch_is_kept(tiny_dataset: Dataset, tmp_path: Path) -> None:
    class Unjudged(Scripted):
        def validate(self) -> Mapping[str, float]:
            super().validate()
            if len(self.seen) == self.stop_at:
                interrupt()
            return {}

        stop_at = 0

    config = CONFIG.model_copy(update={"epochs": 3, "patience": 1})
    straight = Unjudged([0.0] * 3)
    position = run(straight, tiny_dataset, tmp_path / "straight", config)
    assert (position.epoch, position.best_epoch, position.done) == (3, 2, True)
    assert straight.model.weight.item() == straight.seen[2] == max(straight.seen)
    assert [set(entry) for entry in position.history] == [{"epoch", "loss"}] * 3
    # Also where it was stopped in between.
    stopped = Unjudged([0.0] * 3)
    stopped.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tiny_dataset, tmp_path / "stopped", config)
    rest = Unjudged([0.0])
    assert run(rest, tiny_dataset, tmp_path / "stopped", config).best_epoch == 2
    assert rest.model.weight.item() == straight.seen[2]
    # One panel instead of two.
    pictures = {}
    for name, objective in (("judged", Scripted([0.5] * 3)), ("unjudged", Unjudged([0.0] * 3))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("adrec.training.curves.Figure", Sketch)
            run(objective, tiny_dataset, tmp_path / name, config)
        pictures[name] = [axes.get_title() for axes in Sketch.last.axes]
    assert pictures == {"judged": ["Loss", "Validation"], "unjudged": ["Loss"]}


class Sketch(Figure):
    """A figure that can be looked at once it is written."""

    last: ClassVar[Figure]

    def savefig(self, *place: Path, **options: int) -> None:
        Sketch.last = self
        super().savefig(*place, **options)


def test_patience_is_counted_across_a_stop(tiny_dataset: Dataset, tmp_path: Path) -> None:
    class Stopped(Scripted):
        def validate(self) -> Mapping[str, float]:
            if len(self.seen) == 1:
                interrupt()
            return super().validate()

    metrics = [0.5, 0.4, 0.3, 0.9]
    config = CONFIG.model_copy(update={"epochs": 4, "patience": 2})
    with pytest.raises(KeyboardInterrupt):
        run(Stopped(metrics), tiny_dataset, tmp_path, config)
    rest = Scripted(metrics[2:])
    position = run(rest, tiny_dataset, tmp_path, config)
    assert [entry["score"] for entry in position.history] == [0.5, 0.4, 0.3]
    assert position.best_epoch == 0


def test_what_is_written(tiny_dataset: Dataset, tmp_path: Path) -> None:
    position = run(Ranking(tiny_dataset), tiny_dataset, tmp_path, CONFIG)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    checkpoint = {"model.safetensors", "optimiser.safetensors", "position.json"}
    assert files == {
        "log.jsonl",
        "curves.png",
        *(f"last/{name}" for name in checkpoint),
        *(f"best/{name}" for name in checkpoint),
    }
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    steps, epochs = read_log(tmp_path / "log.jsonl")
    assert [(e["epoch"], e["step"]) for e in steps] == [(e, s) for e in (1, 2) for s in range(1, 6)]
    assert [e["rows"] for e in steps][-1] == position.rows == 2 * 6400
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert list(position.history[0])[2] == "click AUC"


def test_a_line_cut_short_does_not_stop_a_resumed_run(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Ranking(tiny_dataset, 2, interrupt), tiny_dataset, tmp_path, CONFIG)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"epoch": 1, "st\n')
    run(Ranking(tiny_dataset), tiny_dataset, tmp_path, CONFIG)
    assert len(log_of(tmp_path)) == 10


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"patience": 0}, {"negative_rate": 0.0}, {"speed": 9}]
)
def test_settings_out_of_range_or_unknown_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainConfig.model_validate(wrong)


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="device 'abacus' is not usable here"):
        choose_device("abacus")


def test_precision() -> None:
    assert choose_bf16("bf16", CPU)
    assert not choose_bf16("float32", CPU)


def test_bf16_trains_to_nearly_the_same_loss(tiny_dataset: Dataset, tmp_path: Path) -> None:
    exact = run(Ranking(tiny_dataset), tiny_dataset, tmp_path / "a", CONFIG)
    short = CONFIG.model_copy(update={"precision": "bf16"})
    found = run(Ranking(tiny_dataset), tiny_dataset, tmp_path / "b", short)
    # 10 steps; losses of about 0.5, rounded to 8 bits at every product.
    assert found.history[-1]["loss"] == pytest.approx(exact.history[-1]["loss"], rel=0.02)
