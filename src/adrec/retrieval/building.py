"""How the FAISS index of a catalogue is made: its form from the settings, training, filling.

Shapes: A ads, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss as _typed_faiss
import numpy as np

from adrec.errors import ConfigError
from adrec.retrieval.index_config import (
    LISTED,
    IndexConfig,
    Kind,
    count_lists,
    factory_arguments,
)
from adrec.retrieval.inputs import CHUNK_ROWS, Floats, widen
from adrec.retrieval.rotation import balanced_rotation

faiss: Any = _typed_faiss  # its stubs lack the keyword constructors that are its documented API

_CENTROIDS = 16  # of each product-quantiser segment: 4 bits, the width of one SIMD table look-up


def build_core(vectors: Floats, config: IndexConfig, kind: Kind, threads: int) -> Any:
    """A filled FAISS index; place p of it holds vector p.

    Args:
        vectors: float32 [A, D], checked.
        config: how.
        kind: "auto" decided.
        threads: OpenMP threads to build with.

    Raises:
        ConfigError: `pq_segments` does not divide D, or `threads` is below 1.
    """
    n, dim = vectors.shape
    rows = np.arange(n)
    if n > config.train_rows:
        rng = np.random.default_rng(config.seed)
        rows = np.sort(rng.choice(n, config.train_rows, replace=False))
    nlist = count_lists(config, n, len(rows))
    core = faiss.index_factory(
        *factory_arguments(config, kind, dim, nlist), faiss.METRIC_INNER_PRODUCT
    )
    _prepare(core, kind, config)
    with openmp_threads(threads):
        if not core.is_trained:
            if len(rows) < _CENTROIDS:  # repeat a tiny catalogue rather than refuse it
                rows = np.resize(rows, _CENTROIDS)
            sample = widen(vectors[rows], core.d)
            if kind == "ivfpq":
                _rotate(core, sample)
            core.train(sample)
        for start in range(0, n, CHUNK_ROWS):
            core.add(widen(vectors[start : start + CHUNK_ROWS], core.d))
    return core


@contextmanager
def openmp_threads(threads: int) -> Iterator[None]:
    """FAISS on so many threads.

    Raises:
        ConfigError: fewer than 1.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}; give at least 1")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _prepare(core: Any, kind: Kind, config: IndexConfig) -> None:
    """Set what the factory string cannot say."""
    if kind == "hnsw":
        core.hnsw.efConstruction = config.ef_construction
        core.hnsw.rng = faiss.RandomGenerator(config.seed)
    elif kind in LISTED:
        ivf = faiss.downcast_index(faiss.extract_index_ivf(core))
        for clustering in [ivf.cp] + ([ivf.pq.cp] if kind == "ivfpq" else []):
            clustering.seed = config.seed
            clustering.min_points_per_centroid = 1  # FAISS would print a warning for small ones


def _rotate(core: Any, sample: Floats) -> None:
    """Put the balanced rotation in the place of the factory's random one."""
    transform = faiss.downcast_VectorTransform(faiss.downcast_index(core.base_index).chain.at(0))
    segments = faiss.downcast_index(faiss.extract_index_ivf(core)).pq.M
    faiss.copy_array_to_vector(balanced_rotation(sample, segments).ravel(), transform.A)
    transform.is_orthonormal = transform.is_trained = True
