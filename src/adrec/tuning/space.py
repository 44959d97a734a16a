"""The search space: which settings are tried, and from which values.

YAML, a setting a line, by the same path as on the command line:

    training.ranker.learning_rate: {low: 0.0001, high: 0.002, log: true}
    ranker.layers: {low: 1, high: 4}
    ranker.width: {choices: [128, 256]}
"""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import yaml
from pydantic import Field, model_validator

from adrec.config import RunConfig, with_settings
from adrec.errors import ConfigError
from adrec.schema import Strict, parse_config

Stage: TypeAlias = Literal["ranker", "two_tower"]

_PROBES = 100  # values of a range that are tried on the settings before anything is trained
_MOST_LISTED = 10_000
_NOT_TUNED = {
    "seed": "the best of several seeds is luck",
    "valid_requests": "trials must be judged by the same requests",
    "device": "it does not decide what is learned",
    "workers": "it does not decide what is learned",
    "checkpoint_every_s": "it does not decide what is learned",
}


class Range(Strict):
    """The values that one setting may take: a range or a list."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Whether to draw evenly on a logarithmic scale."""
    step: float | None = Field(default=None, gt=0.0)
    """Distance between values; None: any value between, or any whole one."""
    whole: bool | None = Field(default=None, alias="int")
    """Whether values are whole numbers; None: as the setting is."""
    choices: tuple[Any, ...] | None = None
    """The values themselves, in place of a range."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("give either choices or a range, not both")
            if not self.choices:
                raise ValueError("choices is empty")
            texts = [json.dumps(choice) for choice in self.choices]
            if len(set(texts)) < len(texts):
                raise ValueError("choices holds a value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"low ({self.low:g}) and high ({self.high:g}) must be finite")
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"a range with log: true begins above 0, not at {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("a range has log or step, not both")
        ends = [end for end in (self.low, self.high, self.step) if end is not None]
        if self.whole and any(end % 1 for end in ends):
            raise ValueError("low, high and step of whole numbers are whole")
        return self

    def values(self) -> list[Any] | None:
        """All of its values, or None where they cannot be listed: a range without a step."""
        if self.choices is not None:
            return list(self.choices)
        assert self.low is not None
        assert self.high is not None
        step = self.step or (1.0 if self.whole else None)
        if step is None:
            return [self.low] if self.low == self.high else None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        if count > _MOST_LISTED:
            return None
        found = [round(self.low + i * step, 12) for i in range(count)]
        return [round(value) for value in found] if self.whole else found

    def probes(self) -> list[Any]:
        """Values to try on the settings: both ends, and of those that can be listed up to 100."""
        values = self.values()
        if values is None:
            assert self.low is not None
            assert self.high is not None
            ends = self.low, self.high
            return [int(end) for end in ends] if self.whole else list(ends)
        if len(values) <= _PROBES or self.choices is not None:
            return values
        return [values[i] for i in np.linspace(0, len(values) - 1, _PROBES).astype(int)]

    def holds(self, value: Any) -> bool:
        """Whether it may take this value."""
        values = self.values()
        if values is not None:
            return value in values
        assert self.low is not None
        assert self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high


Space: TypeAlias = Mapping[str, Range]
"""Ranges by the path of their setting."""


def read_space(path: Path) -> dict[str, Range]:
    """A search space from YAML.

    Raises:
        ConfigError: not YAML, or a range that is none; it names the setting.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: expected settings, e.g. ranker.dropout: {{low: 0, high: 0.3}}")
    return {str(key): parse_range(value, f"{path}: {key}") for key, value in content.items()}


def parse_range(content: Any, source: str) -> Range:
    """A range from what YAML gave.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected {{low, high}} or {{choices}}, got {content!r}")
    return parse_config(Range, content, source=source)


def fit_space(space: Space, config: RunConfig, stage: Stage, *, source: str) -> dict[str, Range]:
    """The space with whole numbers where settings are, once it is sure that the settings take it.

    Args:
        space: what is to be tried.
        config: the settings that trials start from.
        stage: the only one that trials train.
        source: where the space is from, for errors.

    Raises:
        ConfigError: a setting that there is not, that is not of the stage or not to be tuned, or
            a value that it cannot take.
    """
    fitted = {}
    for path, found in space.items():
        before = _setting(config, path, stage, source)
        if found.choices is None:
            if isinstance(before, bool) or not isinstance(before, int | float):
                raise ConfigError(f"{source}: {path} is {before!r}, not a number: give choices")
            whole = isinstance(before, int) if found.whole is None else found.whole
            content = found.model_dump(by_alias=True, exclude_unset=True) | {"int": whole}
            found = parse_config(Range, content, source=f"{source}: {path}")
        for value in found.probes():
            with_settings(config, {path: value}, source=source)
        fitted[path] = found
    return fitted


def _setting(config: RunConfig, path: str, stage: Stage, source: str) -> Any:
    """What a setting is now."""
    if not path.startswith((f"{stage}.", f"training.{stage}.")):
        raise ConfigError(
            f"{source}: {path}: trials train the {stage} alone, on one prepared log; a setting to "
            f"tune begins with {stage}. or training.{stage}."
        )
    *_, name = path.split(".")
    if path.startswith("training.") and name in _NOT_TUNED:
        raise ConfigError(f"{source}: {path} is not to be tuned: {_NOT_TUNED[name]}")
    value: Any = config.model_dump()
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(sorted(value)) if isinstance(value, dict) else "none below it"
            raise ConfigError(f"{source}: {path}: there is no setting '{part}'; there are {there}")
        value = value[part]
    if isinstance(value, dict):
        raise ConfigError(f"{source}: {path} is a group of settings; name one of them")
    return value


def current(space: Space, config: RunConfig) -> dict[str, Any]:
    """The values that the settings of a space have in a configuration."""
    content = config.model_dump(mode="json")
    found = {}
    for path in space:
        value: Any = content
        for part in path.split("."):
            value = value[part]
        found[path] = value
    return found


def holds_all(space: Space, values: Mapping[str, Any]) -> bool:
    """Whether the space holds a point."""
    return all(found.holds(values[path]) for path, found in space.items())


def is_listable(space: Space) -> bool:
    """Whether its points are few enough to walk."""
    lists = [found.values() for found in space.values()]
    counts = [len(values) for values in lists if values is not None]
    return len(counts) == len(lists) and math.prod(counts) <= _MOST_LISTED


def grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """Every combination of values, in an order drawn once.

    So the first few of a large grid are from all over it.

    Raises:
        ConfigError: a range has no step.
    """
    lists = []
    for path, found in space.items():
        values = found.values()
        if values is None:
            raise ConfigError(
                f"{path}: a grid needs choices, or a range with a step and at most "
                f"{_MOST_LISTED:,} values"
            )
        lists.append(values)
    points = [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]
    return [points[i] for i in np.random.default_rng(seed).permutation(len(points))]


_DEFAULTS: Mapping[Stage, Mapping[str, Mapping[str, Any]]] = {
    "ranker": {
        "training.ranker.learning_rate": {"low": 1e-4, "high": 2e-3, "log": True},
        "training.ranker.embedding_rate": {"low": 0.03, "high": 1.0, "log": True},
        "training.ranker.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "training.ranker.new_ad_share": {"low": 0.0, "high": 0.8},
        "ranker.dropout": {"low": 0.0, "high": 0.4},
        "ranker.width": {"choices": [64, 128, 256]},
        "ranker.layers": {"low": 1, "high": 4},
        "ranker.cross_layers": {"low": 0, "high": 4},
    },
    "two_tower": {
        "training.two_tower.learning_rate": {"low": 3e-4, "high": 5e-3, "log": True},
        "training.two_tower.embedding_rate": {"low": 0.1, "high": 3.0, "log": True},
        "training.two_tower.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "training.two_tower.new_ad_share": {"low": 0.0, "high": 0.5},
        "two_tower.dropout": {"low": 0.0, "high": 0.4},
        "two_tower.temperature": {"low": 0.03, "high": 0.2, "log": True},
        "two_tower.pointwise_weight": {"low": 0.0, "high": 0.9},
        "two_tower.history_weight": {"low": 0.1, "high": 3.0, "log": True},
    },
}


def default_space(stage: Stage) -> dict[str, Range]:
    """What is tried where no space is given."""
    return {path: Range.model_validate(found) for path, found in _DEFAULTS[stage].items()}
