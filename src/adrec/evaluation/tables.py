"""An evaluation in the terminal, and how each metric is read, printed and compared.

The HTML report takes its numbers, names and explanations from here too, so that both print the same
digits and mark the same model as best.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rich.table import Table
from rich.text import Text

from adrec.evaluation.judged import OURS

BEST_POSSIBLE = "best possible (observable)"
MISSING = "–"

Models: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By model and metric: `estimate`, and where there is an interval `low` and `high`."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a metric is read."""

    better: Literal["higher", "lower", "one"]
    """Which values are good; `one` is a ratio that should be 1."""
    meaning: str
    formula: str
    short: str | None = None
    """Its name where space is scarce."""
    digits: int = 4

    def badness(self, value: float) -> float:
        """Smaller is better, whatever the metric."""
        if self.better == "one":
            return abs(value - 1.0)
        return value if self.better == "lower" else -value


MEASURES: Mapping[str, Measure] = {
    "AUC": Measure(
        better="higher",
        meaning="How often a random positive scores above a random negative; 0.5 is chance. In a "
        "value task a positive is a row that earned something.",
        formula="P(score⁺ > score⁻) + ½ P(score⁺ = score⁻)",
    ),
    "GAUC": Measure(
        better="higher",
        meaning="AUC inside each group (a request, or a user's day), averaged by impressions; "
        "groups without both outcomes are left out.",
        formula="Σ_g n_g AUC_g / Σ_g n_g",
    ),
    "log loss": Measure(
        better="lower",
        meaning="Mean negative log likelihood in nats: punishes confident mistakes.",
        formula="−(1/N) Σ [y ln p + (1 − y) ln(1 − p)]",
    ),
    "normalised entropy": Measure(
        better="lower",
        meaning="Log loss as a share of what predicting the base rate c for all would lose; below "
        "1 is better than the base rate.",
        formula="log loss / −[c ln c + (1 − c) ln(1 − c)]",
        short="NE",
    ),
    "calibration error": Measure(
        better="lower",
        meaning="Mean gap between predicted and actual rate over 20 bins of equal mass.",
        formula="Σ_b (n_b / N) |mean p in b − mean y in b|",
        short="cal. error",
    ),
    "mean predicted / actual": Measure(
        better="one",
        meaning="How far predictions are too high on the whole; 1 is unbiased.",
        formula="Σ p / Σ y",
        short="pred./act.",
        digits=3,
    ),
    "PR-AUC": Measure(
        better="higher",
        meaning="Average precision over all thresholds; a random order scores the base rate.",
        formula="Σ_t (R_t − R_{t−1}) P_t",
    ),
    "Spearman": Measure(
        better="higher",
        meaning="Rank correlation of predicted with actual value.",
        formula="Pearson correlation of average ranks",
    ),
    "normalised Gini": Measure(
        better="higher",
        meaning="Share of the actual inequality of value that the predicted order recovers.",
        formula="Gini(value by prediction) / Gini(value by value)",
        short="Gini",
    ),
    "RMSE": Measure(
        better="lower",
        meaning="Root mean squared error, in the unit of the value.",
        formula="√(mean (predicted − actual)²)",
    ),
    "NDCG": Measure(
        better="higher",
        meaning="How near the top of its group's first k positives stand; 1 is the perfect order.",
        formula="DCG@k / ideal DCG@k, DCG@k = Σ_{r≤k} y_r / log₂(1 + r)",
    ),
    "MAP": Measure(
        better="higher",
        meaning="Precision at the rank of each positive among the first k, averaged.",
        formula="mean over groups of Σ_{r≤k} y_r (hits in first r)/r / min(k, positives)",
    ),
    "MRR": Measure(
        better="higher",
        meaning="One over the rank of the first positive, averaged over groups.",
        formula="mean over groups of 1 / rank of first positive",
    ),
    "recall": Measure(
        better="higher",
        meaning="Share of the ads a user went on to click that are among the first k found.",
        formula="(1/Q) Σ_q |first k of q ∩ clicked by q| / |clicked by q|",
    ),
}

_UNKNOWN = Measure(better="higher", meaning="", formula="")

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


def measure(name: str) -> Measure:
    """How a metric is read; NDCG@10 as NDCG."""
    return MEASURES.get(name.split("@")[0], _UNKNOWN)


def number(name: str, value: float | None, *, signed: bool = False) -> str:
    """A metric's value in print: an en dash where it is undefined, fewer decimals where large."""
    if value is None:
        return MISSING
    digits = measure(name).digits
    if abs(value) >= 10:
        digits = 0 if abs(value) >= 1000 else 2
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", "−")


def p_text(p_value: float | None) -> str:
    """A p value in print."""
    if p_value is None:
        return MISSING
    return next((f"< {p:g}" for p in (0.001, 0.01) if p_value < p), f"= {p_value:.2f}")


def interval(name: str, found: Mapping[str, Any], *, signed: bool = False) -> str:
    """The interval of a metric or a difference in print; empty where there is none."""
    low, high = found.get("low"), found.get("high")
    if low is None or high is None:
        return ""
    return f"{number(name, low, signed=signed)} to {number(name, high, signed=signed)}"


def milliseconds(ms: float | None) -> str:
    """A latency in print."""
    if ms is None:
        return MISSING
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


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
        """Share of the attainable lift over chance: (AUC − ½) / (best − ½)."""
        if self.metric != "AUC" or self.ours is None or self.best is None or self.best <= 0.5:
            return None
        return (self.ours - 0.5) / (self.best - 0.5)


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
    names = metrics_of(models)
    return "recall@500" if "recall@500" in names else names[-1] if names else None


def headline_ndcg(ranking: Mapping[str, Any]) -> str | None:
    """NDCG at the depth that was evaluated."""
    return next((name for name in metrics_of(ranking["models"]) if name.startswith("NDCG")), None)


def result_tables(result: Mapping[str, Any]) -> list[Table]:
    """What `evaluate` returned, as compact tables: tasks, ranking, retrieval, stage latency."""
    tables = [
        _models_table(
            f"{task['name']} ({task['kind']}, mean {number('', task['mean'])})",
            [task["models"]],
            _TASK_COLUMNS[task["kind"]],
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
    if result["stage_ms"]:
        table = _table("latency of single requests", "stage", ["p50 ms", "p99 ms"])
        for stage, ms in result["stage_ms"].items():
            table.add_row(Text(stage), milliseconds(ms["p50"]), milliseconds(ms["p99"]))
        tables.append(table)
    return tables


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
