"""Every backend scores as the ranker does, whatever the shapes, and rescores exactly."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adrec.bundle import ServingConfig
from adrec.calibration import Calibration
from adrec.errors import ConfigError
from adrec.features.batches import Batch, Candidates, Fields, Query, candidates_of
from adrec.features.dataset import Dataset
from adrec.inference import choice
from adrec.inference.backends import (
    Backend,
    BackendName,
    Engine,
    Example,
    Pool,
    Precision,
    TorchBackend,
    Usual,
)
from adrec.inference.choice import (
    PRECISIONS,
    Admission,
    convert,
    convert_preranker,
    example_of,
    fastest,
    first_choice,
    make_backends,
    possible,
    rescored,
    serving_backends,
    user_encoder,
)
from adrec.inference.graphs import (
    CandidateInputs,
    PrerankGraph,
    RequestInputs,
    ScoreGraph,
    tensors,
)
from adrec.inference.openvino_backend import SCORE, Compiled, UserEncoder
from adrec.inference.runtime import RESCORED, Runtime, embed_users
from adrec.models.ad_rows import AdRows
from adrec.models.preranker import Preranker
from adrec.models.ranker import Ranker, RankerConfig
from adrec.models.two_tower import TwoTower, TwoTowerConfig
from adrec.training.optimiser import has_native_bf16

SMALL = RankerConfig(
    embedding_dim=4, width=128, heads=4, layers=2, feed_forward=256, field_tokens=2,
    history_tokens=5, cross_layers=2, cross_rank=16, head_hidden=32,
)  # fmt: skip
# Logits of an untrained ranker lie within about 1 of each other. bf16 keeps 8 bits of each factor,
# int8 7 bits of the largest of its group; through two blocks that is some hundredths.
TOLERANCE = {"float32": 1e-4, "bf16": 0.08, "int8": 0.15}
IDENTITY = Calibration.model_validate(
    {"tasks": [{"method": "identity"}] * 2 + [{"method": "scale"}]}
)
ALL: list[tuple[Engine, Precision]] = [(e, p) for e, of_e in PRECISIONS.items() for p in of_e]


@pytest.fixture(scope="module")
def ranker(tiny_dataset: Dataset) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(SMALL, tiny_dataset.features.layout).eval().requires_grad_(False)
    for network in model.heads.networks:  # or all scores would be about the same
        network[-1].weight.mul_(4.0)
    return model


@pytest.fixture(scope="module")
def preranker(ranker: Ranker, tiny_dataset: Dataset) -> Preranker:
    torch.manual_seed(1)
    return Preranker(SMALL.width, ranker.layout.task_kinds).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def two_tower(tiny_dataset: Dataset) -> TwoTower:
    torch.manual_seed(2)
    model = TwoTower(TwoTowerConfig(output_dim=16), tiny_dataset.features.layout)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def graphs(
    two_tower: TwoTower,
    ranker: Ranker,
    preranker: Preranker,
    tiny_dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    example = example_of(tiny_dataset.state("end"), 100)
    convert(two_tower, ranker, example, folder)
    convert_preranker(ranker, preranker, example, folder)
    return folder


@pytest.fixture(scope="module")
def ad_rows(ranker: Ranker, tiny_dataset: Dataset) -> AdRows:
    return AdRows.of(ranker, tiny_dataset.catalogue.encoded)


@pytest.fixture(scope="module")
def backends(
    ranker: Ranker, preranker: Preranker, graphs: Path
) -> dict[tuple[Engine, Precision], Backend]:
    usual = Usual(guessed=50, scored=100)  # some of what is asked below
    made = make_backends(ranker, preranker, graphs, ALL, threads=1, usual=usual)
    return {(backend.engine, backend.precision): backend for backend in made}


def asked(
    dataset: Dataset, requests: int, count: int, seed: int = 0
) -> tuple[Query, Candidates, NDArray[np.int64]]:
    """Requests of the test period, each with `count` ads and counters drawn at random."""
    rng = np.random.default_rng([count, seed])
    batch: Batch = dataset.batch(dataset.requests("test")[seed : seed + requests])
    rows = rng.integers(1, len(dataset.catalogue), (requests, count))
    counters = rng.normal(size=(requests, count, dataset.counters_NC.shape[1]))
    position = np.ones(rows.shape, np.int32)
    encoded = dataset.catalogue.encoded
    return batch.query, candidates_of(encoded, rows, counters.astype(np.float32), position), rows


def pool_of(
    ranker: Ranker,
    query: Query,
    candidates: Candidates,
    ad_rows: AdRows | None,
    rows: NDArray[np.int64],
) -> Pool:
    return Pool.of(ranker.layout, query, candidates, ad_rows, rows)


def logit(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    clicks = scores[..., :2].astype(np.float64)
    return np.log(clicks / (1 - clicks))


@pytest.mark.parametrize("name", ALL, ids=" ".join)
@pytest.mark.parametrize("shape", [(1, 1), (1, 100), (3, 7), (1, 499), (1, 500), (2, 2000)])
def test_scores_are_the_rankers(
    name: tuple[Engine, Precision],
    shape: tuple[int, int],
    backends: dict[tuple[Engine, Precision], Backend],
    ad_rows: AdRows,
    ranker: Ranker,
    tiny_dataset: Dataset,
) -> None:
    query, candidates, rows = asked(tiny_dataset, *shape)
    with torch.inference_mode():
        expected = ranker.predict(query, candidates).numpy()
    opened, pool = backends[name].open(query), pool_of(ranker, query, candidates, ad_rows, rows)
    first = opened.score(pool)
    assert first.shape == (*shape, 3)
    np.testing.assert_allclose(logit(first), logit(expected), atol=TOLERANCE[name[1]])
    exact = opened.score_exactly(pool)
    np.testing.assert_allclose(logit(exact), logit(expected), atol=1e-4)
    np.testing.assert_allclose(exact[..., 2], expected[..., 2], rtol=1e-3)


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize("known", ["request", "histories", "nothing"])
def test_a_log_may_lack_fields_histories_and_counters(
    known: str, requests: int, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    whole = tiny_dataset.features.layout
    bare = replace(whole, user_sizes=(), user_dense=0, counters=0)
    if known != "request":
        bare = replace(bare, request_sizes=(), request_dense=0)
    if known != "histories":
        bare = replace(bare, history_lengths=(), impressions=())
    torch.manual_seed(0)
    model = Ranker(SMALL, bare).eval().requires_grad_(False)
    query, candidates, rows = asked(tiny_dataset, requests, 30)
    nothing = Fields(torch.zeros((requests, 0), dtype=torch.int32), torch.zeros((requests, 0)))
    query = replace(
        query,
        user=nothing,
        request=query.request if known == "request" else nothing,
        histories=query.histories if known == "histories" else (),
    )
    candidates = replace(candidates, counters_BNC=candidates.counters_BNC[..., :0])
    graphs = tmp_path / "graphs"
    tower = TwoTower(TwoTowerConfig(output_dim=16), bare).eval().requires_grad_(False)
    preranker = Preranker(SMALL.width, model.layout.task_kinds).eval().requires_grad_(False)
    convert(tower, model, Example(query, candidates, rows), graphs)
    convert_preranker(model, preranker, Example(query, candidates, rows), graphs)
    if known != "nothing":
        encode = user_encoder(tower, graphs, ServingConfig())
        np.testing.assert_allclose(encode(query), embed_users(tower, query), atol=1e-5)
    encoded = tiny_dataset.catalogue.encoded
    expected = model.predict(query, candidates).numpy()
    ad_rows, choices = AdRows.of(model, encoded), possible(graphs)
    assert len(choices) == (2 if known == "nothing" else 5)
    pool = pool_of(model, query, candidates, ad_rows, rows)
    reference = TorchBackend(model, preranker=preranker).open(query)
    usual = Usual(guessed=30, scored=30)
    for backend in make_backends(model, preranker, graphs, choices, threads=1, usual=usual):
        opened, atol = backend.open(query), TOLERANCE[backend.precision]
        np.testing.assert_allclose(logit(opened.score(pool)), logit(expected), atol=atol)
        np.testing.assert_allclose(logit(opened.score_exactly(pool)), logit(expected), atol=1e-4)
        guessed = opened.prerank(pool)
        np.testing.assert_allclose(logit(guessed), logit(reference.prerank(pool)), atol=0.05)


@pytest.mark.parametrize("name", ALL, ids=" ".join)
def test_many_threads_at_once(
    name: tuple[Engine, Precision],
    backends: dict[tuple[Engine, Precision], Backend],
    ad_rows: AdRows,
    ranker: Ranker,
    tiny_dataset: Dataset,
) -> None:
    cases = [asked(tiny_dataset, 1 + count % 2, count) for count in range(5, 45)]
    usual = [asked(tiny_dataset, 1, 100, seed=i) for i in range(len(cases[::3]))]
    cases[::3] = usual  # of the usual number
    backend = backends[name]

    def scored(case: tuple[Query, Candidates, NDArray[np.int64]]) -> NDArray[np.float32]:
        query, candidates, rows = case
        return backend.open(query).score(pool_of(ranker, query, candidates, ad_rows, rows))

    alone = [scored(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(scored, cases), alone, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def by_click(scores_BNK: NDArray[np.float64], ads_BN: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(ads_BN > 0, scores_BNK[..., 0], -np.inf)


@pytest.mark.parametrize("requests", [1, 3])
def test_users_have_the_vectors_of_the_tower(
    requests: int, graphs: Path, two_tower: TwoTower, tiny_dataset: Dataset
) -> None:
    query, _, _ = asked(tiny_dataset, requests, 1)
    expected = embed_users(two_tower, query)
    for serving in (ServingConfig(), ServingConfig(engine="torch")):
        found = user_encoder(two_tower, graphs, serving)(query)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert isinstance(user_encoder(two_tower, graphs, ServingConfig()), UserEncoder)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40)])
def test_the_graph_of_a_score_is_the_ranker(
    shape: tuple[int, int], ranker: Ranker, tiny_dataset: Dataset
) -> None:
    query, candidates, rows = asked(tiny_dataset, *shape)
    pool = pool_of(ranker, query, candidates, None, rows)
    own = CandidateInputs.of(ranker, pool.together_BNX, candidates, None)
    inputs = tensors([*RequestInputs.of(ranker, query), *own])
    found, expected = ScoreGraph(ranker)(*inputs), ranker.predict(query, candidates)
    np.testing.assert_allclose(logit(found.numpy()), logit(expected.numpy()), atol=1e-5)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], rtol=1e-5)


def test_the_usual_sizes_have_a_graph_of_their_own(
    graphs: Path, ranker: Ranker, tiny_dataset: Dataset
) -> None:
    both, of_any = (Compiled(graphs / SCORE, "float32", 1, usual=u) for u in ((2, 7), ()))
    for shape in ((2, 7), (2, 8), (1, 7)):
        query, candidates, rows = asked(tiny_dataset, *shape)
        pool = pool_of(ranker, query, candidates, None, rows)
        own = CandidateInputs.of(ranker, pool.together_BNX, candidates, None)
        inputs = *RequestInputs.of(ranker, query), *own
        assert both.is_usual(inputs) == (shape == (2, 7))
        assert not of_any.is_usual(inputs)
        np.testing.assert_allclose(both(*inputs)[0], of_any(*inputs)[0], rtol=1e-4)


class TestPreranking:
    @pytest.mark.parametrize("requests", [1, 2])
    @pytest.mark.parametrize("name", ALL, ids=" ".join)
    def test_backends_guess_what_the_preranker_does(
        self,
        name: tuple[Engine, Precision],
        backends: dict[tuple[Engine, Precision], Backend],
        ad_rows: AdRows,
        ranker: Ranker,
        preranker: Preranker,
        tiny_dataset: Dataset,
        requests: int,
    ) -> None:
        query, candidates, rows = asked(tiny_dataset, requests, 50)
        pool = pool_of(ranker, query, candidates, ad_rows, rows)
        codes, scales = map(torch.from_numpy, pool.stored_cross())
        graph, summary = PrerankGraph(ranker, preranker), ranker.prefix(query).summary_BD
        expected = graph.guess(summary, codes, scales, pool.together_BNX).numpy()
        found = backends[name].open(query).prerank(pool)
        np.testing.assert_allclose(logit(found), logit(expected), atol=0.05)

    @pytest.mark.parametrize("name", ALL, ids=" ".join)
    @pytest.mark.parametrize(("shown", "looked_at"), [(3, 40), (10, 40), (20, 80), (200, 300)])
    def test_the_ranker_looks_at_the_best_guesses(
        self,
        name: tuple[Engine, Precision],
        shown: int,
        looked_at: int,
        backends: dict[tuple[Engine, Precision], Backend],
        ad_rows: AdRows,
        ranker: Ranker,
        tiny_dataset: Dataset,
    ) -> None:
        """Of 300; four times as many as are shown, and never fewer than for ten."""
        backend = backends[name]
        two_tower = TwoTower(TwoTowerConfig(output_dim=16), tiny_dataset.features.layout)
        runtime = Runtime(
            two_tower, ranker, IDENTITY, backend, ad_rows=ad_rows, considered=40, rescored=12
        )
        query, candidates, rows = asked(tiny_dataset, 2, 300)
        rows[1, 250:] = 0  # not there
        pool = pool_of(ranker, query, candidates, ad_rows, rows)
        found, ranked = runtime.score(query, pool, by_click, shown=shown)
        assert ranked.sum(axis=1).tolist() == [looked_at] * 2
        guess = by_click(backend.open(query).prerank(pool).astype(np.float64), rows)
        exact = ranker.predict(query, candidates).double().numpy()
        for b in range(2):
            if looked_at < 300:
                assert guess[b, ranked[b]].min() >= guess[b, ~ranked[b]].max()
            looked = np.flatnonzero(ranked[b] & (rows[b] > 0))
            best = looked[np.argsort(-found[b, looked, 0])][:shown]
            np.testing.assert_allclose(found[b, best], exact[b, best], rtol=1e-3)


class TestRescoring:
    @pytest.mark.parametrize("name", ALL, ids=" ".join)
    def test_the_best_have_exact_scores(
        self,
        name: tuple[Engine, Precision],
        backends: dict[tuple[Engine, Precision], Backend],
        ad_rows: AdRows,
        ranker: Ranker,
        tiny_dataset: Dataset,
    ) -> None:
        layout = tiny_dataset.features.layout
        two_tower = TwoTower(TwoTowerConfig(output_dim=16), layout)
        runtime = Runtime(two_tower, ranker, IDENTITY, backends[name], ad_rows=ad_rows, rescored=12)
        query, candidates, rows = asked(tiny_dataset, 2, 300)
        pool = pool_of(ranker, query, candidates, ad_rows, rows)
        with torch.inference_mode():
            exact = ranker.predict(query, candidates).double().numpy()
        found, ranked = runtime.score(query, pool, by_click, shown=3)
        assert ranked.all()
        for b in range(2):
            best = np.argsort(-exact[b, :, 0])[:3]
            assert np.array_equal(np.argsort(-found[b, :, 0])[:3], best)
            np.testing.assert_allclose(found[b, best], exact[b, best], rtol=1e-3)
            if name[1] != "float32":  # others keep what the first pass gave them
                off = np.abs(found[b, :, 0] / exact[b, :, 0] - 1) > 1e-5
                assert 200 < off.sum() <= 300 - 12

    @pytest.mark.parametrize("name", ALL, ids=" ".join)
    def test_nothing_is_scored_twice_where_the_first_pass_does(
        self,
        name: tuple[Engine, Precision],
        backends: dict[tuple[Engine, Precision], Backend],
        ad_rows: AdRows,
        ranker: Ranker,
        tiny_dataset: Dataset,
    ) -> None:
        two_tower = TwoTower(TwoTowerConfig(output_dim=16), tiny_dataset.features.layout)
        backend = backends[name]
        runtime = Runtime(two_tower, ranker, IDENTITY, backend, ad_rows=ad_rows, rescored=0)
        query, candidates, rows = asked(tiny_dataset, 2, 300)
        pool = pool_of(ranker, query, candidates, ad_rows, rows)
        found, _ = runtime.score(query, pool, by_click, shown=3)
        assert np.array_equal(found, backend.open(query).score(pool).astype(np.float64))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_last_layer_is_exact_in_every_precision(
    precision: Precision,
    tmp_path: Path,
    ad_rows: AdRows,
    ranker: Ranker,
    tiny_dataset: Dataset,
) -> None:
    """A bias that bf16 does not have would move all scores alike, and so would rounded logits."""
    biased = deepcopy(ranker)
    for network in biased.heads.networks:
        network[-1].bias[0] = -3.0077  # bf16 has -3 and -3.0156
    query, candidates, rows = asked(tiny_dataset, 2, 300)
    example = Example(query, candidates, rows)
    two_tower = TwoTower(TwoTowerConfig(output_dim=16), tiny_dataset.features.layout)
    convert(two_tower, biased.eval(), example, tmp_path)
    (backend,) = make_backends(biased, None, tmp_path, [("openvino", precision)])
    found = backend.open(query).score(pool_of(biased, query, candidates, ad_rows, rows))
    exact = biased.predict(query, candidates).detach().numpy()
    shift = np.log(found[..., 0] / exact[..., 0]).mean()
    assert abs(shift) < 0.002


def admission(
    precision: Precision, agreement: float, change: float = 0.0, *, first_pass: float = 0.0
) -> Admission:
    return Admission(
        engine="openvino",
        precision=precision,
        auc_change={"click": change},
        top_agreement=agreement,
        first_pass_agreement=first_pass,
        first_pass_shift=0.0,
        native_bf16=has_native_bf16(),
    )


class TestChoice:
    def test_what_is_near_enough_to_float32_is_admitted(self) -> None:
        assert admission("bf16", 0.99, -0.0004).admitted
        assert not admission("bf16", 0.989, 0.0).admitted
        assert not admission("bf16", 1.0, -0.0005).admitted
        assert not admission("bf16", 1.0, 0.0006).admitted  # a change for the better is one, too

    def test_nothing_is_rescored_where_the_first_pass_does(self) -> None:
        found = [admission("bf16", 1.0, first_pass=0.99), admission("int8", 1.0, first_pass=0.989)]
        bf16, int8 = (BackendName("openvino", one.precision) for one in found)
        assert [rescored("auto", name, found) for name in (bf16, int8)] == [0, RESCORED]
        assert [rescored(7, name, found) for name in (bf16, int8)] == [7, 7]
        assert [rescored(0, name, found) for name in (bf16, int8)] == [0, 0]
        assert rescored("auto", BackendName("torch", "bf16"), found) == RESCORED
        refused = [admission("bf16", 1.0, 0.01, first_pass=1.0)]
        assert rescored("auto", bf16, refused) == RESCORED
        for shift, some in ((-0.003, RESCORED), (0.001, 0)):
            shifted = found[0].model_copy(update={"first_pass_shift": shift})
            assert rescored("auto", bf16, [shifted]) == some

    @pytest.mark.parametrize("here", [False, True])
    @pytest.mark.parametrize("there", [False, True])
    def test_int8_serves_only_with_what_it_was_measured_with_beside_it(
        self, here: bool, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Beside int8 stands bf16 where the processor has it: coarser than float32."""
        monkeypatch.setattr(choice, "has_native_bf16", lambda: here)
        measured = admission("int8", 1.0).model_copy(update={"native_bf16": there})
        assert measured.admitted_here == (there or not here)
        assert admission("bf16", 1.0).admitted_here

    @pytest.mark.parametrize(
        ("settings", "admitted", "choices"),
        [
            ({}, [], {("torch", "float32")}),
            ({}, ["int8"], {("torch", "float32"), ("openvino", "int8")}),
            ({"engine": "openvino"}, ["int8"], {("openvino", "int8")}),
            ({"precision": "bf16"}, ["bf16"], {("openvino", "bf16")}),
            ({"engine": "torch", "precision": "bf16"}, [], {("torch", "bf16")}),
            ({"engine": "openvino", "precision": "int8"}, [], {("openvino", "int8")}),
        ],
    )
    def test_only_what_is_admitted_or_named_serves(
        self,
        settings: dict[str, str],
        admitted: list[Precision],
        choices: set[tuple[Engine, Precision]],
        ranker: Ranker,
        graphs: Path,
        tiny_dataset: Dataset,
    ) -> None:
        admissions = [admission(precision, 1.0) for precision in admitted]
        admissions += [admission(p, 0.5) for p in ("bf16", "int8") if p not in admitted]
        serving = ServingConfig.model_validate(settings)
        found = serving_backends(ranker, None, graphs, serving, admissions)
        assert {(backend.engine, backend.precision) for backend in found} == choices

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"engine": "torch", "precision": "int8"}, "torch has float32, bf16"),
            ({"precision": "int8"}, "was not admitted .* name both"),
        ],
    )
    def test_what_cannot_serve_is_refused(
        self,
        settings: dict[str, str],
        message: str,
        ranker: Ranker,
        graphs: Path,
        tiny_dataset: Dataset,
    ) -> None:
        serving = ServingConfig.model_validate(settings)
        with pytest.raises(ConfigError, match=message):
            serving_backends(ranker, None, graphs, serving, [])

    def test_without_graphs_only_torch_is_possible(self, tmp_path: Path, graphs: Path) -> None:
        nothing = tmp_path / "none"
        assert possible(nothing) == [("torch", "float32"), ("torch", "bf16")]
        assert possible(graphs) == ALL

    def test_graphs_that_are_missing_are_named(
        self, ranker: Ranker, tiny_dataset: Dataset, tmp_path: Path
    ) -> None:
        serving = ServingConfig(engine="openvino")
        with pytest.raises(ConfigError, match="none is missing"):
            serving_backends(ranker, None, tmp_path / "none", serving, [])

    def test_the_fastest_is_taken(self, ranker: Ranker, tiny_dataset: Dataset) -> None:
        """One that works ten times as much never is."""

        class Slow(TorchBackend):
            def open(self, query: Query):  # type: ignore[no-untyped-def]
                for _ in range(10):
                    opened = super().open(query)
                    opened.score_exactly(pool)
                return opened

        example = example_of(tiny_dataset.state("end"), 300)
        pool = pool_of(ranker, example.query, example.candidates, None, example.row_BN)
        two_tower = TwoTower(TwoTowerConfig(output_dim=16), tiny_dataset.features.layout)
        slow, fast = (
            Runtime(two_tower, ranker, IDENTITY, backend)
            for backend in (Slow(ranker), TorchBackend(ranker))
        )
        assert fastest([slow, fast], example) is fast

    @pytest.mark.parametrize(
        ("precisions", "seconds", "first"),
        [
            (("float32", "int8"), (1.0, 0.95), 0),  # not clearly faster
            (("float32", "int8"), (1.0, 0.85), 1),
            (("bf16", "float32"), (0.95, 1.0), 1),
            (("float32", "float32"), (1.0, 0.95), 1),  # another engine, as exact
            (("bf16", "int8"), (1.0, 0.95), 1),  # neither is exact
        ],
    )
    def test_a_coarser_one_must_be_clearly_faster(
        self, precisions: tuple[Precision, ...], seconds: tuple[float, ...], first: int
    ) -> None:
        assert first_choice(precisions, seconds) == first
