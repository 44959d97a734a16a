"""What an index takes: arrays of vectors and ids, checked, and widened to what FAISS stores.

Shapes: A ads, D width, Q queries.
"""

import numpy as np
import numpy.typing as npt

from adrec.errors import DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CHUNK_ROWS = 65_536  # bounds the copies made while checking and adding


def check_vectors(vectors: Floats) -> Floats:
    """Returns `vectors`; raises `DataError` unless they are finite float32 [A, D], none empty."""
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise DataError(f"vectors are {vectors.dtype} {list(vectors.shape)}; give float32 [A, D]")
    if 0 in vectors.shape:
        raise DataError(f"vectors are {list(vectors.shape)}; an index needs at least one ad")
    for start in range(0, len(vectors), CHUNK_ROWS):
        finite = np.isfinite(vectors[start : start + CHUNK_ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise DataError(
                f"vector {row} holds NaN or infinity; check the ad tower and that ad's features"
            )
    return vectors


def check_ads(ads: Ints | None, n: int) -> Ints | None:
    """Returns ids [n], or None where they are 0..n-1; raises `DataError` if they cannot be ids."""
    if ads is None:
        return None
    if ads.dtype != np.int64 or ads.shape != (n,):
        raise DataError(f"ads are {ads.dtype} {list(ads.shape)}; give int64 [{n}], one a vector")
    if ads.min() < 0:
        raise DataError(f"ads hold the negative id {ads.min()}; ids are rows of the catalogue")
    ordered = np.sort(ads)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise DataError(f"ad {twice[0]} occurs more than once; give each ad one vector")
    return None if np.array_equal(ads, np.arange(n)) else ads.copy()


def check_queries(queries: Floats, dim: int) -> Floats:
    """Returns `queries`; raises `DataError` unless they are finite float32 [Q, dim]."""
    if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dim:
        raise DataError(
            f"queries are {queries.dtype} {list(queries.shape)}; this index takes float32 "
            f"[Q, {dim}]"
        )
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise DataError(f"query {row} holds NaN or infinity; check the user tower's output")
    return queries


def widen(vectors: Floats, width: int) -> Floats:
    """Contiguous, with zero columns added up to `width`: inner products stay what they were."""
    if vectors.shape[1] < width:
        return np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))
    return np.ascontiguousarray(vectors)
