"""Each kind of AdIndex under the shared contract, and what concerns one kind or none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from pydantic import ValidationError

from adrec.errors import BundleError, ConfigError
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig, choose_kind, count_lists
from contracts.index_contract import TOWER, AdIndexContract, clustered


class TestExact(AdIndexContract):
    config = IndexConfig(kind="exact")
    recall_floor = 1.0


class TestIvf(AdIndexContract):
    config = IndexConfig(kind="ivf", nlist=32, nprobe=12)
    recall_floor = 0.96


class TestIvfSq(AdIndexContract):
    config = IndexConfig(kind="ivfsq", nlist=32, nprobe=12)
    recall_floor = 0.95
    score_tolerance = 0.02  # as for ivfpq below


class TestIvfPq(AdIndexContract):
    config = IndexConfig(kind="ivfpq", nlist=32, nprobe=12)
    recall_floor = 0.95
    # A column spans 1.2, so 8 bits are off by about 1.2 / 255 / sqrt(12) = .0014, and a score by
    # .0014 |query| = .002; .02 is ten of these.
    score_tolerance = 0.02


class TestIvfPqFloatStore(AdIndexContract):
    config = IndexConfig(kind="ivfpq", nlist=32, nprobe=12, refine_store="float32", pq_segments=11)
    recall_floor = 0.94


class TestHnsw(AdIndexContract):
    config = IndexConfig(kind="hnsw", hnsw_links=12, ef_construction=60, ef_search=64)
    recall_floor = 0.94


class TestAuto(AdIndexContract):
    config = IndexConfig()
    recall_floor = 1.0


def test_auto_depends_on_the_catalogue_size():
    sizes = [1, 49_999, 50_000, 2_000_000]
    kinds = [choose_kind(IndexConfig(), n) for n in sizes]
    assert kinds == ["exact", "exact", "ivfpq", "ivfpq"]
    assert choose_kind(IndexConfig(kind="hnsw"), 1) == "hnsw"


def test_automatic_lists_stay_within_what_can_be_trained():
    config = IndexConfig()
    assert count_lists(config, 1_000_000, 131_072) == 2_000  # 2 sqrt(1,000,000)
    assert count_lists(config, 25_000_000, 131_072) == 131_072 // 32  # < 2 sqrt(25M) = 10,000
    assert count_lists(config, 10**10, 10**9) == 65_536
    assert count_lists(config, 20, 20) == 1
    assert count_lists(IndexConfig(nlist=4096), 300, 300) == 300


def test_pq_segments_must_divide():
    vectors = clustered()[0]
    with pytest.raises(ConfigError, match=r"pq_segments is 7.*width 33 nor 48"):
        AdIndex.build(vectors, IndexConfig(kind="ivfpq", pq_segments=7), tower=TOWER)


@pytest.mark.parametrize(
    "bad",
    [{"kind": "annoy"}, {"nlist": 0}, {"refine_factor": 0.5}, {"nprobes": 3}, {"device": "cuda"}],
)
def test_unknown_or_impossible_settings_are_refused(bad: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        IndexConfig(**bad)


def test_fields_are_documented():
    for name in IndexConfig.model_fields:
        assert f"\n        {name}: " in (IndexConfig.__doc__ or "")


def test_ivfpq_takes_less_memory_than_ivf():
    vectors = np.random.default_rng(0).normal(size=(3_000, 64)).astype(np.float32)
    flat, coded = (
        AdIndex.build(vectors, IndexConfig(kind=kind, nlist=8), tower=TOWER).memory_bytes
        for kind in ("ivf", "ivfpq")
    )
    assert flat == 3_000 * (64 * 4 + 8) + 8 * 64 * 4
    assert coded < 0.45 * flat  # 64 bytes of SQ8, 16 of codes, 8 of id, against 264


def test_damaged_or_missing_files_are_refused(tmp_path: Path):
    path = tmp_path / "ads.faiss"
    with pytest.raises(BundleError, match=r"ads\.faiss\.json.*adrec train"):
        AdIndex.load(path, tower=TOWER)
    vectors = clustered()[0][:100]
    AdIndex.build(vectors, IndexConfig(), tower=TOWER).save(path)
    about_path = tmp_path / "ads.faiss.json"
    about = json.loads(about_path.read_text())
    assert (about["tower"], about["ads"], about["config"]["kind"]) == (TOWER, 100, "auto")
    about_path.write_text(json.dumps(about | {"ads": 99}))
    with pytest.raises(BundleError, match=r"100 ads.*says 99"):
        AdIndex.load(path, tower=TOWER)
    about_path.write_text(json.dumps(about | {"kind": "annoy"}))
    with pytest.raises(BundleError, match="kind"):
        AdIndex.load(path, tower=TOWER)
    about_path.write_text(json.dumps(about))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BundleError, match=r"ads\.faiss: not a readable ad index"):
        AdIndex.load(path, tower=TOWER)


def test_a_score_too_large_for_float32_is_padding_not_another_ad():
    vectors = np.array([[1e30], [-1e30], [1.0]], dtype=np.float32)
    index = AdIndex.build(vectors, IndexConfig(), ads=np.array([5, 6, 7]), tower=TOWER)
    found = index.search(np.array([[1e30]], dtype=np.float32), 3)
    assert found.ads_QK.tolist() == [[5, 7, -1]]  # +inf, 1e30, -inf
    assert found.scores_QK[0, 2] == -np.inf


def test_building_leaves_the_openmp_threads_alone():
    before = faiss.omp_get_max_threads()
    AdIndex.build(clustered()[0][:100], IndexConfig(kind="ivf"), tower=TOWER, threads=before + 1)
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("fails", [True, False])
def test_a_gpu_is_used_only_if_it_works(monkeypatch: pytest.MonkeyPatch, fails: bool):
    """Stands in for FAISS' GPU calls (no GPU here): a copy that searches, or one that fails."""

    def copy(index: faiss.Index) -> faiss.Index:
        if fails:
            raise RuntimeError("out of memory")
        return faiss.clone_index(index)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", copy, raising=False)
    vectors, queries = clustered()
    for kind in ("exact", "ivf", "ivfpq"):
        cpu, gpu = (
            AdIndex.build(
                vectors, IndexConfig(kind=kind, nlist=16, nprobe=4, device=device), tower=TOWER
            )
            for device in ("cpu", "auto")
        )
        assert (gpu._gpu is None) == (fails or kind == "ivfpq")
        np.testing.assert_array_equal(cpu.search(queries, 9).ads_QK, gpu.search(queries, 9).ads_QK)


@pytest.mark.parametrize("imports", ["import torch, faiss", "import faiss, torch"])
def test_torch_and_faiss_share_a_process(imports: str):
    """Each brings its own OpenMP runtime; two threads, both used in turn, must not hang."""
    script = f"""{imports}
import numpy as np
from adrec.retrieval.index import AdIndex
from adrec.retrieval.index_config import IndexConfig
torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
vectors = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
for kind in ("ivf", "ivfpq", "hnsw"):
    layer = torch.nn.Linear(32, 32)
    layer(torch.from_numpy(vectors)).sum().backward()
    index = AdIndex.build(vectors, IndexConfig(kind=kind), tower="t", threads=2)
    assert index.search(vectors[:50], 5).ads_QK.shape == (50, 5)
print("done")
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning on busy cores would take 20 times as long
            "PYTHONPATH": "src",
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout == "done\n", run.stderr
