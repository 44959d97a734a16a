"""The page and the terminal tables of an evaluation that is written by hand."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from adrec.evaluation import sheets
from adrec.evaluation.measures import GAUC_AT_START, interval, number, p_text
from adrec.evaluation.report import model_styles, write_report
from adrec.evaluation.tables import (
    BEST_POSSIBLE,
    best_of,
    comparison_table,
    result_tables,
    standing,
    summary_table,
    verdict,
)
from adrec.evaluation.truth_tables import truth_tables
from evaluation.written_diagnosis import diagnosis, nothing_to_diagnose

DAY_MS = 86_400_000
VOID = {"meta", "br", "link", "img", "input", "hr"}
CLICK = {
    "adrec": (0.7312, 0.6981, 0.21034, 0.8911, 0.0031, 1.012, 0.1622),
    "popularity": (0.6402, 0.6117, 0.22871, 0.9689, 0.0049, 0.984, 0.1031),
    "LightGBM": (0.7244, 0.6903, 0.21218, 0.8989, 0.0040, 0.991, 0.1580),
    BEST_POSSIBLE: (0.7518, 0.7204, 0.20512, 0.8690, 0.0022, 1.003, 0.1797),
    "best possible (hidden)": (0.7793, 0.7511, 0.19733, 0.8360, 0.0020, 1.001, 0.2114),
}
ENGAGEMENT = {
    "adrec": (0.7688, None, 0.0912, 0.9012, 0.0012, 0.957, 0.0817),
    "popularity": (0.6611, None, 0.0987, 0.9753, 0.0016, 1.061, 0.0406),
    "LightGBM": (0.7699, None, 0.0911, 0.9002, 0.0013, 1.020, 0.0821),
    BEST_POSSIBLE: (0.7913, None, 0.0883, 0.8725, 0.0009, 1.000, 0.0944),
}
REVENUE = {
    "adrec": (0.7712, 0.2013, 0.4871, 1_204_311.2, 1.084),
    "popularity": (0.6499, 0.1221, 0.2207, 1_300_517.0, 0.990),
    "LightGBM": (0.7650, 0.1987, 0.4902, 1_199_870.4, 1.043),
    BEST_POSSIBLE: (0.8011, 0.2301, 0.5512, 1_150_002.9, 1.001),
}
RANKING = {
    "adrec": (0.4821, 0.3912, 0.4407),
    "popularity": (0.4011, 0.3104, 0.3590),
    "LightGBM": (0.4733, 0.3840, 0.4325),
    BEST_POSSIBLE: (0.5120, 0.4200, 0.4702),
}
RETRIEVAL = {
    "adrec, exact search": (0.0712, 0.2013, 0.3120, 0.6411),
    "adrec, ivf index": (0.0698, 0.1950, 0.3011, 0.6105),
    "popular ads": (0.0211, 0.0713, 0.1190, 0.3004),
    "EASE": (0.0688, 0.1822, 0.2714, 0.4933),
    "item kNN": (0.0590, 0.1601, 0.2388, None),
}
PIPELINE = {
    "adrec, exact search + ranker": (0.1102, 0.2877, 0.3990, 0.6390),
    "adrec, ivf index + ranker": (0.1087, 0.2801, 0.3902, 0.6088),
}
BINARY = ("AUC", "GAUC", "log loss", "normalised entropy", "calibration error")
BINARY += ("mean predicted / actual", "PR-AUC")
VALUE = ("AUC", "Spearman", "normalised Gini", "RMSE", "mean predicted / actual")
SLICES = (
    ("country", "DE", 21_002, 0.0712, 0.0719, 0.7290, 0.2410),
    ("country", "<script>alert(1)</script>", 311, 0.0, 0.0123, None, 0.0142),
    ("new user", "False", 55_120, 0.0622, 0.0630, 0.7377, 0.2120),
    ("new user", "True", 6_084, 0.0519, 0.0511, 0.6620, 0.1961),
)


def around(estimate: float, half: float) -> dict[str, Any]:
    ends = {"low": round(estimate - half, 6), "high": round(estimate + half, 6)}
    return {"estimate": estimate, "mean": estimate, **ends, "replicates": 200}


def difference(estimate: float, half: float, p_value: float = 0.00995) -> dict[str, Any]:
    return around(estimate, half) | {"p_value": p_value}


def models_of(rows: dict[str, Any], metrics: tuple[str, ...]) -> dict[str, Any]:
    return {
        model: {name: {"estimate": v} for name, v in zip(metrics, values, strict=True)}
        for model, values in rows.items()
    }


def task_of(
    name: str, mean: float, rows: dict[str, Any], metrics: tuple[str, ...], compared: str
) -> dict[str, Any]:
    """A task whose AUC and second compared metric have intervals and differences."""
    models = models_of(rows, metrics)
    halves = {"AUC": 0.004, compared: 0.0012}
    differences = {
        model: {
            key: difference(models["adrec"][key]["estimate"] - found[key]["estimate"], half)
            for key, half in halves.items()
        }
        for model, found in models.items()
        if model != "adrec"
    }
    for found in models.values():
        for key, half in halves.items():
            found[key] = around(found[key]["estimate"], half)
    kind = "binary" if metrics is BINARY else "value"
    about = {"name": name, "kind": kind, "mean": mean}
    return about | {"models": models, "differences": differences}


def roc(area: float) -> dict[str, list[float]]:
    """The curve tpr = fpr^a, whose area is 1 / (1 + a)."""
    false = np.linspace(0, 1, 120)
    true = false ** (1 / area - 1)
    return {"false_positive_rate": false.tolist(), "true_positive_rate": true.tolist()}


def full_result() -> dict[str, Any]:
    """What `evaluate` returns for a simulated world with three tasks, rivals and references."""
    rng = np.random.default_rng(0)
    predicted = np.sort(rng.gamma(2.0, 0.03, 20))
    actual = np.clip(predicted * rng.normal(1.0, 0.06, 20), 0, 1)
    recalls = tuple(f"recall@{k}" for k in (10, 50, 100, 500))
    columns = ("column", "value", "rows", "mean", "mean predicted", "AUC", "log loss")
    stages = {"features": 1.9134, "retrieve": 0.6201, "rank": 21.412, "total": 24.4031}
    begun_ms = 1_772_323_200_000  # 2026-03-01 00:00 UTC
    diagnosed = diagnosis()
    cold = diagnosed.pop("cold")
    return {
        **diagnosed,
        "version": "v20260307-091500-4be1",
        "test": {
            "impressions": 61_204,
            "requests": 7_655,
            "from_ms": begun_ms,
            "to_ms": begun_ms + 7 * DAY_MS - 1,
            "train_impressions": 412_339,
            "catalogue": 20_000,
        },
        "tasks": [
            task_of("click", 0.061207, CLICK, BINARY, "log loss"),
            task_of("engagement", 0.017311, ENGAGEMENT, BINARY, "log loss"),
            task_of("revenue", 21_418.774, REVENUE, VALUE, "Spearman"),
        ],
        "ranking": {
            "task": "click",
            "grouped_by": "request",
            "groups": 2_987,
            "rows": 23_914,
            "models": models_of(RANKING, ("NDCG@10", "MAP@10", "MRR")),
        },
        "retrieval": {
            "queries": 2_000,
            "targets": 5_219,
            "catalogue": 20_000,
            "models": models_of(RETRIEVAL, recalls),
            "pipeline_queries": 200,
            "pipeline": models_of(PIPELINE, recalls),
            "cold": cold,
        },
        "top": {
            "k": 10,
            "requests": 200,
            "judged_by": "true probabilities",
            "rows": 2_000,
            "enough": True,
            "tasks": {
                "click": {
                    "predicted": 0.3127,
                    "actual": 0.2915,
                    "predicted / actual": 1.072727,
                    "calibration error": 0.0217,
                    "best possible": 0.2931,
                },
            },
        },
        "deciles": [
            {
                "task": "revenue",
                "rows": [6_120, 6_120],
                "predicted": [812.4, 90_211.0],
                "actual": [0.0, 88_000.0],
                "true probabilities": [800.0, 90_000.0],
            },
        ],
        "slices": [dict(zip(columns, row, strict=True)) for row in SLICES],
        "curves": {
            "roc": {
                name: {model: roc(values[0]) for model, values in rows.items()}
                for name, rows in (("click", CLICK), ("engagement", ENGAGEMENT))
            },
            "reliability": {
                name: {
                    "predicted": (predicted * scale).tolist(),
                    "actual": (actual * scale).tolist(),
                    "rows": [3_060] * 19 + [3_064],
                }
                for name, scale in (("click", 1.0), ("engagement", 0.25))
            },
        },
        "stage_ms": {name: {"p50": ms, "p99": ms * 1.6} for name, ms in stages.items()},
    }


def bare_result() -> dict[str, Any]:
    """The least that `evaluate` returns: one class in the test period, nothing to retrieve."""
    result = full_result()
    undefined = {name: {"estimate": None} for name in result["tasks"][0]["models"]["adrec"]}
    undefined["log loss"] = {"estimate": 0.0412}
    task = {"name": "click", "kind": "binary", "mean": 0.0, "differences": {}}
    roc_of = {"adrec": {"false_positive_rate": [], "true_positive_rate": []}}
    bins = {"predicted": [0.04], "actual": [0.0], "rows": [12]}
    return result | {
        **nothing_to_diagnose(),
        "tasks": [task | {"models": {"adrec": undefined}}],
        "ranking": {
            "task": "click",
            "grouped_by": "user and day",
            "groups": 0,
            "rows": 0,
            "models": {"adrec": {"NDCG@10": {"estimate": None}, "MRR": {"estimate": None}}},
        },
        "retrieval": {"queries": 0, "models": {}},
        "top": {},
        "deciles": [],
        "slices": [],
        "curves": {"roc": {"click": roc_of}, "reliability": {"click": bins}},
    }


def comparison() -> dict[str, Any]:
    """What `compare` returns."""
    return {
        "first": "v20260307-091500-4be1",
        "second": "v20260228-091500-17aa",
        "differences": {
            "click": {
                "AUC": difference(0.0021, 0.0009, 0.00995),
                "log loss": difference(0.0007, 0.0004, 0.0199),
            },
            "revenue": {
                "AUC": difference(-0.0004, 0.0020, 0.657),
                "Spearman": around(0.0, 0.0) | {"low": None, "high": None, "p_value": None},
            },
        },
    }


def write_logs(folder: Path) -> None:
    """Training logs of both stages, as the loop writes them."""
    rng = np.random.default_rng(1)
    for stage, metric, level in (("two-tower", "recall@100", 0.25), ("ranker", "click AUC", 0.72)):
        lines: list[dict[str, Any]] = []
        for epoch in (1, 2, 3):
            for step in range(1, 201):
                done = (epoch - 1) * 200 + step
                loss = 0.25 + 0.4 * np.exp(-done / 90) + rng.normal(0, 0.01)
                place = {"epoch": epoch, "step": step, "seconds": done / 9}
                rate = {"learning_rate": 1e-3, "rows": done * 2_048}
                lines.append(place | {"loss": loss} | rate)
            place = {"epoch": epoch, "step": 200, "seconds": epoch * 23.0, "loss": 0.3}
            lines.append(place | {metric: level + 0.01 * epoch})
        (folder / f"{stage}-log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def all_models(result: dict[str, Any]) -> list[dict[str, Any]]:
    retrieval = result["retrieval"]
    rest = [result["ranking"]["models"], retrieval["models"], retrieval["pipeline"]]
    return [task["models"] for task in result["tasks"]] + rest


class Page(HTMLParser):
    """The tags, texts and attributes of a page; fails on a tag that is never closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.bold: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if self._open and self._open[-1] == "strong":
            self.bold.append(data)


def written(result: dict[str, Any], folder: Path, **more: Any) -> tuple[str, Page]:
    write_report(result, folder / "report.html", **({"title": "Demo"} | more))
    page = (folder / "report.html").read_text(encoding="utf-8")
    return page, Page(page)


def test_page_holds_every_model_and_value_and_needs_nothing_else(tmp_path: Path) -> None:
    write_logs(tmp_path)
    settings = dict(mpl.rcParams)
    page, read = written(full_result(), tmp_path, training=tmp_path)
    assert dict(mpl.rcParams) == settings
    for models in all_models(full_result()):
        for model, found in models.items():
            assert model in read.text
            assert all(number(name, cell["estimate"]) in read.text for name, cell in found.items())
    assert "2026-03-01 to 2026-03-07 (UTC)" in read.text
    assert "1,204,311" in read.text
    assert "http" not in page
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in read.tags}
    assert "url(" not in re.sub(r"url\(#", "", page)
    drawn = [attrs for tag, attrs in read.tags if attrs.get("role") == "img"]
    # ROC and reliability of two tasks, recall, one task over time, importance, two stages.
    assert len(drawn) == 2 * 2 + 1 + 1 + 1 + 2
    assert all(attrs["aria-label"] for attrs in drawn)
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all("scope" in attrs for tag, attrs in read.tags if tag == "th")


def test_page_is_the_same_each_time(tmp_path: Path) -> None:
    assert written(full_result(), tmp_path)[0] == written(full_result(), tmp_path)[0]


def test_best_trained_model_is_bold_and_references_are_not(tmp_path: Path) -> None:
    bold = written(full_result(), tmp_path)[1].bold
    assert {"0.7312", "0.7699", "1,199,870", "0.991", "0.6411"} <= set(bold)
    assert not {"0.7518", "0.7793", "0.7244"} & set(bold)
    # What prints alike is a tie, and a ratio is best near 1.
    tied = {"adrec": {"AUC": {"estimate": 0.70001}}, "b": {"AUC": {"estimate": 0.70003}}}
    assert best_of(tied, "AUC") == {"adrec", "b"}
    ratio = {"adrec": {"mean predicted / actual": {"estimate": 1.2}}}
    ratio["b"] = {"mean predicted / actual": {"estimate": 0.9}}
    assert best_of(ratio, "mean predicted / actual") == {"b"}


def test_summary_tells_the_share_of_the_attainable_lift(tmp_path: Path) -> None:
    # (.7312 − .5) / (.7518 − .5) = .918
    assert standing(full_result()["tasks"][0]["models"], "AUC").attained == pytest.approx(
        0.918, abs=5e-4
    )
    text = written(full_result(), tmp_path)[1].text
    assert all(part in text for part in ("92%", "0.7272 to 0.7352", "+0.0068"))


def test_what_is_undefined_or_missing_is_a_dash_or_left_out(tmp_path: Path) -> None:
    page, read = written(bare_result(), tmp_path)
    assert re.search(r"<td>–\s*</td>", page)
    for word in ("None", "nan", "attainable lift92", "Slices"):
        assert word not in read.text
    assert not [table for table in result_tables(bare_result()) if "None" in shown(table)]
    assert "–" in shown(summary_table(bare_result()))


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    result = json.loads(json.dumps(full_result()).replace("LightGBM", "<b onclick=x>$&[red]"))
    result["version"] = '"><script>'
    page, read = written(result, tmp_path, title="</title><script>alert(2)</script>")
    assert "script" not in {tag for tag, _ in read.tags}
    assert not [attrs for _, attrs in read.tags if "onclick" in attrs]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b onclick=x>$&[red]" in read.text
    assert "[red]" in shown(result_tables(result)[0])


def test_a_model_has_one_colour(tmp_path: Path) -> None:
    styles = model_styles(full_result())
    ours = {style.css for name, style in styles.items() if name.startswith("adrec")}
    rivals = [styles[name].css for name in ("popularity", "LightGBM", "popular ads", "EASE")]
    assert ours == {"var(--model-0)"}
    assert len({*rivals, *ours}) == 5
    assert styles[BEST_POSSIBLE].css == "var(--reference)"


def shown(table: Table, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_terminal_tables_cut_no_number(width: int) -> None:
    result = full_result()
    all_of_them = [*result_tables(result), summary_table(result), comparison_table(comparison())]
    texts = [shown(table, width) for table in all_of_them]
    assert not [text for text in texts if "…" in text]
    assert max(len(line) for text in texts for line in text.splitlines()) <= width
    hidden = ("mean predicted / actual", "RMSE")  # the terminal leaves them out
    for models in all_models(result):
        for found in models.values():
            printed = [
                number(name, v["estimate"]) for name, v in found.items() if name not in hidden
            ]
            assert all(text in "".join(texts) for text in printed)
    assert "+0.0012 to +0.0030" in texts[-1]
    behind = (sheets.worst_slices, sheets.importance, sheets.cold_start, sheets.cold_retrieval)
    for sheet in [sheet for part in behind for sheet in part(result)]:
        numbers = [cell for row in sheet.brief(8).rows for cell in row[sheet.names :]]
        assert all(cell in "".join(texts) for cell in numbers)


def test_a_narrow_terminal_holds_all_columns_of_a_slice() -> None:
    table = next(t for t in result_tables(full_result()) if "worst" in str(t.title))
    lines = shown(table, 80).rstrip().splitlines()[1:]
    assert {line[-1] for line in lines} <= set("┓┃┩│┘")


def test_gauc_of_the_group_s_start_stands_beside_gauc(tmp_path: Path) -> None:
    result = full_result()
    for found in result["tasks"][0]["models"].values():
        found[GAUC_AT_START] = {"estimate": 0.7109, "groups": 12, "rows": 40}
    text = shown(result_tables(result)[0], 80)
    heads = next(line for line in text.splitlines() if "GAUC" in line)
    assert heads.index("GAUC") < heads.index("at start") < heads.index("log loss")
    assert "0.7109" in text
    assert "…" not in text
    assert GAUC_AT_START in written(result, tmp_path)[1].text


def test_numbers_in_print() -> None:
    assert number("AUC", None) == "–"
    assert number("AUC", -0.00212, signed=True) == "−0.0021"
    assert number("mean predicted / actual", 1.0123) == "1.012"
    assert number("RMSE", 1234.5) == "1,234"
    assert [p_text(p) for p in (0.0005, 0.00995, 0.0342, None)] == [
        "< 0.001",
        "< 0.01",
        "= 0.03",
        "–",
    ]
    assert interval("AUC", {"low": 0.1, "high": None}) == ""
    better = [verdict("AUC", difference(0.1, 0.05)), verdict("log loss", difference(-0.1, 0.05))]
    assert better == ["better", "better"]
    assert verdict("log loss", difference(0.1, 0.05)) == "worse"
    assert verdict("AUC", difference(0.1, 0.2)) == "unclear"


def test_the_pipelines_own_ads_and_tenths_are_printed() -> None:
    """.3127 / .2915 = 1.0727; 812.4 / 800 and 90,211 / 90,000, though nobody earned the former."""
    top, tenths = truth_tables(full_result())
    assert top.title is not None
    assert "top 10 of 200 requests: 2,000 ads, by true probabilities" in str(top.title)
    assert [column.header.plain for column in top.columns] == [
        "task", "predicted", "true", "pred./true", "cal. error", "best possible"
    ]  # fmt: skip
    cells = [str(next(iter(column.cells))) for column in top.columns]
    assert cells == ["click", "0.3127", "0.2915", "1.073", "0.0217", "0.2931"]
    ratios = [str(cell) for cell in tenths.columns[-1].cells]
    assert ratios == ["1.016", "1.002"]
    assert [str(cell) for cell in tenths.columns[2].cells] == ["812.4", "90,211"]


def test_of_a_real_log_the_actual_outcomes_are_printed_and_too_few_is_said() -> None:
    result = full_result()
    result["top"] |= {"judged_by": "matched impressions", "rows": 31, "enough": False}
    del result["deciles"][0]["true probabilities"]
    top, tenths = truth_tables(result)
    assert "31 ads, by matched impressions (too few to say anything)" in str(top.title)
    assert [str(cell) for cell in tenths.columns[-1].cells] == ["–", "1.025"]  # 0 was earned
    assert truth_tables(bare_result()) == []


def test_the_page_has_both(tmp_path: Path) -> None:
    for result, expected in ((full_result(), True), (bare_result(), False)):
        write_report(result, tmp_path / "report.html", title="t")
        text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
        for heading in ("The pipeline's top 10", "Value by tenths"):
            assert (heading in text) == expected


def test_attained_recall_is_the_share_of_the_best_possible() -> None:
    models = models_of(
        {"adrec, exact search": (0.81,), "popular ads": (0.2,), BEST_POSSIBLE: (0.9,)},
        ("recall@500",),
    )
    assert standing(models, "recall@500").attained == pytest.approx(0.9)
