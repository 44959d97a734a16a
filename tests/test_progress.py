"""Progress: silent without a console, plain lines without a terminal, a bar with one."""

import io

import pytest
from rich.console import Console

from adrec import progress as module
from adrec.progress import Progress


class Clock:
    """Time that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=200), file


def test_it_is_silent_without_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.say("hello")
    with progress.track("work", 10) as advance:
        advance(5, "half")
        advance(5, "whole")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_lines_come_every_so_often_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    console, file = plain()
    with Progress(console, every_s=10.0).track("train", 4000) as advance:
        for _ in range(4):
            clock.now += 5.0
            advance(1000, "loss 0.5")
    # At 5 s and 15 s it is too early; at 10 s 2,000 rows are done, 200 a second.
    assert file.getvalue().splitlines() == [
        "train: 2,000 of 4,000 rows, 200 rows/s, 10 s left, loss 0.5",
        "train: 4,000 of 4,000 rows, 200 rows/s, 0 s left, loss 0.5",
    ]


def test_what_an_earlier_run_did_counts_but_not_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    console, file = plain()
    with Progress(console, every_s=1.0).track("train", 1000, done=800) as advance:
        clock.now += 10.0
        advance(100, "")
    assert file.getvalue() == "train: 900 of 1,000 rows, 10 rows/s, 10 s left\n"


def test_units_that_take_long_are_counted_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    console, file = plain()
    with Progress(console, every_s=1.0).track("tuning", 20, "trials") as advance:
        clock.now += 20.0
        advance(0, "trial 1 epoch 1")  # none is done: there is no rate yet
        clock.now += 20.0
        advance(1, "best .8")
    assert file.getvalue().splitlines() == [
        "tuning: 0 of 20 trials, trial 1 epoch 1",
        "tuning: 1 of 20 trials, 1.5 trials/min, 760 s left, best .8",
    ]


def test_units_have_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    console, file = plain()
    with Progress(console, every_s=1.0).track("embed", 10, "ads") as advance:
        clock.now += 2.0
        advance(10, "")
    assert file.getvalue() == "embed: 10 of 10 ads, 5 ads/s, 0 s left\n"


@pytest.mark.parametrize("text", ["[/tmp/log] read", "[bold]x[/bold]", "a [red b"])
def test_brackets_are_printed_as_they_are(text: str) -> None:
    console, file = plain()
    Progress(console).say(text)
    assert file.getvalue() == f"{text}\n"


def test_a_long_line_is_not_broken() -> None:
    file = io.StringIO()
    Progress(Console(file=file, width=20)).say("word " * 20)
    assert file.getvalue() == "word " * 20 + "\n"


def test_a_bar_where_a_person_watches() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=140, color_system=None)
    progress = Progress(console)
    with progress.track("train [1/2]", 2000, done=500) as advance:
        advance(1000, "loss 0.25 [x]")
        progress.say("said meanwhile")
        advance(500, "loss 0.20")
    shown = file.getvalue()
    assert "train [1/2]" in shown
    assert "said meanwhile" in shown
    assert "2000/2000" in shown
    assert "rows/s" in shown
    assert "loss 0.20" in shown


def test_an_error_inside_passes_and_the_bar_is_closed() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with pytest.raises(ZeroDivisionError), Progress(console).track("work", 10):
        raise ZeroDivisionError
    with Progress(console).track("more", 1) as advance:  # rich allows one live bar at a time
        advance(1, "")
