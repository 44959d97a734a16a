"""Checkpoints: what was kept comes back, and a kill at any instant leaves one that loads."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from adrec.errors import CheckpointError
from adrec.training import checkpoint
from adrec.training.checkpoint import (
    fingerprint,
    load_checkpoint,
    load_weights,
    remove_checkpoint,
    save_checkpoint,
    save_weights,
)


class Network(nn.Module):
    """A table, a matrix, a scalar, and a parameter that never gets a gradient."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(5, width)
        self.linear = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(self.table(rows)) * self.scale
        return found


def make(seed: int = 0, width: int = 3) -> tuple[Network, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Network(width)
    return model, torch.optim.AdamW(
        [
            {"params": [model.linear.weight, model.scale], "weight_decay": 0.1},
            {"params": [model.table.weight, model.linear.bias, model.idle], "weight_decay": 0.0},
        ],
        lr=0.1,
        fused=True,
    )


def steps(model: Network, optimiser: torch.optim.AdamW, count: int) -> None:
    for i in range(count):
        model(torch.tensor([i % 5, (i + 2) % 5])).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of three steps."""
    model, optimiser = make()
    steps(model, optimiser, 3)
    save_checkpoint(tmp_path / "last", model, optimiser, {"step": 3, "best": -float("inf")})
    return tmp_path / "last"


def test_weights_moments_and_position_come_back_and_go_on_alike(saved: Path) -> None:
    straight, its_optimiser = make()
    steps(straight, its_optimiser, 3)
    model, optimiser = make(seed=1)
    assert fingerprint(model) != fingerprint(straight)
    assert load_checkpoint(saved, model, optimiser) == {"step": 3, "best": -float("inf")}
    assert fingerprint(model) == fingerprint(straight)
    steps(straight, its_optimiser, 4)
    steps(model, optimiser, 4)
    assert fingerprint(model) == fingerprint(straight)


def test_without_the_moments_it_would_not_go_on_alike(saved: Path) -> None:
    straight, its_optimiser = make()
    steps(straight, its_optimiser, 4)
    model, optimiser = make()
    load_weights(saved / "model.safetensors", model)
    steps(model, optimiser, 1)
    assert fingerprint(model) != fingerprint(straight)


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "last", *make()) is None


def test_it_is_replaced_whole(saved: Path) -> None:
    model, optimiser = make(seed=2)
    steps(model, optimiser, 1)
    save_checkpoint(saved, model, optimiser, {"step": 9})
    again, its_optimiser = make()
    assert load_checkpoint(saved, again, its_optimiser) == {"step": 9}
    assert fingerprint(again) == fingerprint(model)
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


def test_only_safe_files_are_written(saved: Path) -> None:
    files = sorted(path.name for path in saved.rglob("*"))
    assert files == ["model.safetensors", "optimiser.safetensors", "position.json"]
    for path in saved.glob("*.safetensors"):
        content = path.read_bytes()
        header = int.from_bytes(content[:8], "little")  # safetensors: a length, then JSON
        assert json.loads(content[8 : 8 + header])
        assert not content.startswith((b"\x80", b"PK"))  # a pickle, or a zip of pickles
    json.loads((saved / "position.json").read_text())


def test_nothing_in_the_package_unpickles() -> None:
    for path in Path(checkpoint.__file__).parents[1].rglob("*.py"):
        text = path.read_text()
        for word in (
            "import pickle",
            "torch.load(",
            "torch.save(",
            "import joblib",
            "allow_pickle",
        ):
            assert word not in text, f"{path}: {word}"


# --- killed -------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9 between two calls to the system."""


CHANGES = 14  # to the disk: rmtree, mkdir, 3 files, 4 syncs, rmtree, 2 renames, sync, rmtree


@pytest.mark.parametrize("call", range(CHANGES + 1))
def test_a_kill_before_any_change_leaves_the_old_or_the_new(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Die before the n-th change to the disk while step 4 replaces step 3."""
    model, optimiser = make()
    steps(model, optimiser, 4)
    made = 0

    def mortal(real: Callable[..., object]) -> Callable[..., object]:
        def maybe(*args: object, **settings: object) -> object:
            nonlocal made
            if made == call:
                raise Killed
            made += 1
            return real(*args, **settings)

        return maybe

    with monkeypatch.context() as patch:
        for owner, name in (
            *((Path, name) for name in ("rename", "mkdir", "write_text")),
            *((checkpoint, name) for name in ("save_file", "sync")),
            (shutil, "rmtree"),
        ):
            patch.setattr(owner, name, mortal(getattr(owner, name)))
        with suppress(Killed):
            save_checkpoint(saved, model, optimiser, {"step": 4})
    assert made == call
    again, its_optimiser = make(seed=5)
    position = load_checkpoint(saved, again, its_optimiser)
    assert position is not None
    expected, expected_optimiser = make()
    steps(expected, expected_optimiser, position["step"])
    assert fingerprint(again) == fingerprint(expected)
    # And the next one can be written over whatever the kill left.
    save_checkpoint(saved, model, optimiser, {"step": 4})
    assert load_checkpoint(saved, *make()) == {"step": 4}
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


def test_a_kill_between_the_two_renames_is_resumed_from_the_old_one(saved: Path) -> None:
    saved.rename(saved.with_name("last.old"))
    position = load_checkpoint(saved, *make())
    assert position is not None
    assert position["step"] == 3
    assert saved.exists()


def test_remove_leaves_nothing_to_resume(saved: Path) -> None:
    for suffix in (".old", ".unfinished"):
        shutil.copytree(saved, saved.with_name("last" + suffix))
    remove_checkpoint(saved)
    assert list(saved.parent.iterdir()) == []
    remove_checkpoint(saved)
    assert load_checkpoint(saved, *make()) is None


# --- damaged ------------------------------------------------------------------------------------

FILES = ["model.safetensors", "optimiser.safetensors", "position.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(
    saved: Path, name: str, damage: str
) -> None:
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        broken = {"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\x80\x04 no"}
        path.write_bytes(broken[damage])
    with pytest.raises(CheckpointError, match=r"last.*damaged: restart with --no-resume"):
        load_checkpoint(saved, *make())


def test_a_checkpoint_of_other_sizes_is_an_error(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="sizes have changed"):
        load_checkpoint(saved, *make(width=4))
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*sizes have changed"):
        load_weights(saved / "model.safetensors", make(width=4)[0])


def test_moments_of_other_parameters_are_an_error(saved: Path) -> None:
    other, optimiser = make(width=4)
    steps(other, optimiser, 1)
    save_checkpoint(saved.with_name("other"), other, optimiser, {})
    shutil.copy(saved.with_name("other") / "optimiser.safetensors", saved)
    with pytest.raises(CheckpointError, match="sizes have changed"):
        load_checkpoint(saved, *make())


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null"])
def test_a_position_that_is_no_object_is_an_error(saved: Path, content: str) -> None:
    (saved / "position.json").write_text(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(saved, *make())


# --- weights ------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_a_single_bit_and_with_a_name(tmp_path: Path) -> None:
    model, _ = make()
    before = fingerprint(model)
    assert fingerprint(make()[0]) == before
    with torch.no_grad():
        weight = model.linear.weight.view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert fingerprint(model) != before
    first, second = nn.Module(), nn.Module()
    first.a, second.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    assert fingerprint(first) != fingerprint(second)


def test_weights_are_written_and_read(tmp_path: Path) -> None:
    model, _ = make()
    save_weights(model, tmp_path / "w.safetensors")
    other, _ = make(seed=1)
    load_weights(tmp_path / "w.safetensors", other)
    assert fingerprint(other) == fingerprint(model)
