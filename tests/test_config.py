"""Settings: defaults, then a file, then the command line; whatever is not a setting is refused."""

from pathlib import Path
from typing import Any

import pytest

from adrec.config import RunConfig, load_config, parse_overrides
from adrec.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestFile:
    def test_no_file_gives_the_defaults(self) -> None:
        assert load_config(None, {}) == RunConfig()

    def test_an_empty_file_too(self, tmp_path: Path) -> None:
        assert load_config(written(tmp_path, "# nothing yet\n"), {}) == RunConfig()

    def test_a_file_changes_what_it_names_only(self, tmp_path: Path) -> None:
        path = written(tmp_path, "ranker: {width: 64, heads: 4}\ncalibration: isotonic\n")
        config = load_config(path, {})
        assert (config.ranker.width, config.ranker.heads) == (64, 4)
        assert config.ranker.layers == RunConfig().ranker.layers
        assert config.calibration == "isotonic"
        assert config.two_tower == RunConfig().two_tower

    def test_the_stages_keep_their_own_defaults(self, tmp_path: Path) -> None:
        """TrainingConfig's defaults are not TrainConfig's: naming one value keeps the others."""
        path = written(tmp_path, "training: {two_tower: {seed: 3}}\n")
        stage = load_config(path, {}).training.two_tower
        assert stage.seed == 3
        assert stage.epochs == RunConfig().training.two_tower.epochs == 3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("rankr: {width: 64}", "rankr: Extra inputs"),
            ("ranker: {widht: 64}", r"ranker\.widht: Extra inputs"),
            ("training: {ranker: {epoch: 1}}", r"training\.ranker\.epoch: Extra inputs"),
            ("ranker: {width: 100}", r"heads \(8\) must divide width \(100\)"),
            ("ranker: {width: wide}", r"ranker\.width: .*got 'wide'"),
            ("ranker: 7", r"ranker: .*got 7"),
            ("data: {layout: kriteo}", r"data\.layout: .*'criteo'"),
            ("calibration: magic", "calibration: "),
            ("serving: {candidates: 0}", r"serving\.candidates: .*got 0"),
            ("evaluation: {recall_at: 10}", r"evaluation\.recall_at"),
            ("split: {valid_from: 2022-05-05}", "give both valid_from and test_from"),
            ("- a\n- b", "expected keys"),
            ("a: [1", "not valid YAML"),
        ],
    )
    def test_what_is_refused_and_where(self, tmp_path: Path, text: str, message: str) -> None:
        path = written(tmp_path, text)
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(path, {})
        assert str(path) in str(caught.value)

    def test_all_that_is_wrong_is_told_at_once(self, tmp_path: Path) -> None:
        path = written(tmp_path, "one: 1\nranker: {layers: 0}\n")
        with pytest.raises(ConfigError, match=r"(?s)ranker\.layers.*one: Extra"):
            load_config(path, {})

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: No such file"):
            load_config(tmp_path / "none.yaml", {})

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_bytes(b"ranker: \xff\xfe")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path, {})


class TestOverrides:
    def test_over_the_file_over_the_defaults(self, tmp_path: Path) -> None:
        path = written(tmp_path, "ranker: {layers: 1, dropout: 0.3}\n")
        config = load_config(path, {"ranker.layers": 2})
        assert config.ranker.layers == 2
        assert config.ranker.dropout == 0.3
        assert config.ranker.width == RunConfig().ranker.width

    def test_a_whole_group(self) -> None:
        config = load_config(None, {"training.ranker": {"epochs": 7}})
        assert config.training.ranker.epochs == 7

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"ranker.widht": 1}, r"no setting 'widht'; there are .*width"),
            ({"rankr.width": 1}, "no setting 'rankr'"),
            ({"ranker.width.deeper": 1}, "no setting 'width'"),
            ({"ranker.layers": 0}, r"ranker\.layers"),
            ({"training.ranker.epochs": None}, r"training\.ranker\.epochs"),
        ],
    )
    def test_what_is_refused(self, overrides: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_config(None, overrides)

    def test_values_are_yaml(self) -> None:
        assert parse_overrides(
            [
                "training.ranker.epochs=3",
                "two_tower.hidden=[512, 256]",
                "serving.skip_seen=true",
                "serving.rank_by=click",
                "index.nlist=null",
                "data.path=a=b",
            ]
        ) == {
            "training.ranker.epochs": 3,
            "two_tower.hidden": [512, 256],
            "serving.skip_seen": True,
            "serving.rank_by": "click",
            "index.nlist": None,
            "data.path": "a=b",
        }

    @pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
    def test_small_numbers_in_any_spelling(self, text: str) -> None:
        """YAML 1.1 takes 1e-4 for text; a setting that is a number still becomes one."""
        overrides = parse_overrides([f"training.ranker.learning_rate={text}"])
        assert load_config(None, overrides).training.ranker.learning_rate == 1e-4

    @pytest.mark.parametrize("text", ["training.ranker.epochs", "=3", "", "a=[1", "a={b", 'a="'])
    def test_what_is_no_setting(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--set"):
            parse_overrides([text])


class TestWrittenAndReadAgain:
    def test_a_version_keeps_its_settings(self, tmp_path: Path) -> None:
        """What `publish` writes as JSON, `evaluate` reads as YAML: small numbers, times, paths."""
        config = load_config(
            None,
            {
                "training.ranker.learning_rate": 1e-5,
                "training.ranker.embedding_decay": 1e-12,
                "split.valid_from": "2022-05-05T00:00:00+08:00",
                "split.test_from": "2022-05-06T00:00:00+08:00",
                "data.path": "some/folder",
                "data.criteo.ad_key": ["C7"],
                "evaluation.slices": ["new user", "device"],
            },
        )
        path = tmp_path / "config.json"
        path.write_text(config.model_dump_json(indent=1))
        assert load_config(path, {}) == config


class TestExamples:
    def test_there_are_some(self) -> None:
        assert len(EXAMPLES) >= 2

    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
    def test_they_load(self, path: Path) -> None:
        config = load_config(path, {})
        assert config != RunConfig()
