"""Visitor: who asks, and what came of it, in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from adrec.errors import RequestError
from adrec.features.transforms import Encoded, Encoder


@dataclass(frozen=True)
class Visitor:
    """One request: who asks, when, and with what."""

    user: int
    """Row of the user; 0 before the first impression of a new one."""
    at_ms: int
    static: Encoded
    request: Encoded
    user_id: str = ""
    """Under which a new user is remembered; '' for nobody."""


class Report(NamedTuple):
    """What came of an impression."""

    ad: int
    """Its row."""
    before_K: Sequence[float] | None
    """Outcomes of each task that were taken in before; None: it was shown just now."""
    after_K: Sequence[float]
    """All outcomes so far."""


def require_known(values: Mapping[str, Any], encoders: Sequence[Encoder], what: str) -> None:
    """Refuse values of fields that are not there.

    Args:
        values: by field.
        encoders: of the fields.
        what: the error says they are of.

    Raises:
        RequestError: a field that the schema does not have.
    """
    names = [encoder.name for encoder in encoders]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise RequestError(
            f"{what}: no field called {', '.join(unknown)}; the schema has {', '.join(names)}"
        )
