"""The allowed ads nearest to a query by inner product: FAISS behind one class.

`AdIndex` scores ad a for query q with <q, a>. Two towers that L2-normalise make that a cosine; a
per-ad bias is one more dimension (the query holds a 1 there), so neither unit length nor a fixed
width is assumed. A filter runs inside the search, never after it: no disallowed ad comes back, and
k ads come back whenever k are allowed.

Facts about FAISS shape the code. `IndexRefine` ignores a selector in its own parameters and
`IndexIDMap` does not translate one that lies deeper, so a filter through both is silently wrong:
here every search runs on catalogue positions and ids are mapped at the border. `IndexRefine` also
rescores one ad at a time, four times slower than `Stored` does. Parameters that are written on an
index are shared by all threads, so each search carries its own.

Shapes: A ads, D width, Q queries, K results a query.
"""

import logging
import math
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import faiss as _typed_faiss
import numpy as np
from pydantic import ValidationError

from adrec.errors import BundleError, ConfigError
from adrec.retrieval.ad_set import AdSet
from adrec.retrieval.building import build_core
from adrec.retrieval.index_config import (
    LANES,
    LISTED,
    IndexConfig,
    Kind,
    choose_kind,
    count_probes,
)
from adrec.retrieval.inputs import (
    Floats,
    Ints,
    check_ads,
    check_queries,
    check_vectors,
    widen,
)
from adrec.retrieval.passing import Passing, Places
from adrec.retrieval.planning import SAMPLE_ROWS, Sample, share_to_rank
from adrec.retrieval.stored import Stored, faiss_search
from adrec.schema import Strict

faiss: Any = _typed_faiss  # its stubs lack the keyword constructors that are its documented API


_GPU_MOST_K = 2_048  # results a query that FAISS on a GPU can return
_SCAN_ROWS = 20  # ads passed by in a scan cost as much as one ad fetched from where it is stored
_PASSED_BY = 64  # ads passed by in a list cost as much as one ad fetched, or scored out of order
_MOST_REFINED = 4.0  # times as many candidates as without a filter that ivfpq rescores
_LEAST_REFINED = 2_000  # candidates that ivfpq rescores: of few, short codes miss too many
_SPARE = 3  # times as far as a filtered search has to look by a sample's judgement

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What a search found, best first: `ads_QK` int64, -1 where there is none; `scores_QK`
    float32 inner products, -inf where there is none."""

    ads_QK: Ints
    scores_QK: Floats


class AdIndex:
    """A searchable catalogue of ad vectors. Safe to search from many threads at once.

    Build it with `AdIndex.build` or `AdIndex.load`. FAISS spreads one call's queries over OpenMP
    threads; where a request has a thread, call `adrec.use_threads(1)` in each. torch and FAISS
    each bring an OpenMP runtime whose idle threads spin: on busy cores, OMP_WAIT_POLICY=PASSIVE in
    the environment makes a build of several threads many times faster.
    """

    def __init__(
        self, core: Any, ads: Ints | None, kind: Kind, dim: int, tower: str, config: IndexConfig
    ) -> None:
        """Wrap a filled FAISS index; `ads` [A] are its external ids, None where they are 0..A-1."""
        self.kind, self.dim, self.tower, self.config = kind, dim, tower, config
        self._core, self._ads = core, ads
        self._owner: Any = core  # the FAISS object that frees `core`
        self._places = Places(ads, int(core.ntotal))
        self._ivf: Any = faiss.extract_index_ivf(core) if kind in LISTED else None
        self._nprobe = count_probes(config, self._ivf.nlist) if self._ivf else 0
        self._stored = Stored(core)
        self._sample_lock = threading.Lock()
        self._sampled: Sample | None = None
        self._gpu_lock = threading.Lock()  # FAISS on a GPU takes one caller at a time
        self._gpu = self._copy_to_gpu()

    @classmethod
    def build(
        cls,
        vectors: Floats,
        config: IndexConfig,
        *,
        tower: str,
        ads: Ints | None = None,
        threads: int = 1,
    ) -> Self:
        """Index a catalogue.

        Args:
            vectors: float32 [A, D], finite; need not have unit length.
            config: how.
            tower: fingerprint of the tower weights that made the vectors.
            ads: int64 [A], the ad's row in the catalogue; unique, >= 0. None: 0..A-1, which also
                makes filters cheaper (no gather of the mask).
            threads: OpenMP threads to build with.

        Raises:
            DataError: the vectors or ids are empty, of a wrong type or shape, or not finite.
            ConfigError: `pq_segments` does not divide D, or `threads` is below 1.
        """
        vectors = check_vectors(vectors)
        n, dim = vectors.shape
        ads = check_ads(ads, n)
        kind = choose_kind(config, n)
        return cls(build_core(vectors, config, kind, threads), ads, kind, dim, tower, config)

    def search(
        self, queries: Floats, k: int, *, allowed: AdSet | None = None, exact: bool = False
    ) -> Found:
        """Find the k best allowed ads of each query.

        A narrow filter is answered by weighing all that it allows, and so is a query for which a
        search that stops early yielded fewer ads than are to be had. Under a wider one the search
        goes as far as a sample of the catalogue says that it has to (`planning`).

        Args:
            queries: float32 [Q, D], finite.
            k: results a query, >= 1.
            allowed: ads that may be returned, of at least `rows` rows. None: all.
            exact: weigh every allowed ad by its stored vector (of ivfsq, and of ivfpq with
                refine_store "sq8", that is one rounded to 8 bits a number).

        Returns:
            Found, each [Q, k].

        Raises:
            DataError: queries of a wrong type or shape or not finite, or `allowed` of a smaller
                catalogue.
            ConfigError: k is below 1.
        """
        queries = widen(check_queries(queries, self.dim), self._core.d)
        if k < 1:
            raise ConfigError(f"k is {k}; ask for at least 1 result a query")
        passing = None if allowed is None else self._places.passing(allowed)
        wanted = min(k, len(self) if passing is None else len(passing))
        ads_QK = np.full((len(queries), k), -1, dtype=np.int64)
        scores_QK = np.full((len(queries), k), -np.inf, dtype=np.float32)
        if wanted == 0 or len(queries) == 0:
            return Found(ads_QK, scores_QK)
        if exact or self.kind == "exact":
            scores, at = self._scan(queries, wanted, passing)
        else:
            scores, at = self._search_near(queries, wanted, passing)
        ads_QK[:, :wanted] = self._places.rows_at(at)
        scores_QK[:, :wanted] = scores
        return Found(ads_QK, scores_QK)

    def vectors(self) -> tuple[Ints, Floats]:
        """Rows [A] and vectors [A, D] of all ads, as they are stored: to build another index of."""
        places = np.arange(len(self), dtype=np.int64)
        return self._places.rows_at(places), self._stored.vectors(places)[:, : self.dim]

    def searched_with(self, config: IndexConfig) -> "AdIndex":
        """The same index, whose searches follow other settings (`nprobe`, `refine_factor`,
        `ef_search`); those of its build are taken as they are."""
        other = AdIndex(self._core, self._ads, self.kind, self.dim, self.tower, config)
        other._owner = self._owner
        return other

    def save(self, path: Path) -> None:
        """Write the FAISS file `path` (it holds the ad ids too) and then `<path>.json`."""
        whole = self._core
        if self._ads is not None:
            whole = faiss.IndexIDMap(faiss.IndexFlatIP(self._core.d))  # must be wrapped empty
            whole.index, whole.ntotal = self._core, len(self)
            faiss.copy_array_to_vector(self._ads, whole.id_map)
        faiss.write_index(whole, str(path))
        about = _About(
            tower=self.tower, ads=len(self), dim=self.dim, kind=self.kind, config=self.config
        )
        _about_path(path).write_text(about.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, *, tower: str, mapped: bool | None = None) -> Self:
        """Read an index written by `save`.

        Args:
            path: of the FAISS file.
            tower: fingerprint of the tower that makes the queries.
            mapped: whether it stays on disk (`IndexConfig.mapped`); the file must then not change
                while it is in use. None: as its settings say.

        Raises:
            BundleError: files are missing, damaged or do not belong together, or the vectors were
                made by another tower than `tower`.
        """
        try:
            about = _About.model_validate_json(_about_path(path).read_text())
        except (OSError, ValidationError) as error:
            raise _unreadable(_about_path(path), error) from error
        if about.tower != tower:
            raise BundleError(
                f"{path}: the index holds vectors of tower '{about.tower}', but queries come from "
                f"tower '{tower}'; their products mean nothing. Rebuild it with `adrec train`."
            )
        stays = about.config.mapped if mapped is None else mapped
        try:
            core = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if stays else 0)
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        ads, owner = None, core
        if isinstance(core, faiss.IndexIDMap):
            ads = faiss.vector_to_array(core.id_map)
            core = faiss.downcast_index(core.index)
        if core.ntotal != about.ads or not 0 <= core.d - about.dim < LANES:
            raise BundleError(
                f"{path}: holds {core.ntotal} ads of width {core.d}, but {_about_path(path).name} "
                f"says {about.ads} of width {about.dim}. Rebuild it with `adrec train`."
            )
        index = cls(core, ads, about.kind, about.dim, tower, about.config)
        index._owner = owner
        return index

    def __len__(self) -> int:
        return int(self._core.ntotal)

    @property
    def rows(self) -> int:
        """The highest row of an ad and one: what a filter has to cover."""
        return self._places.rows

    @property
    def held(self) -> AdSet:
        """The rows that it holds."""
        return self._places.held

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors, codes, ids and links in main memory; small tables are left out."""
        return _bytes(self._core) + self._places.memory_bytes

    def _scan(self, queries: Floats, k: int, passing: Passing | None) -> tuple[Floats, Ints]:
        """Weigh every ad that the filter lets pass."""
        if passing is not None and _SCAN_ROWS * len(passing) <= len(self):
            return self._stored.best(queries, k, passing.places())
        if self.kind == "exact" and self._fits_gpu(k, passing):
            return self._search_gpu(queries, k)
        selector = None if passing is None else passing.selector
        if self.kind in ("ivf", "ivfsq"):
            params = faiss.SearchParametersIVF(sel=selector, nprobe=self._ivf.nlist)
            return faiss_search(self._core, queries, k, params)
        return faiss_search(self._stored.index, queries, k, faiss.SearchParameters(sel=selector))

    def _search_near(self, queries: Floats, k: int, passing: Passing | None) -> tuple[Floats, Ints]:
        """Weigh the ads in the nearest lists, or along the graph, as far as a filter needs it."""
        if passing is None:
            scores, at = self._probe(queries, k, None, self._least_effort(k))
            scanned = at[:, -1] < 0  # fewer than there are
        else:
            effort_Q = self._efforts(queries, k, passing)
            scores = np.empty((len(queries), k), np.float32)
            at = np.empty((len(queries), k), np.int64)
            for effort in np.unique(effort_Q[effort_Q > 0]):
                alike = effort_Q == effort
                scores[alike], at[alike] = self._probe(queries[alike], k, passing, int(effort))
            scanned = effort_Q == 0
            scanned[~scanned] = at[~scanned, -1] < 0
        if scanned.any():
            scores[scanned], at[scanned] = self._scan(queries[scanned], k, passing)
        return scores, at

    def _least_effort(self, k: int) -> int:
        """Lists that a search for k of all ads visits, or candidates that it keeps."""
        return self._nprobe if self._ivf is not None else max(self.config.ef_search, k)

    def _efforts(self, queries: Floats, k: int, passing: Passing) -> Ints:
        """Lists that each query visits under a filter, or candidates that it keeps, [Q]; 0 where to
        weigh every allowed ad is cheaper. Few different numbers, to search for many at once."""
        least = self._least_effort(k)
        scan = np.zeros(len(queries), np.int64)
        if self._ivf is None:
            if len(passing) <= least * self.config.hnsw_links:
                return scan
            rank_Q = _SPARE * self._sample().rank(queries, passing, k)
            effort_Q = np.maximum(least, 2 ** np.ceil(np.log2(rank_Q))).astype(np.int64)
            far_Q = effort_Q > self.config.max_widening * least
            far_Q |= len(passing) <= effort_Q * self.config.hnsw_links
            return np.where(far_Q, 0, effort_Q)
        lists = int(self._ivf.nlist)
        if len(passing) * lists <= len(self) * least:
            return scan
        rank_Q = np.minimum(_SPARE * self._sample().rank(queries, passing, k), len(self))
        share_Q = share_to_rank(rank_Q, k, least / lists, len(self))
        share_Q = 2.0 ** (np.ceil(2.0 * np.log2(share_Q)) / 2.0)
        scored_Q = np.minimum(len(passing), share_Q * len(self) * k / rank_Q)
        far_Q = len(passing) <= scored_Q + share_Q * len(self) / _PASSED_BY
        return np.where(far_Q, 0, np.clip(np.ceil(share_Q * lists), least, lists)).astype(np.int64)

    def _probe(
        self, queries: Floats, k: int, passing: Passing | None, effort: int
    ) -> tuple[Floats, Ints]:
        """Visit so many lists, or keep so many candidates. -1 where too few were met."""
        if self._fits_gpu(k, passing):
            return self._search_gpu(queries, k)
        selector = None if passing is None else passing.selector
        if self.kind == "hnsw":
            params = faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
            return faiss_search(self._core, queries, k, params)
        params = faiss.SearchParametersIVF(sel=selector, nprobe=effort)
        if self.kind != "ivfpq":
            return faiss_search(self._core, queries, k, params)
        # The farther from a query, the more alike are the scores: codes tell the best less well.
        factor = self.config.refine_factor * min(_MOST_REFINED, effort / self._nprobe)
        params = faiss.SearchParametersPreTransform(index_params=params)
        guessed = min(len(self), max(math.ceil(k * factor), _LEAST_REFINED))
        at = faiss_search(self._core.base_index, queries, guessed, params)[1]
        return self._stored.best_of_each(queries, k, at)

    def _sample(self) -> Sample:
        with self._sample_lock:
            if self._sampled is None:
                rng = np.random.default_rng(self.config.seed)
                places = rng.choice(len(self), min(SAMPLE_ROWS, len(self)), replace=False)
                self._sampled = Sample(places, self._stored.vectors(places), len(self))
        return self._sampled

    def _copy_to_gpu(self) -> Any:
        if self.config.device == "cpu" or self.kind not in ("exact", "ivf"):
            return None
        try:
            if faiss.get_num_gpus() == 0:
                return None
            if self._ivf is not None:
                self._ivf.nprobe = self._nprobe
            return faiss.index_cpu_to_all_gpus(self._core)
        except (RuntimeError, AttributeError) as error:
            _log.warning("the ad index stays on the CPU: %s", error)
            return None

    def _fits_gpu(self, k: int, passing: Passing | None) -> bool:
        return self._gpu is not None and passing is None and k <= _GPU_MOST_K

    def _search_gpu(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
        with self._gpu_lock:
            return faiss_search(self._gpu, queries, k, None)


class _About(Strict):
    """The JSON beside a FAISS file: what the file cannot say of itself."""

    format: Literal[1] = 1
    tower: str
    ads: int
    dim: int
    kind: Kind
    config: IndexConfig


def _about_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _unreadable(path: Path, error: Exception) -> BundleError:
    return BundleError(f"{path}: not a readable ad index. Rebuild it with `adrec train`. ({error})")


def _bytes(index: Any) -> int:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _bytes(index.base_index) + _bytes(index.refine_index)
    if isinstance(index, faiss.IndexPreTransform):
        return _bytes(index.index)
    if isinstance(index, faiss.IndexHNSW):
        return _bytes(index.storage) + 4 * int(index.hnsw.neighbors.size())
    if isinstance(index, faiss.IndexIVF):
        return _bytes(index.quantizer) + int(index.ntotal) * (int(index.code_size) + 8)
    return int(index.codes.size())
