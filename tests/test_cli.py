"""Every command as a person or a script meets it: what it prints, writes, and leaves with."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
import typer
from typer.core import TyperGroup

from adrec import __version__, cli, crossvalidation, options, pipeline
from adrec.bundle import Bundle, find_version
from adrec.config import RunConfig, load_config
from adrec.data import layouts, synthetic
from adrec.data.event_log import EventLog
from adrec.data.layouts import detect_layout, synthetic_schema
from adrec.data.log_entries import IMPRESSION, Event, LoggedSlate, Shown
from adrec.data.synthetic import PRESETS
from adrec.errors import CheckpointError
from adrec.features.dataset import Dataset
from adrec.progress import Progress
from adrec.recommender import Recommender

COMMANDS = (
    "demo", "synth", "validate", "prepare", "train", "tune", "index", "evaluate",
    "crossvalidate", "recommend", "serve", "loadtest", "bench", "export", "doctor",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command left with and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Adrec = Callable[..., Outcome]


@pytest.fixture
def adrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Adrec:
    """Runs `adrec` with some arguments in this process, as its entry point does."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["adrec", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        code = left.value.code
        return Outcome(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to write into."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_explains_itself(self, adrec: Adrec, command: str) -> None:
        found = adrec(command, "--help")
        assert found.code == 0
        assert "Usage:" in found.out
        assert f" {command} [OPTIONS]" in found.out
        assert found.out.rstrip().splitlines()[-1].strip().startswith(f"Example: adrec {command}")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_its_example_parses(self, command: str) -> None:
        group = typer.main.get_command(cli.app)
        assert isinstance(group, TyperGroup)
        epilog = group.commands[command].epilog or ""
        _, _, name, *rest = epilog.split()  # Example: adrec NAME
        assert name == command
        group.commands[name].make_context(name, rest)

    def test_it_lists_layouts_and_presets(self, adrec: Adrec) -> None:
        """They are written out where help is made, so that help need not wait for polars."""
        assert get_args(options.Layout) == get_args(layouts.Layout)
        assert get_args(options.Preset) == tuple(PRESETS)
        assert "<" + "|".join(get_args(options.Layout)) + ">" in adrec("train", "--help").out

    def test_it_lists_them_all(self, adrec: Adrec) -> None:
        found = adrec("--help")
        listed = {
            command.name or command.callback.__name__ for command in cli.app.registered_commands
        }
        listed |= {group.name for group in cli.app.registered_groups}
        assert listed == {*COMMANDS, "log"}
        assert all(command in found.out for command in COMMANDS)

    def test_without_arguments_too(self, adrec: Adrec) -> None:
        assert "Usage:" in adrec().out

    def test_version(self, adrec: Adrec) -> None:
        found = adrec("--version")
        assert (found.code, found.out) == (0, f"adrec {__version__}\n")

    def test_as_a_module_of_its_own_process(self) -> None:
        """The entry point a shell starts; asking for help must not wait for torch."""
        slow = "{'torch', 'polars', 'optuna'} & set(sys.modules)"
        code = f"import sys, adrec.cli; sys.exit(str(found) if (found := {slow}) else 0)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        done = subprocess.run(
            [sys.executable, "-m", "adrec.cli", "recommend", "/nowhere", "--user", "1"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 4
        assert done.stdout == ""
        assert done.stderr.startswith("error: /nowhere holds no model")


class TestSynth:
    def test_tables_and_schema(self, adrec: Adrec, tmp_path: Path) -> None:
        found = adrec("synth", "--preset", "tiny", "--out", tmp_path / "world", "--seed", 3)
        assert found.code == 0
        names = {path.name for path in (tmp_path / "world").iterdir()}
        tables = {f"{n}.parquet" for n in ("impressions", "users", "ads", "truth")}
        assert names == tables | {"schema.yaml", "world.json"}
        assert detect_layout(tmp_path / "world") == "synthetic"
        assert "rows/s" in found.err

    def test_the_seed_makes_the_world(self, adrec: Adrec, tmp_path: Path, tiny_world: Path) -> None:
        for seed in (0, 1):
            adrec("synth", "--preset", "tiny", "--out", tmp_path / str(seed), "--seed", seed)
        clicks = [
            pl.read_parquet(folder / "impressions.parquet")["click"].to_list()
            for folder in (tiny_world, tmp_path / "0", tmp_path / "1")
        ]
        assert clicks[0] == clicks[1] != clicks[2]

    def test_criteo(self, adrec: Adrec, tmp_path: Path) -> None:
        found = adrec("synth", "--preset", "tiny", "--layout", "criteo", "--out", tmp_path / "log")
        assert found.code == 0
        lines = (tmp_path / "log" / "train.txt").read_text().splitlines()
        assert len(lines) == 8000
        assert {line.count("\t") for line in lines} == {39}
        assert detect_layout(tmp_path / "log") == "criteo"

    @pytest.mark.parametrize("flag", ["--preset", "--layout"])
    def test_what_there_is_not(self, adrec: Adrec, tmp_path: Path, flag: str) -> None:
        found = adrec("synth", "--out", tmp_path / "world", flag, "huge")
        assert found.code == 2
        assert f"Invalid value for '{flag}'" in found.err
        assert not (tmp_path / "world").exists()


class TestValidate:
    @staticmethod
    def broken(world: Path, folder: Path) -> Path:
        """The tiny world with a click of 2 in its fifth row."""
        broken = Path(shutil.copytree(world, folder / "broken"))
        log = pl.read_parquet(broken / "impressions.parquet").with_row_index()
        click = pl.when(pl.col("index") == 4).then(2).otherwise("click").alias("click")
        log.with_columns(click).drop("index").write_parquet(broken / "impressions.parquet")
        return broken

    def test_nothing_wrong(self, adrec: Adrec, tiny_world: Path) -> None:
        found = adrec("validate", "--data", tiny_world)
        assert (found.code, found.out) == (0, "")
        assert "no problems" in found.err

    def test_nothing_wrong_as_json(self, adrec: Adrec, tiny_world: Path) -> None:
        found = adrec("validate", "--data", tiny_world, "--json")
        assert (found.code, found.json) == (0, [])

    def test_problems(self, adrec: Adrec, tiny_world: Path, tmp_path: Path) -> None:
        found = adrec("validate", "--data", self.broken(tiny_world, tmp_path))
        assert found.code == 1
        assert "column 'click', row 5" in found.out
        assert "1 problem\n" in found.err

    def test_problems_as_json(self, adrec: Adrec, tiny_world: Path, tmp_path: Path) -> None:
        found = adrec("validate", "--data", self.broken(tiny_world, tmp_path), "--json")
        assert found.code == 1
        (problem,) = found.json
        assert problem["column"] == "click"
        assert problem["row"] == 5
        assert problem["file"].endswith("impressions.parquet")
        assert problem["remedy"]

    def test_a_column_that_is_not_there(
        self, adrec: Adrec, tiny_world: Path, tmp_path: Path
    ) -> None:
        world = Path(shutil.copytree(tiny_world, tmp_path / "world"))
        pl.read_parquet(world / "ads.parquet").drop("topic").write_parquet(world / "ads.parquet")
        found = adrec("validate", "--data", world, "--json")
        assert found.code == 1
        assert [problem["column"] for problem in found.json] == ["topic"]

    def test_training_on_it_is_refused(
        self, adrec: Adrec, tiny_world: Path, tmp_path: Path
    ) -> None:
        broken = self.broken(tiny_world, tmp_path)
        found = adrec("prepare", "--data", broken, "--out", tmp_path / "run")
        assert found.code == 3
        assert "column 'click', row 5" in found.err
        assert not (tmp_path / "run" / "dataset").exists()

    def test_a_folder_of_nothing_known(self, adrec: Adrec, tmp_path: Path) -> None:
        found = adrec("validate", "--data", tmp_path)
        assert found.code == 1
        assert "Looked for schema.yaml" in found.out

    def test_no_folder_named(self, adrec: Adrec) -> None:
        found = adrec("validate")
        assert found.code == 2
        assert "--data" in found.err


class TestPrepare:
    def test_it_prepares(self, adrec: Adrec, tiny_world: Path, tmp_path: Path) -> None:
        command = ("prepare", "--data", tiny_world, "--rows", 4000, "--out", tmp_path)
        found = adrec(*command)
        assert found.code == 0
        assert len(Dataset(tmp_path / "dataset").ad_N) == 4000
        assert "train: 3,200 impressions in 800 requests" in found.err
        assert "shown exactly once" in found.err
        assert "prepared already" in adrec(*command).err

    def test_with_a_schema_from_elsewhere(
        self, adrec: Adrec, tiny_world: Path, tmp_path: Path
    ) -> None:
        schema = tmp_path / "mine.yaml"
        schema.write_text(synthetic_schema().model_copy(update={"counters": ()}).dump())
        command = ("prepare", "--data", tiny_world, "--schema", schema, "--out", tmp_path / "run")
        assert adrec(*command).code == 0
        assert Dataset(tmp_path / "run" / "dataset").features.layout.counters == 0


class TestTrain:
    @pytest.fixture
    def settings(self, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
        """Settings that training would have run with; it is stopped where the work begins."""
        seen: list[RunConfig] = []

        def stop(config: RunConfig, *_: object, **__: object) -> None:
            seen.append(config)
            raise CheckpointError("stopped by the test")

        monkeypatch.setattr(pipeline, "prepare_log", stop)
        return seen

    def test_flags_reach_the_settings(
        self, adrec: Adrec, settings: list[RunConfig], tmp_path: Path
    ) -> None:
        found = adrec(
            "train", "--out", tmp_path, "--data", "log", "--layout", "criteo", "--rows", 9,
            "--two-tower-epochs", 3, "--ranker-epochs", 5, "--batch-size", 77,
            "--embedding-size", 12, "--hidden-sizes", "64,32", "--output-size", 24,
            "--device", "cpu", "--workers", 1, "--seed", 8,
            "--set", "ranker.width=64", "--set", "serving.rank_by=click",
        )  # fmt: skip
        assert found.code == 4  # of the error that stopped it
        assert "error: stopped by the test" in found.err
        (config,) = settings
        assert config.data.path == Path("log").absolute()
        assert config.data.layout == "criteo"
        assert config.data.rows == 9
        assert config.training.two_tower.epochs == 3
        assert config.training.ranker.epochs == 5
        assert config.two_tower.hidden == (64, 32)
        assert config.two_tower.output_dim == 24
        assert config.ranker.width == 64
        assert config.serving.rank_by == "click"
        assert config.two_tower.embedding_dim == config.ranker.embedding_dim == 12
        for stage in (config.training.two_tower, config.training.ranker):
            assert (stage.batch_rows, stage.device, stage.workers, stage.seed) == (77, "cpu", 1, 8)

    def test_without_flags_the_defaults_hold(
        self, adrec: Adrec, settings: list[RunConfig], tmp_path: Path
    ) -> None:
        adrec("train", "--out", tmp_path)
        assert settings == [RunConfig()]

    def test_a_flag_beats_the_file_and_a_setting_beats_the_flag(
        self, adrec: Adrec, settings: list[RunConfig], tmp_path: Path
    ) -> None:
        file = tmp_path / "run.yaml"
        file.write_text("training: {ranker: {epochs: 2, patience: 2}}\n")
        flags = ("train", "--out", tmp_path, "--config", file, "--ranker-epochs", 3)
        adrec(*flags)
        adrec(*flags, "--set", "training.ranker.epochs=4")
        assert [config.training.ranker.epochs for config in settings] == [3, 4]
        assert {config.training.ranker.patience for config in settings} == {2}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--set", "ranker.widht=3"], "no setting 'widht'"),
            (["--set", "ranker.width"], "expected KEY.PATH=VALUE"),
            (["--set", "ranker.width=[3"], "not valid YAML"),
            (["--hidden-sizes", "64;32"], "--hidden-sizes 64;32"),
            (["--ranker-epochs", "0"], "training.ranker.epochs"),
            (["--ranker-epochs", "many"], "Invalid value"),
            (["--layout", "netflix"], "Invalid value for '--layout'"),
            (["--config", "/nowhere.yaml"], "cannot be read"),
            (["--colour", "red"], "No such option"),
        ],
    )
    def test_wrong_usage(
        self, adrec: Adrec, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        found = adrec("train", "--out", tmp_path / "run", *arguments)
        assert found.code == 2
        assert message in found.err
        assert not (tmp_path / "run").exists()

    def test_no_folder_to_write_to(self, adrec: Adrec) -> None:
        found = adrec("train")
        assert found.code == 2
        assert "--out" in found.err

    def test_data_that_is_not_there(self, adrec: Adrec, tmp_path: Path) -> None:
        found = adrec("train", "--data", tmp_path / "none", "--out", tmp_path / "run")
        assert found.code == 3
        assert str(tmp_path / "none") in found.err.replace("\n", "")

    def test_a_stop_says_what_to_do(
        self, adrec: Adrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt("ranker stopped; the same command resumes it")

        monkeypatch.setattr(pipeline, "prepare_log", stop)
        found = adrec("train", "--out", tmp_path)
        assert found.code == 130
        assert found.err == "stopped. ranker stopped; the same command resumes it\n"

    def test_criteo_end_to_end(self, adrec: Adrec, tmp_path: Path, small_flags: list[str]) -> None:
        """A file in Criteo's layout: generate, train, evaluate with rivals, recommend, time."""
        log, run = tmp_path / "log", tmp_path / "run"
        adrec("synth", "--preset", "tiny", "--layout", "criteo", "--out", log)
        flags = small_flags[2:]  # but for the data
        key = ("--set", "data.criteo.ad_key=[C7]")
        found = adrec("train", "--data", log, "--rows", 4000, *key, "--out", run, *flags)
        assert found.code == 0, found.err
        assert "rows/s" in found.err
        assert "published" in found.err
        config = load_config(find_version(run) / "config.json", {})
        assert config.data.criteo.ad_key == ("C7",)
        found = adrec("evaluate", run, "--replicates", 0, "--slice", "C7")
        assert found.code == 0, found.err
        assert "popularity" in found.out
        assert "popular ads" in found.out
        found = adrec("recommend", run, "--request", '{"context": {"I1": 3, "C1": "x"}}', "--json")
        assert found.code == 0, found.err
        assert len(found.json["ads"]) == 10
        assert list(found.json["ads"][0]["scores"]) == ["click"]
        assert adrec("bench", run, "--requests", 2).code == 0  # there are no users to ask for


class TestEvaluate:
    def test_report_and_numbers(self, adrec: Adrec, run: Path, tmp_path: Path) -> None:
        file, page = tmp_path / "new" / "result.json", tmp_path / "pages" / "page.html"
        found = adrec(
            "evaluate", run, "--no-rivals", "--replicates", 3, "--slice", "device",
            "--slice", "new ad", "--json", file, "--report", page, "--set", "evaluation.k=3",
        )  # fmt: skip
        assert found.code == 0, found.err
        result = json.loads(file.read_text())
        assert result == json.loads((run / "evaluation.json").read_text())
        assert {entry["column"] for entry in result["slices"]} == {"device", "new ad"}
        assert "NDCG@3" in result["ranking"]["models"]["adrec"]
        models = set(result["tasks"][0]["models"])
        assert models == {"adrec", "best possible (observable)", "true probabilities"}
        auc = result["tasks"][0]["models"]["adrec"]["AUC"]
        assert auc["replicates"] == 3
        assert f"{auc['estimate']:.4f}" in found.out
        assert "<html" in page.read_text()
        assert not (run / "report.html").exists()
        assert str(page) in found.err

    def test_a_version_of_a_run(self, adrec: Adrec, run: Path) -> None:
        version = find_version(run)
        before = sorted(path.name for path in version.iterdir())
        found = adrec("evaluate", version, "--no-rivals", "--replicates", 0)
        assert found.code == 0, found.err
        assert (run / "report.html").exists()
        assert sorted(path.name for path in version.iterdir()) == before

    def test_against_itself(self, adrec: Adrec, run: Path, tiny_run: Path, tmp_path: Path) -> None:
        file = tmp_path / "difference.json"
        found = adrec("evaluate", run, "--against", tiny_run, "--json", file)
        assert found.code == 0, found.err
        differences = json.loads(file.read_text())["differences"]
        assert differences["click"]["AUC"]["estimate"] == 0
        assert "click" in found.out

    @pytest.mark.parametrize(
        "flags", [["--slice", "device"], ["--report", "page.html"], ["--rivals"], ["--no-rivals"]]
    )
    def test_against_refuses_what_it_would_ignore(
        self, adrec: Adrec, tiny_run: Path, flags: list[str]
    ) -> None:
        found = adrec("evaluate", tiny_run, "--against", tiny_run, *flags)
        assert found.code == 2
        assert "--against compares two versions" in found.err
        assert flags[0].replace("--no-", "--") in found.err

    def test_only_the_evaluation_can_be_set(self, adrec: Adrec, tiny_run: Path) -> None:
        found = adrec("evaluate", tiny_run, "--set", "ranker.width=8")
        assert found.code == 2
        assert "--set ranker.width" in found.err
        assert "only evaluation.* can be set" in found.err

    def test_a_slice_there_is_not(self, adrec: Adrec, run: Path) -> None:
        found = adrec("evaluate", run, "--no-rivals", "--replicates", 0, "--slice", "shoe")
        assert found.code == 2
        assert "slice 'shoe'" in found.err

    def test_no_run(self, adrec: Adrec, tmp_path: Path) -> None:
        assert adrec("evaluate", tmp_path).code == 4

    def test_a_run_without_its_data(self, adrec: Adrec, run: Path) -> None:
        shutil.rmtree(run / "dataset")
        found = adrec("evaluate", run, "--no-rivals")
        assert found.code == 3
        assert "adrec prepare" in found.err


class TestCrossvalidate:
    def test_folds_of_time(self, adrec: Adrec, small_flags: list[str], tmp_path: Path) -> None:
        file = tmp_path / "new" / "folds.json"
        few = ("--rows", 4000, "--set", "evaluation.pipeline_queries=0")
        command = ("crossvalidate", *small_flags, *few, "--out", tmp_path, "--folds", 2)
        found = adrec(*command, "--json", file)
        assert found.code == 0, found.err
        assert "fold 1 of 2: chosen by 2026-01-" in found.err
        rows = json.loads(file.read_text())
        auc = next(row for row in rows if row["part"] == "click" and row["metric"] == "AUC")
        assert auc["model"] == "adrec"
        assert auc["mean"] == pytest.approx(sum(auc["folds"]) / 2)
        assert auc["low"] < auc["mean"] < auc["high"]
        values = [auc["mean"], auc["std"], auc["high"] - auc["mean"], *auc["folds"]]
        line = next(line for line in found.out.splitlines() if line.split()[:1] == ["AUC"])
        assert line.split()[1:] == [f"{value:.4f}" for value in values]
        again = adrec(*command)
        assert again.out == found.out
        assert "fold 2 of 2: judged already" in again.err
        assert "epoch" not in again.err

    def test_flags_reach_the_folds(
        self, adrec: Adrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[dict[str, Any]] = []

        def stop(config: RunConfig, folder: Path, **flags: Any) -> None:
            seen.append({"rows": config.data.rows, "folder": folder} | flags)
            raise CheckpointError("stopped by the test")

        monkeypatch.setattr(crossvalidation, "crossvalidate", stop)
        command = ("crossvalidate", "--out", tmp_path, "--rows", 9)
        assert adrec(*command).code == 4
        adrec(*command, "--method", "kfold", "--folds", 7, "--rivals", "--no-resume")
        for flags in seen:
            assert isinstance(flags.pop("progress"), Progress)
        same = {"rows": 9, "folder": tmp_path}
        assert seen == [
            same | {"method": "rolling", "folds": None, "rivals": False, "resume": True},
            same | {"method": "kfold", "folds": 7, "rivals": True, "resume": False},
        ]

    def test_too_many_and_too_few(self, adrec: Adrec, tiny_world: Path, tmp_path: Path) -> None:
        command = ("crossvalidate", "--data", tiny_world, "--out", tmp_path / "out", "--folds")
        for folds, message in ((1, "take 2 or more"), (9, "the log is long enough for 8")):
            found = adrec(*command, folds)
            assert found.code == 2
            assert message in found.err
        assert adrec(*command, 2, "--method", "random").code == 2


class TestRecommend:
    def test_a_user(self, adrec: Adrec, tiny_run: Path) -> None:
        found = adrec("recommend", tiny_run, "--user", "7", "-k", 3)
        expected = Recommender.load(tiny_run).recommend("7", 3)
        assert found.code == 0
        assert "user 7: top 3 of 100 candidates" in found.out
        for ad in expected.ads:
            assert f"{ad.scores['click']:.4f}" in found.out
        assert expected.version in found.out

    def test_as_json(self, adrec: Adrec, tiny_run: Path) -> None:
        found = adrec("recommend", tiny_run, "--user", "7", "-k", 3, "--json")
        expected = Recommender.load(tiny_run).recommend("7", 3)
        assert found.json["user"] == "7"
        assert found.json["version"] == expected.version
        assert found.json["candidates"] == 100
        assert found.json["ads"] == [
            {"ad_id": ad.ad_id, "scores": dict(ad.scores), "value_micros": ad.value_micros}
            for ad in expected.ads
        ]
        assert set(found.json["stage_ms"]) == {"features", "retrieve", "rank", "order"}

    def test_context(self, adrec: Adrec, tiny_run: Path) -> None:
        context = {"device": "mobile", "place": "feed"}
        pairs = [part for k, v in context.items() for part in ("--context", f"{k}={v}")]
        by_pairs = adrec("recommend", tiny_run, "--user", "7", *pairs, "--json").json
        text = json.dumps({"user": "7", "context": context})
        by_request = adrec("recommend", tiny_run, "--request", text, "--json").json
        plain = adrec("recommend", tiny_run, "--user", "7", "--json").json
        assert by_pairs["ads"] == by_request["ads"] != plain["ads"]

    def test_a_request_on_stdin(
        self, adrec: Adrec, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO('{"user": 7, "exclude": ["1"]}\n'))
        found = adrec("recommend", tiny_run, "--request", "-", "--json")
        assert found.json["user"] == "7"

    def test_a_file_of_users_and_requests(
        self, adrec: Adrec, tiny_run: Path, tmp_path: Path
    ) -> None:
        """More than one batch of 16, answered in the order asked, a line each."""
        file = tmp_path / "users.txt"
        lines = [*(str(user) for user in range(1, 18)), "", '{"user": "18"}', "never seen"]
        file.write_text("\n".join(lines) + "\n")
        found = adrec("recommend", tiny_run, "--users", file, "-k", 2, "--json")
        slates = [json.loads(line) for line in found.out.splitlines()]
        assert [slate["user"] for slate in slates] == [
            *(str(user) for user in range(1, 19)), "never seen"
        ]  # fmt: skip
        alone = adrec("recommend", tiny_run, "--user", "18", "-k", 2, "--json").json
        assert [ad["ad_id"] for ad in slates[17]["ads"]] == [ad["ad_id"] for ad in alone["ads"]]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ([], 2, "give one of --user, --request and --users"),
            (["--user", "7", "--request", "7"], 2, "give one of"),
            (["--user", "7", "--context", "device"], 2, "expected FIELD=VALUE"),
            (["--request", "{}", "--context", "device=mobile"], 2, "--context belongs to --user"),
            (["--users", "/nowhere.txt"], 2, "does not exist"),
            (["--user", "7", "-k", "0"], 5, "k is 0"),
            (["--user", "7", "--context", "weather=rain"], 5, "no field called weather"),
            (["--request", '{"user": '], 5, "not a request"),
            (["--request", '{"usr": 7}'], 5, "keys are user, context"),
            (["--request", '{"user": 7, "at_ms": "noon"}'], 5, "at_ms is 'noon'"),
            (["--request", '{"user": 7, "exclude": "12"}'], 5, "exclude is '12'"),
            (["--request", '{"user": 7, "context": {"device": [1, 2]}}'], 5, "device"),
        ],
    )
    def test_what_cannot_be_answered(
        self, adrec: Adrec, tiny_run: Path, arguments: list[str], code: int, message: str
    ) -> None:
        found = adrec("recommend", tiny_run, *arguments)
        assert found.code == code
        assert message in found.err
        assert found.out == ""

    def test_no_model(self, adrec: Adrec, tmp_path: Path) -> None:
        found = adrec("recommend", tmp_path, "--user", "7")
        assert found.code == 4
        assert "holds no model" in found.err

    def test_a_damaged_model(self, adrec: Adrec, run: Path) -> None:
        path = find_version(run) / "two_tower.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"abcd")
        found = adrec("recommend", run, "--user", "7")
        assert found.code == 4
        assert "two_tower.safetensors differs" in found.err


class TestBench:
    def test_rows(self, adrec: Adrec, tiny_run: Path, tmp_path: Path) -> None:
        file = tmp_path / "new" / "bench.json"
        found = adrec("bench", tiny_run, "--requests", 12, "--batch", 4, "--json", file)
        assert found.code == 0, found.err
        rows = json.loads(file.read_text())
        assert all(set(row) == {"case", "metric", "value", "unit"} for row in rows)
        assert all(row["value"] > 0 for row in rows)
        stages = ("features", "retrieve", "rank", "order", "total")
        cases = {(row["case"], row["metric"], row["unit"]) for row in rows}
        assert cases == {
            *((stage, p, "ms") for stage in stages for p in ("p50", "p95", "p99")),
            ("one at a time", "rate", "requests/s"),
            ("batches of 4", "rate", "requests/s"),
            ("index", "memory", "MB"),
        }
        by_case = {(row["case"], row["metric"]): row["value"] for row in rows}
        for stage in stages:
            assert by_case[stage, "p50"] <= by_case[stage, "p95"] <= by_case[stage, "p99"]
        assert by_case["total", "p50"] >= by_case["rank", "p50"]
        assert "400 ads" in found.out
        assert "index memory: " in found.out

    @pytest.mark.parametrize("flag", ["--requests", "--batch", "--threads"])
    def test_none_at_all(self, adrec: Adrec, tiny_run: Path, flag: str) -> None:
        assert adrec("bench", tiny_run, flag, 0).code == 2


def test_log_export_has_the_versions_settings_for_the_new_log(
    adrec: Adrec, tiny_run: Path, tmp_path: Path
) -> None:
    out, events = tmp_path / "next", f"sqlite:///{tmp_path}/events.db"
    found = adrec("log", "export", tiny_run, "--out", out, "--events", events)
    assert found.code == 0, found.err
    assert "nothing to add yet" in found.err
    config = load_config(out / "train.yaml", {})
    version = load_config(find_version(tiny_run) / "config.json", {})
    assert (config.ranker, config.training) == (version.ranker, version.training)
    known = pipeline.open_log(config.data).rows()
    assert known == pipeline.open_log(version.data).rows()

    at_ms = Bundle.open(tiny_run).manifest.log_end_ms + 1
    ads = (Shown(ad_id="1"),)
    slate = LoggedSlate(request_id="asked", at_ms=at_ms, user_id="7", version="v", ads=ads)
    shown = Event(event_id="e", kind=IMPRESSION, request_id="asked", ad_id="1", at_ms=at_ms)
    with closing(EventLog(events)) as log:
        log.append([slate], [shown])
    found = adrec("log", "export", tiny_run, "--out", out, "--events", events)
    assert f"adrec train --config {out / 'train.yaml'} --out {tiny_run}" in found.err
    assert pipeline.open_log(config.data).rows() == known + 1


class TestExport:
    def test_files(self, adrec: Adrec, tiny_run: Path, tmp_path: Path) -> None:
        found = adrec("export", tiny_run, "--out", tmp_path / "onnx")
        assert found.code == 0, found.err
        names = {path.name for path in (tmp_path / "onnx").iterdir()}
        graphs = {"ads.onnx", "prefix.onnx", "candidates.onnx"}
        assert names == {*graphs, "interface.json", "example.safetensors", "calibration.json"}
        assert all(name in found.err for name in graphs)


class TestDoctor:
    def test_findings(self, adrec: Adrec) -> None:
        found = adrec("doctor")
        assert found.code == 0
        for what in ("Python", "torch", "faiss", "processor", "memory", "disk", "OpenMP"):
            assert what in found.out

    def test_as_json(self, adrec: Adrec) -> None:
        found = adrec("doctor", "--json").json
        assert all(set(one) == {"what", "status", "found", "advice"} for one in found)
        assert {one["status"] for one in found} <= {"ok", "note"}
        assert len({one["what"] for one in found}) == len(found) >= 8

    @pytest.mark.parametrize("library", ["torch", "faiss"])
    def test_a_missing_library(
        self, adrec: Adrec, monkeypatch: pytest.MonkeyPatch, library: str
    ) -> None:
        monkeypatch.setitem(sys.modules, library, None)  # what makes `import` fail
        monkeypatch.delitem(sys.modules, "adrec.training.optimiser", raising=False)
        found = adrec("doctor", "--json")
        assert found.code == 1
        bad = [one for one in found.json if one["status"] == "bad"]
        assert [one["what"] for one in bad] == [library]
        assert bad[0]["advice"].startswith("pip install")


class TestDemo:
    def test_it_goes_from_nothing_to_a_report(
        self, adrec: Adrec, tiny_world: Path, small_flags: list[str], tmp_path: Path
    ) -> None:
        """With the tiny world in the place of the demo's."""
        shutil.copytree(tiny_world, tmp_path / "demo" / "world-0")
        rivals = ("--set", "evaluation.rivals=false", "--set", "evaluation.replicates=0")
        found = adrec("demo", "--out", tmp_path / "demo", *small_flags[2:], *rivals)
        assert found.code == 0, found.err
        assert (tmp_path / "demo" / "report.html").exists()
        assert "top 10 of 100 candidates" in found.out
        assert "report: " in found.out
        again = adrec("demo", "--out", tmp_path / "demo", *small_flags[2:], *rivals)
        assert "prepared already" in again.err
        assert "epoch" not in again.err

    def test_a_changed_seed_makes_a_new_world(
        self, adrec: Adrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[RunConfig] = []

        def stop(config: RunConfig, *_: object, **__: object) -> None:
            seen.append(config)
            raise CheckpointError("stopped by the test")

        monkeypatch.setattr(pipeline, "run", stop)
        monkeypatch.setattr(synthetic, "PRESETS", {"demo": PRESETS["tiny"]})
        for seed in (0, 1):
            found = adrec("demo", "--out", tmp_path, "--seed", seed)
            assert "500 users, 400 ads, 8,000 impressions" in found.err
        clicks = [
            pl.read_parquet(config.data.path / "impressions.parquet")["click"].to_list()
            for config in seen
            if config.data.path is not None
        ]
        assert len(clicks) == 2
        assert clicks[0] != clicks[1]
        assert [config.training.ranker.seed for config in seen] == [0, 1]


class TestIndex:
    def test_publishes_the_version_with_the_index_that_was_chosen(
        self, adrec: Adrec, run: Path, tmp_path: Path
    ) -> None:
        before, file = find_version(run), tmp_path / "points.json"
        found = adrec("index", "--bundle", run, "--recall", 0.9, "-k", 20, "--json", file)
        assert found.code == 0
        assert "(chosen)" in found.out
        version = find_version(run)
        assert version != before
        points = json.loads(file.read_text())
        assert {point["config"]["kind"] for point in points} == {
            "exact", "ivf", "ivfsq", "ivfpq", "hnsw",
        }  # fmt: skip
        chosen = load_config(run / "index" / "index.yaml", {}).index
        assert chosen == load_config(version / "config.json", {}).index
        assert (run / "index" / "frontier.png").stat().st_size > 1_000
        recommender = Recommender.load(run)
        assert recommender.index.config == chosen
        assert len(recommender.recommend("7", 3).ads) == 3

    def test_refuses_what_memory_does_not_allow(self, adrec: Adrec, run: Path) -> None:
        before = find_version(run)
        found = adrec("index", "--bundle", run, "--memory-mb", 0.001)
        assert found.code == 2
        assert "no index has recall@400 0.98 within 0 MB" in " ".join(found.err.split())
        assert find_version(run) == before
