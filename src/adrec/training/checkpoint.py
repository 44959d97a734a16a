"""Checkpoints: weights, optimiser and position, so that a resumed run ends bit-identical.

Tensors are safetensors, the rest is JSON; nothing is unpickled. A checkpoint is a folder that
appears whole: it is written beside its place, flushed to disk, and renamed.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from adrec.errors import CheckpointError

_DAMAGE = (OSError, ValueError, RuntimeError, LookupError, SafetensorError)


def save_checkpoint(
    directory: Path, model: nn.Module, optimiser: Optimizer, position: dict[str, Any]
) -> None:
    """Write or replace a checkpoint folder.

    Args:
        directory: the folder.
        model: its weights and buffers are kept.
        optimiser: its moments are kept.
        position: where training is; JSON values.
    """
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_weights(model, unfinished / "model.safetensors")
    save_file(_moments(optimiser), unfinished / "optimiser.safetensors")
    (unfinished / "position.json").write_text(json.dumps(position))
    for path in (*unfinished.iterdir(), unfinished):
        sync(path)
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    unfinished.rename(directory)
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    directory: Path, model: nn.Module, optimiser: Optimizer
) -> dict[str, Any] | None:
    """Restore a checkpoint in place and return its position; None where there is none.

    Raises:
        CheckpointError: it belongs to another model, or is damaged.
    """
    old = directory.with_name(directory.name + ".old")
    if not directory.exists() and old.exists():  # killed between the two renames
        old.rename(directory)
    if not directory.exists():
        return None
    load_weights(directory / "model.safetensors", model)
    try:
        _restore_moments(optimiser, load_file(directory / "optimiser.safetensors"))
        position: dict[str, Any] = json.loads((directory / "position.json").read_text())
        if not isinstance(position, dict):
            raise ValueError("position.json holds no object")
    except _DAMAGE as error:
        raise _unusable(directory, error) from error
    return position


def remove_checkpoint(directory: Path) -> None:
    """Remove a checkpoint folder and what a kill left of one, if they are there."""
    for suffix in ("", ".old", ".unfinished"):
        shutil.rmtree(directory.with_name(directory.name + suffix), ignore_errors=True)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights and persistent buffers by name, contiguous and on the CPU."""
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights as safetensors."""
    save_file(weights(model), path)


def load_weights(path: Path, model: nn.Module) -> None:
    """Read weights into a model of the same shape.

    Raises:
        CheckpointError: they belong to another model, or are damaged.
    """
    try:
        model.load_state_dict(load_file(path))
    except _DAMAGE as error:
        raise _unusable(path, error) from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over all weights: the same for two models exactly if their weights are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(model).items()):
        digest.update(name.encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unusable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be used ({str(error).splitlines()[0]}). The model's sizes have changed "
        "or the files are damaged: restart with --no-resume"
    )


def _moments(optimiser: Optimizer) -> dict[str, Tensor]:
    """Moments as `index.name`, in the order of the optimiser's parameters."""
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def _restore_moments(optimiser: Optimizer, tensors: dict[str, Tensor]) -> None:
    content = optimiser.state_dict()
    content["state"] = {}
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".")
        if value.ndim and value.shape != parameters[int(index)].shape:
            raise ValueError(f"moment {key} has the shape {tuple(value.shape)}")
        content["state"].setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(content)
