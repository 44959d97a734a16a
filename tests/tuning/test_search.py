"""Whole searches on the tiny world: what they leave, however they are stopped."""

import csv
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adrec import pipeline
from adrec.config import RunConfig, load_config, with_settings
from adrec.errors import ConfigError
from adrec.keys import alone
from adrec.progress import Advance, Progress
from adrec.stages import train_stages
from adrec.tuning.config import TuneConfig
from adrec.tuning.results import Tuned
from adrec.tuning.search import tune
from adrec.tuning.space import Range, Space, grid
from conftest import one_thread

Make = Callable[..., RunConfig]

RATE, DROPOUT, LAYERS = "training.ranker.learning_rate", "ranker.dropout", "ranker.layers"
SPACE: Space = {RATE: Range(low=2e-3, high=2e-2, log=True), DROPOUT: Range(low=0.0, high=0.3)}
YAML = f"{RATE}: {{low: 2e-3, high: 2e-2, log: true}}\n{DROPOUT}: {{low: 0, high: 0.3}}\n"

COMMAND = [sys.executable, "-m", "adrec.cli", "tune"]


@pytest.fixture(scope="module")
def searched(
    small_config: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunConfig, Tuned]:
    """A search of two trials, for reading only."""
    out, config = tmp_path_factory.mktemp("tune"), small_config({"training.ranker.epochs": 2})
    with one_thread():
        return out, config, tune(config, TuneConfig(trials=2), SPACE, out)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def lines() -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    return Progress(Console(file=file, width=300), every_s=0.0), file


class TestResult:
    def test_the_first_trial_is_the_settings_as_they_are(
        self, searched: tuple[Path, RunConfig, Tuned]
    ) -> None:
        _, config, tuned = searched
        first, second = tuned.outcomes
        assert first.settings == {RATE: 0.005, DROPOUT: config.ranker.dropout}
        assert second.settings != first.settings
        assert [outcome.ending for outcome in tuned.outcomes] == ["done", "done"]

    def test_the_best_settings_are_those_of_the_best_trial(
        self, searched: tuple[Path, RunConfig, Tuned]
    ) -> None:
        out, config, tuned = searched
        assert tuned.best is not None
        assert tuned.best.value == max(outcome.value or 0.0 for outcome in tuned.outcomes)
        best = load_config(out / "best.yaml", {})
        assert best == with_settings(config, tuned.best.settings, source="test")
        assert best.training.ranker.epochs == 2
        header = (out / "best.yaml").read_text().splitlines()[0]
        assert header.startswith(f"# Trial {tuned.best.number}, the best of 2: click AUC ")

    def test_training_with_them_gives_the_value_again(
        self, searched: tuple[Path, RunConfig, Tuned], tmp_path: Path, on_one_thread: None
    ) -> None:
        """And in the search's folder neither the log nor the two-tower is made once more."""
        out, config, tuned = searched
        del config
        run = Path(shutil.copytree(out, tmp_path / "run"))
        progress, printed = lines()
        best = load_config(run / "best.yaml", {})
        dataset = pipeline.prepare_log(best, run, progress=progress)
        trained = train_stages(best, dataset, run / "training", progress=progress)
        assert "prepared already" in printed.getvalue()
        assert "two-tower epoch" not in printed.getvalue()
        assert tuned.best is not None
        assert trained.ranker_run.best == tuned.best.value
        assert trained.ranker_run.best_epoch + 1 == tuned.best.epoch

    def test_every_trial_has_a_row(self, searched: tuple[Path, RunConfig, Tuned]) -> None:
        out, _, tuned = searched
        for row, outcome in zip(rows(out), tuned.outcomes, strict=True):
            assert int(row["trial"]) == outcome.number
            assert row["ending"] == "done"
            assert row["metric"] == "click AUC"
            assert float(row["value"]) == outcome.value
            assert {path: float(row[path]) for path in SPACE} == outcome.settings
        assert tuned.best is not None
        assert json.loads(json.dumps(tuned.as_json()))["best"] == tuned.best.number

    def test_logs_stay_and_weights_go(self, searched: tuple[Path, RunConfig, Tuned]) -> None:
        out, *_ = searched
        for number in (1, 2):
            left = {path.name for path in (out / "trials" / f"{number:04d}" / "ranker").iterdir()}
            assert left == {"run.json", "log.jsonl", "curves.png"}

    def test_the_two_tower_alone(
        self, small_config: Make, tmp_path: Path, on_one_thread: None
    ) -> None:
        space = {"two_tower.temperature": Range(choices=(0.07, 0.2))}
        search = TuneConfig(stage="two_tower", trials=2)
        tuned = tune(small_config(), search, space, tmp_path)
        assert tuned.metric == "recall@40"  # a tenth of the 400 ads
        assert not (tmp_path / "training").exists()
        assert load_config(tmp_path / "best.yaml", {}).two_tower.temperature in (0.07, 0.2)


class TestPruning:
    def test_a_bad_trial_is_stopped_after_its_first_epoch(
        self, small_config: Make, tmp_path: Path, on_one_thread: None
    ) -> None:
        """A learning rate of 1e-7 learns nothing: an AUC near .5, where the others have .7."""
        space = {RATE: Range(choices=(5e-3, 4e-3, 1e-7))}
        seed = next(s for s in range(99) if grid(space, s)[-1][RATE] == 1e-7)
        search = TuneConfig(trials=3, sampler="grid", seed=seed, prune_after=2)
        changes = {"training.ranker.epochs": 2, "training.ranker.patience": 2}
        progress, printed = lines()
        tuned = tune(small_config(changes), search, space, tmp_path, progress=progress)
        assert [outcome.ending for outcome in tuned.outcomes] == ["done", "done", "pruned"]
        assert [outcome.epochs for outcome in tuned.outcomes] == [2, 2, 1]
        log = tmp_path / "trials" / "0003" / "ranker" / "log.jsonl"
        assert {json.loads(line)["epoch"] for line in log.read_text().splitlines()} == {1}
        assert re.search(r"trial 3: click AUC 0\.\d+, stopped after epoch 1", printed.getvalue())


class TestResume:
    def test_more_trials_leave_those_that_ended(
        self, searched: tuple[Path, RunConfig, Tuned], tmp_path: Path, on_one_thread: None
    ) -> None:
        out, config, tuned = searched
        again = Path(shutil.copytree(out, tmp_path / "tune"))
        logs = [again / "trials" / f"{n:04d}" / "ranker" / "log.jsonl" for n in (1, 2)]
        before = [log.stat().st_mtime_ns for log in logs]
        progress, printed = lines()
        more = tune(config, TuneConfig(trials=3), SPACE, again, progress=progress)
        assert more.outcomes[:2] == tuned.outcomes
        assert [outcome.number for outcome in more.outcomes] == [1, 2, 3]
        assert [log.stat().st_mtime_ns for log in logs] == before
        assert "tuning: 3 of 3 trials" in printed.getvalue()
        progress, printed = lines()
        assert tune(config, TuneConfig(trials=3), SPACE, again, progress=progress) == more
        assert "all 3 trials have run already" in printed.getvalue()

    @pytest.mark.parametrize(
        ("changes", "how", "message"),
        [
            ({"training.ranker.epochs": 4}, {}, r"training\.ranker\.epochs: was 2, is 4"),
            ({"split.valid_share": 0.11}, {}, r"split\.valid_share: was 0\.1, is 0\.11"),
            ({}, {"seed": 3}, "seed: was 0, is 3"),
            ({}, {"metric": "log_loss"}, "metric: was auc, is log_loss"),
            ({}, {"space": {RATE: SPACE[RATE]}}, rf"space\.{DROPOUT}\.low: was 0\.0, is None"),
        ],
    )
    def test_another_search_in_its_folder_is_refused(
        self,
        searched: tuple[Path, RunConfig, Tuned],
        small_config: Make,
        changes: dict[str, Any],
        how: dict[str, Any],
        message: str,
    ) -> None:
        out, *_ = searched
        config = small_config({"training.ranker.epochs": 2} | changes)
        space = how.pop("space", SPACE)
        before = (out / "study.db").read_bytes()
        with pytest.raises(ConfigError, match=message) as error:
            tune(config, TuneConfig(trials=2, **how), space, out)
        assert "--no-resume" in str(error.value)
        assert (out / "study.db").read_bytes() == before

    def test_what_does_not_change_a_trial_may_change(
        self, searched: tuple[Path, RunConfig, Tuned], small_config: Make
    ) -> None:
        out, _, tuned = searched
        changes = {"training.ranker.epochs": 2, "training.ranker.workers": 1, "evaluation.k": 3}
        again = tune(small_config(changes), TuneConfig(trials=2, prune=False), SPACE, out)
        assert again.outcomes == tuned.outcomes

    def test_two_at_once_are_refused(self, searched: tuple[Path, RunConfig, Tuned]) -> None:
        out, config, _ = searched
        with alone(out, "tune"), pytest.raises(ConfigError, match=r"another process .*\(tune\)"):
            tune(config, TuneConfig(trials=2), SPACE, out)

    def test_afresh_if_told_so(
        self, searched: tuple[Path, RunConfig, Tuned], small_config: Make, tmp_path: Path,
        on_one_thread: None,
    ) -> None:  # fmt: skip
        out = Path(shutil.copytree(searched[0], tmp_path / "tune"))
        space = {LAYERS: Range(choices=(1,))}
        tuned = tune(small_config(), TuneConfig(trials=9), space, out, resume=False)
        assert [outcome.settings for outcome in tuned.outcomes] == [{LAYERS: 1}]
        assert [path.name for path in (out / "trials").iterdir()] == ["0001"]


class _Killing(Progress):
    """Kills the workers, as the kernel does where memory is short, when a trial is at an epoch."""

    def __init__(self, file: io.StringIO, times: int) -> None:
        super().__init__(Console(file=file, width=300))
        self.times = times

    @contextmanager
    def track(
        self, what: str, total: int, unit: str = "rows", *, done: int = 0
    ) -> Iterator[Advance]:
        def advance(done: int, note: str) -> None:
            if "trial 2 epoch" in note and self.times:
                self.times -= 1
                for process in multiprocessing.active_children():
                    process.kill()

        with super().track(what, total, unit, done=done):
            yield advance


class TestWorkers:
    @pytest.mark.parametrize(("times", "ending"), [(1, "done"), (2, "failed")])
    def test_a_dead_worker_costs_at_most_its_trial(
        self, small_config: Make, tmp_path: Path, on_one_thread: None, times: int, ending: str
    ) -> None:
        """The first time the trial goes on in another process; the second time it has failed."""
        file, config = io.StringIO(), small_config({"training.ranker.epochs": 2})
        space, search = {LAYERS: Range(choices=(1, 2, 3))}, TuneConfig(trials=3, prune=False)
        tuned = tune(config, search, space, tmp_path, progress=_Killing(file, times))
        assert [outcome.ending for outcome in tuned.outcomes] == ["done", ending, "done"]
        assert "trial 2: its process ended by SIGKILL; begun again" in file.getvalue()
        if ending == "failed":
            assert "trial 2: failed: its process ended by SIGKILL" in file.getvalue()

    def test_a_trial_that_cannot_be_trained_has_failed_and_the_next_goes_on(
        self, small_config: Make, tmp_path: Path, on_one_thread: None
    ) -> None:
        """Each width and each number of heads fits the settings; 18 by 4 do not fit each other."""
        config = small_config({"ranker.width": 12, "ranker.heads": 2})
        space = {"ranker.heads": Range(choices=(2, 4)), "ranker.width": Range(choices=(12, 18))}
        search = TuneConfig(trials=4, sampler="grid", prune=False)
        progress, printed = lines()
        tuned = tune(config, search, space, tmp_path, progress=progress)
        endings = {
            (o.settings["ranker.heads"], o.settings["ranker.width"]): o.ending
            for o in tuned.outcomes
        }
        assert endings == {(2, 12): "done", (4, 12): "done", (2, 18): "done", (4, 18): "failed"}
        assert "heads (4) must divide width (18)" in printed.getvalue()

    def test_no_trial_begins_when_time_is_up(
        self, small_config: Make, tmp_path: Path, on_one_thread: None
    ) -> None:
        progress, printed = lines()
        search = TuneConfig(trials=50, timeout_minutes=1e-9)
        with pytest.raises(ConfigError, match="no trial came to its end"):
            tune(small_config(), search, SPACE, tmp_path, progress=progress)
        assert "time is up, 50 trials are left" in printed.getvalue()


class TestCommand:
    @pytest.fixture
    def command(self, tmp_path: Path, small_flags: list[str]) -> list[str]:
        """Two workers on the tiny world, with epochs enough to be stopped between."""
        (tmp_path / "space.yaml").write_text(YAML)
        return [
            *COMMAND, *small_flags, "--out", str(tmp_path / "tune"), "--workers", "2",
            "--space", str(tmp_path / "space.yaml"), "--set", "training.ranker.epochs=2",
        ]  # fmt: skip

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_stopped_and_resumed_with_two_workers(
        self, command: list[str], tmp_path: Path, how: signal.Signals
    ) -> None:
        out, environment = tmp_path / "tune", os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [*command, "--trials", "500"], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            while not ((out / "trials.csv").exists() and len(rows(out)) >= 2):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.05)
            if how == signal.SIGINT:
                os.killpg(process.pid, how)  # as a terminal does
            else:
                process.kill()
            _, said = process.communicate(timeout=300)
        before = rows(out)
        if how == signal.SIGINT:
            assert process.returncode == 130, said
            assert "stopped. tuning stopped; the same command goes on" in said
            assert "Traceback" not in said
        _wait_until_gone(process.pid)
        trials = len(before) + 2
        found = subprocess.run(
            [*command, "--trials", str(trials), "--json", str(tmp_path / "result.json")],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        after = rows(out)
        assert sorted(int(row["trial"]) for row in after) == list(range(1, trials + 1))
        numbered = {row["trial"]: row for row in after}
        assert [numbered[row["trial"]] for row in before] == before
        assert len({(row[RATE], row[DROPOUT]) for row in after}) == trials
        result = json.loads((tmp_path / "result.json").read_text())
        assert [trial["trial"] for trial in result["trials"]] == list(range(1, trials + 1))
        assert f"best trials of {trials}" in found.stdout
        for name in ("history.png", "importance.png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG")

    def test_without_optuna(self, tmp_path: Path) -> None:
        code = (
            "import sys; sys.modules['optuna'] = None\n"
            f"sys.argv = ['adrec', 'tune', '--out', {str(tmp_path / 'tune')!r}]\n"
            "from adrec.cli import main; main()"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert found.returncode == 2
        assert "pip install 'adrec[tune]'" in found.stderr.replace("\n", " ")
        assert not (tmp_path / "tune").exists()


def _wait_until_gone(session: int) -> None:
    """Until no process of a session is left: workers end when what started them has died."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived the search")
