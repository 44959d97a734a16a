"""An evaluation as one self-contained HTML page: numbers, intervals and plots to send around.

Plots are inline SVG whose colours are CSS variables, so one page suits screens in light and dark
and paper, and its text stays text. Everything from outside is escaped by the template.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

import adrec
from adrec.evaluation import measures, sheets, tables, truth_tables
from adrec.evaluation.diagnosis_plots import importance_plot, over_time_plot
from adrec.evaluation.drawing import (
    GRID,
    MODEL,
    REFERENCE,
    Plot,
    Style,
    name_axes,
    short_count,
    square,
    svg_of,
    upper_first,
)
from adrec.evaluation.measures import number
from adrec.evaluation.sheets import Sheet
from adrec.evaluation.tables import Models, Standing, in_order, is_ours, is_reference
from adrec.training.curves import read_log

_COLOURS = 7
_STAGES = ("two-tower", "ranker")
_DASHES = ("", "5 2.5", "1.5 2", "6 2 1.5 2")


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A part of the page that is only tables and plots."""

    key: str
    """Its anchor, and its name in the list of contents."""
    title: str
    about: str
    sheets: Sequence[Sheet]
    plots: Sequence[Plot] = ()


def write_report(
    result: Mapping[str, Any], path: Path, *, title: str, training: Path | None = None
) -> None:
    """Write the page.

    Args:
        result: what `evaluate` returned.
        path: where to write.
        title: its heading.
        training: folder with `two-tower-log.jsonl` and `ranker-log.jsonl`, for training curves.
    """
    styles = model_styles(result)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("adrec.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=title,
        adrec_version=adrec.__version__,
        result=result,
        styles=styles,
        tables=tables,
        measures=measures,
        truth=truth_tables,
        first_day=_day(result["test"]["from_ms"]),
        last_day=_day(result["test"]["to_ms"]),
        cards=_cards(result),
        task_plots=[_task_plots(task, result["curves"], styles) for task in result["tasks"]],
        recall_plot=_recall_plot(result["retrieval"], styles),
        slice_sheets=[*sheets.largest_slices(result), *sheets.worst_slices(result)],
        chapters=[one for one in _chapters(result) if one.sheets],
        training_plots=[] if training is None else _training_plots(training),
    )
    path.write_text(page, encoding="utf-8")


def model_styles(result: Mapping[str, Any]) -> dict[str, Style]:
    """A style for each model: ours and each rival a colour, references grey and dashed.

    Ways of running one model (`adrec, exact search`) share its colour and differ in the dash.
    """
    retrieval = result["retrieval"]
    parts: list[Models] = [task["models"] for task in result["tasks"]]
    parts += [result["ranking"]["models"], retrieval["models"], retrieval.get("pipeline", {})]
    names = list(dict.fromkeys(name for part in parts for name in part))
    ways = [name for name in names if is_ours(name) and "," in name]
    rivals = [name for name in names if not is_ours(name) and not is_reference(name)]
    references = [name for name in names if is_reference(name)]
    styles = {name: Style(MODEL.format(0), "") for name in names if is_ours(name)}
    for place, name in enumerate(ways):
        styles[name] = Style(MODEL.format(0), _DASHES[place % len(_DASHES)])
    for place, name in enumerate(rivals):
        again, colour = divmod(place, _COLOURS - 1)
        styles[name] = Style(MODEL.format(colour + 1), _DASHES[again % len(_DASHES)])
    for place, name in enumerate(references):
        styles[name] = Style(REFERENCE, _DASHES[1 + place % (len(_DASHES) - 1)])
    return styles


def _chapters(result: Mapping[str, Any]) -> list[Chapter]:
    """What lies behind the metrics."""
    plots = [over_time_plot(task, buckets) for task, buckets in result["over_time"].items()]
    features = importance_plot(result["importance"])
    return [
        Chapter(
            key="time",
            title="Over time",
            about="adrec's predictions beside what happened. A ratio that drifts away from 1 means "
            "that the model is growing old; one that swings, that something is missing in it.",
            sheets=sheets.over_time(result),
            plots=[plot for plot in plots if plot is not None],
        ),
        Chapter(
            key="new",
            title="New users and new ads",
            about="Those whom the training period never met, and impressions whose user and ad it "
            "both knows. An impression of a new user with a new ad is in both groups.",
            sheets=[*sheets.cold_start(result), *sheets.cold_retrieval(result)],
        ),
        Chapter(
            key="importance",
            title="Importance of features",
            about="How much worse adrec's ranker does when one feature's values are dealt anew "
            "among the impressions or requests, so that they say nothing any more.",
            sheets=sheets.importance(result),
            plots=[] if features is None else [features],
        ),
        Chapter(
            key="coverage",
            title="Coverage",
            about="Whether the values of test impressions had a code of their own (ids: whether "
            "training met them), and how many training impressions had the same code as the "
            "10th, 50th and 90th percentile of test impressions.",
            sheets=sheets.coverage(result),
        ),
    ]


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def _cards(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The big numbers: label, value, notes, and a share where a meter helps."""
    click = next(
        (task for task in result["tasks"] if task["name"] == result["ranking"]["task"]), None
    )
    cards = [] if click is None else _click_cards(click)
    ranking, retrieval = result["ranking"]["models"], result["retrieval"]["models"]
    if ndcg := tables.headline_ndcg(result["ranking"]):
        cards.append(_card(tables.standing(ranking, ndcg)))
    if recall := tables.headline_recall(retrieval):
        at = tables.standing(retrieval, recall)
        cards.append(_card(at, notes=[f"by the {at.model.split(', ')[-1]}"]))
    if total := result["stage_ms"].get("total"):
        p50, p99 = (measures.milliseconds(total[name]) for name in ("p50", "p99"))
        notes = [f"99th percentile {p99} ms", "one request, all stages"]
        cards.append({"label": "Median latency", "value": p50, "unit": "ms", "notes": notes})
    return cards


def _click_cards(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    at = tables.standing(task["models"], "AUC")
    interval = measures.interval("AUC", task["models"].get(at.model, {}).get("AUC", {}))
    notes = [f"95% interval {interval}"] if interval else []
    if at.best is not None:
        notes.append(f"best possible {number('AUC', at.best)}")
    label = upper_first(f"{task['name']} AUC")
    cards: list[dict[str, Any]] = [
        {"label": label, "value": number("AUC", at.ours), "notes": notes}
    ]
    if at.attained is not None:
        cards.append(
            {
                "label": "Of the attainable lift",
                "value": f"{at.attained:.0%}",
                "meter": min(max(at.attained, 0.0), 1.0),
                "notes": ["(AUC − ½) / (best − ½)"],
            }
        )
    found = task["differences"].get(at.rival, {}).get("AUC")
    if found is not None:
        notes = [f"the strongest rival has {number('AUC', at.rival_value)}"]
        if interval := measures.interval("AUC", found, signed=True):
            notes.append(f"{interval}, p {measures.p_text(found['p_value'])}")
        value = number("AUC", found["estimate"], signed=True)
        said = tables.verdict("AUC", found)
        label = f"AUC over {at.rival}"
        cards.append({"label": label, "value": value, "notes": notes, "verdict": said})
    return cards


def _card(at: Standing, notes: Sequence[str] = ()) -> dict[str, Any]:
    beside = [] if at.best is None else [f"best possible {number(at.metric, at.best)}"]
    if at.rival is not None:
        beside.append(f"{at.rival} {number(at.metric, at.rival_value)}")
    label, value = upper_first(at.metric), number(at.metric, at.ours)
    return {"label": label, "value": value, "notes": [*notes, *beside]}


def _task_plots(
    task: Mapping[str, Any], curves: Mapping[str, Any], styles: Mapping[str, Style]
) -> list[Plot]:
    name = task["name"]
    drawn = [
        _roc_plot(name, curves["roc"].get(name, {}), task["models"], styles),
        _reliability_plot(name, curves["reliability"].get(name)),
    ]
    return [plot for plot in drawn if plot is not None]


def _roc_plot(
    task: str,
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    models: Models,
    styles: Mapping[str, Style],
) -> Plot | None:
    """True against false positive rate of every model that has both classes."""
    drawn = [name for name in in_order(curves) if curves[name]["false_positive_rate"]]
    if not drawn:
        return None
    figure, axes = square(4.0)
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
    for name in reversed(drawn):  # ours on top
        curve, style = curves[name], styles[name]
        rates = curve["false_positive_rate"], curve["true_positive_rate"]
        axes.plot(*rates, color=style.colour, linestyle=style.line, linewidth=1.6)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    name_axes(axes, "false positive rate", "true positive rate")
    values = {name: number("AUC", tables.estimate(models, name, "AUC")) for name in drawn}
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    return Plot(
        title="ROC",
        svg=svg_of(figure, f"roc-{task}"),
        label=f"ROC curves of {task}. AUC: {said}.",
        note="Nearer the upper left corner is better; the diagonal is chance. AUC in the legend.",
        legend=[(name, values[name], styles[name]) for name in drawn],
    )


def _reliability_plot(task: str, bins: Mapping[str, Sequence[Any]] | None) -> Plot | None:
    """Predicted against actual rate by bin, on equal axes, above the rows of each bin."""
    if bins is None or not bins["predicted"]:
        return None
    predicted, actual, rows = bins["predicted"], bins["actual"], bins["rows"]
    errors = [
        1.96 * math.sqrt(max(y * (1 - y), 0.0) / n) for y, n in zip(actual, rows, strict=True)
    ]
    limit = 1.06 * max(*predicted, *(y + e for y, e in zip(actual, errors, strict=True)), 1e-6)
    figure, axes = square(4.0, below=0.8)
    axes.plot([0, limit], [0, limit], color=GRID, linewidth=1)
    axes.errorbar(
        predicted, actual, yerr=errors, fmt="o", color=MODEL.format(0), markersize=4, elinewidth=1
    )
    axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    axes.tick_params(labelbottom=False)
    name_axes(axes, "", "actual rate")
    counts = figure.add_axes((0.13, 0.095, 0.84, 0.115))
    counts.vlines(predicted, 0, rows, color=MODEL.format(0), linewidth=2.5)
    counts.set(xlim=(0, limit), ylim=(0, 1.15 * max(rows)), yticks=[0, max(rows)])
    name_axes(counts, "predicted rate", "rows")
    figure.align_ylabels()
    for axis in (axes.yaxis, counts.xaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    counts.yaxis.set_major_formatter(FuncFormatter(lambda count, _: short_count(count)))
    return Plot(
        title="Reliability",
        svg=svg_of(figure, f"reliability-{task}"),
        label=f"Reliability of {task}: actual against predicted rate in {len(rows)} bins, "
        f"predicted {predicted[0]:.4f} to {predicted[-1]:.4f}, actual {min(actual):.4f} to "
        f"{max(actual):.4f}.",
        note=f"On the diagonal, predictions come true. {len(rows)} bins of {min(rows):,} to "
        f"{max(rows):,} rows; bars are ±1.96 standard errors of independent rows.",
    )


def _recall_plot(retrieval: Mapping[str, Any], styles: Mapping[str, Style]) -> Plot | None:
    """Recall against depth, of every way to retrieve and of the whole pipeline."""
    models: Models = {**retrieval["models"], **retrieval.get("pipeline", {})}
    names = [name for name in tables.metrics_of(models) if name.startswith("recall@")]
    depths = [int(name.split("@")[1]) for name in names]
    if not depths:
        return None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained", facecolor="none")
    axes = figure.subplots()
    for name in reversed(in_order(models)):
        found = [tables.estimate(models, name, f"recall@{k}") for k in depths]
        axes.plot(
            depths,
            [math.nan if value is None else value for value in found],
            color=styles[name].colour,
            linestyle=styles[name].line,
            linewidth=1.6,
            marker="o",
            markersize=3.5,
        )
    axes.set(xscale="log", xticks=depths, xticklabels=[f"{k:,}" for k in depths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    name_axes(axes, "k, ads retrieved (log scale)", "recall@k")
    deepest = f"recall@{max(depths)}"
    values = {
        name: number(deepest, tables.estimate(models, name, deepest)) for name in in_order(models)
    }
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    return Plot(
        title="Recall by depth",
        svg=svg_of(figure, "recall"),
        label=f"Recall against k. {deepest}: {said}.",
        note=f"{deepest} in the legend."
        + (" Lines with the ranker are of fewer queries." if retrieval.get("pipeline") else ""),
        legend=[(name, value, styles[name]) for name, value in values.items()],
    )


def _training_plots(folder: Path) -> list[Plot]:
    """Loss by impressions and the chosen metric by epoch, of each stage whose log is there."""
    plots = []
    for stage in _STAGES:
        log = folder / f"{stage}-log.jsonl"
        if not log.is_file():
            continue
        steps, epochs = read_log(log)
        figure = Figure(figsize=(5.2, 2.4), layout="constrained", facecolor="none")
        loss, metric = figure.subplots(1, 2)
        rows, losses = [s["rows"] for s in steps], [s["loss"] for s in steps]
        part = max(1, math.ceil(len(losses) / 120))
        starts = range(0, len(losses), part)
        smooth = [sum(losses[i : i + part]) / len(losses[i : i + part]) for i in starts]
        loss.plot([rows[i : i + part][-1] for i in starts], smooth, color=MODEL.format(0))
        loss.xaxis.set_major_formatter(FuncFormatter(lambda count, _: short_count(count)))
        loss.xaxis.set_major_locator(MaxNLocator(4))
        name_axes(loss, "impressions seen", "training loss")
        known = ("epoch", "step", "seconds", "loss")
        chosen_by = next((key for entry in epochs for key in entry if key not in known), "")
        numbers = [entry["epoch"] for entry in epochs]
        values = [entry.get(chosen_by, math.nan) for entry in epochs]
        metric.plot(numbers, values, marker="o", markersize=4, color=MODEL.format(0))
        metric.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        metric.yaxis.set_major_locator(MaxNLocator(6))
        name_axes(metric, "epoch", f"validation {chosen_by}")
        said = ", ".join(f"epoch {n}: {v:.4f}" for n, v in zip(numbers, values, strict=True))
        plots.append(
            Plot(
                title=upper_first(stage),
                svg=svg_of(figure, f"training-{stage}"),
                label=f"Training of the {stage}. Validation {chosen_by}: {said or 'none yet'}.",
                note=f"Best {chosen_by} {max(values):.4f}." if values else "",
            )
        )
    return plots
