"""Progress of long work: a bar where a person watches, plain lines where none does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

Advance = Callable[[int, str], None]
"""Called with the units done since the last call and a note, e.g. the loss."""


class Progress:
    """Shows how far each piece of work is; silent without a console."""

    def __init__(self, console: Console | None = None, *, every_s: float = 10.0) -> None:
        self._console = console
        self._every_s = every_s

    def say(self, text: str) -> None:
        """Print a line."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def track(
        self, what: str, total: int, unit: str = "rows", *, done: int = 0
    ) -> Iterator[Advance]:
        """Follow `total` units of work, of which `done` were done by an earlier run."""
        if self._console is None:
            yield lambda done, note: None
        elif self._console.is_terminal:
            with self._bar(what, total, unit, done) as advance:
                yield advance
        else:
            yield self._lines(what, total, unit, done)

    @contextmanager
    def _bar(self, what: str, total: int, unit: str, before: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Bar(*columns, console=self._console) as bar:
            task = bar.add_task(what, total=total, completed=before, note="", rate="")

            def advance(done: int, note: str) -> None:
                speed = bar.tasks[task].finished_speed or bar.tasks[task].speed or 0.0
                bar.update(task, advance=done, note=note, rate=_rate(speed, unit))

            yield advance

    def _lines(self, what: str, total: int, unit: str, before: int) -> Advance:
        begun = shown = time.monotonic()
        count = before

        def advance(done: int, note: str) -> None:
            nonlocal count, shown
            count += done
            now = time.monotonic()
            if now - shown < self._every_s and count < total:
                return
            shown = now
            speed = (count - before) / max(now - begun, 1e-9)
            parts = [f"{what}: {count:,} of {total:,} {unit}"]
            if count > before:
                left = max(total - count, 0) / speed
                parts += [_rate(speed, unit), f"{left:.0f} s left"]
            self.say(", ".join(parts + ([note] if note else [])))

        return advance


def _rate(speed: float, unit: str) -> str:
    """Units a second; a minute of those that take seconds each."""
    return f"{speed:,.0f} {unit}/s" if speed >= 1.0 or not speed else f"{60 * speed:.1f} {unit}/min"
