"""An evaluation in the terminal, and how models are compared.

The HTML report takes what it says of models from here too, so that both mark the same one as best.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rich.table import Table
from rich.text import Text

from adrec.evaluation import sheets
from adrec.evaluation.judged import BEST_POSSIBLE, OURS
from adrec.evaluation.measures import (
    GAUC_AT_START,
    MISSING,
    interval,
    measure,
    milliseconds,
    number,
    p_text,
)
from adrec.evaluation.sheets import Sheet
from adrec.evaluation.truth_tables import truth_tables

Models: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By model and metric: `estimate`, and where there is an interval `low` and `high`."""

_WORST, _FEATURES = 8, 10
_TASK_COLUMNS = {
    "binary": (
        "AUC",
        "GAUC",
        "log loss",
        "normalised entropy",
        "calibration error",
        "PR-AUC",
    ),
    "value": ("AUC", "Spearman", "normalised Gini", "mean predicted / actual"),
}


def verdict(name: str, difference: Mapping[str, Any]) -> Literal["better", "worse", "unclear"]:
    """What an interval of a difference says: unclear where it holds 0 or is missing."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == (measure(name).better == "higher") else "worse"


def is_reference(model: str) -> bool:
    """Whether a name is that of a known truth (`best possible ...`, `true ...`), not a model."""
    return model.startswith(("best possible", "true "))


def is_ours(model: str) -> bool:
    """Whether a name is ours: `adrec`, or a way of running it, as `adrec, exact search`."""
    return model == OURS or model.startswith(f"{OURS}, ")


def in_order(models: Iterable[str]) -> list[str]:
    """Ours first, then rivals, then references, each as they came."""
    return sorted(models, key=lambda name: 0 if is_ours(name) else 2 if is_reference(name) else 1)


def metrics_of(models: Models) -> list[str]:
    """Every metric that any model has, in order of appearance."""
    return list(dict.fromkeys(name for found in models.values() for name in found))


def estimate(models: Models, model: str | None, metric: str) -> float | None:
    """The value of a metric; None where model, metric or value is missing."""
    found = models.get(model, {}).get(metric, {}) if model is not None else {}
    value = found.get("estimate")
    return None if value is None else float(value)


def best_of(models: Models, metric: str) -> set[str]:
    """Trained models with the best value of a metric; what prints alike is a tie."""
    values = {name: estimate(models, name, metric) for name in models if not is_reference(name)}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return set()
    first = min(known.values(), key=measure(metric).badness)
    return {name for name, v in known.items() if number(metric, v) == number(metric, first)}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where we stand on one metric."""

    metric: str
    model: str
    ours: float | None
    best: float | None
    """Of the reference `best possible (observable)`."""
    rival: str | None
    """The strongest trained rival."""
    rival_value: float | None

    @property
    def attained(self) -> float | None:
        """Share of the attainable lift over chance: (AUC − ½) / (best − ½); recall / best."""
        chance = {"AUC": 0.5, "recall": 0.0}.get(self.metric.split("@")[0])
        if chance is None or self.ours is None or self.best is None or self.best <= chance:
            return None
        return (self.ours - chance) / (self.best - chance)


def standing(models: Models, metric: str) -> Standing:
    """Our value of a metric beside the best possible and the strongest rival's.

    Of several ways of running ours the last is taken: that which is served.
    """
    ours = next((name for name in reversed(list(models)) if is_ours(name)), OURS)
    rivals = {
        name: value
        for name in models
        if not is_ours(name) and not is_reference(name)
        if (value := estimate(models, name, metric)) is not None
    }
    rival = min(rivals, key=lambda name: measure(metric).badness(rivals[name]), default=None)
    return Standing(
        metric=metric,
        model=ours,
        ours=estimate(models, ours, metric),
        best=estimate(models, BEST_POSSIBLE, metric),
        rival=rival,
        rival_value=None if rival is None else rivals[rival],
    )


def headline_recall(models: Models) -> str | None:
    """The depth to speak of: recall@500, else the deepest."""
    names = [name for name in metrics_of(models) if name.startswith("recall@")]
    return "recall@500" if "recall@500" in names else names[-1] if names else None


def headline_ndcg(ranking: Mapping[str, Any]) -> str | None:
    """NDCG at the depth that was evaluated."""
    return next((name for name in metrics_of(ranking["models"]) if name.startswith("NDCG")), None)


def result_tables(result: Mapping[str, Any]) -> list[Table]:
    """What `evaluate` returned, as compact tables: tasks, ranking, retrieval, truth, what is new,
    the worst slices, the most important features, stage latency."""
    tables = [
        _models_table(
            f"{task['name']} ({task['kind']}, mean {number('', task['mean'])})",
            [task["models"]],
            _task_columns(task),
        )
        for task in result["tasks"]
    ]
    ranking = result["ranking"]
    about = f"{ranking['groups']:,} groups by {ranking['grouped_by']} with both outcomes"
    names = metrics_of(ranking["models"])
    tables.append(
        _models_table(f"ranking of {ranking['task']}: {about}", [ranking["models"]], names)
    )
    retrieval = result["retrieval"]
    if retrieval["models"]:
        about = f"{retrieval['queries']:,} queries among {retrieval['catalogue']:,} ads"
        if retrieval["pipeline"]:
            about += f"; with ranker {retrieval['pipeline_queries']:,} queries"
        parts = [retrieval["models"], retrieval["pipeline"]]
        names = metrics_of(retrieval["models"])
        tables.append(_models_table(f"retrieval: {about}", parts, names))
    tables += truth_tables(result)
    tables += [_sheet_table(sheet) for sheet in sheets.cold_retrieval(result)]
    tables += [_sheet_table(sheet) for sheet in sheets.cold_start(result)]
    tables += [_sheet_table(sheet.brief(_WORST)) for sheet in sheets.worst_slices(result)]
    tables += [_sheet_table(sheet.brief(_FEATURES)) for sheet in sheets.importance(result)]
    if result["stage_ms"]:
        table = _table("latency of single requests", "stage", ["p50 ms", "p99 ms"])
        for stage, ms in result["stage_ms"].items():
            table.add_row(Text(stage), milliseconds(ms["p50"]), milliseconds(ms["p99"]))
        tables.append(table)
    return tables


def _task_columns(task: Mapping[str, Any]) -> tuple[str, ...]:
    """What the terminal prints of a task; the report has the rest."""
    columns = _TASK_COLUMNS[task["kind"]]
    if GAUC_AT_START not in metrics_of(task["models"]):
        return columns
    return (*columns[:2], GAUC_AT_START, *columns[2:-1])


def comparison_table(result: Mapping[str, Any]) -> Table:
    """What `compare` returned: the first version less the second, metric by metric."""
    title = f"{result['first']} less {result['second']}"
    table = _table(title, "task", ["metric", "difference", "95% interval", "p", "the first is"])
    for task, differences in result["differences"].items():
        for metric, found in differences.items():
            said = verdict(metric, found)
            table.add_row(
                Text(task),
                Text(metric),
                number(metric, found["estimate"], signed=True),
                interval(metric, found, signed=True) or MISSING,
                p_text(found["p_value"]).removeprefix("= "),
                Text(said, style={"better": "green", "worse": "red", "unclear": "dim"}[said]),
            )
        table.add_section()
    return table


def summary_table(result: Mapping[str, Any]) -> Table:
    """The whole evaluation on one screen: ours beside the best possible and the strongest rival."""
    columns = [OURS, "best possible", "attained", "strongest rival", "rival's"]
    table = _table(f"version {result['version']}", "", columns)

    def add(label: str, models: Models, metric: str) -> None:
        at = standing(models, metric)
        attained = MISSING if at.attained is None else f"{at.attained:.0%}"
        numbers = [number(metric, value) for value in (at.ours, at.best)]
        rival = Text(at.rival or MISSING)
        table.add_row(Text(label), *numbers, attained, rival, number(metric, at.rival_value))

    for task in result["tasks"]:
        add(f"{task['name']} AUC", task["models"], "AUC")
    if ndcg := headline_ndcg(result["ranking"]):
        add(ndcg, result["ranking"]["models"], ndcg)
    if recall := headline_recall(result["retrieval"]["models"]):
        add(recall, result["retrieval"]["models"], recall)
    table.add_section()
    for stage, ms in result["stage_ms"].items():
        table.add_row(Text(f"{stage}, p50 ms"), milliseconds(ms["p50"]))
    return table


def _models_table(title: str, parts: Sequence[Models], metrics: Sequence[str]) -> Table:
    """Models as rows, the best trained value of each part in bold, references dim and last."""
    heads = [measure(name).short or name for name in metrics]
    table = _table(title, "model", heads)
    for models in parts:
        best = {metric: best_of(models, metric) for metric in metrics}
        for kind in (False, True):
            for name in in_order(models):
                if is_reference(name) != kind:
                    continue
                cells = [
                    Text(
                        number(metric, estimate(models, name, metric)),
                        style="bold" if name in best[metric] else "",
                    )
                    for metric in metrics
                ]
                table.add_row(Text(name), *cells, style="dim" if kind else "")
            table.add_section()
    return table


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    """A table whose first column wraps where space is short; no number is ever cut."""
    table = Table(title=Text(title, style="bold"), title_justify="left")
    table.add_column(first, overflow="fold", min_width=8)
    for column in columns:
        name = column in ("metric", "strongest rival", "the first is")
        table.add_column(Text(column), justify="left" if name else "right", no_wrap=not name)
    return table


def _sheet_table(sheet: Sheet) -> Table:
    """A sheet for the terminal: names wrap where space is short, heads always, numbers never."""
    table = Table(title=Text(sheet.title, style="bold"), title_justify="left")
    for place, column in enumerate(sheet.columns):
        if place < sheet.names:
            table.add_column(Text(column), overflow="fold", min_width=6)
        else:
            table.add_column(Text(column.replace(" ", "\n")), justify="right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table
