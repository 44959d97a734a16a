"""Inputs: the vectors that metrics take, and the checks that they share with calibration."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adrec.errors import ConfigError, DataError

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Vector: TypeAlias = npt.ArrayLike


def check_vector(name: str, values: Vector) -> Floats:
    """Returns `values` as a float64 vector [N]; raises `DataError` unless it is one and finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise DataError(f"{name} has shape {vector.shape}; it must have one dimension")
    finite = np.isfinite(vector)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{name}[{row}] is {vector[row]}; every value must be finite")
    return vector


def check_values(predictions: Vector, actuals: Vector) -> tuple[Floats, Floats]:
    """Returns both as finite float64 vectors [N]; raises `DataError` unless they are that long."""
    predicted, actual = check_vector("predictions", predictions), check_vector("actuals", actuals)
    if predicted.shape != actual.shape:
        raise DataError(f"{len(predicted)} predictions do not match {len(actual)} actual values")
    return predicted, actual


def check_outcomes(
    predictions: Vector, labels: Vector, probability: bool = False
) -> tuple[Floats, Floats]:
    """As `check_values`; raises `DataError` too for a label not 0 or 1, or no probability."""
    predicted, label = check_values(predictions, labels)
    wrong = (label != 0) & (label != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"labels[{row}] is {label[row]}; a label is 0 or 1")
    if probability and len(predicted) and not 0 <= predicted.min() <= predicted.max() <= 1:
        raise DataError(
            f"predictions span [{predicted.min()}, {predicted.max()}]; a probability lies in "
            "[0, 1] (are these logits?)"
        )
    return predicted, label


def check_groups(groups: Vector, rows: int) -> npt.NDArray[Any]:
    """Returns one id a row [N]; raises `DataError` if there are more or fewer."""
    ids = np.asarray(groups)
    if ids.shape != (rows,):
        raise DataError(f"groups has shape {ids.shape}; {rows} rows need one id each")
    return ids


def at_least_one(name: str, value: int) -> None:
    """Raises `ConfigError` for a depth or a number of bins below 1."""
    if value < 1:
        raise ConfigError(f"{name} is {value}; it must be at least 1")
