"""The search's memory: it repeats nothing, and forgets nothing when it is stopped."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from adrec.tuning.config import Judge, TuneConfig
from adrec.tuning.space import Range, Space, grid
from adrec.tuning.study import Study
from adrec.tuning.trial import Draw, Outcome

LAYERS, DROPOUT = "ranker.layers", "ranker.dropout"
SPACE: Space = {LAYERS: Range(choices=(1, 2, [3])), DROPOUT: Range(low=0.0, high=0.5)}
NOW = {LAYERS: 2, DROPOUT: 0.25}


@contextmanager
def opened(
    folder: Path, space: Space = SPACE, now: Mapping[str, Any] = NOW, **how: Any
) -> Iterator[Study]:
    config = TuneConfig(**how)
    judge = Judge.of(config, space)
    with closing(Study(folder / "study.db", config, space, judge, now)) as study:
        yield study


def drawn(study: Study) -> Draw:
    draw = study.draw()
    assert draw is not None
    return draw


def done(draw: Draw, value: float, **more: Any) -> Outcome:
    return Outcome(
        number=draw.number, ending="done", settings=draw.settings, metric="click AUC", value=value,
        epoch=1, epochs=1, minutes=0.5, **more,
    )  # fmt: skip


def worth(draw: Draw) -> float:
    """A metric that depends on dropout alone."""
    return 0.8 - (draw.settings[DROPOUT] - 0.1) ** 2


def searched(study: Study, trials: int) -> list[Draw]:
    draws = []
    for _ in range(trials):
        draws.append(drawn(study))
        study.finish(done(draws[-1], worth(draws[-1])))
    return draws


def test_the_settings_as_they_are_come_first(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        assert drawn(study) == Draw(1, NOW)
        second = drawn(study)
    assert second.number == 2
    assert second.settings != NOW


def test_but_not_if_the_space_does_not_hold_them(tmp_path: Path) -> None:
    with opened(tmp_path, now={LAYERS: 7, DROPOUT: 0.25}) as study:
        assert drawn(study).settings[LAYERS] in (1, 2, [3])


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_stopped_search_draws_what_it_would_have_drawn(tmp_path: Path, sampler: str) -> None:
    """The trial that ran when it was stopped is begun again, under its number."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
    with opened(straight, sampler=sampler) as study:
        expected = searched(study, 14)  # the first 10 of TPE are random
    with opened(stopped, sampler=sampler) as study:
        found = searched(study, 11)
        running = drawn(study)
    for _ in range(2):
        with opened(stopped, sampler=sampler) as study:
            assert drawn(study) == running
    with opened(stopped, sampler=sampler) as study:
        found += searched(study, 3)
        outcomes = study.outcomes()
    assert found == expected
    assert [outcome.number for outcome in outcomes] == list(range(1, 15))
    assert [outcome.settings for outcome in outcomes] == [draw.settings for draw in expected]
    assert [outcome.value for outcome in outcomes] == [worth(draw) for draw in expected]


def test_seeds_draw_differently(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        with opened(tmp_path / str(seed), seed=seed) as study:
            found.append([draw.settings for draw in searched(study, 3)[1:]])
    assert found[0] != found[1]


def test_nothing_is_tried_twice(tmp_path: Path) -> None:
    """Six points, then none, however many trials are asked for."""
    space = {LAYERS: Range(choices=(1, 2)), DROPOUT: Range(low=0.0, high=0.2, step=0.1)}
    with opened(tmp_path, space, now={LAYERS: 1, DROPOUT: 0.1}, trials=50) as study:
        draws = [draw for draw in (study.draw() for _ in range(8)) if draw is not None]
    assert [draw.number for draw in draws] == list(range(1, len(draws) + 1))
    points = {(draw.settings[LAYERS], round(draw.settings[DROPOUT], 1)) for draw in draws}
    assert len(points) == len(draws) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_small_space_is_tried_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Also where the sampler keeps to what was good: all 8 points, not the first few."""
    monkeypatch.setattr("adrec.tuning.study._REDRAWS", 2)
    space = {LAYERS: Range(low=1, high=8, int=True)}
    with opened(tmp_path, space, now={LAYERS: 1}, trials=50, sampler=sampler) as study:
        draws = []
        while (draw := study.draw()) is not None:
            study.finish(done(draw, 1 / (1 + abs(draw.settings[LAYERS] - 3))))
            draws.append(draw)
    assert [draw.number for draw in draws] == list(range(1, 9))
    assert sorted(draw.settings[LAYERS] for draw in draws) == list(range(1, 9))


def test_a_grid_is_walked_once(tmp_path: Path) -> None:
    space = {LAYERS: Range(choices=(1, 2, [3])), DROPOUT: Range(low=0.0, high=0.5, step=0.25)}
    points = grid(space, seed=5)
    with opened(tmp_path, space, sampler="grid", seed=5, trials=4) as study:
        assert study.limit == 4
        first = searched(study, 4)
        assert study.draw() is None
    with opened(tmp_path, space, sampler="grid", seed=5, trials=100) as study:
        assert study.limit == 9
        rest = searched(study, 5)
        assert study.draw() is None
    assert [draw.settings for draw in first + rest] == points


def test_a_failed_trial_is_not_repeated(tmp_path: Path) -> None:
    with opened(tmp_path, trials=2) as study:
        draw = drawn(study)
        failed = Outcome(
            number=1, ending="failed", settings=draw.settings, problem="the loss is nan"
        )
        study.finish(failed)
    with opened(tmp_path, trials=2) as study:
        assert study.outcomes() == [failed]
        assert drawn(study).number == 2
        assert study.draw() is None


def test_a_trial_below_the_median_is_to_stop(tmp_path: Path) -> None:
    with opened(tmp_path, prune_after=3) as study:
        for values in ([0.70, 0.75], [0.72, 0.76], [0.74, 0.77]):
            draw = drawn(study)
            assert not study.report(draw.number, values[:1])
            assert not study.report(draw.number, values)
            study.finish(done(draw, values[-1]))
        good, bad = drawn(study), drawn(study)
        assert not study.report(good.number, [0.73])  # the median after one epoch is .72
        assert study.report(bad.number, [0.71])
        study.finish(
            Outcome(
                number=bad.number, ending="pruned", settings=bad.settings, metric="click AUC",
                value=0.71, epoch=1, epochs=1, minutes=0.1,
            )
        )  # fmt: skip
        assert study.outcomes()[-1].ending == "pruned"


def test_none_is_to_stop_without_pruning(tmp_path: Path) -> None:
    with opened(tmp_path, prune=False, prune_after=1) as study:
        searched(study, 2)
        assert not study.report(drawn(study).number, [0.1])


def test_importance_finds_what_matters(tmp_path: Path) -> None:
    with opened(tmp_path, sampler="random") as study:
        searched(study, 3)
        assert study.importance() == {}  # too few to tell
        searched(study, 17)
        found = study.importance()
    assert list(found) == [DROPOUT, LAYERS]
    assert found[DROPOUT] > 0.9
    assert sum(found.values()) == pytest.approx(1.0)
