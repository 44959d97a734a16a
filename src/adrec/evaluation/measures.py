"""How each metric is read and printed: which way is good, what it means, with how many digits.

The terminal and the HTML report both take names, digits and explanations from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MISSING = "–"
GAUC_AT_START = "GAUC, features of the group's start"


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
    GAUC_AT_START: Measure(
        better="higher",
        meaning="GAUC when histories, session and counters of the user are those of the group's "
        "first impression: what a user's day has taught by then cannot be held against a model.",
        formula="Σ_g n_g AUC_g / Σ_g n_g",
        short="at start",
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
