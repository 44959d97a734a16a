"""Catalogue: the ads that a model version knows, as rows of numbers.

A version on disk holds the catalogue of its training; what is put while serving lasts as long as
the process.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adrec.data.files import map_arrays
from adrec.features.directory import Directory
from adrec.features.raw_column import RawColumn
from adrec.features.transforms import Encoded, Features
from adrec.schema import AD_ID, BID_MICROS


@dataclass(frozen=True)
class Catalogue:
    """Ads by row: ids, encoded fields, bids and raw values. Row 0 is an unknown ad.

    Never changed once made; `put` makes another one, in which every known ad keeps its row.
    """

    directory: Directory
    encoded: Encoded
    bid_micros_A: NDArray[np.int64]
    """Bid per click in micros of the schema's currency; 0 where ads carry none."""
    raw: Mapping[str, RawColumn]
    """Exact values of each categorical field, for filters."""

    @classmethod
    def of(cls, features: Features, frame: pl.DataFrame) -> Self:
        """Encode the ads table."""
        unknown = features.ad.encode({})
        return cls(
            directory=Directory(frame[AD_ID].to_list()),
            encoded=unknown.append(features.ad.encode_frame(frame)),
            bid_micros_A=np.append(np.zeros(1, np.int64), _bids(frame)),
            raw={name: RawColumn.of(frame[name]) for name in _categorical(features)},
        )

    def put(self, features: Features, frame: pl.DataFrame) -> "tuple[Catalogue, NDArray[np.int64]]":
        """With ads added, or changed where their id is known, and the rows [N] of these.

        It costs a copy of the arrays, whatever the number of ads: put many at once.

        Args:
            features: what this catalogue was encoded with.
            frame: ads as `of` takes them, each id once.
        """
        ids = frame[AD_ID].to_list()
        directory = self.directory.extended([ad for ad in ids if not self.directory.row(ad)])
        rows, size = directory.rows(frame[AD_ID]), len(directory)
        encoded = features.ad.encode_frame(frame)
        bid_micros_A = _grown(self.bid_micros_A, size)
        bid_micros_A[rows] = _bids(frame)
        categorical = _grown(self.encoded.categorical, size)
        categorical[rows] = encoded.categorical
        dense = _grown(self.encoded.dense, size)
        dense[rows] = encoded.dense
        raw = {name: column.changed(rows, frame[name], size) for name, column in self.raw.items()}
        return Catalogue(directory, Encoded(categorical, dense), bid_micros_A, raw), rows

    def __len__(self) -> int:
        return len(self.bid_micros_A)

    def save(self, directory: Path) -> None:
        """Write `ads.parquet` (ids, bids and raw values) and `ads.safetensors` (encoded fields)."""
        columns = {AD_ID: self.directory.ids, BID_MICROS: self.bid_micros_A[1:]}
        raw = {name: column.texts() for name, column in self.raw.items()}
        pl.DataFrame(columns | raw).write_parquet(directory / "ads.parquet")
        save_encoded(self.encoded, directory / "ads.safetensors")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        frame = pl.read_parquet(directory / "ads.parquet")
        return cls(
            directory=Directory(frame[AD_ID].to_list()),
            encoded=load_encoded(directory / "ads.safetensors"),
            bid_micros_A=np.append(np.zeros(1, np.int64), frame[BID_MICROS].to_numpy()),
            raw={
                name: RawColumn.of(frame[name])
                for name in frame.columns
                if name not in (AD_ID, BID_MICROS)
            },
        )


def _categorical(features: Features) -> list[str]:
    """Names of the categorical fields of ads, the id left out."""
    return [field.name for field in features.schema.ad_fields if field.kind == "categorical"]


def _bids(frame: pl.DataFrame) -> NDArray[np.int64]:
    if BID_MICROS not in frame.columns:
        return np.zeros(frame.height, np.int64)
    bids: NDArray[np.int64] = frame[BID_MICROS].fill_null(0).to_numpy()
    return bids


def _grown(array_A: NDArray[Any], size: int) -> NDArray[Any]:
    """A copy with room for `size` rows."""
    grown = np.zeros((size, *array_A.shape[1:]), array_A.dtype)
    grown[: len(array_A)] = array_A
    return grown


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write encoded fields as safetensors."""
    save_file({"categorical": encoded.categorical, "dense": encoded.dense}, path)


def load_encoded(path: Path) -> Encoded:
    """Map what `save_encoded` wrote; the file must not change from then on."""
    arrays = map_arrays(path)
    return Encoded(arrays["categorical"], arrays["dense"])
