"""A trial: the settings that it tries, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Ending: TypeAlias = Literal["done", "pruned", "failed"]


@dataclass(frozen=True)
class Draw:
    """Settings to try, by path."""

    number: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial."""

    number: int
    ending: Ending
    settings: Mapping[str, Any]
    metric: str | None = None
    """What it is judged by, e.g. `click AUC`."""
    value: float | None = None
    """The metric at the epoch that training kept."""
    epoch: int | None = None
    """The epoch that training kept, from 1."""
    epochs: int = 0
    """How many it ran."""
    minutes: float = 0.0
    problem: str | None = None
    """Why it failed."""


def labels(paths: list[str]) -> dict[str, str]:
    """A short name of each setting: the last part of its path, unless two have it in common."""
    names = [path.rpartition(".")[2] for path in paths]
    return {
        path: name if names.count(name) == 1 else path
        for path, name in zip(paths, names, strict=True)
    }


def shown(settings: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Settings in a line: `learning_rate 0.00084, layers 2`."""
    return ", ".join(f"{short[path]} {as_text(value)}" for path, value in settings.items())


def as_text(value: Any) -> str:
    """A value with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
