"""Vectors of ads and users as a trained two-tower makes them, for benchmarks of retrieval.

    python benchmarks/embeddings.py --ads 1000000 --embeddings FILE.npz

A synthetic world with so many ads, both stages trained on it for one pass (`worlds.py`; a million
ads take some four minutes on two cores), then the vectors of all ads and those of requests of the
test period, which training has not seen.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from worlds import version_with

from adrec.bundle import Bundle
from adrec.features.dataset import Dataset
from adrec.reindexing import ad_vectors
from adrec.training.objectives import embed_requests, thin

Floats = npt.NDArray[np.float32]

_QUERIES = 2_000


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--embeddings", type=Path, required=True, help="where to keep them (.npz)")
    parser.add_argument("--work", type=Path, help="where to keep the world and the run")
    arguments = parser.parse_args()
    ads_AD, users_QD = trained(arguments.ads, arguments.work, arguments.embeddings)
    print(f"{len(ads_AD):,} ads and {len(users_QD):,} queries of width {ads_AD.shape[1]}")


def trained(
    ads: int, work: Path | None, file: Path | None, *, small: bool = False
) -> tuple[Floats, Floats]:
    """Vectors of ads [A, D] and of requests [Q, D].

    Args:
        ads: of the world.
        work: folder of worlds and runs; None: a temporary one.
        file: .npz that keeps them; read if it is there. None: kept nowhere.
        small: narrow networks, for a smoke run.
    """
    if file is not None and file.exists():
        with np.load(file) as kept:
            return kept["ads"], kept["users"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = version_with(ads, work or Path(temporary), small=small)
        ads_AD, users_QD = vectors_of(folder)
    if file is not None:
        np.savez(file, ads=ads_AD, users=users_QD)
    return ads_AD, users_QD


def vectors_of(folder: Path) -> tuple[Floats, Floats]:
    """Those of a run: its ads, and requests of its test period."""
    bundle = Bundle.open(folder)
    ads_AD = ad_vectors(bundle)  # an index of bytes would give them back rounded
    dataset = Dataset(folder / "dataset")
    asked = thin(dataset.requests("test"), _QUERIES)
    model = bundle.runtime().two_tower
    return np.ascontiguousarray(ads_AD), embed_requests(model, dataset, asked, torch.device("cpu"))


if __name__ == "__main__":
    main()
