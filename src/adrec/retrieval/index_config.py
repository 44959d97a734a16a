"""How to index a catalogue, and what that comes to for one of a given size.

Shapes: A ads, D width, K results a query.
"""

import math
from typing import Literal

from pydantic import Field

from adrec.errors import ConfigError
from adrec.schema import Strict

Kind = Literal["exact", "ivf", "ivfsq", "ivfpq", "hnsw"]
LISTED: tuple[Kind, ...] = ("ivf", "ivfsq", "ivfpq")
"""Kinds that keep ads in lists and visit the nearest of these."""

_EXACT_BELOW = 50_000  # ads; a scan of 50k x 256 float32 reads 51 MB, about 4 ms on one thread
_ROWS_PER_LIST = 32  # training rows a centroid; FAISS would like 39, but k-means is most of a build
LANES = 16  # SQ8 decodes 16 numbers at a time; at other widths it is ten times slower


class IndexConfig(Strict):
    """How to index a catalogue.

    Attributes:
        kind: "exact" scans every ad; "ivf" only the lists nearest to the query (Jégou 2011,
            section IV); "ivfsq" is the same at 1 byte a number instead of 4; "ivfpq" reads codes
            of an eighth of a byte in those lists and rescores the best (Jégou 2011; André 2015);
            "hnsw" walks a neighbour graph (Malkov 2016): fastest to answer, slowest to build,
            weakest under narrow filters. "auto" takes exact below 50,000 ads (a few milliseconds,
            no loss) and ivfpq from there on: at a million ads five times as fast as ivf with as
            much recall, in less than a third of the memory.
        nlist: lists of ivf, ivfsq and ivfpq, 1 to 1,048,576; never more than there are training
            rows. None: 2 sqrt(A), at most 65,536 and at most one list for 32 training rows.
        nprobe: lists that a query visits, 1 to nlist. None: a twelfth of nlist, at least 8.
        pq_segments: parts of a vector that ivfpq codes with 4 bits each; must divide the width D,
            or D rounded up to a multiple of 16. None: a quarter of the latter (1 bit a number).
        refine_factor: ivfpq rescores this many candidates for each result wanted, 1 to 100.
        refine_store: what ivfpq rescores with: "sq8" (1 byte a number) or "float32" (4 bytes).
        hnsw_links: M, neighbours an ad keeps in each layer of the graph, 2 to 256.
        ef_construction: candidates weighed while placing an ad in the graph, 1 to 10,000.
        ef_search: candidates that an hnsw search keeps, 1 to 100,000; never fewer than K.
        max_widening: a filter that lets a fraction f of the ads pass makes a search visit 1/f as
            many lists or candidates, so that it weighs as many allowed ads as without the filter,
            but at most this many times more; 1 to 1,000.
        train_rows: most ads that centroids and codes are trained on, 256 to 100,000,000.
        seed: for sampling and clustering, 0 to 2^31 - 1. The same seed and threads give the same
            index, except that hnsw built by several threads depends on their timing.
        mapped: an index that is loaded stays on disk, and its pages are read when searches come by
            them: for catalogues larger than memory, and for processes that share one.
        device: "auto" answers unfiltered exact and ivf searches on GPUs if FAISS has any.
    """

    kind: Literal["auto", "exact", "ivf", "ivfsq", "ivfpq", "hnsw"] = "auto"
    nlist: int | None = Field(default=None, ge=1, le=1_048_576)
    nprobe: int | None = Field(default=None, ge=1, le=1_048_576)
    pq_segments: int | None = Field(default=None, ge=1, le=65_536)
    refine_factor: float = Field(default=6.0, ge=1.0, le=100.0)
    refine_store: Literal["sq8", "float32"] = "sq8"
    hnsw_links: int = Field(default=32, ge=2, le=256)
    ef_construction: int = Field(default=200, ge=1, le=10_000)
    ef_search: int = Field(default=256, ge=1, le=100_000)
    max_widening: float = Field(default=8.0, ge=1.0, le=1_000.0)
    train_rows: int = Field(default=131_072, ge=256, le=100_000_000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    mapped: bool = False
    device: Literal["cpu", "auto"] = "cpu"


def choose_kind(config: IndexConfig, n: int) -> Kind:
    """The kind of index for a catalogue of n ads: "auto" decided."""
    if config.kind != "auto":
        return config.kind
    return "exact" if n < _EXACT_BELOW else "ivfpq"


def count_lists(config: IndexConfig, n: int, train_rows: int) -> int:
    """Lists of ivf, ivfsq and ivfpq for n ads, of which `train_rows` are trained on."""
    if config.nlist is not None:
        return min(config.nlist, train_rows)
    return max(1, min(round(2 * math.sqrt(n)), train_rows // _ROWS_PER_LIST, 65_536))


def count_probes(config: IndexConfig, nlist: int) -> int:
    """Lists that an unfiltered query visits."""
    return min(nlist, config.nprobe or max(8, nlist // 12))


def factory_arguments(config: IndexConfig, kind: Kind, dim: int, nlist: int) -> tuple[int, str]:
    """Stored width and FAISS factory string.

    Raises:
        ConfigError: `pq_segments` does not divide the width.
    """
    if kind == "exact":
        return dim, "Flat"
    if kind == "ivf":
        return dim, f"IVF{nlist},Flat"
    if kind == "hnsw":
        return dim, f"HNSW{config.hnsw_links},Flat"
    padded = -(-dim // LANES) * LANES
    if kind == "ivfsq":
        return padded, f"IVF{nlist},SQ8"
    segments = config.pq_segments or padded // 4
    if padded % segments and dim % segments:
        raise ConfigError(
            f"pq_segments is {segments}, which divides neither the vectors' width {dim} nor "
            f"{padded}, that width rounded up to a multiple of {LANES}; leave it out or choose "
            "a divisor"
        )
    width = dim if padded % segments else padded
    store = "SQ8" if config.refine_store == "sq8" else "Flat"
    # RR stands for the balanced rotation that takes its place. "fsr": SIMD codes of residuals.
    return width, f"RR{width},IVF{nlist},PQ{segments}x4fsr,Refine({store})"
