"""Offline evaluation: a bundle's recommender on the test period, beside its rivals.

Three questions, each with every model in the same table: how well are impressions scored (per
task), how well are slates ordered (within a request), and how many of the ads that users go on to
click are found (retrieval, and the whole pipeline). The result is plain JSON; `report` draws it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec import metrics
from adrec.evaluation.baselines import RankingRival
from adrec.evaluation.bootstrap import Replicated, bootstrap, paired_bootstrap, replicate
from adrec.evaluation.diagnosis import diagnose
from adrec.evaluation.group_start import GroupStart
from adrec.evaluation.judged import OURS, EvaluationConfig, Impressions, Scores, judged_impressions
from adrec.evaluation.known_world import KnownWorld
from adrec.evaluation.latency import stage_latency
from adrec.evaluation.measures import GAUC_AT_START
from adrec.evaluation.retrieval import judge_retrieval
from adrec.evaluation.retrieval_queries import Queries, RetrievalRival, queries
from adrec.evaluation.slices import column_of
from adrec.evaluation.top_ads import judge_deciles, judge_top
from adrec.features.dataset import Dataset
from adrec.metrics import Grouped
from adrec.progress import Progress
from adrec.recommender import Recommender
from adrec.slates import Request

_LATENCY_REQUESTS = 100


def evaluate(
    recommender: Recommender,
    dataset: Dataset,
    config: EvaluationConfig,
    *,
    ranking_rivals: Sequence[RankingRival] = (),
    retrieval_rivals: Sequence[RetrievalRival] = (),
    references: Mapping[str, Scores] | None = None,
    world: KnownWorld | None = None,
    refit: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a recommender on the test period.

    Args:
        recommender: with any state; retrieval is replayed from the state at the test's start.
        dataset: the prepared log.
        config: how much.
        ranking_rivals: trained here, on the training period.
        retrieval_rivals: likewise.
        references: scores of every impression of the log, [N, K], by name: known truths.
        world: what is true of pairs that were never shown, where that is known.
        refit: whether our models learned from the validation period, too: what they met there is
            not new to them.
        progress: where to show how far it is.

    Returns:
        JSON-ready: `version`, `test`, `tasks`, `ranking`, `retrieval`, `top`, `deciles`, `curves`,
        `stage_ms` and what `diagnose` returns.

    Raises:
        ConfigError: a slice that is no categorical field, or only depths beyond the catalogue.
    """
    progress = progress or Progress()
    shown = judged_impressions(dataset)
    for column in config.slices:
        column_of(dataset, shown, column)  # a wrong name must not cost the rivals' training
    progress.say(f"evaluating {len(shown.rows_N):,} impressions of the test period")
    scores = {OURS: recommender.score_log(dataset, dataset.requests("test"))}
    start = GroupStart.of(dataset, shown)
    at_start = {}
    if start is not None:
        at_start[OURS] = start.judge(
            lambda part, _: recommender.score_log(part, part.requests("test"))
        )
    for rival in ranking_rivals:
        progress.say(f"fitting {rival.name}")
        rival.fit(dataset)
        scores[rival.name] = rival.score(dataset, shown.rows_N)
        if start is not None:
            at_start[rival.name] = start.judge(rival.score)
    known = {name: reference[shown.rows_N] for name, reference in (references or {}).items()}
    scores |= known
    asked = queries(dataset, config.queries)
    learned = dataset.through_validation() if refit else dataset
    retrieval = judge_retrieval(
        recommender, dataset, asked, config, retrieval_rivals, progress, world, learned
    )
    result: dict[str, Any] = _plain(
        {
            "version": recommender.version,
            "test": _about(dataset, shown),
            "tasks": [
                _task(dataset, shown, scores, at_start, k, config) for k in range(_tasks(dataset))
            ],
            "ranking": _ranking(dataset, shown, scores, config),
            "retrieval": retrieval,
            "top": judge_top(recommender, dataset, shown, scores[OURS], config, world),
            "deciles": judge_deciles(dataset, shown, scores[OURS], known),
            "curves": _curves(dataset, shown, scores),
            "stage_ms": _latency(recommender, dataset, asked),
            **diagnose(recommender, learned, shown, scores, config, progress),
        }
    )
    return result


def compare(
    first: Recommender, second: Recommender, dataset: Dataset, config: EvaluationConfig
) -> dict[str, Any]:
    """Two bundles on the same impressions: first less second, paired bootstrap by user."""
    shown = judged_impressions(dataset)
    test = dataset.requests("test")
    scores = {"first": first.score_log(dataset, test), "second": second.score_log(dataset, test)}
    replicates = max(config.replicates, 200)
    found = {}
    for k, task in enumerate(dataset.features.schema.tasks):
        found[task.name] = {
            name: asdict(
                paired_bootstrap(
                    metric,
                    (scores["first"][:, k], shown.labels_NK[:, k]),
                    (scores["second"][:, k], shown.labels_NK[:, k]),
                    shown.unit_N,
                    replicates,
                    np.random.default_rng(config.seed),
                )
            )
            for name, metric in _compared(task.kind).items()
        }
    plain: dict[str, Any] = _plain(
        {"first": first.version, "second": second.version, "differences": found}
    )
    return plain


def _tasks(dataset: Dataset) -> int:
    return len(dataset.features.schema.tasks)


def _about(dataset: Dataset, shown: Impressions) -> dict[str, Any]:
    test = dataset.requests("test")
    return {
        "impressions": len(shown.rows_N),
        "requests": len(test),
        "from_ms": int(dataset.time_ms_R[test[0]]),
        "to_ms": int(dataset.time_ms_R[test[-1]]),
        "train_impressions": len(dataset.rows_of(dataset.requests("train"))),
        "catalogue": len(dataset.catalogue) - 1,
    }


def _task(
    dataset: Dataset,
    shown: Impressions,
    scores: Mapping[str, Scores],
    at_start: Mapping[str, Sequence[Any]],
    k: int,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Every metric of one task for every model, and ours less each rival."""
    task = dataset.features.schema.tasks[k]
    labels = shown.labels_NK[:, k]
    models = {}
    replicated = {
        model: _replicated(task.kind, predicted[:, k], labels, shown.unit_N, config)
        for model, predicted in scores.items()
    }
    for model, predicted in scores.items():
        grouped = at_start[model][k] if model in at_start else None
        found = _task_metrics(task.kind, predicted[:, k], labels, shown.group_N, grouped)
        found |= {name: asdict(one.interval()) for name, one in replicated[model].items()}
        if model == OURS and task.kind == "binary":
            found["GAUC"] |= _gauc_interval(predicted[:, k], labels, shown, config)
        models[model] = found
    differences = {
        model: {name: asdict(ours.less(rival[name])) for name, ours in replicated[OURS].items()}
        for model, rival in replicated.items()
        if model != OURS and config.replicates
    }
    mean = float(labels.mean())
    return {
        "name": task.name,
        "kind": task.kind,
        "mean": mean,
        "models": models,
        "differences": differences,
    }


Metric = Callable[[Scores, Scores], float]


def _compared(kind: str) -> dict[str, Metric]:
    """The metrics with intervals."""
    if kind == "binary":
        return {"AUC": metrics.auc, "log loss": metrics.log_loss}
    return {"AUC": metrics.value_auc, "Spearman": metrics.spearman}


def _task_metrics(
    kind: str,
    predicted: Scores,
    labels: Scores,
    groups: NDArray[np.int64],
    at_start: dict[str, Any] | None,
) -> dict[str, Any]:
    if kind == "value":
        return {
            "AUC": {"estimate": metrics.value_auc(predicted, labels)},
            "Spearman": {"estimate": metrics.spearman(predicted, labels)},
            "normalised Gini": {"estimate": metrics.normalised_gini(predicted, labels)},
            "RMSE": {"estimate": metrics.rmse(predicted, labels)},
            "mean predicted / actual": {"estimate": metrics.bias(predicted, labels)},
        }
    clipped = np.clip(predicted, 1e-7, 1 - 1e-7)
    grouped = metrics.gauc(predicted, labels, groups)
    return {
        "AUC": {"estimate": metrics.auc(predicted, labels)},
        "GAUC": {"estimate": grouped.value, "groups": grouped.groups, "rows": grouped.rows},
        **({} if at_start is None else {GAUC_AT_START: at_start}),
        "log loss": {"estimate": metrics.log_loss(clipped, labels)},
        "normalised entropy": {"estimate": metrics.normalised_entropy(clipped, labels)},
        "calibration error": {"estimate": metrics.calibration_error(clipped, labels)},
        "mean predicted / actual": {"estimate": metrics.bias(clipped, labels)},
        "PR-AUC": {"estimate": metrics.pr_auc(predicted, labels)},
    }


def _replicated(
    kind: str,
    predicted: Scores,
    labels: Scores,
    units: NDArray[np.int64],
    config: EvaluationConfig,
) -> dict[str, Replicated]:
    """The metrics with intervals; of every model on the same draws."""
    if not config.replicates:
        return {}
    return {
        name: replicate(
            metric,
            (predicted, labels),
            units,
            config.replicates,
            np.random.default_rng(config.seed),
        )
        for name, metric in _compared(kind).items()
    }


def _gauc_interval(
    predicted: Scores, labels: Scores, shown: Impressions, config: EvaluationConfig
) -> dict[str, Any]:
    if not config.replicates:
        return {}
    interval = bootstrap(
        lambda scores, outcomes, groups: metrics.gauc(scores, outcomes, groups).value,
        (predicted, labels),
        shown.unit_N,
        config.replicates,
        np.random.default_rng(config.seed),
        groups=shown.group_N,
    )
    return asdict(interval)


def _ranking(
    dataset: Dataset, shown: Impressions, scores: Mapping[str, Scores], config: EvaluationConfig
) -> dict[str, Any]:
    """NDCG, MAP and MRR of the first task within each group."""
    labels = shown.labels_NK[:, 0]
    k = config.k
    measures: dict[str, Callable[[Scores, Scores, NDArray[np.int64], int], Grouped]] = {
        f"NDCG@{k}": metrics.ndcg_at_k,
        f"MAP@{k}": metrics.map_at_k,
        "MRR": metrics.mrr,
    }
    models: dict[str, dict[str, Any]] = {}
    groups = rows = 0
    for model, predicted in scores.items():
        models[model] = {}
        for name, measure in measures.items():
            depth = k if name != "MRR" else int(dataset.slate_R.max()) + len(labels)
            found = measure(predicted[:, 0], labels, shown.group_N, depth)
            models[model][name] = {"estimate": found.value}
            groups, rows = found.groups, found.rows
            if model == OURS and config.replicates:
                models[model][name] = asdict(
                    bootstrap(
                        lambda s, y, g, m=measure, d=depth: m(s, y, g, d).value,
                        (predicted[:, 0], labels),
                        shown.unit_N,
                        config.replicates,
                        np.random.default_rng(config.seed),
                        groups=shown.group_N,
                    )
                )
    return {
        "task": dataset.features.schema.click.name,
        "grouped_by": shown.grouped_by,
        "groups": groups,
        "rows": rows,
        "models": models,
    }


def _curves(dataset: Dataset, shown: Impressions, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """ROC of every model and our reliability, for each binary task."""
    roc: dict[str, Any] = {}
    reliability: dict[str, Any] = {}
    for k, task in enumerate(dataset.features.schema.tasks):
        if task.kind != "binary":
            continue
        labels = shown.labels_NK[:, k]
        roc[task.name] = {}
        for model, predicted in scores.items():
            false, true = metrics.roc_curve_points(predicted[:, k], labels)
            roc[task.name][model] = {"false_positive_rate": false, "true_positive_rate": true}
        bins = metrics.reliability(np.clip(scores[OURS][:, k], 1e-7, 1 - 1e-7), labels)
        reliability[task.name] = {
            "predicted": bins.prediction,
            "actual": bins.label,
            "rows": bins.count,
        }
    return {"roc": roc, "reliability": reliability}


def _latency(recommender: Recommender, dataset: Dataset, asked: Queries) -> dict[str, Any]:
    """Milliseconds of each stage of single requests of the users that were asked for."""
    users = dataset.user_R[asked.requests_Q[:_LATENCY_REQUESTS]].tolist() or [0]
    known = recommender.state.users
    requests = [Request(user=known.id(user) if 0 < user < len(known) else None) for user in users]
    stages: dict[str, Any] = stage_latency(recommender, requests, k=10)["stages"]
    return stages


def _plain(value: Any) -> Any:
    """JSON-ready: arrays to lists, NaN to null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value
