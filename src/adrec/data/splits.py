"""Splits: train on the past, choose on what follows, test on what follows that. Never at random."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adrec.data.tables import Tables
from adrec.errors import ConfigError
from adrec.schema import Strict


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
    return _split(tables.times_ms(), config)


def rolling_splits(tables: Tables, config: SplitConfig, folds: int) -> list[SplitConfig]:
    """Splits of a rolling origin (Tashman 2000), oldest first; the last is that of `config`.

    From fold to fold back, all three times move by the length of the test period: by its number of
    impressions where the config has shares, else by its time. Test periods so follow each other,
    and each fold trains on all that lies before its own validation period.

    Args:
        tables: the log.
        config: of the newest fold.
        folds: how many.

    Raises:
        ConfigError: the log is too short for so many; it says how many are possible.
    """
    times = tables.times_ms()
    newest = _split(times, config)
    times = times[times < newest.end_ms]
    end_ms = newest.end_ms if config.test_to is None else _to_ms(config.test_to)
    ends_ms = newest.valid_from_ms, newest.test_from_ms, end_ms
    found: list[SplitConfig] = []
    for back in range(folds):
        moved_ms = _moved(ends_ms, times, back, by_share=config.valid_from is None)
        if (np.diff(np.searchsorted(times, moved_ms), prepend=0) == 0).any():
            raise ConfigError(
                f"{folds} folds: the log is long enough for {back}, as each goes back by one test "
                "period and needs impressions to train on before its validation period; take "
                "fewer folds or shorter periods"
            )
        valid_from, test_from, test_to = (_time(end_ms) for end_ms in moved_ms)
        update = {"valid_from": valid_from, "test_from": test_from, "test_to": test_to}
        found.append(config.model_copy(update=update))
    return found[::-1]


def _moved(
    ends_ms: tuple[int, int, int], times: NDArray[np.int64], back: int, *, by_share: bool
) -> list[int]:
    """The three times of a split, moved back by some of its test periods."""
    if not by_share:
        return [end_ms - back * (ends_ms[2] - ends_ms[1]) for end_ms in ends_ms]
    places = np.searchsorted(times, ends_ms)
    places -= back * (places[2] - places[1])
    known_ms = np.append(times, ends_ms[2])
    return [int(known_ms[max(place, 0)]) for place in places.tolist()]


def _split(times: NDArray[np.int64], config: SplitConfig) -> Split:
    first, last = _date(times[0]), _date(times[-1])
    start_ms, end_ms = int(times[0]), int(times[-1]) + 1
    if config.test_to is not None:
        end_ms = min(end_ms, _to_ms(config.test_to))
        times = times[: np.searchsorted(times, end_ms)]
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


def _time(time_ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=time_ms)


def _date(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="minutes")
