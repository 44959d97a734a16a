"""AdRows: what the ranker makes of every ad by itself, computed once per model version.

A candidate's token and its part of the cross input depend on the ad's own fields alone (embeddings
and their projections: `Ranker.ads`). They are kept in 8 bits with a scale for each half of a row:
524 bytes an ad at the ranker's usual width of 256. What moves, the counters, joins at request time.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adrec.data.files import map_arrays
from adrec.features.batches import Fields
from adrec.features.transforms import Encoded
from adrec.models.ranker import Ranker

_CHUNK_ADS = 16_384
_MOST = 127.0  # of a signed byte


class AdRows:
    """Rows of the catalogue as the ranker reads them. A value that does not change: `with_ads`
    makes another one, which shares memory with this."""

    def __init__(
        self,
        codes_SP: NDArray[np.int8],
        scales_S2: NDArray[np.float32],
        slot_A: NDArray[np.int32],
        used: int,
    ) -> None:
        """Wrap arrays.

        Args:
            codes_SP: [S, 2D], token then cross input.
            scales_S2: what a code of each half is worth.
            slot_A: where each ad of the catalogue stands in them.
            used: places that are taken; those after are for ads to come.
        """
        self._codes_SP, self._scales_S2 = codes_SP, scales_S2
        self._slot_A, self._used = slot_A, used

    @classmethod
    def of(cls, ranker: Ranker, ads: Encoded) -> Self:
        """Encode the ads of a catalogue with a frozen ranker."""
        codes, scales = _rounded(ranker, ads)
        return cls(codes, scales, np.arange(len(ads), dtype=np.int32), len(ads))

    def with_ads(self, ranker: Ranker, ads: Encoded, rows_N: NDArray[np.integer]) -> "AdRows":
        """With ads added or changed.

        Args:
            ranker: that made the others.
            ads: the whole catalogue, changed already.
            rows_N: what is new in it.
        """
        codes, scales = _rounded(ranker, ads.take(rows_N))
        end = self._used + len(codes)
        codes_SP, scales_S2 = self._codes_SP, self._scales_S2
        slot_A = np.zeros(len(ads), np.int32)
        slot_A[: len(self)] = self._slot_A
        used = self._used
        if end > len(codes_SP):
            if used > 2 * len(self):  # most places are of ads as they once were
                codes_SP, scales_S2 = codes_SP[self._slot_A], scales_S2[self._slot_A]
                slot_A[: len(self)], used = np.arange(len(self)), len(self)
                end = used + len(codes)
            codes_SP, scales_S2 = (_with_room(array, end) for array in (codes_SP, scales_S2))
        codes_SP[used:end], scales_S2[used:end] = codes, scales
        slot_A[rows_N] = np.arange(used, end)
        return AdRows(codes_SP, scales_S2, slot_A, end)

    def take(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes [..., 2D] and scales [..., 2] of some rows of the catalogue."""
        slots = self._slot_A[rows]
        return self._codes_SP[slots], self._scales_S2[slots]

    def take_cross(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """The half that the cross stream reads: codes [..., D] and scales [...]."""
        slots, width = self._slot_A[rows], self._codes_SP.shape[1] // 2
        return self._codes_SP[:, width:][slots], self._scales_S2[:, 1][slots]

    def __len__(self) -> int:
        return len(self._slot_A)

    @property
    def memory_bytes(self) -> int:
        """Bytes in main memory."""
        return self._codes_SP.nbytes + self._scales_S2.nbytes + self._slot_A.nbytes

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        codes, scales = self.take(np.arange(len(self)))
        save_file({"codes": codes, "scales": scales}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Map what `save` wrote; the file must not change from then on."""
        arrays = map_arrays(path)
        ads = len(arrays["codes"])
        return cls(arrays["codes"], arrays["scales"], np.arange(ads, dtype=np.int32), ads)


def _rounded(ranker: Ranker, ads: Encoded) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes = np.empty((len(ads), 2 * ranker.config.width), np.int8)
    scales = np.empty((len(ads), 2), np.float32)
    for start in range(0, len(ads), _CHUNK_ADS):
        part = np.arange(start, min(start + _CHUNK_ADS, len(ads)))
        with torch.inference_mode():
            exact = ranker.ads(Fields.of(ads.take(part))).numpy().reshape(len(part), 2, -1)
        scale = np.maximum(np.abs(exact).max(axis=2), 1e-12) / _MOST
        codes[part] = np.rint(exact / scale[..., None]).reshape(len(part), -1)
        scales[part] = scale
    return codes, scales


def _with_room(array_S: NDArray[Any], end: int) -> NDArray[Any]:
    """A copy with a quarter more places than `end`."""
    grown = np.zeros((end + end // 4, *array_S.shape[1:]), array_S.dtype)
    grown[: len(array_S)] = array_S
    return grown
