"""Where our numbers come from: by time, by slice, by feature, and by what training has met."""

from collections.abc import Mapping
from typing import Any

from adrec.evaluation.cold_start import judge_cold_start
from adrec.evaluation.coverage import judge_coverage
from adrec.evaluation.importance import judge_importance
from adrec.evaluation.judged import OURS, EvaluationConfig, Impressions, Scores
from adrec.evaluation.over_time import judge_over_time
from adrec.evaluation.slices import judge_slice, largest_and_worst
from adrec.evaluation.views import Excerpt
from adrec.features.dataset import Dataset
from adrec.progress import Progress
from adrec.recommender import Recommender
from adrec.training.objectives import thin


def diagnose(
    recommender: Recommender,
    dataset: Dataset,
    shown: Impressions,
    scores: Mapping[str, Scores],
    config: EvaluationConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Look closer at the test period.

    Args:
        recommender: ours.
        dataset: the prepared log, as what is new is new to it: its training period is ours.
        shown: what is judged.
        scores: of every model, [N, K], by name; ours are under `OURS`.
        config: how much.
        progress: where to show how far it is.

    Returns:
        `over_time`, `slices`, `largest_slices`, `worst_slices`, `importance`, `cold_start` and
        `coverage`.
    """
    ours = scores[OURS]
    largest, worst = largest_and_worst(dataset, shown, ours, config.seed)
    importance = None
    if config.importance_rows:
        test = dataset.requests("test")
        requests = thin(test, max(1, round(config.importance_rows / dataset.slate_R[test].mean())))
        progress.say(f"importance of features: {len(requests):,} requests")
        importance = judge_importance(
            Excerpt(dataset, requests),
            lambda part: recommender.score_log(part, part.requests("test")),
            config,
        )
    return {
        "over_time": judge_over_time(dataset, shown, ours),
        "slices": [
            entry
            for column in config.slices
            for entry in judge_slice(dataset, shown, ours, column, config)
        ],
        "largest_slices": largest,
        "worst_slices": worst,
        "importance": importance,
        "cold_start": judge_cold_start(dataset, shown, scores),
        "coverage": judge_coverage(dataset, shown),
    }
