"""Writing a world: Parquet tables beside a schema, or Criteo's text file."""

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.data.synthetic.criteo import criteo_table
from adrec.data.synthetic.world import World


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
        layout: `generic` writes impressions, users, ads and truth as Parquet. `criteo` writes
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
    if schema_yaml is not None:
        (directory / "schema.yaml").write_text(schema_yaml, encoding="utf-8")


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
