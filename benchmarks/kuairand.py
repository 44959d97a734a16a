"""Who ranks and retrieves best on KuaiRand, on a day that no model has seen?

    python benchmarks/kuairand.py --data DIR --test-from 2022-05-06 --test-to 2022-05-06 --json FILE

Every model chooses on the day before `--test-from` and is then fitted again through it, its length
of training fixed; ours and LightGBM with each of `--seeds`, while popularity, EASE and iALS are the
same in all. Counters run on through the test days, strictly past, for all alike. Days are those of
UTC+8.

Prints a table and the differences to both LightGBMs, paired by user over all seeds. `--json`
writes rows {model, task, metric, mean, spread}: spread is the standard deviation over seeds. The
work, with a report for each seed, is kept where `--work` says.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from adrec import metrics, pipeline
from adrec.config import RunConfig, load_config
from adrec.evaluation.baselines import LightGBM, LightGBMConfig, Popularity, RankingRival
from adrec.evaluation.bootstrap import paired_bootstrap
from adrec.evaluation.judged import OURS, Impressions, judged_impressions
from adrec.evaluation.offline import evaluate
from adrec.evaluation.report import write_report
from adrec.evaluation.retrieval_baselines import retrieval_rivals
from adrec.features.dataset import Dataset
from adrec.progress import Progress
from adrec.recommender import Recommender

_ROOT = Path(__file__).resolve().parent.parent
_UTC8 = timezone(timedelta(hours=8))
_REPLICATES = 500

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
    parser.add_argument("--work", type=Path, help="where to keep runs and reports")
    parser.add_argument("--json", type=Path, help="also write rows {model, task, metric, ...}")
    arguments = parser.parse_args()
    test_to = arguments.test_to or arguments.test_from
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        base = load_config(arguments.config, settings(arguments.data, arguments.test_from, test_to))
        rows = measure(base, work, range(arguments.seeds))
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
    }


def measure(base: RunConfig, work: Path, seeds: range) -> list[Row]:
    """Train and judge with every seed; print, and return the rows."""
    console = Console(stderr=True)
    found: dict[Key, list[float]] = defaultdict(list)
    scores: dict[str, list[Scores]] = defaultdict(list)
    for seed in seeds:
        config = with_seed(base, seed)
        version = pipeline.run(config, work, progress=Progress(console))
        dataset, recommender = Dataset(work / "dataset"), Recommender.load(version)
        threads = torch.get_num_threads()
        boosted = LightGBMConfig(seed=seed, refit=True)
        rivals: list[RankingRival] = [
            Popularity(refit=True),
            LightGBM(boosted),
            LightGBM(boosted.model_copy(update={"counters": False})),
        ]
        result = evaluate(
            recommender,
            dataset,
            config.evaluation,
            ranking_rivals=rivals,
            retrieval_rivals=retrieval_rivals(dataset, threads=threads),
            progress=Progress(console),
        )
        title = f"adrec on KuaiRand, seed {seed}"
        write_report(
            result, work / f"report-{seed}.html", title=title, training=version / "training"
        )
        for key, value in numbers(result).items():
            found[key].append(value)
        shown = judged_impressions(dataset)
        scores[OURS].append(recommender.score_log(dataset, dataset.requests("test")))
        for rival in rivals[1:]:
            scores[rival.name].append(rival.score(dataset, shown.rows_N))
    rows: list[Row] = [
        {
            "model": model,
            "task": task,
            "metric": metric,
            "mean": float(np.mean(values)),
            "spread": float(np.std(values)),
        }
        for (model, task, metric), values in found.items()
    ]
    show(rows)
    show_differences(dataset, shown, scores)
    return rows


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same settings with another seed for both stages."""
    stages = {
        name: getattr(config.training, name).model_copy(update={"seed": seed})
        for name in ("two_tower", "ranker")
    }
    return config.model_copy(update={"training": config.training.model_copy(update=stages)})


def numbers(result: Mapping[str, Any]) -> dict[Key, float]:
    """Every model's metrics out of an evaluation."""
    tables = {task["name"]: task["models"] for task in result["tasks"]}
    tables |= {"retrieval": result["retrieval"]["models"]}
    return {
        (OURS if model == f"{OURS}, exact search" else model, task, metric): entry["estimate"]
        for task, models in tables.items()
        for model, entries in models.items()
        for metric, entry in entries.items()
        if entry["estimate"] is not None
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
