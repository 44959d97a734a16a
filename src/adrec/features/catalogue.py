"""Catalogue: the ads that a model version knows, as rows of numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from adrec.features.directory import Directory
from adrec.features.transforms import Encoded, Features
from adrec.schema import AD_ID, BID_MICROS


@dataclass(frozen=True)
class Catalogue:
    """The ads of a model version: ids, encoded fields and bids by row. Row 0 is an unknown ad."""

    directory: Directory
    encoded: Encoded
    bid_micros_A: NDArray[np.int64]
    """Bid per click in micros of the schema's currency; 0 where ads carry none."""

    @classmethod
    def of(cls, features: Features, frame: pl.DataFrame) -> Self:
        """Encode the ads table."""
        unknown = features.ad.encode({})
        bids = (
            frame[BID_MICROS].fill_null(0).to_numpy()
            if BID_MICROS in frame.columns
            else np.zeros(frame.height, np.int64)
        )
        return cls(
            directory=Directory(frame[AD_ID].to_list()),
            encoded=unknown.append(features.ad.encode_frame(frame)),
            bid_micros_A=np.concatenate([np.zeros(1, np.int64), bids]),
        )

    def __len__(self) -> int:
        return len(self.bid_micros_A)

    def save(self, directory: Path) -> None:
        """Write `ads.parquet` (ids and bids) and `ads.safetensors` (encoded fields)."""
        frame = {AD_ID: self.directory.ids, BID_MICROS: self.bid_micros_A[1:]}
        pl.DataFrame(frame).write_parquet(directory / "ads.parquet")
        save_encoded(self.encoded, directory / "ads.safetensors")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        frame = pl.read_parquet(directory / "ads.parquet")
        bids = np.concatenate([np.zeros(1, np.int64), frame[BID_MICROS].to_numpy()])
        encoded = load_encoded(directory / "ads.safetensors")
        return cls(Directory(frame[AD_ID].to_list()), encoded, bids)


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write encoded fields as safetensors."""
    save_file({"categorical": encoded.categorical, "dense": encoded.dense}, path)


def load_encoded(path: Path) -> Encoded:
    """Read what `save_encoded` wrote."""
    arrays = load_file(path)
    return Encoded(arrays["categorical"], arrays["dense"])
