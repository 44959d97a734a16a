"""Who ranks and retrieves best on KuaiRand, on days that no model has seen?

    python benchmarks/kuairand.py --data DIR --test-from 2022-05-06 --test-to 2022-05-06 --json FILE

Every model chooses on the day before `--test-from` (ours with the first seed: epochs, trees,
calibration) and is then fitted again through it, its length of training fixed; ours and LightGBM
with each of `--seeds`, while popularity, EASE and iALS are the same in all. Counters run on through
the test days, strictly past, for all alike. Days are those of UTC+8. Seeds train in `--jobs`
processes side by side, each on its share of the processors.

`adrec` is the ranker with boosted trees beside it; both are also shown alone. The ablations are of
the ranker alone, with the first seed: rankers of a single task (`--ablations tasks`) tell whether
any task loses by being learned with others, the rest (`all`) what each part is worth.

Prints a table a task and the differences to both LightGBMs, paired by user over all seeds. `--json`
writes rows {model, task, metric, mean, spread}: spread is the standard deviation over seeds. The
work, with a report for each seed, is kept where `--work` says.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from adrec import metrics, pipeline
from adrec.calibration import Calibration, fit_calibration
from adrec.config import RunConfig, load_config, with_settings
from adrec.evaluation.baselines import LightGBM, LightGBMConfig, Popularity, RankingRival
from adrec.evaluation.bootstrap import paired_bootstrap
from adrec.evaluation.judged import OURS, Impressions, judged_impressions
from adrec.evaluation.offline import evaluate
from adrec.evaluation.report import write_report
from adrec.evaluation.retrieval_baselines import retrieval_rivals
from adrec.features.dataset import Dataset
from adrec.inference.backends import TorchBackend
from adrec.inference.runtime import Runtime
from adrec.models.ranker import Ranker
from adrec.progress import Progress
from adrec.recommender import Recommender
from adrec.stages import Trained, train_ranker, train_stages, train_two_tower
from adrec.training.boosting import score_with_trees

_ROOT = Path(__file__).resolve().parent.parent
_UTC8 = timezone(timedelta(hours=8))
_REPLICATES = 500
_ALONE = f"{OURS}, ranker alone"
_ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "ranker of click alone": {"training.task_weights": (1.0, 0.0, 0.0)},
    "ranker of long_view alone": {"training.task_weights": (0.0, 1.0, 0.0)},
    "ranker of play_time alone": {"training.task_weights": (0.0, 0.0, 1.0)},
    "ranker, embeddings of the two-tower": {"ranker.start_from_two_tower": True},
    "ranker, embeddings at full rate": {"training.ranker.embedding_rate": 1.0},
    "ranker without cross layers": {"ranker.cross_layers": 0},
}
"""What is left out or changed of the ranker; a single task's ranker is judged on that task."""

_OF_ORDER = ("AUC", "GAUC", "PR-AUC", "Spearman", "normalised Gini")

Scores = NDArray[np.float64]
Metric = Callable[[Scores, Scores], float]
Key = tuple[str, str, str]  # model, task, metric
Row = dict[str, str | float]


def main() -> None:
    """Train, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of KuaiRand")
    parser.add_argument("--test-from", type=date.fromisoformat, default=date(2022, 5, 6))
    parser.add_argument("--test-to", type=date.fromisoformat, help="last test day, included")
    parser.add_argument("--config", type=Path, default=_ROOT / "examples" / "kuairand.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    parser.add_argument(
        "--ablations", choices=("none", "tasks", "all"), default="tasks", help="rankers to add"
    )
    parser.add_argument("--work", type=Path, help="where to keep runs and reports")
    parser.add_argument("--json", type=Path, help="also write rows {model, task, metric, ...}")
    arguments = parser.parse_args()
    test_to = arguments.test_to or arguments.test_from
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        base = load_config(arguments.config, settings(arguments.data, arguments.test_from, test_to))
        wanted = {"none": 0, "tasks": 3, "all": len(_ABLATIONS)}[arguments.ablations]
        ablations = list(_ABLATIONS)[:wanted]
        rows = measure(base, work, range(arguments.seeds), arguments.jobs, ablations)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


def settings(data: Path, test_from: date, test_to: date) -> dict[str, Any]:
    """What the days decide."""
    start = datetime(test_from.year, test_from.month, test_from.day, tzinfo=_UTC8)
    end = datetime(test_to.year, test_to.month, test_to.day, tzinfo=_UTC8) + timedelta(days=1)
    return {
        "data.path": str(data.absolute()),
        "split.valid_from": start - timedelta(days=1),
        "split.test_from": start,
        "split.test_to": end,
        "training.refit": True,
        "evaluation.importance_rows": 0,
    }


def measure(
    base: RunConfig, work: Path, seeds: range, jobs: int, ablations: Sequence[str]
) -> list[Row]:
    """Train and judge with every seed; print, and return the rows."""
    progress = Progress(Console(stderr=True))
    dataset = pipeline.prepare_log(base, work, progress=progress)
    chosen = train_stages(with_seed(base, seeds[0]), dataset, work / "training", progress=progress)
    fixed = pipeline.fixed_epochs(base, chosen)
    trained, others = train_all(fixed, work, seeds, jobs, ablations)
    together = pipeline.calibrate(base, dataset, chosen)
    alone = pipeline.calibrate(base, dataset, replace(chosen, trees=None))
    trees_alone = calibrate_trees(base, dataset, chosen)
    found: dict[Key, list[float]] = defaultdict(list)
    scores: dict[str, list[Scores]] = defaultdict(list)
    for seed, stages in zip(seeds, trained, strict=True):
        config = with_seed(fixed, seed)
        version = pipeline.publish_run(config, dataset, stages, together, work, progress=progress)
        recommender = Recommender.load(version)
        boosted = LightGBMConfig(seed=seed, refit=True)
        rivals: list[RankingRival] = [
            LightGBM(boosted),
            LightGBM(boosted.model_copy(update={"counters": False})),
        ]
        rivals = [Kept(rival, scores[rival.name]) for rival in rivals]
        rivals.append(Part(_ALONE, recommender, stages.ranker, alone))
        if trees_alone is not None:
            rivals.append(Part(f"{OURS}, trees alone", recommender, stages.ranker, trees_alone))
        if seed == seeds[0]:  # what knows no seed
            rivals.append(Popularity(refit=True))
            rivals += [
                Part(name, recommender, ranker, alone)
                for name, ranker in zip(ablations, others, strict=True)
            ]
        threads = torch.get_num_threads()
        of_retrieval = retrieval_rivals(dataset, threads=threads) if seed == seeds[0] else ()
        result = evaluate(
            recommender,
            dataset,
            config.evaluation,
            ranking_rivals=rivals,
            retrieval_rivals=of_retrieval,
            refit=True,
            progress=progress,
        )
        title = f"adrec on KuaiRand, seed {seed}"
        write_report(
            result, work / f"report-{seed}.html", title=title, training=version / "training"
        )
        for key, value in numbers(result).items():
            found[key].append(value)
        scores[OURS].append(recommender.score_log(dataset, dataset.requests("test")))
    rows: list[Row] = [
        {
            "model": model,
            "task": task,
            "metric": metric,
            "mean": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        }
        for (model, task, metric), values in found.items()
    ]
    show(rows)
    show_differences(dataset, judged_impressions(dataset), scores)
    return rows


def train_all(
    config: RunConfig, work: Path, seeds: range, jobs: int, ablations: Sequence[str]
) -> tuple[list[Trained], list[Ranker]]:
    """The refitted models of every seed, and the rankers of the ablations, trained side by side.

    What processes leave in their folders is then read here.
    """
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        of_seeds = [pool.submit(train_seed, with_seed(config, s), work, s, threads) for s in seeds]
        of_seeds[0].result()  # the ablations begin with its two-tower
        first = with_seed(config, seeds[0])
        rest = [pool.submit(train_ablation, first, work, name, threads) for name in ablations]
        for seed_done in of_seeds:
            seed_done.result()
        for ablation_done in rest:
            ablation_done.result()
    trained = [train_seed(with_seed(config, seed), work, seed, 0) for seed in seeds]
    return trained, [train_ablation(first, work, name, 0) for name in ablations]


def train_seed(config: RunConfig, work: Path, seed: int, threads: int) -> Trained:
    """Both stages and the trees, through the day before the test; read if they are there."""
    known, progress = _known(work, threads)
    return train_stages(config, known, work / f"refit-{seed}", progress=progress)


def train_ablation(config: RunConfig, work: Path, name: str, threads: int) -> Ranker:
    """A changed ranker on the same data, beginning with the first seed's two-tower."""
    known, progress = _known(work, threads)
    folder = work / f"refit-{config.training.ranker.seed}"
    two_tower, _ = train_two_tower(config, known, folder, progress=progress)
    changed = with_settings(config, _ABLATIONS[name], source=name)
    of_name = work / "ablations" / name.replace(" ", "_")
    ranker, _ = train_ranker(changed, known, of_name, two_tower, progress=progress)
    return ranker.cpu()


def _known(work: Path, threads: int) -> tuple[Dataset, Progress]:
    if threads:
        torch.set_num_threads(threads)
    return Dataset(work / "dataset").through_validation(), Progress(Console(stderr=True))


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same settings with another seed for both stages and the trees."""
    paths = ("training.two_tower.seed", "training.ranker.seed", "trees.seed")
    return with_settings(config, dict.fromkeys(paths, seed), source="seed")


class Kept:
    """A rival whose scores of the test period are kept."""

    def __init__(self, rival: RankingRival, scores: list[Scores]) -> None:
        self._rival, self._scores = rival, scores
        self.name = rival.name

    def fit(self, dataset: Dataset) -> None:
        """As the rival does."""
        self._rival.fit(dataset)
        self._kept = False

    def score(self, dataset: Dataset, rows_N: NDArray[np.int64]) -> Scores:
        """As the rival does; the first scores are kept."""
        found = self._rival.score(dataset, rows_N)
        if not self._kept:
            self._scores.append(found)
        self._kept = True
        return found


def calibrate_trees(config: RunConfig, dataset: Dataset, trained: Trained) -> Calibration | None:
    """The calibration of the trees by themselves, if there are any."""
    if trained.trees is None:
        return None
    valid, layout = dataset.requests("valid"), dataset.features.layout
    fitted = fit_calibration(
        config.calibration,
        score_with_trees(trained.trees, dataset, valid),
        dataset.labels_NK[dataset.rows_of(valid)],
        layout.task_kinds,
        negative_rate=1.0,
        positive_weight=1.0,
    )
    return fitted.model_copy(update={"tree_weights": (1.0,) * len(fitted.tasks)})


class Part:
    """A part of a recommender, or another ranker in it, judged by itself."""

    def __init__(
        self, name: str, whole: Recommender, ranker: Ranker, calibration: Calibration
    ) -> None:
        trees = whole.runtime.trees if calibration.tree_weights is not None else None
        self.name = name
        backend = TorchBackend(ranker)
        runtime = Runtime(whole.runtime.two_tower, ranker, calibration, backend, trees=trees)
        self._recommender = Recommender(
            runtime, whole.index.now.main, whole.state, whole.serving, version=name, clock=lambda: 0
        )

    def fit(self, dataset: Dataset) -> None:
        """It is trained already."""

    def score(self, dataset: Dataset, rows_N: NDArray[np.int64]) -> Scores:
        """Calibrated scores of all impressions of some requests; see `RankingRival`."""
        request_N = np.searchsorted(dataset.offset_R, rows_N, side="right") - 1
        return self._recommender.score_log(dataset, np.unique(request_N))


def numbers(result: Mapping[str, Any]) -> dict[Key, float]:
    """Every model's metrics out of an evaluation."""
    tables = {task["name"]: task["models"] for task in result["tasks"]}
    tables |= {"retrieval": result["retrieval"]["models"]}
    tables["retrieval"].pop(f"{OURS}, exact index", None)  # the same as by exact search
    single = {f"ranker of {task} alone": task for task in tables}
    return {
        (OURS if model == f"{OURS}, exact search" else model, task, metric): entry["estimate"]
        for task, models in tables.items()
        for model, entries in models.items()
        for metric, entry in entries.items()
        if entry["estimate"] is not None
        and single.get(model, task) == task
        # Ablations are calibrated as the whole ranker: only their order is their own.
        and (model not in _ABLATIONS or metric in _OF_ORDER)
    }


def show(rows: list[Row]) -> None:
    """A table a task: one line a model."""
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        names = list(dict.fromkeys(row["metric"] for row in of_task))
        print(f"\n{task!s:<28}" + "".join(f"{name!s:>25}" for name in names))
        for model in dict.fromkeys(row["model"] for row in of_task):
            line = {row["metric"]: row for row in of_task if row["model"] == model}
            cells = [
                f"{line[name]['mean']:.4f} ± {line[name]['spread']:.4f}" if name in line else "–"
                for name in names
            ]
            print(f"{model!s:<28}" + "".join(f"{cell:>25}" for cell in cells))


def show_differences(
    dataset: Dataset, shown: Impressions, scores: Mapping[str, list[Scores]]
) -> None:
    """Ours less each LightGBM: the mean over seeds, drawn by user."""
    print(f"\n{'adrec less ...':<54}{'estimate':>10}{'95 % interval':>22}{'p':>8}")
    for k, task in enumerate(dataset.features.schema.tasks):
        measures: dict[str, Metric] = {"AUC": metrics.auc, "log loss": metrics.log_loss}
        if task.kind == "value":
            measures = {"AUC": metrics.value_auc, "Spearman": metrics.spearman}
        for name, metric in measures.items():
            for rival, of_rival in scores.items():
                if rival == OURS:
                    continue
                labels = shown.labels_NK[:, k]
                found = paired_bootstrap(
                    over_seeds(metric),
                    [labels, *(of_seed[:, k] for of_seed in scores[OURS])],
                    [labels, *(of_seed[:, k] for of_seed in of_rival)],
                    shown.unit_N,
                    _REPLICATES,
                    np.random.default_rng(0),
                )
                interval = f"{found.low:+.4f} to {found.high:+.4f}"
                what = f"{rival}: {task.name} {name}"
                print(f"{what:<54}{found.estimate:>+10.4f}{interval:>22}{found.p_value:>8.3f}")


def over_seeds(metric: Metric) -> Callable[..., float]:
    """From labels and the scores of each seed to the mean of a metric over the seeds."""
    return lambda labels, *seeds: float(np.mean([metric(scores, labels) for scores in seeds]))


if __name__ == "__main__":
    main()
