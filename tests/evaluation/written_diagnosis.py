"""What `diagnose` and the cold part of retrieval return, written by hand for a day of clicks."""

from typing import Any

HOUR_MS = 3_600_000
BEGUN_MS = 1_772_323_200_000  # 2026-03-01 00:00 UTC


def a_slice(column: str, value: str, rows: int, auc: float | None) -> dict[str, Any]:
    return {
        "column": column,
        "value": value,
        "rows": rows,
        "mean": 0.05,
        "mean predicted": 0.06,
        "AUC": auc,
        "calibration error": 0.0213,
        "calibration error by chance": 0.0187,
    }


def both(auc: float | None, loss: float) -> dict[str, Any]:
    return {"AUC": {"estimate": auc}, "log loss": {"estimate": loss}}


def diagnosis() -> dict[str, Any]:
    """All but `slices`."""
    recalls = {"recall@10": {"estimate": 0.0431}, "recall@500": {"estimate": 0.4012}}
    return {
        "over_time": {
            "click": [
                {
                    "from_ms": BEGUN_MS + hour * HOUR_MS,
                    "to_ms": BEGUN_MS + (hour + 8) * HOUR_MS,
                    "rows": 20_400,
                    "mean": mean,
                    "mean predicted": 0.061,
                    "AUC": 0.7301,
                }
                for hour, mean in ((0, 0.0512), (8, 0.0643), (16, 0.0633))
            ]
        },
        "largest_slices": [a_slice("device", "mobile", 41_311, 0.7288)],
        "worst_slices": [
            a_slice("country", "<b>X", 1_204, 0.5523),
            a_slice("device", "mobile", 41_311, 0.7288),
        ],
        "importance": {
            "task": "click",
            "requests": 250,
            "impressions": 2_000,
            "AUC": 0.7312,
            "log loss": 0.2103,
            "features": [
                {
                    "feature": "history",
                    "kind": "history",
                    "AUC drop": {"estimate": 0.0812, "low": 0.0611, "high": 0.1022},
                    "log loss rise": 0.0123,
                },
                {
                    "feature": "price",
                    "kind": "ad field",
                    "AUC drop": {"estimate": -0.0004},
                    "log loss rise": -0.0001,
                },
            ],
        },
        "cold_start": [
            {
                "task": "click",
                "group": "new users",
                "rows": 6_084,
                "models": {"adrec": both(0.6620, 0.1961), "LightGBM": both(0.6544, 0.1992)},
            },
            {"task": "click", "group": "new ads", "rows": 0, "models": {}},
            {
                "task": "click",
                "group": "both known",
                "rows": 55_120,
                "models": {"adrec": both(0.7377, 0.2120), "LightGBM": both(None, 0.2131)},
            },
        ],
        "coverage": [
            {
                "field": "country",
                "of": "user",
                "values": 131,
                "known": 0.9812,
                "rare or new": 0.0163,
                "missing": 0.0025,
                "training rows": {"p10": 411, "p50": 30_211, "p90": 99_120},
            }
        ],
        "cold": {
            "new users": {"queries": 212, "models": {"adrec, exact search": recalls}},
            "new ads": {"targets": 0, "models": {}},
        },
    }


def nothing_to_diagnose() -> dict[str, Any]:
    """The same of a log with a single outcome, and with importance turned off."""
    one = diagnosis()["over_time"]["click"][0] | {"mean": 0.0, "AUC": None}
    return {
        "over_time": {"click": [one]},
        "largest_slices": [],
        "worst_slices": [],
        "importance": None,
        "cold_start": [],
        "coverage": diagnosis()["coverage"],
    }
