"""Top-k, k-means, row-wise operations and mining as what is measured: inputs, float64, providers, verdicts; and every
command once, from its arguments to its files."""

import json
import math
import re
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE
from tiny_encoder import sentences, write_tiny_encoder
from typer.testing import CliRunner

import fastcse
from fastcse.bench import kmeans, rowwise, topk_search
from fastcse.bench.accuracy import Outcome, errors
from fastcse.bench.benchmarks import BENCHMARKS
from fastcse.bench.case import WrongAnswer
from fastcse.bench.kmeans import BOUNDS, PARTS, ROUNDED_BOUNDS, Clustering, KMeansCase
from fastcse.bench.measure import measure
from fastcse.bench.mining import MiningCase, table_model
from fastcse.bench.output import read_results
from fastcse.bench.provider import Provider, Unsupported
from fastcse.bench.rowwise import MARGIN, PASSES, PLAIN, STEP, RowwiseCase
from fastcse.bench.topk_search import METRICS, TopkCase
from fastcse.cli import app
from fastcse.losses.quadruplet import WEIGHTS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
TOPK, KMEANS, ROWWISE, MINING = (BENCHMARKS[name].providers for name in ("topk", "kmeans", "rows", "mining"))


def measured(case, *providers):
    return measure(case, providers, repeat=1, memory=False)


def planted(answer, change, name="fastcse"):
    """A provider whose outcome is the right one, changed; `answer(case, *inputs)` is the right one."""

    def make(case, *inputs):
        right = answer(case, *inputs)
        return lambda: change(right)

    return Provider(name, make)


def runs_of(provider, case, inputs):
    """The provider's call for each of its configurations, or a skip with its own reason."""
    if (absent := provider.missing()) is not None:
        pytest.skip(absent)
    try:
        return [case.call(provider, config, inputs) for config in provider.configs or (None,)]
    except Unsupported as why:
        pytest.skip(f"{provider.name}: {why}")


# Top-k

SMALL = TopkCase(30, 200, 24, 5, device=DEVICE)


def all_scores(case, query, corpus):
    """(N, M) by hand, larger being better."""
    q, c = query.double(), corpus.double()
    if case.metric == "l2":
        return -torch.cdist(q, c).square()
    if case.metric == "cosine":
        q, c = q / q.norm(dim=1, keepdim=True), c / c.norm(dim=1, keepdim=True)
    return q @ c.T


def nearest(case, query, corpus):
    values, indices = all_scores(case, query, corpus).topk(case.k, 1)
    return (-values if case.metric == "l2" else values).float(), indices


def scored(case, answer, exact, rounded=False):
    row = case.row("x")
    case.score(row, Provider("x", nearest, rounded=rounded), answer, exact)
    return row


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_exact_topk_is_the_kth_best_of_all(monkeypatch, metric, rows_at_once):
    monkeypatch.setattr(topk_search, "PIECE_BYTES", 8 * 64 * rows_at_once)
    case = TopkCase(100, 200, 24, 5, metric)
    rows = case.inputs()
    assert not rows[0].requires_grad
    found = case.exact(*rows)
    assert len(found.sampled) == 64
    torch.testing.assert_close(found.kth, all_scores(case, *rows).topk(5, 1).values[found.sampled, -1])


@pytest.mark.parametrize("metric", METRICS)
def test_what_an_answer_misses_is_counted(metric):
    case = TopkCase(30, 200, 24, 5, metric)
    rows = case.inputs()
    exact, (values, indices) = case.exact(*rows), nearest(case, *rows)
    right = scored(case, (values, indices), exact)
    assert (right.recall, right.recall_tied) == (1.0, 1.0)
    assert right.value_error < 1e-6
    worst = all_scores(case, *rows).argmin(1)
    for other in (worst, torch.full_like(worst, -1), indices[:, 0]):  # a far row, none at all, one that stands twice
        changed = indices.clone()
        changed[:, 3] = other
        row = scored(case, (values, changed), exact)
        assert (row.recall, row.recall_tied) == (0.8, 0.8)
    assert scored(case, (values * 1.01, indices), exact).value_error > 1e-3
    assert math.isnan(scored(case, (values * math.nan, indices), exact).value_error)


def test_a_tie_is_a_matter_of_the_providers_rounding():
    corpus = torch.tensor([[1.0, 0.0], [1.0 - 1e-4, 0.0], [0.0, 1.0]])
    case, query = TopkCase(1, 3, 2, 1, dtype="bfloat16"), torch.tensor([[1.0, 0.0]])
    second = torch.tensor([[1.0 - 1e-4]]), torch.tensor([[1]])
    exact = case.exact(query, corpus)
    for rounded, tied in ((False, 0.0), (True, 1.0)):
        row = scored(case, second, exact, rounded)
        assert (row.recall, row.recall_tied) == (0.0, tied)
    twin = case.exact(query, corpus[[0, 0, 2]])
    assert scored(case, (torch.ones(1, 1), torch.tensor([[1]])), twin).recall == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("provider", TOPK.values(), ids=lambda p: p.name)
def test_a_provider_finds_the_nearest(provider, dtype, metric, device):
    case = TopkCase(40, 300, 32, 7, metric, dtype=dtype, device=DEVICE)
    rows = case.inputs()
    for run in runs_of(provider, case, rows):
        answer = run()
        assert {tuple(x.shape) for x in answer} == {(40, 7)}
        row = scored(case, answer, case.exact(*rows), provider.rounded)
        assert row.recall_tied == 1
        assert row.value_error < (1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("panel_rows", [1, 7, 100])
def test_the_bare_product_is_the_product(monkeypatch, panel_rows, recwarn):
    monkeypatch.setattr(topk_search, "PANEL_BYTES", {"cpu": 4 * 200 * panel_rows})
    case = TopkCase(30, 200, 24, 5)
    query, corpus = case.inputs()
    written, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: written.append(mm(*a, **k).clone()))
    case.lower_bound()(query, corpus)
    torch.testing.assert_close(torch.cat(written), query @ corpus.T)
    assert not recwarn.list  # a panel of another size would be made anew
    assert case.flops == 2 * 30 * 200 * 24


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: (a[0], (a[1] + 1) % 200), r"fastcse found 0\.\d+ of the nearest rows where all are promised"),
        (lambda a: (a[0], a[1].index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(-1))), r"found 0\.99\d+ "),
        (lambda a: (a[0] * 1.001, a[1]), r"fastcse's values are off by"),
        (lambda a: (a[0] * math.nan, a[1]), r"fastcse's values are off by nan"),
    ],
)
def test_fastcse_may_not_miss_a_row(change, says):
    with pytest.raises(WrongAnswer, match=says):
        measured(SMALL, planted(nearest, change))
    half = planted(nearest, lambda a: (a[0], torch.where(torch.arange(5) < 3, a[1], -1)), "half")
    assert measured(SMALL, half).row("half").recall == pytest.approx(0.6)


# K-means

every_part = pytest.mark.parametrize("what", PARTS)
every_metric = pytest.mark.parametrize("metric", ["euclidean", "cosine"])


def small(what="iteration", metric="euclidean", **more):
    return KMeansCase(**{**dict(n=70, m=6, d=16, what=what, metric=metric, device=DEVICE), **more})


def lloyd(case):
    """Labels and centroids by loops over whole matrices in float64."""
    points, centroids, labels = (x if x is None else x.double().cpu().numpy() for x in case.inputs())
    if case.cosine:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)

    def found():
        if case.cosine:
            return (points @ centroids.T).argmax(1)
        return ((points[:, None] - centroids) ** 2).sum(2).argmin(1)

    def moved(labels):
        sums = np.stack([points[labels == k].sum(0) for k in range(case.m)])
        if case.cosine:
            return sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / np.bincount(labels.astype(int), minlength=case.m)[:, None]

    if case.what == "update":
        centroids = moved(labels)
    else:
        for _ in range(case.iterations if case.what == "iteration" else 0):
            centroids = moved(found())
        labels = found()
    return Clustering(torch.from_numpy(labels).long(), torch.from_numpy(centroids))


def judged(case, clustering, exact):
    row = case.row("x")
    case.score(row, KMEANS["fastcse"], clustering, exact)
    return row


@every_metric
@every_part
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_exact_clustering_is_the_formula_in_pieces(monkeypatch, what, metric, rows_at_once):
    monkeypatch.setattr(kmeans, "PIECE_BYTES", 8 * 16 * rows_at_once)
    case = small(what, metric)
    inputs = case.inputs()
    assert (inputs[2] is None) == (what != "update")
    exact, right = case.exact(*inputs), lloyd(case)
    assert torch.equal(exact.clustering.labels.cpu(), right.labels)
    torch.testing.assert_close(exact.clustering.centroids.cpu(), right.centroids, rtol=1e-9, atol=1e-9)
    row = judged(case, right, exact)
    assert abs(row.inertia_error) < 1e-9
    assert row.same_labels == (None if what == "update" else 1)


def test_wrong_labels_and_centroids_are_seen():
    case = small()
    exact = case.exact(*case.inputs())
    right = exact.clustering
    other = right.labels.clone()
    other[-7:] = (other[-7:] + 1) % 6  # the last, and no others
    row = judged(case, right._replace(labels=other), exact)
    assert row.inertia_error > 0
    assert row.same_labels == pytest.approx(0.9)
    assert judged(case, right._replace(centroids=right.centroids * 1.1), exact).inertia_error > 1e-3
    for bad in (-1, 6):
        labels = right.labels.clone()
        labels[-1] = bad
        assert math.isnan(judged(case, right._replace(labels=labels), exact).inertia_error)
    assert math.isnan(judged(case, right._replace(centroids=right.centroids * math.nan), exact).inertia_error)


def test_clusters_without_points_begin_again_at_the_farthest():
    # Two places, and three centroids at the first: the second and third find nothing.
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0], [30.0, 0.0]])
    case = small(n=5, m=3, d=2, iterations=1, device="cpu")
    right = case.exact(points, torch.zeros(3, 2), None).clustering
    torch.testing.assert_close(right.centroids[1:], points[[4, 2]].double())
    assert sorted(right.labels.unique().tolist()) == [0, 1, 2]


@every_metric
@every_part
@pytest.mark.parametrize("provider", KMEANS.values(), ids=lambda p: p.name)
def test_a_provider_clusters_as_asked_each_time_anew(provider, what, metric, device):
    case = small(what, metric, n=300, m=8)
    inputs = case.inputs()
    before = [x if x is None else x.clone() for x in inputs]
    exact = case.exact(*inputs)
    for run in runs_of(provider, case, inputs):
        for _ in range(2):
            row = judged(case, run(), exact)
            assert abs(row.inertia_error) < 1e-5
            assert row.same_labels in (None, 1)
    assert all(x is b or torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


def test_faiss_takes_all_points_and_iterates_as_often_as_asked(monkeypatch):
    faiss, made = pytest.importorskip("faiss"), []
    plain = faiss.Kmeans
    monkeypatch.setattr(faiss, "Kmeans", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    case = small(n=3000, m=2, d=4, iterations=4, device="cpu")  # 1500 of a cluster, where FAISS by default takes 256
    case.call(KMEANS["FAISS"], None, case.inputs())()
    assert len(made[-1].obj) == 4
    assert made[-1].cp.max_points_per_centroid == 3000


@every_part
def test_a_wrong_clustering_is_not_reported(monkeypatch, what):
    def exact(case, *inputs):
        return case.exact(*inputs).clustering

    def one_label(clustering):
        labels = clustering.labels.clone()
        labels[0] = (labels[0] + 1) % 6
        return clustering._replace(labels=labels)

    case = small(what)
    measured(case, planted(exact, lambda right: right))
    with pytest.raises(WrongAnswer, match=r"inertia is off by .* nothing is reported"):
        measured(case, planted(exact, lambda right: right._replace(centroids=right.centroids * 1.05)))
    if what != "update":
        monkeypatch.setattr(kmeans, "BOUNDS", (1.0, 0.999))
        with pytest.raises(WrongAnswer, match=r"of fastcse.s labels are float64.s, less than 0\.999"):
            measured(case, planted(exact, one_label))


def test_what_kmeans_counts(monkeypatch):
    assert small("iteration", iterations=3).flops == 4 * small("assignment").flops == 4 * 2 * 70 * 6 * 16
    assert small("update").flops == 70 * 16
    labels, centroids = 8 * 70, 4 * 6 * 16
    sizes = [small(what).output_bytes(()) for what in ("assignment", "update", "iteration")]
    assert sizes == [labels, centroids, labels + centroids]
    assert small(dtype="bfloat16").bounds == ROUNDED_BOUNDS
    for exact in (small(), small("assignment", dtype="bfloat16"), small("update", dtype="bfloat16")):
        assert exact.bounds == BOUNDS
    shapes, plain = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: shapes.append((*a.shape, b.shape[1])) or plain(a, b, **more))
    for what, times in (("assignment", 1), ("update", 1), ("iteration", 4)):
        case = small(what)
        inputs = case.inputs()
        shapes.clear()
        case.lower_bound()(*inputs)
        assert shapes == [(70, 16, 6)] * times


# Row-wise operations

every_pass = pytest.mark.parametrize(("op", "mode"), list(PASSES))


def rows(op="quadruplet", mode="full", **more):
    return RowwiseCase(**{**dict(n=40, d=24, op=op, mode=mode, device=DEVICE), **more})


def by_formula(case, *inputs):
    """Value in float64 from the definitions, and gradients by autograd."""
    x = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    if case.op == "adversarial":
        return Outcome(x[0] + x[2][:, None] * x[1] / x[1].square().sum(1, keepdim=True).sqrt())
    unit = [t / t.square().sum(1, keepdim=True).sqrt() for t in x]
    if case.op == "normalize":
        value, upstream, leaves = unit[0], x[1], x[:1]
    else:
        p, b, c = ((unit[0] * t).sum(1) for t in unit[1:])
        value, upstream, leaves = (WEIGHTS[0] * b + WEIGHTS[1] * c - p + MARGIN).clamp(min=0).mean(), None, x
    if case.mode != "full":
        return Outcome(value)
    return Outcome(value.detach(), torch.autograd.grad(value, leaves, upstream))


def as_float(case, *inputs):
    value, gradients = by_formula(case, *inputs)
    return Outcome(value.float(), tuple(g.float() for g in gradients))


def changed_gradient(factor, which=-1):
    def change(outcome):
        gradients = list(outcome.gradients)
        gradients[which] = gradients[which] * factor
        return outcome._replace(gradients=tuple(gradients))

    return change


def missed(case, outcome, inputs):
    return errors(outcome, case.pieces(inputs, outcome.value.dim() == 1))


@every_pass
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_errors_are_those_of_all_rows_in_pieces(monkeypatch, op, mode, rows_at_once):
    monkeypatch.setattr(rowwise, "PIECE_BYTES", 8 * 24 * rows_at_once)
    case = rows(op, mode)
    inputs = case.inputs()
    right = by_formula(case, *inputs)
    value, gradient = missed(case, right, inputs)
    assert value < 1e-12
    assert gradient is None if mode == "forward" else gradient < 1e-12
    assert missed(case, right._replace(value=right.value * 1.01), inputs).value == pytest.approx(0.01)
    if right.value.dim():  # the last row, and nothing else
        moved = right.value.clone()
        moved[-1] = math.nan
        assert math.isnan(missed(case, right._replace(value=moved), inputs).value)
    for which in range(len(right.gradients)):
        assert missed(case, changed_gradient(1.01, which)(right), inputs).gradient == pytest.approx(0.01)
    if op == "normalize":  # factors are compared with factors
        factors = 1.01 / inputs[0].detach().double().norm(dim=1)
        assert missed(case, right._replace(value=factors), inputs).value == pytest.approx(0.01)


@every_pass
def test_inputs_and_both_ways_to_write_an_operation(op, mode):
    case = rows(op, mode)
    one, same, other = (replace(case, seed=seed).inputs() for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other))
    wanted = {"quadruplet": [True] * 4, "normalize": [True, False], "adversarial": [False] * 3}[op]
    assert [x.requires_grad for x in one] == [w and mode == "full" for w in wanted]
    if op == "quadruplet":
        p, b, c = (torch.cosine_similarity(one[0], x, dim=1) for x in one[1:])
        assert (WEIGHTS[0] * b + WEIGHTS[1] * c - p + MARGIN > 0).all()  # a row at rest would cost less
    if op == "adversarial":
        torch.testing.assert_close(one[2], STEP * one[0].norm(dim=1))
    want = by_formula(case, *one)
    for fn in PLAIN[op].values():
        got = case.run_once(fn, one)
        torch.testing.assert_close(got.value.double(), want.value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close([g.double() for g in got.gradients], list(want.gradients), rtol=1e-4, atol=1e-6)


@every_pass
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [*ROWWISE, "fastcse on triton"])
def test_a_provider_computes_the_operation_each_time_anew(monkeypatch, name, dtype, op, mode, device):
    monkeypatch.setattr(torch, "compile", lambda fn, dynamic: fn)  # the compiler takes half a minute
    on_triton = name == "fastcse on triton"
    case = rows(op, mode, dtype=dtype, **dict(n=8, backend="triton") if on_triton else {})
    provider, inputs = ROWWISE["fastcse" if on_triton else name], case.inputs()
    before = [x.detach().clone() for x in inputs]
    for config in provider.configs or (None,):
        run = case.call(provider, config, inputs)
        kept = [g.clone() for g in run().gradients]
        outcome = run()
        assert fastcse.last_backend() == "triton" or not on_triton
        assert len(outcome.gradients) == (0 if mode == "forward" else 4 if op == "quadruplet" else 1)
        value, gradient = missed(case, outcome, inputs)
        assert max(value, gradient or 0) < (1e-6 if dtype == "float32" else 2e-2)
        torch.testing.assert_close(list(outcome.gradients), kept, rtol=1e-2, atol=1e-5)  # not added up
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


def test_what_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    assert ROWWISE["torch.compile"].missing() is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    row = measured(rows("adversarial"), ROWWISE["torch.compile"]).row("torch.compile")
    assert row.status == "absent"
    assert row.reason.startswith("torch.compile needs a C++ compiler, and none of g++, ")
    row = measured(rows("normalize", backend="reference"), ROWWISE["fastcse"]).row("fastcse")
    assert row.reason == "normalize is a step of cpp and triton; the backend here is reference"


@every_pass
def test_the_copy_moves_what_is_counted_and_leaves_the_inputs_alone(op, mode):
    case = rows(op, mode)
    assert case.bytes == PASSES[op, mode] * 40 * 24 * 4 == 2 * replace(case, dtype="bfloat16").bytes
    arrays = {("quadruplet", "full"): 4, ("normalize", "full"): 1, ("adversarial", "forward"): 1}.get((op, mode), 0)
    inputs = case.inputs()
    assert case.output_bytes(inputs) == arrays * 40 * 24 * 4
    assert case.lower_bound_note.startswith(f"{op}: ")
    before = [x.detach().clone() for x in inputs]
    copied = case.lower_bound()(*inputs)
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))
    if op == "adversarial":
        assert torch.equal(copied, inputs[0] + inputs[1])
    if (op, mode) == ("quadruplet", "full"):
        first = [x.grad for x in inputs]
        assert all(torch.equal(x.grad, x.detach()) and x.grad.data_ptr() != x.data_ptr() for x in inputs)
        case.lower_bound()(*inputs)
        assert all(x.grad is not g for x, g in zip(inputs, first))
    else:
        assert all(x.grad is None for x in inputs)


@every_pass
def test_bandwidth_is_that_of_the_copy(op, mode):
    case = rows(op, mode)
    result = measured(case, ROWWISE["fastcse"], ROWWISE["eager"])
    limit = result.row("copy")
    assert (result.rows[0], limit.to_products, limit.of_copy) == (limit, 1, 1)
    for row in result.rows:
        assert row.tflops is None
        assert row.gb_s == pytest.approx(case.bytes / (row.ms * 1e-3) / 1e9)
        assert row.of_copy == pytest.approx(limit.ms / row.ms)


@pytest.mark.parametrize(
    ("op", "change", "says"),
    [
        ("quadruplet", lambda o: o._replace(value=o.value * 1.001), r"value error 1\.00e-03 is above the "),
        ("quadruplet", changed_gradient(1.001, 0), r"gradient error 1\.00e-03 is above the "),
        ("quadruplet", changed_gradient(math.nan), r"gradient error nan is above the "),
        ("quadruplet", lambda o: o._replace(gradients=o.gradients[:3]), r"fastcse failed at .*zip"),
        ("normalize", changed_gradient(1.001), r"gradient error 1\.00e-03 is above the "),
        ("normalize", lambda o: o._replace(value=o.value + math.nan), r"value error nan is above the "),
        ("adversarial", lambda o: o._replace(value=o.value.flip(0)), r"value error \d\.\d+e[+-]\d+ is above the "),
    ],
)
def test_fastcse_may_not_be_wrong_in_a_row(op, change, says):
    with pytest.raises(WrongAnswer, match=says):
        measured(rows(op), planted(as_float, change), ROWWISE["eager"])


def test_what_plain_torch_misses_is_allowed_twice():
    def times(factor, name="fastcse"):
        return planted(as_float, lambda o: o._replace(value=o.value * factor), name)

    assert measured(rows(), times(1.0015), times(1.001, "eager")).row("fastcse").ms > 0
    with pytest.raises(WrongAnswer, match="nothing is reported"):
        measured(rows(), times(1.0025), times(1.001, "eager"))


# Mining


def test_the_table_model_gives_each_text_its_row():
    table = 3 * torch.randn(4, 8)
    model = table_model(["a", "b", "c", "d"], table)
    torch.testing.assert_close(torch.from_numpy(model.encode_query(["c", "a"])), table[[2, 0]])
    unit = model.encode_document(["d"], normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(table[[3]]))
    assert model.get_embedding_dimension() == 8


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr("fastcse.bench.measure.rounds", lambda case, repeat: repeat)


@pytest.mark.parametrize("relative_margin", [0.05, 0.5])
def test_our_miner_gives_their_triplets(relative_margin):
    result = measured(MiningCase(300, 16, relative_margin=relative_margin), *MINING.values())
    assert {row.provider: row.same for row in result.rows[1:] if row.status == "measured"} == dict.fromkeys(
        (name for name, miner in MINING.items() if not miner.missing()), 1.0
    )


def test_a_miner_must_give_the_same_triplets():
    def theirs(case, *inputs):
        return MINING["sentence-transformers"].build(case, *inputs)()

    with pytest.raises(WrongAnswer, match=r"only 0\.9\d+ of fastcse's and sentence-transformers' triplets"):
        measured(MiningCase(200, 16), planted(theirs, lambda mined: mined.select(range(30, len(mined)))))


# Every command once

QUICK = {
    "loss": "--n 24 --d 16,8 --loss infonce,symmetric --peers eager",
    "topk": "--n 20 --m 90 --d 16 --k 3,4 --metric ip,l2 --peers FlashLib",
    "rows": "--n 20 --d 16 --peers eager",
    "kmeans": "--n 70 --k 6 --d 8 --metric euclidean,cosine --peers FlashLib",
    "mining": "--n 60 --d 16 --peers fastcse",
    "train --stage loss": "--batch-sizes 40 --mini-batch-size 16,8 --d 8 --providers fastcse",
    "train": "--batch-sizes 12 --mini-batch-size 3 --providers",
}
COMMITTED = {"loss": "loss_infonce_cpu", "train --stage loss": "train_loss_cpu"}
CASES = {"loss": 4, "topk": 4, "rows": 3, "kmeans": 6, "mining": 1, "train --stage loss": 2, "train": 1}


def invoke(name, *arguments):
    once = ["--steps" if name.startswith("train") else "--repeat", "1"]
    device = [] if name == "mining" else ["--device", "cpu"]
    memory = [] if name.startswith("train") else ["--no-memory"]
    return CliRunner().invoke(app, ["bench", *name.split(), *device, *memory, *once, *map(str, arguments)])


@pytest.mark.parametrize("name", QUICK)
def test_a_command_writes_the_keys_that_are_committed(name, tmp_path, few_rounds):
    arguments = QUICK[name].split()
    if name == "train":
        (tmp_path / "texts.txt").write_text("\n".join(sentences(12)) + "\n")
        encoder = write_tiny_encoder(tmp_path / "tiny")
        arguments += ["fastcse cached", "--corpus", tmp_path / "texts.txt", "--model", encoder]
    files = ["--output", tmp_path / "a.json"] + (["--plot", tmp_path / "a.png"] if name == "topk" else [])
    done = invoke(name, *arguments, *files, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads((tmp_path / "a.json").read_text())
    assert json.loads(done.stdout) == made
    assert len(made["results"]) == CASES[name]
    committed = json.loads((RESULTS / f"{COMMITTED.get(name, f'{name}_cpu')}.json").read_text())
    assert set(made) == set(committed)
    assert set(committed["machine"]) <= set(made["machine"])
    for result in made["results"]:
        assert set(result) == set(committed["results"][0])
        assert {tuple(sorted(row)) for row in result["rows"]} == {tuple(sorted(committed["results"][0]["rows"][0]))}
        (ours,) = [row for row in result["rows"] if row["provider"] == BENCHMARKS[name].case.ours]
        assert (ours["status"], ours["ms"] > 0) == ("measured", True)
    if name == "train":
        assert made["results"][0]["corpus"] == "texts.txt"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_read_and_written_as_they_are(path):
    labels = json.loads(path.read_text())
    if "machine" not in labels or not all("rows" in one and "backend" in one for one in labels.get("results", [{}])):
        pytest.skip("of another program")
    found = read_results(path)
    for result, one in zip(found.results, labels["results"], strict=True):
        written = result.labels()
        assert {**written, "rows": None} == {**one, "rows": None}
        for got, row in zip(written["rows"], one["rows"], strict=True):
            kept = {key: None if value in ("nan", "inf") else value for key, value in row.items() if key != "note"}
            assert {key: value for key, value in got.items() if key != "note"} == kept


MISTAKES = {
    "loss": [
        ("--peers nobody-knows", "--peers 'nobody-knows' is unknown: expected fastcse, eager"),
        ("--loss hinge", "--loss 'hinge' is unknown: expected infonce, focal or symmetric"),
        ("--stage never", "--stage 'never' is unknown: expected early or late"),
        ("--mode half", "--mode 'half' is unknown: expected full or no-grad-forward"),
        ("--n 0", "--n is 0: expected at least 1"),
        ("--n many", "--n is 'many': expected whole numbers"),
        ("--d 8,", "--d is '8,': expected whole numbers"),
        ("--n 48 --m 47", "--m is 47: infonce needs at least as many candidates as --n, which is 48"),
        ("--n 48 --m 50 --loss symmetric", "--m is 50: symmetric needs exactly as many candidates as --n, which is 48"),
        ("--temperature 0", "--temperature is 0.0: expected a finite number above 0"),
        ("--temperature nan", "--temperature is nan: expected a finite number above 0"),
        ("--device cuda", "--device is cuda, and torch finds no GPU here"),
        ("--device abacus", "--device 'abacus' is unknown: expected cpu or cuda"),
        ("--backend abacus", "--backend 'abacus' is unknown"),
        ("--dtype int8", "--dtype 'int8' is unknown: expected float32, bfloat16 or float16"),
        ("--data poems", "--data 'poems' is unknown"),
        ("--repeat 0", "--repeat is 0: expected at least 1"),
        ("--output {file}/a.json", "its folder cannot be made"),
        ("--plot {folder}", "is a folder: expected a file"),
        ("--csv a.csv", "No such option"),
    ],
    "topk": [
        ("--k 91 --m 90", "--k is 91: expected at most the rows of the corpus, --m = 90"),
        ("--metric hamming", "--metric 'hamming' is unknown: expected cosine, ip or l2"),
    ],
    "rows": [
        ("--op softmax", "--op 'softmax' is unknown: expected quadruplet, normalize or adversarial"),
        ("--mode backward", "--mode 'backward' is unknown: expected full or forward"),
    ],
    "kmeans": [
        ("--what fit", "--what 'fit' is unknown: expected assignment, update or iteration"),
        ("--metric l2", "--metric 'l2' is unknown"),
        ("--k 71 --n 70", "--k is 71: expected at most as many clusters as points, --n = 70"),
        ("--iterations 0", "--iterations is 0: expected at least 1"),
    ],
    "mining": [
        ("--negatives 0", "--negatives is 0: expected at least 1"),
        ("--range-min 5 --range-max 7", "--range-max is 7: expected at least --range-min 5 + --negatives 3"),
        ("--n 3", "--n is 3: expected more than --range-min 0 + --negatives 3"),
    ],
    "train": [
        ("--stage all", "--stage 'all' is unknown: expected step or loss"),
        ("--batch-sizes 0", "--batch-sizes is 0: expected at least 1"),
        ("--batch-sizes 13 --corpus {texts}", "--batch-sizes is 13 and texts.txt has 12 distinct sentences"),
        ("--memory-limit-gib 0", "--memory-limit-gib is 0.0: expected a finite number above 0"),
        ("--max-length 0", "--max-length is 0: expected at least 1"),
        ("--batch-sizes 2 --corpus {texts} --providers torch", "--providers 'torch' is unknown"),
        ("--steps 0", "--steps is 0: expected at least 1"),
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments", "says"), chain(*([(name, *one) for one in found] for name, found in MISTAKES.items()))
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, name, arguments, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("fastcse.bench.measure.measure", lambda *a, **k: pytest.fail("measured before the mistake"))
    places = {word: tmp_path / word for word in ("file", "folder")} | {"texts": tmp_path / "texts.txt"}
    places["folder"].mkdir()
    places["file"].write_text("")
    places["texts"].write_text("\n".join(sentences(12)) + "\n")
    output = [] if "--output" in arguments else ["--output", tmp_path / "wanted.json"]
    typed = [text.format(**places) for text in arguments.split()]
    done = CliRunner().invoke(app, ["bench", name, *map(str, output), *typed])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    plain = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    assert says in plain
    if "No such" not in says:
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == sorted(places.values())


def test_the_options_of_old_are_all_there():
    for name, flags in {
        "loss": "n m d loss dtype device data stage mode temperature peers backend repeat memory seed output plot json",
        "topk": "n m d k metric dtype device data peers backend repeat memory seed output plot json",
        "rows": "op n d dtype device data mode peers backend repeat memory seed output plot json",
        "kmeans": "what n k d iterations metric dtype device data peers backend repeat memory seed output plot json",
        "mining": "n d negatives range-min range-max relative-margin peers repeat memory seed output plot json",
        "train": "stage batch-sizes mini-batch-size model corpus max-length memory-limit-gib d providers steps device "
        "seed output plot json",
    }.items():
        text = CliRunner().invoke(app, ["bench", name, "--help"], env={"COLUMNS": "200"}).stdout
        found = set(re.findall(r"--([a-z-]+)", re.sub(r"--no-memory", "", text))) - {"help", "what"}
        assert found == set(flags.split()) - {"what"}, name
