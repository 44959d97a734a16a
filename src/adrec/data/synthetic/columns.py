"""Columns: the words of the categorical fields and what they imply; columns out of arrays.

Shapes: D devices, L targets.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from adrec.data.synthetic.drawing import Ints

AGES = ("18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("female", "male", "other")
SPENDING = ("low", "medium", "high")
DEVICES = ("mobile", "desktop", "tablet")
TARGETS = ("all", "mobile", "desktop")
FORMATS = ("banner", "native", "video", "carousel", "text")
PLACES = ("feed", "article", "search", "sidebar", "home")

DEVICE_SHARE = (0.62, 0.28, 0.10)
"""Mean share of a user's requests from each device."""
DEVICE_PRIOR = 2.0 * np.array(DEVICE_SHARE)
"""A user's own shares are drawn from the Dirichlet distribution with these parameters."""
TARGET_SHARE = (0.70, 0.18, 0.12)
"""Share of campaigns with each target."""
REACHES_DL = np.array([[True, True, False], [True, False, True], [True, False, False]])
"""Which targets reach which device: a tablet sees only campaigns that target all devices."""
SPENDING_FACTOR = np.array([0.6, 1.0, 1.7, 1.0])
"""Revenue by spending power; the last is for users whose spending power is unknown."""


def names(stem: str, count: int) -> pl.Series:
    """`stem_000`, `stem_001`, ... padded to the longest."""
    width = len(str(count - 1))
    return pl.Series([f"{stem}_{i:0{width}d}" for i in range(count)], dtype=pl.String)


def lists(values: npt.NDArray[Any], offsets: Ints) -> pl.Series:
    """A list column out of all values and the offsets of the rows."""
    array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series
