"""RunConfig: every component's own settings, nested. YAML in, unknown keys refused.

Any value can be set from the command line by its path: `--set training.ranker.epochs=3`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from adrec.bundle import ServingConfig
from adrec.calibration import Method
from adrec.data.criteo import AD_FIELDS, USER_FIELDS
from adrec.data.layouts import Layout
from adrec.data.splits import SplitConfig
from adrec.errors import ConfigError
from adrec.evaluation.judged import EvaluationConfig
from adrec.features.fitting import FeatureConfig
from adrec.models.ranker import RankerConfig
from adrec.models.trees import TreesConfig
from adrec.models.two_tower import TwoTowerConfig
from adrec.retrieval.index_config import IndexConfig
from adrec.schema import ConfigT, Strict, parse_config
from adrec.training.config import TrainConfig


class CriteoConfig(Strict):
    """Which columns of a Criteo file are what."""

    user_fields: tuple[str, ...] = USER_FIELDS
    """Columns that describe the user."""
    ad_fields: tuple[str, ...] = AD_FIELDS
    """Columns that describe the ad."""
    ad_key: tuple[str, ...] | None = None
    """Columns that tell ads apart; None takes all of the ad's."""
    counter_fields: tuple[str, ...] = ("C7", "C11", "C18")
    """Columns whose past click rates are features."""


class DataConfig(Strict):
    """Where the log is and how it is laid out."""

    path: Path | None = None
    """Folder (or, for Criteo, file) of the log."""
    layout: Layout | None = None
    """None looks at what is there."""
    schema_file: Path | None = None
    """Schema of a generic log; None takes `schema.yaml` in its folder."""
    rows: int | None = Field(default=None, ge=1)
    """Read only so many impressions, the first in the file; None reads all."""
    chunk_rows: int = Field(default=125_000, ge=1000)
    """Impressions prepared at a time."""
    criteo: CriteoConfig = CriteoConfig()


class TrainingConfig(Strict):
    """How each stage is trained."""

    two_tower: TrainConfig = TrainConfig(epochs=3, batch_rows=2048)
    ranker: TrainConfig = TrainConfig(
        epochs=2, batch_rows=1024, learning_rate=5e-4, embedding_rate=0.1
    )
    task_weights: tuple[float, ...] | None = None
    """Weight of each task in the ranker's loss; None takes those of the schema."""
    refit: bool = False
    """Whether both stages are then trained afresh through the validation period, for as many epochs
    as were best on it, and published. Calibration stays that of the ranker that had not seen it."""


class RunConfig(Strict):
    """Everything that decides what a run makes."""

    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    features: FeatureConfig = FeatureConfig()
    two_tower: TwoTowerConfig = TwoTowerConfig()
    ranker: RankerConfig = RankerConfig()
    trees: TreesConfig = TreesConfig()
    training: TrainingConfig = TrainingConfig()
    calibration: Method = "platt"
    """Shape of the binary tasks' calibration, fitted on the validation period."""
    index: IndexConfig = IndexConfig()
    serving: ServingConfig = ServingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read a YAML file, if any, and put single values over it.

    Args:
        path: YAML with any of RunConfig's keys.
        overrides: values by path, e.g. `{"training.ranker.epochs": 3}`.

    Raises:
        ConfigError: not YAML, an unknown key, or a value out of range; it names each.
    """
    return load_settings(RunConfig, path, overrides)


def load_settings(
    kind: type[ConfigT], path: Path | None, overrides: Mapping[str, Any], *, source: str = "--set"
) -> ConfigT:
    """Read settings of any kind, all of which have defaults.

    Args:
        kind: of the settings.
        path: YAML with any of their keys; None: only the defaults.
        overrides: values by path.
        source: where those are from, for errors.

    Raises:
        ConfigError: not YAML, an unknown key, or a value out of range; it names each.
    """
    defaults, found = kind().model_dump(), dict[str, Any]()
    if path is not None:
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            what = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"{path}: cannot be read: {what}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML{_where(error)}") from None
        if not isinstance(found, dict):
            some = " and ".join(f"'{name}'" for name in list(defaults)[:2])
            raise ConfigError(f"{path}: expected keys such as {some}")
    content = _over_defaults(defaults, found)
    for key, value in overrides.items():
        _put(content, key.split("."), value, f"{source} {key}")
    return parse_config(kind, content, source=str(path or "settings"))


def with_settings(config: RunConfig, values: Mapping[str, Any], *, source: str) -> RunConfig:
    """The same settings but for some.

    Args:
        config: the settings.
        values: those that are put over them, by path.
        source: where they are from, for errors.

    Raises:
        ConfigError: a path that there is not, or a value out of range; it names each.
    """
    content = config.model_dump()
    for key, value in values.items():
        _put(content, key.split("."), value, f"{source}: {key}")
    return parse_config(RunConfig, content, source=source)


def for_log(config: RunConfig, folder: Path) -> RunConfig:
    """The same settings for a newer log with a schema of its own, such as a server's export.

    Times of the older log's periods mean nothing there: shares of the impressions take over.
    """
    data = {"path": folder.absolute(), "layout": None, "schema_file": None, "rows": None}
    times = {"valid_from": None, "test_from": None, "test_to": None}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "split": config.split.model_copy(update=times),
        }
    )


def write_config(path: Path, config: RunConfig, *, header: str) -> None:
    """Write all settings as YAML under some lines of comment; whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    unfinished.write_text(header + content)
    unfinished.replace(path)


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Turn `key.path=value` into a mapping; values are read as YAML.

    Raises:
        ConfigError: no '=' in one, or a value that is not YAML.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {setting}: expected KEY.PATH=VALUE")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: the value is not valid YAML{_where(error)}") from None
    return parsed


def _where(error: yaml.YAMLError) -> str:
    """Where it is wrong, and what, unless that holds some of the text: it may be secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    place = f": line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    of_form = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    return f"{place}: {error.problem}" if of_form else place


def _over_defaults(defaults: dict[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings over nested defaults; a key that no default has is kept, to be refused."""
    merged = dict(defaults)
    for key, value in content.items():
        inner = merged.get(key)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            value = _over_defaults(inner, value)
        merged[key] = value
    return merged


def _put(content: dict[str, Any], path: Sequence[str], value: Any, what: str) -> None:
    for part in path[:-1]:
        inner = content.get(part)
        if not isinstance(inner, dict):
            raise ConfigError(f"{what}: there is no setting '{part}'")
        content = inner
    if path[-1] not in content:
        close = ", ".join(sorted(content))
        raise ConfigError(f"{what}: there is no setting '{path[-1]}'; there are {close}")
    content[path[-1]] = value
