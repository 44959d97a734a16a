"""Turns what a ranker scores into probabilities and values that an auction can multiply by a bid.

Two corrections, in this order. `undo_sampling` is arithmetic: it takes back the shift that dropping
negatives or weighting positives puts into training. A calibrator is fitted, one a task, on held-out
rows: `fit_calibrator(method, probabilities, labels)`. Every calibrator is a small frozen pydantic
model, so a bundle stores it as JSON and a reader sees what it does.

Shapes: N rows, K knots.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, model_validator

from adrec.errors import ConfigError, DataError
from adrec.metrics import Floats, check_outcomes, check_values
from adrec.schema import Strict

Method: TypeAlias = Literal["identity", "platt", "temperature", "isotonic"]

CLIP = 1e-7  # no calibrated probability is nearer to 0 or 1 than this
SLOPES = (0.01, 100.0)  # the range of 1 / temperature: scores worse than chance would turn over


class _Model(Strict):
    model_config = ConfigDict(allow_inf_nan=False)


class IdentityCalibrator(_Model):
    """Leaves a probability as it is, but for the clip."""

    method: Literal["identity"] = "identity"

    def apply(self, probabilities: npt.ArrayLike) -> Floats:
        """Returns the probabilities, any shape, within [1e-7, 1 − 1e-7]."""
        return _clip(probabilities)


class PlattCalibrator(_Model):
    """q = σ(slope · logit p + intercept) (Platt 1999)."""

    method: Literal["platt"] = "platt"
    slope: float = Field(ge=0)  # 0: the scores carry no information, q is the base rate
    intercept: float

    def apply(self, probabilities: npt.ArrayLike) -> Floats:
        """Returns calibrated probabilities, any shape, rising with the input."""
        return _clip(_sigmoid(self.slope * _logit(probabilities) + self.intercept))


class TemperatureCalibrator(_Model):
    """q = σ(logit p / temperature) (Guo et al. 2017, section 4.2); ½ stays where it is."""

    method: Literal["temperature"] = "temperature"
    temperature: float = Field(gt=0)  # above 1: the model was too sure

    def apply(self, probabilities: npt.ArrayLike) -> Floats:
        """Returns calibrated probabilities, any shape, rising with the input."""
        return _clip(_sigmoid(_logit(probabilities) / self.temperature))


class IsotonicCalibrator(_Model):
    """Straight lines through knots (x, y), level outside them (Zadrozny and Elkan 2002)."""

    method: Literal["isotonic"] = "isotonic"
    x: tuple[float, ...] = Field(min_length=1)  # mean raw probability of each block [K], rising
    y: tuple[float, ...] = Field(min_length=1)  # its rate of positives [K], not falling

    @model_validator(mode="after")
    def _knots_rise(self) -> "IsotonicCalibrator":
        x, y = np.array(self.x), np.array(self.y)
        if x.shape != y.shape or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise ValueError("knots x and y must be of one length, x rising and y not falling")
        if not (0 <= x[0] <= x[-1] <= 1 and 0 <= y[0] <= y[-1] <= 1):
            raise ValueError("knots x and y must lie in [0, 1]")
        return self

    def apply(self, probabilities: npt.ArrayLike) -> Floats:
        """Returns calibrated probabilities, any shape, not falling where the input rises."""
        return _clip(np.interp(np.asarray(probabilities, dtype=np.float64), self.x, self.y))


Calibrator: TypeAlias = Annotated[
    IdentityCalibrator | PlattCalibrator | TemperatureCalibrator | IsotonicCalibrator,
    Field(discriminator="method"),
]


class ValueCalibrator(_Model):
    """Multiplies predicted values by one number, so that their sum is right."""

    method: Literal["scale"] = "scale"
    scale: float = Field(default=1.0, gt=0)

    def apply(self, values: npt.ArrayLike) -> Floats:
        """Returns scale × values, any shape, in the unit of the values."""
        return self.scale * np.asarray(values, dtype=np.float64)


def undo_sampling(
    probabilities: npt.ArrayLike, negative_rate: float, positive_weight: float = 1.0
) -> Floats:
    """Takes back the prior shift of training on fewer negatives or heavier positives.

    Training odds are true odds · w / r, hence q = p / (p + (1 − p) · w / r) (He et al. 2014,
    section 6.3, where w = 1).

    Args:
        probabilities: any shape, as the model gives them, in [0, 1].
        negative_rate: r, the share of negatives kept in training, in (0, 1].
        positive_weight: w, the loss weight of a positive against a negative's 1, above 0.

    Returns:
        Probabilities of the population before sampling, same shape.

    Raises:
        ConfigError: a rate or a weight out of range.
    """
    if not 0 < negative_rate <= 1:
        raise ConfigError(f"negative_rate is {negative_rate}; it must lie in (0, 1]")
    if not 0 < positive_weight < np.inf:
        raise ConfigError(f"positive_weight is {positive_weight}; it must be above 0 and finite")
    p = np.asarray(probabilities, dtype=np.float64)
    corrected: Floats = p / (p + (1 - p) * (positive_weight / negative_rate))
    return corrected


def fit_calibrator(
    method: Method, probabilities: npt.ArrayLike, labels: npt.ArrayLike
) -> Calibrator:
    """Fits one task's calibrator on held-out rows.

    Platt and temperature maximise the likelihood of Platt's (1999) smoothed targets by Newton's
    method; isotonic regression pools adjacent violators.

    Args:
        method: "platt" moves and stretches the logit; "temperature" only stretches it; "isotonic"
            bends freely and wants thousands of positives; "identity" does nothing.
        probabilities: [N], after `undo_sampling`, in [0, 1].
        labels: [N], 0 or 1; one class alone is allowed.

    Returns:
        A frozen model; `model_dump_json` stores it.

    Raises:
        ConfigError: an unknown method.
        DataError: no rows, arrays that do not match, a value out of range.
    """
    probability, label = check_outcomes(probabilities, labels, probability=True)
    if not len(label):
        raise DataError("no rows to calibrate on; hold out more data or choose 'identity'")
    match method:
        case "identity":
            return IdentityCalibrator()
        case "platt":
            return _fit_platt(_logit(probability), label)
        case "temperature":
            slope = _newton(_logit(probability)[:, None], _smoothed(label), np.ones(1))[0]
            return TemperatureCalibrator(temperature=1 / float(np.clip(slope, *SLOPES)))
        case "isotonic":
            return _fit_isotonic(probability, label)
    raise ConfigError(f"calibration method is {method!r}; choose one of {get_args(Method)}")


def fit_value_calibrator(predictions: npt.ArrayLike, actuals: npt.ArrayLike) -> ValueCalibrator:
    """Fits the scale at which predicted values sum to what was earned: Σ actual / Σ predicted.

    Args:
        predictions: [N], predicted values of held-out rows.
        actuals: [N], their actual values, in the same unit.

    Returns:
        The scale, in a frozen model.

    Raises:
        DataError: either sum is not above 0, so that no scale can be right.
    """
    predicted, actual = (float(side.sum()) for side in check_values(predictions, actuals))
    if predicted <= 0 or actual <= 0:
        raise DataError(
            f"predicted values sum to {predicted} and actual values to {actual}; both must be "
            "above 0 to fit a scale (ValueCalibrator(scale=1.0) leaves values as they are)"
        )
    return ValueCalibrator(scale=actual / predicted)


class Calibration(_Model):
    """All corrections of a ranker's K tasks, in the order of the schema; the bundle keeps it.

    In training a share r of the impressions without a click (the first task) was kept: `undo`
    takes that back for the click. The other tasks' losses weighed those impressions 1 / r, so
    they have nothing to take back but the weight of positives.
    """

    negative_rate: float = Field(default=1.0, gt=0, le=1)
    positive_weight: float = Field(default=1.0, gt=0)
    tree_weights: tuple[float, ...] | None = None
    """Share of the boosted trees in each task's score; None where there are none."""
    tasks: tuple[Calibrator | ValueCalibrator, ...]

    def apply(self, predictions: npt.ArrayLike, trees: npt.ArrayLike | None = None) -> Floats:
        """Calibrate predictions [..., K] as the ranker gives them, with those of the trees."""
        undone = self.undo(predictions)
        if self.tree_weights is not None:
            if trees is None:
                raise DataError("this calibration is of ranker and trees; give the trees' scores")
            undone = self.join(undone, np.asarray(trees, dtype=np.float64), self.tree_weights)
        return self.calibrate(undone)

    def join(self, undone: Floats, trees: Floats, weights: Sequence[float]) -> Floats:
        """The mean of ranker and trees, [..., K]: of log odds, and of expected values."""
        columns = []
        for k, (task, weight) in enumerate(zip(self.tasks, weights, strict=True)):
            one, other = undone[..., k], trees[..., k]
            if isinstance(task, ValueCalibrator):
                columns.append((1 - weight) * one + weight * other)
            else:
                columns.append(_sigmoid((1 - weight) * _logit(one) + weight * _logit(other)))
        return np.stack(columns, axis=-1)

    def undo(self, predictions: npt.ArrayLike) -> Floats:
        """The arithmetic part: take back sampling and weights, [..., K]."""
        undone = np.array(predictions, dtype=np.float64)
        for k, task in enumerate(self.tasks):
            if not isinstance(task, ValueCalibrator):
                rate = self.negative_rate if k == 0 else 1.0
                undone[..., k] = undo_sampling(undone[..., k], rate, self.positive_weight)
        return undone

    def calibrate(self, undone: Floats) -> Floats:
        """The fitted part, [..., K]."""
        columns = [task.apply(undone[..., k]) for k, task in enumerate(self.tasks)]
        return np.stack(columns, axis=-1)


def fit_calibration(
    method: Method,
    predictions_NK: npt.ArrayLike,
    labels_NK: npt.ArrayLike,
    kinds: Sequence[str],
    *,
    negative_rate: float,
    positive_weight: float,
    trees_NK: npt.ArrayLike | None = None,
) -> Calibration:
    """Fit every task's calibrator on held-out rows, and how much the trees count.

    Args:
        method: for the binary tasks; a value task gets a scale.
        predictions_NK: as the ranker gives them.
        labels_NK: what happened.
        kinds: binary or value, for each task.
        negative_rate: share of negatives kept in training.
        positive_weight: weight of positives in training.
        trees_NK: what the trees predict, if there are any.
    """
    labels = np.asarray(labels_NK, dtype=np.float64)
    identity = [IdentityCalibrator() if kind == "binary" else ValueCalibrator() for kind in kinds]
    plain = Calibration(
        negative_rate=negative_rate, positive_weight=positive_weight, tasks=tuple(identity)
    )
    undone = plain.undo(predictions_NK)
    weights = None
    if trees_NK is not None:
        trees = np.asarray(trees_NK, dtype=np.float64)
        weights = _best_weights(plain, undone, trees, labels)
        undone = plain.join(undone, trees, weights)
    fitted: list[Calibrator | ValueCalibrator] = []
    for k, kind in enumerate(kinds):
        if kind == "binary":
            fitted.append(fit_calibrator(method, undone[:, k], labels[:, k]))
        elif labels[:, k].any():
            fitted.append(fit_value_calibrator(undone[:, k], labels[:, k]))
        else:
            fitted.append(ValueCalibrator())  # nothing was earned while held out: no scale to fit
    return plain.model_copy(update={"tasks": tuple(fitted), "tree_weights": weights})


def _best_weights(
    plain: Calibration, undone: Floats, trees: Floats, labels: Floats
) -> tuple[float, ...]:
    """The share of the trees in each task with the least loss, in steps of .05.

    Log loss of a binary task; of a value task the Tweedie loss of power 1.5, −v m^(1−p) / (1−p) +
    m^(2−p) / (2−p), which the trees minimise as well.
    """
    shares = np.linspace(0.0, 1.0, 21)
    losses = []
    for share in shares:
        joined = plain.join(undone, trees, [share] * len(plain.tasks))
        of_tasks = []
        for k, task in enumerate(plain.tasks):
            if isinstance(task, ValueCalibrator):
                mean = np.maximum(joined[:, k], 1e-6 * max(float(joined[:, k].max()), 1e-6))
                tweedie = 2 * labels[:, k] / np.sqrt(mean) + 2 * np.sqrt(mean)
                of_tasks.append(float(tweedie.mean()))
            else:
                p = _clip(joined[:, k])
                of_tasks.append(float(-np.where(labels[:, k] > 0, np.log(p), np.log1p(-p)).mean()))
        losses.append(of_tasks)
    return tuple(shares[np.argmin(losses, axis=0)].tolist())


def _smoothed(labels: Floats) -> Floats:
    """Platt's targets for P positives and M negatives: (P + 1) / (P + 2) and 1 / (M + 2).

    Held back from 0 and 1, they keep a fit finite for few rows, one class, or no overlap.
    """
    positives = float(labels.sum())
    negatives = len(labels) - positives
    return np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _fit_platt(logits: Floats, labels: Floats) -> PlattCalibrator:
    targets = _smoothed(labels)
    base = float(_logit(targets.mean()))
    slope, intercept = _newton(
        np.stack([logits, np.ones_like(logits)], axis=1), targets, np.array([0.0, base])
    )
    if slope < 0:  # worse than chance: the best rising curve is the flat one
        slope, intercept = 0.0, base
    return PlattCalibrator(slope=float(slope), intercept=float(intercept))


def _fit_isotonic(probabilities: Floats, labels: Floats) -> IsotonicCalibrator:
    """Pools adjacent violators, twice: over rows, then over blocks that each got one more row.

    That row has the base rate for a label. It keeps a block of three clicks from promising 100%.
    """
    x, slot, count = np.unique(probabilities, return_inverse=True, return_counts=True)
    rate = np.bincount(slot, weights=labels) / count
    x, rate, weight = _pool(x, rate, count.astype(np.float64))
    base_rate = (labels.sum() + 1) / (len(labels) + 2)
    x, rate, weight = _pool(x, (weight * rate + base_rate) / (weight + 1), weight + 1)
    x, first = np.unique(x, return_index=True)  # means of neighbours may round to one number
    return IsotonicCalibrator(x=tuple(x.tolist()), y=tuple(rate[first].tolist()))


def _pool(x: Floats, y: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """The blocks of the isotonic fit of y: mean x, mean y and weight of each, in order."""
    from sklearn.isotonic import isotonic_regression  # here: serving applies but never fits

    fitted = isotonic_regression(y, sample_weight=weight)
    starts = np.flatnonzero(np.diff(fitted, prepend=-np.inf))
    total = np.add.reduceat(weight, starts)
    # Rounding must not undo the order that the means have.
    mean_x = np.maximum.accumulate(np.add.reduceat(weight * x, starts) / total)
    return np.minimum(mean_x, 1.0), fitted[starts], total


def _newton(design: Floats, targets: Floats, start: Floats) -> Floats:
    """Maximises Σ t ln σ(Xβ) + (1 − t) ln σ(−Xβ) over β by damped Newton steps (IRLS).

    A tiny ridge on the Hessian serves constant logits; halving a step that does not lower the loss
    makes convergence global (Lin, Lin and Weng 2007). It stops after the step that Newton's
    decrement says gains less than 1e-10 of the loss.
    """

    def loss(parameters: Floats) -> float:
        logits = design @ parameters
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    parameters, current = start, loss(start)
    ridge = 1e-12 * len(targets) * np.eye(len(start))
    for _ in range(100):
        fitted = _sigmoid(design @ parameters)
        gradient = design.T @ (fitted - targets)
        hessian = design.T @ (design * (fitted * (1 - fitted))[:, None]) + ridge
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step <= 1e-10 * current:
            return parameters - step
        scale = 1.0
        while loss(parameters - scale * step) >= current and scale > 1e-9:
            scale /= 2
        parameters = parameters - scale * step
        current = loss(parameters)
    return parameters


def _clip(probabilities: npt.ArrayLike) -> Floats:
    clipped: Floats = np.clip(np.asarray(probabilities, dtype=np.float64), CLIP, 1 - CLIP)
    return clipped


def _logit(probabilities: npt.ArrayLike) -> Floats:
    p = _clip(probabilities)
    logits: Floats = np.log(p) - np.log1p(-p)
    return logits


def _sigmoid(logits: Floats) -> Floats:
    odds: Floats = np.exp(-np.abs(logits))  # of the less likely side: cannot overflow
    return np.where(logits >= 0, 1.0, odds) / (1 + odds)
