"""The rotation after which every part of a vector is worth as much: what short codes need.

A product quantiser spends as many bits on each part of a vector. Where most of the variance lies
in few directions, as it does in trained towers, parts cut from the vector as it is waste most of
their bits. Eigenvalue allocation (parametric OPQ: Ge et al. 2013, section 3.1.2) deals the
principal directions out to the parts so that the product of variances is about the same in each.
An inner product stays what it was.

Shapes: N vectors, D width.
"""

import numpy as np

from adrec.retrieval.inputs import Floats

_LEAST_VARIANCE = 1e-9  # of the largest: below are columns of zeros and rounding


def balanced_rotation(vectors_ND: Floats, parts: int) -> Floats:
    """Orthonormal rows [D, D] to multiply vectors with, for a product quantiser of so many parts.

    The second moment is taken about 0, as inner products are; D must be a multiple of `parts`.
    """
    width = vectors_ND.shape[1]
    moment_DD = vectors_ND.T @ vectors_ND / len(vectors_ND)
    variance_D, columns_DD = np.linalg.eigh(moment_DD.astype(np.float64))
    variance_D = np.maximum(variance_D[::-1], _LEAST_VARIANCE * max(variance_D[-1], 1e-30))
    order = np.concatenate(_deal(np.log(variance_D / variance_D[-1]), parts))
    rotation: Floats = np.ascontiguousarray(columns_DD[:, ::-1].T[order], dtype=np.float32)
    assert rotation.shape == (width, width)
    return rotation


def _deal(worth_D: np.ndarray[tuple[int], np.dtype[np.float64]], parts: int) -> list[list[int]]:
    """Directions of each part: the largest one left goes to the part that is worth least so far
    and is not full."""
    most = len(worth_D) // parts
    dealt: list[list[int]] = [[] for _ in range(parts)]
    sums = np.zeros(parts)
    for at in np.argsort(-worth_D, kind="stable"):
        open_parts = [part for part in range(parts) if len(dealt[part]) < most]
        part = min(open_parts, key=lambda one: (sums[one], len(dealt[one])))
        dealt[part].append(int(at))
        sums[part] += worth_D[at]
    return dealt
