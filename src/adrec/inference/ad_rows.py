"""AdRows: what the ranker makes of every ad by itself, computed once per model version.

A candidate's token and its part of the cross input depend on the ad's own fields alone (embeddings
and their projections: `Ranker.ads`). They are kept in 8 bits with a scale for each half of a row:
520 bytes an ad at the ranker's usual width of 256. What moves, the counters, joins at request time.
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from adrec.features.batches import Fields
from adrec.features.transforms import Encoded
from adrec.models.ranker import Ranker

_CHUNK_ADS = 16_384
_MOST = 127.0  # of a signed byte


class AdRows:
    """Rows of the catalogue as the ranker reads them.

    codes_AP: int8 [A, 2D], token then cross input. scales_A2: float32 [A, 2], what a code of each
    half is worth.
    """

    def __init__(self, codes_AP: NDArray[np.int8], scales_A2: NDArray[np.float32]) -> None:
        self.codes_AP, self.scales_A2 = codes_AP, scales_A2

    @classmethod
    def of(cls, ranker: Ranker, ads: Encoded) -> Self:
        """Encode ads with a frozen ranker."""
        width = 2 * ranker.config.width
        codes = np.empty((len(ads), width), np.int8)
        scales = np.empty((len(ads), 2), np.float32)
        for start in range(0, len(ads), _CHUNK_ADS):
            part = np.arange(start, min(start + _CHUNK_ADS, len(ads)))
            with torch.inference_mode():
                exact = ranker.ads(Fields.of(ads.take(part))).numpy().reshape(len(part), 2, -1)
            scale = np.maximum(np.abs(exact).max(axis=2), 1e-12) / _MOST
            codes[part] = np.rint(exact / scale[..., None]).reshape(len(part), -1)
            scales[part] = scale
        return cls(codes, scales)

    def __len__(self) -> int:
        return len(self.codes_AP)

    @property
    def memory_bytes(self) -> int:
        """Bytes in main memory."""
        return self.codes_AP.nbytes + self.scales_A2.nbytes

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file({"codes": self.codes_AP, "scales": self.scales_A2}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        arrays = load_file(path)
        return cls(arrays["codes"], arrays["scales"])
