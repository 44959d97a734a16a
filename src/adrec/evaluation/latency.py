"""Latency of a recommender in this process: each stage of single requests, and batches."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from adrec.recommender import Recommender
from adrec.slates import Request

_WARM_UP = 5


def stage_latency(recommender: Recommender, requests: Sequence[Request], k: int) -> dict[str, Any]:
    """Milliseconds of each stage of single requests, one after the other.

    Args:
        recommender: what answers.
        requests: at least one; the first few warm up.
        k: ads a request.

    Returns:
        For each stage and their `total`: p50, p95 and p99; and `requests_per_s`.
    """
    for request in requests[:_WARM_UP]:
        recommender.recommend_batch([request], k)
    begun = time.perf_counter()
    slates = [recommender.recommend_batch([request], k)[0] for request in requests]
    seconds = time.perf_counter() - begun
    stages = {name: [s.stage_ms[name] for s in slates] for name in slates[0].stage_ms}
    stages["total"] = [sum(s.stage_ms.values()) for s in slates]
    quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {
        "stages": {
            name: {label: float(np.quantile(ms, q)) for label, q in quantiles.items()}
            for name, ms in stages.items()
        },
        "requests": len(slates),
        "requests_per_s": len(slates) / seconds,
    }


def batch_rate(recommender: Recommender, requests: Sequence[Request], k: int, batch: int) -> float:
    """Requests a second when `batch` of them are answered together."""
    parts = [requests[i : i + batch] for i in range(0, len(requests), batch)]
    recommender.recommend_batch(parts[0], k)
    begun = time.perf_counter()
    for part in parts:
        recommender.recommend_batch(part, k)
    return len(requests) / (time.perf_counter() - begun)
