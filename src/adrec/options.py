"""The options that several commands share, and the settings that they make."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adrec.errors import ConfigError

if TYPE_CHECKING:
    from adrec.config import RunConfig

# As in adrec.data and adrec.crossvalidation, which take a while to import; a test holds them equal.
Layout = Literal["generic", "criteo", "kuairand", "movielens", "open_bandit", "synthetic"]
Preset = Literal["tiny", "demo", "standard", "clear", "published"]
FoldMethod = Literal["rolling", "kfold"]

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML with any of the settings.")
]
Data = Annotated[
    Path | None, typer.Option("--data", "-d", help="Folder of the log, or a Criteo file.")
]
LayoutName = Annotated[
    Layout | None, typer.Option("--layout", help="How the log is laid out; guessed if left out.")
]
SchemaFile = Annotated[
    Path | None, typer.Option("--schema", help="Schema of a generic log (YAML).")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run and its versions.")]
Rows = Annotated[int | None, typer.Option(help="Read only the first ROWS impressions.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting by its path: --set training.ranker.epochs=3."),
]
EvaluationSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting of the evaluation: --set evaluation.replicates=0."),
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Take up what an earlier run left.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON.")]
Run = Annotated[Path, typer.Argument(help="Folder of a run or of a published version.")]


def read_config(
    path: Path | None, flags: Mapping[str, Any], settings: list[str] | None
) -> "RunConfig":
    """The settings of a file, flags over them, and --set over both; the log's path is absolute.

    A version keeps its settings, and may be evaluated from another folder.
    """
    from adrec.config import load_config, parse_overrides

    config = load_config(path, {**flags, **parse_overrides(settings or [])})
    if config.data.path is None:
        return config
    data = config.data.model_copy(update={"path": config.data.path.absolute()})
    return config.model_copy(update={"data": data})


def evaluation_config(
    folder: Path, flags: Mapping[str, Any], settings: list[str] | None
) -> "RunConfig":
    """The settings that a version was made with, but for those of its evaluation.

    Raises:
        ConfigError: --set names a setting of another section.
    """
    from adrec.bundle import find_version
    from adrec.config import load_config, parse_overrides

    overrides = parse_overrides(settings or [])
    for key in overrides:
        if not key.startswith("evaluation."):
            raise ConfigError(
                f"--set {key}: a version is evaluated as it was made; only evaluation.* can be set"
            )
    of_evaluation = {f"evaluation.{name}": value for name, value in flags.items()}
    return load_config(find_version(folder) / "config.json", of_evaluation | overrides)


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that have a value."""
    return {key: value for key, value in flags.items() if value is not None}


def data_flags(
    data: Path | None, layout: Layout | None, schema: Path | None, rows: int | None
) -> dict[str, Any]:
    """Settings of the log that were given, by path."""
    flags = {
        "data.path": None if data is None else str(data),
        "data.layout": layout,
        "data.schema_file": None if schema is None else str(schema),
        "data.rows": rows,
    }
    return given(flags)
