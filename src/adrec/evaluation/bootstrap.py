"""How sure a metric is: the percentile bootstrap over whole users or requests.

Rows of one user resemble each other, so rows drawn one by one would give intervals that are too
short; we draw units and take all their rows. A replicate repeats each row as often as its unit was
drawn, rather than passing weights: the metric stays an ordinary function without a weighted twin.
Rows are sorted by their first column once, which spares a ranking metric most of its sort R times.

Shapes: N rows, U units, R replicates.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adrec.errors import ConfigError, DataError

Column: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A metric with its percentile interval; all NaN if no replicate defined the metric."""

    estimate: float  # of the rows as they are: the number to print
    mean: float  # of the replicates; far from the estimate, the metric is biased in small samples
    low: float
    high: float
    replicates: int  # those in which the metric was defined


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """The same for metric(a) − metric(b), and how often chance alone would take it so far."""

    p_value: float  # two-sided, for no difference; never below 2 / (R + 1)


@dataclass(frozen=True)
class Replicated:
    """A metric of the rows as they are, and of R draws of whole units from them.

    Of two made from the same units with equally seeded generators, row r is of the same draw: their
    difference is a paired one, so each model of a table is replicated once, not once a pair.
    """

    estimate: float
    values_R: Floats  # NaN where the draw does not define the metric

    def interval(self, level: float = 0.95) -> Interval:
        """The (1 ∓ level) / 2 quantiles of the replicates (Efron and Tibshirani 1993, chapter 13).

        Args:
            level: the chance that the interval covers, in (0, 1).

        Raises:
            ConfigError: a level out of range.
        """
        return _interval(self.estimate, self.values_R, level)

    def less(self, other: "Replicated", level: float = 0.95) -> Difference:
        """The interval and p value of this metric − the other's, on the same draws.

        p = 2 min(1 + #{d ≤ 0}, 1 + #{d ≥ 0}) / (R + 1), at most 1: the level at which the
        percentile interval just reaches 0 (Davison and Hinkley 1997, section 4.4).

        Args:
            other: of the same units, replicated with an equally seeded generator.
            level: as in `interval`.

        Raises:
            ConfigError: a level out of range.
        """
        differences_R = self.values_R - other.values_R
        interval = _interval(self.estimate - other.estimate, differences_R, level)
        at_most = 1 + min((differences_R <= 0).sum(), (differences_R >= 0).sum())
        p_value = min(1.0, 2 * float(at_most) / (1 + interval.replicates))
        chance = p_value if interval.replicates else float("nan")
        return Difference(**asdict(interval), p_value=chance)


def replicate(
    metric: Callable[..., float],
    columns: Sequence[Column],
    units: Column,
    replicates: int,
    rng: np.random.Generator,
    *,
    groups: Column | None = None,
) -> Replicated:
    """Judge rows by a metric as they are, and when whole units are drawn with replacement.

    Clusters as in Davison and Hinkley 1997, section 3.8.

    Args:
        metric: metric(*columns), or metric(*columns, groups) if groups are given; a pure function
            that the order of rows does not change.
        columns: arrays [N], such as scores and labels; quickest with the scores first.
        units: [N], one sortable id a row: a user or a request. They are what is drawn.
        replicates: R; 200 for a glance, 2,000 for a report.
        rng: the source of the draws.
        groups: [N], ids inside a unit that the metric groups by (requests of a user, or the units
            themselves). Each drawn copy gets ids of its own: a request drawn twice is two requests,
            not one of twice the length, which NDCG@k would tell apart.

    Raises:
        ConfigError: fewer than 1 replicate.
        DataError: columns that do not match, fewer than 2 units, a group in more than one unit.
    """
    if replicates < 1:
        raise ConfigError(f"replicates is {replicates}; it must be at least 1")
    if any(column.shape != units.shape for column in columns):
        shapes = [column.shape for column in columns]
        raise DataError(f"columns of shapes {shapes} do not match units of {units.shape}")
    ids, unit = np.unique(units, return_inverse=True)
    if len(ids) < 2:
        raise DataError(f"{len(ids)} units to draw from; an interval needs at least 2")
    order = np.argsort(columns[0])
    group = None if groups is None else _nested(groups, unit)[order]
    rows = _Rows([column[order] for column in columns], unit[order], group)
    estimate = metric(*rows.drawn(np.ones(len(ids), dtype=np.int64)))
    draws = (rng.integers(len(ids), size=len(ids)) for _ in range(replicates))
    values = [metric(*rows.drawn(np.bincount(draw, minlength=len(ids)))) for draw in draws]
    return Replicated(float(estimate), np.array(values, dtype=np.float64))


def bootstrap(
    metric: Callable[..., float],
    columns: Sequence[Column],
    units: Column,
    replicates: int,
    rng: np.random.Generator,
    *,
    groups: Column | None = None,
    level: float = 0.95,
) -> Interval:
    """The interval of a metric when whole units are drawn; see `replicate`."""
    return replicate(metric, columns, units, replicates, rng, groups=groups).interval(level)


def paired_bootstrap(
    metric: Callable[..., float],
    columns_a: Sequence[Column],
    columns_b: Sequence[Column],
    units: Column,
    replicates: int,
    rng: np.random.Generator,
    *,
    groups: Column | None = None,
    level: float = 0.95,
) -> Difference:
    """The interval and p value of metric(a) − metric(b); see `replicate` and `Replicated.less`.

    Row i of both is one impression.
    """
    same = deepcopy(rng)
    first = replicate(metric, columns_a, units, replicates, rng, groups=groups)
    second = replicate(metric, columns_b, units, replicates, same, groups=groups)
    return first.less(second, level)


@dataclass(frozen=True)
class _Rows:
    """One model's rows in the order of its first column."""

    columns: list[Column]  # each [N]
    unit: Ints  # [N], 0 to U - 1
    group: Ints | None  # [N], 0 to G - 1

    def drawn(self, times: Ints) -> list[Column]:
        """The metric's arguments when unit u was drawn times[u] times."""
        repeats = times[self.unit]
        rows = np.repeat(np.arange(len(repeats)), repeats)
        arguments = [column[rows] for column in self.columns]
        if self.group is not None:
            copy = np.arange(len(rows)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            arguments.append(copy * (self.group.max() + 1) + self.group[rows])
        return arguments


def _nested(groups: Column, unit: Ints) -> Ints:
    """Numbers the groups from 0, after checking that each lies in one unit."""
    if groups.shape != unit.shape:
        raise DataError(f"groups of shape {groups.shape} do not match units of {unit.shape}")
    ids, first, group = np.unique(groups, return_index=True, return_inverse=True)
    astray = unit[first][group] != unit
    if astray.any():
        raise DataError(f"group {ids[group[np.argmax(astray)]]} has rows in more than one unit")
    return group


def _interval(estimate: float, values: Floats, level: float) -> Interval:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; it must lie between 0 and 1")
    defined = values[~np.isnan(values)]
    mean, low, high = float("nan"), float("nan"), float("nan")
    if len(defined):
        mean = float(defined.mean())
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(
        estimate=float(estimate), mean=mean, low=low, high=high, replicates=len(defined)
    )
