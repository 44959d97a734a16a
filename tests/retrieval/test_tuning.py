"""What is measured of an index, and which one is chosen."""

from pathlib import Path

import numpy as np
import pytest

from adrec.errors import ConfigError, DataError
from adrec.retrieval.frontier import frontier_table, plot_frontier
from adrec.retrieval.index_config import IndexConfig
from adrec.retrieval.tuning import Point, choose, families, frontier, tune_index
from contracts.index_contract import clustered


def point(kind: str, recall: float, p50_ms: float, memory_mb: float = 1.0) -> Point:
    return Point(
        config=IndexConfig(kind=kind),
        recall=recall,
        p50_ms=p50_ms,
        p99_ms=2 * p50_ms,
        memory_mb=memory_mb,
        build_s=1.0,
    )


POINTS = [
    point("exact", 1.0, 8.0, 4.0),
    point("ivf", 0.99, 2.0, 4.0),
    point("ivfsq", 0.97, 1.0),
    point("ivfpq", 0.98, 3.0),
]


def test_the_fastest_that_reaches_the_target_within_memory() -> None:
    assert choose(POINTS, recall=0.98, k=10, memory_mb=None) is POINTS[1]
    assert choose(POINTS, recall=0.98, k=10, memory_mb=2.0) is POINTS[3]
    assert choose(POINTS, recall=0.9, k=10, memory_mb=None) is POINTS[2]


def test_a_target_that_cannot_be_met() -> None:
    with pytest.raises(ConfigError, match=r"recall@10 0\.99 within 2 MB: ivfpq has 0\.9800"):
        choose(POINTS, recall=0.99, k=10, memory_mb=2.0)
    with pytest.raises(ConfigError, match="every index takes more"):
        choose(POINTS, recall=0.5, k=10, memory_mb=0.5)


def test_the_frontier_has_only_what_is_not_beaten() -> None:
    """ivfpq is slower than ivf and finds less."""
    assert frontier(POINTS) == [POINTS[2], POINTS[1], POINTS[0]]


def test_memory_leaves_out_what_cannot_fit() -> None:
    """1,000 ads of 64 numbers are 256,000 bytes as floats."""
    everything = {one.kind for one in families(IndexConfig(), 1_000, 64, None)}
    assert everything == {"exact", "hnsw", "ivf", "ivfsq", "ivfpq"}
    assert {one.kind for one in families(IndexConfig(), 1_000, 64, 0.2)} == {"ivfsq", "ivfpq"}
    assert not list(families(IndexConfig(), 1_000, 64, 0.05))
    assert "hnsw" not in {one.kind for one in families(IndexConfig(), 10**6, 64, None)}


def test_tuning_by_measurement(tmp_path: Path) -> None:
    vectors, queries = clustered()
    base = IndexConfig(seed=3, train_rows=2_000)
    chosen, measured = tune_index(vectors, queries, base, recall=0.95, k=50, memory_mb=0.5)
    assert chosen.recall >= 0.95
    assert chosen.memory_mb <= 0.5
    assert chosen.config.seed == 3
    assert {one.config.kind for one in measured} == {"ivfsq", "ivfpq"}
    picture = tmp_path / "frontier.png"
    plot_frontier(measured, chosen, 50, picture)
    assert picture.stat().st_size > 1_000
    assert frontier_table(measured, chosen, 50).row_count == len(frontier([*measured, chosen]))


def test_what_cannot_be_tuned() -> None:
    vectors, queries = clustered()
    with pytest.raises(ConfigError, match=r"recall is 1\.2"):
        tune_index(vectors, queries, IndexConfig(), recall=1.2)
    with pytest.raises(ConfigError, match="0 queries"):
        tune_index(vectors, queries[:0], IndexConfig(), recall=0.9)
    with pytest.raises(DataError, match="NaN"):
        tune_index(vectors, queries * np.float32(np.nan), IndexConfig(), recall=0.9)
