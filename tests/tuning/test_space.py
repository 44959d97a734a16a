"""The search space: what it may hold, what is refused and where, and its grid."""

from pathlib import Path
from typing import Any

import pytest

from adrec.config import RunConfig, load_config, with_settings
from adrec.errors import ConfigError
from adrec.tuning.config import Judge, TuneConfig
from adrec.tuning.space import (
    Range,
    Stage,
    current,
    default_space,
    fit_space,
    grid,
    holds_all,
    read_space,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, stage: Stage = "ranker") -> dict[str, Range]:
    return fit_space(read_space(written(folder, text)), RunConfig(), stage, source="space.yaml")


class TestReading:
    def test_a_range_a_list_and_whole_numbers(self, tmp_path: Path) -> None:
        space = read(
            tmp_path,
            "training.ranker.learning_rate: {low: 1e-4, high: 2e-3, log: true}\n"
            "ranker.layers: {low: 1, high: 3}\n"
            "ranker.dropout: {low: 0, high: 0.2, step: 0.1}\n"
            "ranker.width: {choices: [64, 128]}\n",
        )
        rate = space["training.ranker.learning_rate"]
        assert (rate.low, rate.high, rate.log, rate.whole) == (1e-4, 2e-3, True, False)
        assert rate.values() is None
        assert space["ranker.layers"].whole  # as the setting is
        assert space["ranker.layers"].values() == [1, 2, 3]
        assert space["ranker.dropout"].values() == pytest.approx([0.0, 0.1, 0.2])
        assert space["ranker.width"].values() == [64, 128]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected settings"),
            ("- ranker.layers", "expected settings"),
            ("ranker.layers: [1", "cannot be read as YAML"),
            ("ranker.layers: 3", r"ranker\.layers: expected \{low, high\} or \{choices\}, got 3"),
            ("ranker.layers: {low: 1}", "give low and high, or choices"),
            ("ranker.layers: {low: 4, high: 1}", r"low \(4\) is above high \(1\)"),
            ("ranker.layers: {low: 1, hihg: 4}", r"hihg: Extra inputs"),
            ("ranker.layers: {low: 1, high: 4, choices: [2]}", "not both"),
            ("ranker.layers: {choices: []}", "choices is empty"),
            ("ranker.layers: {choices: [2, 2]}", "holds a value twice"),
            ("ranker.layers: {low: 1, high: 2.5, int: true}", "are whole"),
            ("ranker.layers: {low: 1, high: 2.5}", "are whole"),
            ("ranker.dropout: {low: 0, high: 0.3, log: true}", "begins above 0"),
            ("ranker.dropout: {low: 0.1, high: 0.3, log: true, step: 0.1}", "log or step"),
            ("ranker.dropout: {low: 0, high: .inf}", "must be finite"),
            ("ranker.dropout: {low: 0, high: 0.3, step: -1}", r"step: .*greater than 0"),
        ],
    )
    def test_what_is_no_range(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as error:
            read(tmp_path, text)
        assert "space.yaml" in str(error.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
            read_space(tmp_path / "none.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("ranker.widht: {choices: [64]}", r"ranker\.widht: there is no setting 'widht'"),
            ("ranker.layers.deep: {choices: [1]}", "there is no setting 'deep'"),
            ("training.ranker: {choices: [1]}", "not a setting|begins with"),
            ("features.min_count: {low: 1, high: 9}", r"begins with ranker\. or training\.ranker"),
            ("training.two_tower.epochs: {low: 1, high: 9}", "trials train the ranker alone"),
            ("training.ranker.seed: {low: 0, high: 9}", "best of several seeds is luck"),
            ("training.ranker.valid_requests: {low: 1, high: 9}", "by the same requests"),
            ("ranker.dropout: {low: 0, high: 1}", r"ranker\.dropout: .*less than 1.*got 1"),
            ("ranker.dropout: {low: -0.5, high: 0.5}", r"ranker\.dropout: .*got -0\.5"),
            ("ranker.layers: {choices: [1, many]}", r"ranker\.layers: .*got 'many'"),
            ("ranker.width: {choices: [64, 100]}", r"heads \(8\) must divide width \(100\)"),
            # Both ends fit; 65 does not.
            ("ranker.width: {low: 64, high: 128}", r"heads \(8\) must divide width \(65\)"),
            ("ranker.start_from_two_tower: {low: 0, high: 1}", "is True, not a number"),
            ("training.ranker.precision: {low: 0, high: 1}", "is 'auto', not a number"),
        ],
    )
    def test_what_the_settings_do_not_take(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as error:
            read(tmp_path, text)
        assert "space.yaml" in str(error.value)

    def test_a_large_range_is_not_listed(self, tmp_path: Path) -> None:
        space = read(tmp_path, "training.ranker.batch_rows: {low: 1, high: 1000000000}")
        assert space["training.ranker.batch_rows"].values() is None
        assert space["training.ranker.batch_rows"].probes() == [1, 10**9]


@pytest.mark.parametrize("stage", ["ranker", "two_tower"])
def test_the_default_spaces_hold_the_defaults(stage: Stage) -> None:
    space = fit_space(default_space(stage), RunConfig(), stage, source="default")
    assert holds_all(space, current(space, RunConfig()))


def test_a_point_outside() -> None:
    space = {"ranker.dropout": Range(low=0.0, high=0.3), "ranker.layers": Range(choices=(1, 2))}
    assert holds_all(space, {"ranker.dropout": 0.3, "ranker.layers": 2})
    assert not holds_all(space, {"ranker.dropout": 0.4, "ranker.layers": 2})
    assert not holds_all(space, {"ranker.dropout": 0.3, "ranker.layers": 3})


class TestGrid:
    SPACE: dict[str, Any] = {  # noqa: RUF012
        "ranker.layers": Range(low=1, high=3, int=True),
        "ranker.width": Range(choices=(64, 128)),
    }

    def test_it_enumerates(self) -> None:
        points = grid(self.SPACE, seed=0)
        pairs = {(point["ranker.layers"], point["ranker.width"]) for point in points}
        assert len(points) == 6
        assert pairs == {(layers, width) for layers in (1, 2, 3) for width in (64, 128)}

    def test_the_seed_orders_it(self) -> None:
        assert grid(self.SPACE, seed=0) == grid(self.SPACE, seed=0) != grid(self.SPACE, seed=1)

    def test_a_range_without_a_step_has_none(self) -> None:
        with pytest.raises(ConfigError, match=r"ranker\.dropout: a grid needs choices"):
            grid({"ranker.dropout": Range(low=0.0, high=0.3)}, seed=0)


class TestJudge:
    HISTORY = ({"epoch": 1, "loss": 0.6, "click AUC": 0.7, "click log loss": 0.5},)

    def test_each_metric_is_found(self) -> None:
        auc = Judge.of(TuneConfig(), [])
        assert (auc.name(self.HISTORY), auc.values(self.HISTORY)) == ("click AUC", [0.7])
        assert auc.better(0.7, 0.6)
        loss = Judge.of(TuneConfig(metric="log_loss"), [])
        assert (loss.name(self.HISTORY), loss.values(self.HISTORY)) == ("click log loss", [0.5])
        assert loss.better(0.6, 0.7)
        recall = Judge.of(TuneConfig(stage="two_tower"), [])
        assert recall.name([{"epoch": 1, "loss": 1.0, "recall@40": 0.2}]) == "recall@40"

    def test_nothing_to_judge_by(self) -> None:
        with pytest.raises(ConfigError, match="the validation period has no AUC"):
            Judge.of(TuneConfig(), []).values([{"epoch": 1, "loss": 0.6}])

    def test_a_metric_of_the_other_stage(self) -> None:
        with pytest.raises(ValueError, match="the two_tower is judged by recall, not by auc"):
            TuneConfig(stage="two_tower", metric="auc")

    def test_log_loss_across_what_changes_it(self) -> None:
        with pytest.raises(ConfigError, match=r"undoes training\.ranker\.negative_rate"):
            Judge.of(TuneConfig(metric="log_loss"), ["training.ranker.negative_rate"])


def test_settings_over_settings(tmp_path: Path) -> None:
    config = with_settings(RunConfig(), {"ranker.layers": 2, "two_tower.hidden": [8]}, source="me")
    assert config == load_config(None, {"ranker.layers": 2, "two_tower.hidden": [8]})
    with pytest.raises(ConfigError, match=r"me: ranker\.deep: there is no setting 'deep'"):
        with_settings(RunConfig(), {"ranker.deep": 2}, source="me")


class TestDocs:
    """What docs/tuning.md says is so."""

    PAGE = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")

    def test_its_space_can_be_read(self, tmp_path: Path) -> None:
        text = next(t for t in self.PAGE.split("```\n") if t.startswith("training.ranker."))
        space = read_space(written(tmp_path, text))
        for stage in ("ranker", "two_tower"):
            of_it = {path: one for path, one in space.items() if f"{stage}." in path}
            assert fit_space(of_it, RunConfig(), stage, source="docs")

    @pytest.mark.parametrize("stage", ["ranker", "two_tower"])
    def test_its_tables_are_the_default_spaces(self, stage: Stage) -> None:
        for path, one in default_space(stage).items():
            if one.choices is not None:
                row = f"| `{path}` | | | {', '.join(map(str, one.choices))} |"
            else:
                row = f"| `{path}` | {one.low:g} | {one.high:g} | "
                row += "log |" if one.log else ""
            assert row in self.PAGE
