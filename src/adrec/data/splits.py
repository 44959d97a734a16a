"""Splits: train on the past, choose on what follows, test on what follows that. Never at random."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from adrec.data.files import reading
from adrec.data.tables import Tables
from adrec.errors import ConfigError
from adrec.schema import TIMESTAMP_MS, Strict


class SplitConfig(Strict):
    """Where training ends and testing begins: by time, or by share of the impressions."""

    valid_from: datetime | None = None
    """First instant of the validation period (UTC where no offset is given)."""
    test_from: datetime | None = None
    """First instant of the test period."""
    test_to: datetime | None = None
    """First instant that is left out; None: the log's end."""
    valid_share: float = Field(default=0.1, gt=0.0, lt=0.9)
    """Share of impressions to validate on, where the times are not given."""
    test_share: float = Field(default=0.1, gt=0.0, lt=0.9)
    """Share of impressions to test on, where the times are not given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError("give both valid_from and test_from, or neither")
        times = [t for t in (self.valid_from, self.test_from, self.test_to) if t is not None]
        if sorted(times, key=_to_ms) != times:
            raise ValueError("valid_from, test_from and test_to must follow each other")
        if self.valid_share + self.test_share >= 1.0:
            raise ValueError("valid_share and test_share leave nothing to train on")
        return self


@dataclass(frozen=True)
class Split:
    """Boundaries in UTC milliseconds; each period is [start, end)."""

    start_ms: int
    valid_from_ms: int
    test_from_ms: int
    end_ms: int


def split_times(tables: Tables, config: SplitConfig) -> Split:
    """Turn a SplitConfig into times.

    Raises:
        ConfigError: a period has no impression.
    """
    with reading(tables.impressions.file):
        times = (
            tables.impressions.frame()
            .select(pl.col(TIMESTAMP_MS).sort())
            .collect(engine="streaming")
            .to_series()
            .to_numpy()
        )
    first, last = _date(times[0]), _date(times[-1])
    start_ms, end_ms = int(times[0]), int(times[-1]) + 1
    if config.test_to is not None:
        end_ms = min(end_ms, _to_ms(config.test_to))
        times = times[times < end_ms]
        if not times.size:
            raise ConfigError(
                f"split: test_to is before the log, which runs from {first} to {last}"
            )
    if config.valid_from is not None and config.test_from is not None:
        split = Split(start_ms, _to_ms(config.valid_from), _to_ms(config.test_from), end_ms)
    else:
        test_from = times[int(len(times) * (1 - config.test_share))]
        before = 1 - config.test_share - config.valid_share
        valid_from = times[int(len(times) * before)]
        split = Split(start_ms, int(valid_from), int(test_from), end_ms)
    bounds = np.searchsorted(times, [split.valid_from_ms, split.test_from_ms, split.end_ms])
    for name, rows in zip(("train", "valid", "test"), np.diff(bounds, prepend=0), strict=True):
        if rows == 0:
            raise ConfigError(
                f"split: the {name} period has no impression; the log runs from {first} to {last}"
            )
    return split


def _to_ms(time: datetime) -> int:
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return (time - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def _date(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="minutes")
