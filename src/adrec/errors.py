"""The exceptions a caller may catch. Each message says what was wrong, where, and what to do.

AdRecError
├── ConfigError       a setting or a schema is not valid
├── DataError         a table does not match its schema; carries every problem found
├── CheckpointError   a training run cannot be resumed from what is on disk
├── BundleError       a model version is missing, damaged, or does not belong together
├── EventLogError     the log of events cannot be opened, read or written
├── OverloadError     a request is refused because it cannot be answered in time
└── RequestError      a recommendation request cannot be answered as it was asked
"""

from collections.abc import Sequence
from dataclasses import dataclass


class AdRecError(Exception):
    """Base of every error that adrec raises on purpose."""


class ConfigError(AdRecError):
    """A setting or a schema is not valid."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with one place of a table.

    `row` counts data rows from 1 (a header is not counted); None where the whole column or file
    is meant. `rows` is how many rows have the same problem.
    """

    file: str
    problem: str
    remedy: str
    column: str | None = None
    row: int | None = None
    rows: int = 1

    def __str__(self) -> str:
        place = self.file
        if self.column is not None:
            place += f", column '{self.column}'"
        if self.row is not None:
            place += f", row {self.row:,}"
            if self.rows > 1:
                place += f" (and {self.rows - 1:,} more)"
        return f"{place}: {self.problem}. {self.remedy}"


class DataError(AdRecError):
    """A table does not match its schema. `problems` lists everything that was found."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        lines = [message, *(f"  {problem}" for problem in problems[:10])]
        if len(problems) > 10:
            lines.append(f"  ... and {len(problems) - 10} more; `adrec validate` lists them all")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


class CheckpointError(AdRecError):
    """A training run cannot be resumed from what is on disk."""


class BundleError(AdRecError):
    """A model version is missing, damaged, or does not belong together."""


class EventLogError(AdRecError):
    """The log of events cannot be opened, read or written."""


class OverloadError(AdRecError):
    """A request is refused because it cannot be answered in time."""


class RequestError(AdRecError):
    """A recommendation request cannot be answered as it was asked."""
