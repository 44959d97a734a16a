"""Rows: a piece of a log in numbers."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adrec.features.batches import Past
from adrec.features.transforms import Encoded
from adrec.schema import REQUEST_ID, Schema


@dataclass(frozen=True)
class Rows:
    """R requests with N impressions, and all that was known before each."""

    user_R: NDArray[np.int64]
    """User of each request; 0 where the log has none."""
    time_ms_R: NDArray[np.int64]
    request: Encoded
    histories: tuple[Past, ...]
    """Each sequence."""
    slate_R: NDArray[np.int64]
    """Number of impressions of each request."""
    ad_N: NDArray[np.int32]
    counters_NC: NDArray[np.float32]
    labels_NK: NDArray[np.float32]
    position_N: NDArray[np.int32]
    """From 1; 0 where the log has none."""
    propensity_N: NDArray[np.float32]
    """1 where the log has none."""


class Piece(NamedTuple):
    """R requests with N impressions, before it is known what was known before each."""

    user_N: NDArray[np.int64]
    ad_N: NDArray[np.int32]
    first_R: NDArray[np.int64]
    """Where each request begins."""
    times_ms_N: NDArray[np.int64]
    """When each row's request came: it knows what was known then."""
    happened_ms_N: NDArray[np.int64]
    labels_NK: NDArray[np.float32]
    request: Encoded
    keys: list[NDArray[np.int64]]
    """Of each counter, [N]."""


def first_rows(frame: pl.DataFrame, schema: Schema) -> NDArray[np.int64]:
    """Where in a piece of the log each request begins, [R]."""
    if schema.request_id is None:
        return np.arange(frame.height)
    request = frame[REQUEST_ID]
    return np.flatnonzero((request != request.shift()).fill_null(True).to_numpy())
