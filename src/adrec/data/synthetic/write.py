"""Writing a world: Parquet tables beside a schema, or Criteo's text file."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.synthetic.config import WorldConfig
from adrec.data.synthetic.criteo import criteo_table
from adrec.data.synthetic.world import World
from adrec.errors import ConfigError, DataError

_ORIGIN = "world.json"
_FORMAT = 1
"""Of `world.json`; grows whenever the same settings and seed give another world."""


def write_world(
    world: World,
    directory: Path,
    *,
    layout: Literal["generic", "criteo"],
    schema_yaml: str | None = None,
) -> None:
    """Write a world's tables.

    Args:
        world: What `generate` gave.
        directory: Created where it is missing; files of the same names are replaced.
        layout: `generic` writes impressions, users, ads and truth as Parquet, and `world.json`:
            how to draw the world again. `criteo` writes
            `train.txt` as in the Criteo display advertising challenge: tab-separated, no header,
            label, I1 to I13 (integers), C1 to C26 (8 hexadecimal digits), empty where missing; in
            time order.
        schema_yaml: Text of the schema, written beside as `schema.yaml`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if layout == "criteo":
        table = criteo_table(world)
        table.write_csv(directory / "train.txt", separator="\t", include_header=False)
    else:
        for name in ("impressions", "users", "ads", "truth"):
            frame: pl.DataFrame = getattr(world, name)
            frame.write_parquet(directory / f"{name}.parquet", compression="zstd")
        origin = {"format": _FORMAT, "seed": world.seed, "config": world.config.model_dump()}
        (directory / _ORIGIN).write_text(json.dumps(origin, indent=1), encoding="utf-8")
    if schema_yaml is not None:
        (directory / "schema.yaml").write_text(schema_yaml, encoding="utf-8")


def read_origin(directory: Path) -> tuple[WorldConfig, int] | None:
    """Settings and seed of a written world; None where its folder does not tell them.

    Raises:
        DataError: The file that does is damaged, or of another version of adrec.
    """
    path = directory / _ORIGIN
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, and this version reads {_FORMAT}")
        return WorldConfig(**content["config"]), int(content["seed"])
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(
            f"{path} does not tell how the world was drawn ({error}); make the world anew with "
            "`adrec synth`"
        ) from error


def read_truth(directory: Path) -> dict[str, NDArray[np.float64]]:
    """What is known of a written world's impressions: nothing where it is not one.

    Returns:
        Click and engagement probability and expected revenue (micros) of each impression [N, 3],
        in the order of the log: the best forecast from what can be observed, and the latent truth.
    """
    path = directory / "truth.parquet"
    if not path.exists():
        return {}
    truth = pl.read_parquet(path)
    names = {"best possible (observable)": "best", "true probabilities": "true"}
    return {
        name: truth.select(f"p_click_{kind}", f"p_engagement_{kind}", f"revenue_{kind}_micros")
        .to_numpy()
        .astype(np.float64)
        for name, kind in names.items()
    }
