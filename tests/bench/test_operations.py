"""The operations as one table: float64 against the definition, faults that may not be reported, every provider; then
what one operation alone has."""

import ast
import math
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE

import fastcse
from fastcse import bench
from fastcse.bench import cached_stage, kmeans, rowwise, topk_search
from fastcse.bench import loss as losses
from fastcse.bench.accuracy import Outcome
from fastcse.bench.benchmarks import BENCHMARKS
from fastcse.bench.cached_stage import CachedCase, joined
from fastcse.bench.case import KINDS, Case, WrongAnswer
from fastcse.bench.kmeans import BOUNDS, PARTS, ROUNDED_BOUNDS, Clustering, KMeansCase
from fastcse.bench.loss import LOSSES, LossCase
from fastcse.bench.measure import measure
from fastcse.bench.mining import MiningCase, table_model
from fastcse.bench.provider import Provider, Unsupported, need_hopper
from fastcse.bench.rowwise import MARGIN, PASSES, PLAIN, STEP, RowwiseCase
from fastcse.bench.topk_search import METRICS, TopkCase
from fastcse.errors import OptionError
from fastcse.losses.quadruplet import WEIGHTS

PROVIDERS = {name: benchmark.providers for name, benchmark in BENCHMARKS.items()}
PEERS = PROVIDERS["loss"]
DTYPES = ("float32", "bfloat16", "float16")
# Whoever compiles takes many seconds a shape: one shape, in the nightly lane.
SLOW = {"torch.compile", "Cut Cross-Entropy compiled"}


def double(*inputs):
    return [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]


def unit(x):
    return x / x.square().sum(1, keepdim=True).sqrt()


def loss_by_hand(case, *inputs):
    """Not by plain_loss, which shares its logits with `exact`."""
    leaves = double(*inputs)
    s = unit(leaves[0]) @ unit(leaves[1]).T
    if case.loss == "focal":
        s = torch.where(torch.eye(*s.shape, dtype=torch.bool, device=s.device), s**2, s * (s + 0.3))
    both = (s, s.T) if case.loss == "symmetric" else (s,)
    value = sum((x / 0.05).logsumexp(1).mean() - x.diagonal().mean() / 0.05 for x in both) / len(both)
    return Outcome(value.detach(), torch.autograd.grad(value, leaves) if case.mode == "full" else ())


def stage_by_hand(case, *parts):
    right = loss_by_hand(case.whole, *(x.detach().requires_grad_() for x in joined(parts)))
    return right._replace(gradients=tuple(p for g in right.gradients for p in g.split(case.mini_batch)))


def topk_by_hand(case, query, corpus):
    q, c = query.double(), corpus.double()
    if case.metric == "l2":
        values, indices = torch.cdist(q, c, compute_mode="donot_use_mm_for_euclid_dist").square().topk(case.k, 1, False)
    else:
        values, indices = (unit(q) @ unit(c).T if case.metric == "cosine" else q @ c.T).topk(case.k, 1)
    return values, indices


def kmeans_by_hand(case, points, centroids, labels):
    """Lloyd's algorithm on whole matrices."""
    points, centroids = points.double(), centroids.double()
    points = unit(points) if case.cosine else points

    def found():
        return (points @ centroids.T).argmax(1) if case.cosine else torch.cdist(points, centroids).argmin(1)

    def moved(labels):
        means = torch.stack([points[labels == k].mean(0) for k in range(case.m)])
        return unit(means) if case.cosine else means

    if case.what == "update":
        return Clustering(labels, moved(labels))
    for _ in range(case.iterations if case.what == "iteration" else 0):
        centroids = moved(found())
    return Clustering(found(), centroids)


def rows_by_hand(case, *inputs):
    x = double(*inputs)
    if case.op == "adversarial":
        return Outcome(x[0] + x[2][:, None] * unit(x[1]))
    if case.op == "normalize":
        value, upstream, leaves = unit(x[0]), x[1], x[:1]
    else:
        p, b, c = ((unit(x[0]) * unit(t)).sum(1) for t in x[1:])
        value, upstream, leaves = (WEIGHTS[0] * b + WEIGHTS[1] * c - p + MARGIN).clamp(min=0).mean(), None, x
    return Outcome(value.detach(), torch.autograd.grad(value, leaves, upstream) if case.mode == "full" else ())


def gradient(factor, which=-1):
    """A fault: one gradient times `factor`."""

    def change(outcome):
        gradients = list(outcome.gradients)
        gradients[which] = gradients[which] * factor
        return outcome._replace(gradients=tuple(gradients))

    return change


def value(change):
    return lambda outcome: outcome._replace(value=change(outcome.value))


def labels(change):
    def changed(clustering):
        found = clustering.labels.clone()
        found[-1] = change(found[-1])
        return clustering._replace(labels=found)

    return changed


class Operation(NamedTuple):
    """`by_hand(case, *inputs)` is the outcome in float64; `module` works in pieces of PIECE_BYTES; `tolerance` is of a
    provider in float32; `faults` are cases, changes of a right outcome, and what is said of them."""

    cases: tuple[Case, ...]
    by_hand: Callable
    module: Any
    tolerance: float
    faults: tuple[tuple[Case, Callable, str], ...]


def of(kind, **sizes):
    return lambda **more: kind(**{**sizes, "device": DEVICE, **more})


loss = of(LossCase, n=24, d=33)
cached = of(CachedCase, n=30, d=8)
topk = of(TopkCase, n=70, m=200, d=24, k=5)
clusters = of(KMeansCase, n=300, m=6, d=16)
rows = of(RowwiseCase, n=40, d=24)
GRADIENT = r"gradient error (nan|\d\.\d+e-0\d) is above the .*, at .*: nothing is reported; run the tests"
OPERATIONS = {
    "loss": Operation(
        (*(loss(loss=name) for name in LOSSES), *(loss(m=60, loss=name) for name in LOSSES[:2]),
         loss(mode="no-grad-forward", loss="focal")),
        loss_by_hand, losses, 1e-4,
        tuple((loss(loss=name), change, GRADIENT) for name in LOSSES
              for change in (gradient(1.001), gradient(0.99, 0), gradient(math.nan))),
    ),
    "train --stage loss": Operation(
        tuple(cached(mini_batch=rows) for rows in (1, 7, 30, 64)), stage_by_hand, losses, 1e-5,
        ((cached(mini_batch=7), gradient(1.01), GRADIENT),),
    ),
    "topk": Operation(
        tuple(topk(metric=metric, dtype=dtype) for metric in METRICS for dtype in DTYPES),
        topk_by_hand, topk_search, 1e-5,
        (
            (topk(), lambda a: (a[0], (a[1] + 1) % 200), r"found 0\.\d+ of the nearest rows where all are promised"),
            (topk(n=30), lambda a: (a[0], a[1].index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(-1))),
             r"found 0\.99\d+ "),
            (topk(n=30), lambda a: (a[0], torch.cat([a[1][:, :4], a[1][:, :1]], 1)), r"found 0\.8"),  # stands twice
            (topk(metric="l2"), lambda a: (a[0] * 1.001, a[1]), "values are off by"),
            (topk(), lambda a: (a[0] * math.nan, a[1]), "values are off by nan"),
        ),
    ),
    "kmeans": Operation(
        tuple(clusters(what=what, metric=metric) for what in PARTS for metric in ("euclidean", "cosine")),
        kmeans_by_hand, kmeans, 1e-5,
        (
            *((clusters(what=what), lambda c: c._replace(centroids=c.centroids * 1.05), "inertia is off by")
              for what in PARTS),
            *((clusters(), labels(lambda one, bad=bad: bad), "inertia is off by nan") for bad in (-1, 6)),
            (clusters(), lambda c: c._replace(centroids=c.centroids * math.nan), "inertia is off by nan"),
            (clusters(), labels(lambda one: (one + 1) % 6), "of fastcse.s labels are float64.s|inertia is off by"),
        ),
    ),
    "rows": Operation(
        (*(rows(op=op, mode=mode, dtype=dtype) for op, mode in PASSES for dtype in DTYPES),
         *(rows(op=op, mode=mode, n=8, backend="triton") for op, mode in PASSES)),
        rows_by_hand, rowwise, 1e-6,
        (
            *((rows(), gradient(1.001, which), GRADIENT) for which in range(4)),
            (rows(), value(lambda x: x * 1.001), r"value error 1\.00e-03 is above the "),
            (rows(), gradient(math.nan), GRADIENT),
            (rows(), lambda o: o._replace(gradients=o.gradients[:3]), r"fastcse failed at .*zip"),
            (rows(op="normalize"), gradient(1.001), GRADIENT),
            (rows(op="normalize"), value(lambda x: torch.cat([x[:-1], x[-1:] * math.nan])), "value error nan is above"),
            (rows(op="adversarial"), value(lambda x: x.flip(0)), "value error .* is above the "),
        ),
    ),
}  # fmt: skip
EVERY_FAULT = [pytest.param(name, *fault, id=f"{name}-{i}") for name, operation in OPERATIONS.items()
               for i, fault in enumerate(operation.faults)]  # fmt: skip


def missed(case, outcome, inputs, provider=None):
    """The largest error of an outcome, of all that its operation reports."""
    row = case.row("x")
    case.score(row, provider or Provider("x", None), outcome, case.exact(*inputs))
    errors = [getattr(row, f"{name}_error", None) for name in ("loss", "value", "gradient", "inertia")]
    errors += [1 - getattr(row, name, 1.0) for name in ("recall_tied", "same_labels") if getattr(row, name, 1.0)]
    return torch.tensor([error for error in errors if error is not None]).abs().max().item()  # keeps a NaN


def measured(case, *providers):
    return measure(case, providers, repeat=1, memory=False)


def returning(monkeypatch, case, outcomes):
    """Providers by name whose calls give these outcomes; not by `build`, since a loss's function takes no inputs."""
    real = type(case).call

    def call(case, provider, config, inputs):
        if provider.make is None:
            return lambda: outcomes[provider.name]
        return real(case, provider, config, inputs)

    monkeypatch.setattr(type(case), "call", call)
    return [Provider(name, None) for name in outcomes]


@pytest.mark.parametrize("piece", [1, 1500, 1 << 20])
@pytest.mark.parametrize(("name", "case"), [(name, case) for name, operation in OPERATIONS.items()
                                            for case in operation.cases if case.dtype == "float32"])  # fmt: skip
def test_float64_is_the_definition_in_pieces_of_any_size(monkeypatch, name, case, piece):
    operation = OPERATIONS[name]
    monkeypatch.setattr(operation.module, "PIECE_BYTES", piece)
    inputs = case.inputs()
    assert missed(case, operation.by_hand(case, *inputs), inputs) < 1e-9


@pytest.mark.parametrize(("name", "case", "change", "says"), EVERY_FAULT)
def test_a_wrong_answer_is_found_before_anything_is_timed(monkeypatch, name, case, change, says):
    monkeypatch.setattr("fastcse.bench.measure._time_all", lambda *a: pytest.fail("timed"))
    outcome = change(OPERATIONS[name].by_hand(case, *case.inputs()))
    with pytest.raises(WrongAnswer, match=says):
        measured(case, *returning(monkeypatch, case, {"fastcse": outcome}))


def providers():
    for name, operation in OPERATIONS.items():
        for provider in PROVIDERS[name].values():
            able = [case for case in operation.cases if not provider.variants or case.variant in provider.variants]
            slow = name == "loss" and provider.name in SLOW
            for case in able[:1] if slow else able:
                if provider.name == "fastcse" or case.n != 8:
                    marks = [pytest.mark.whole] if slow else []
                    yield pytest.param(name, provider, case, id=f"{name}-{provider.name}-{case.setting}-{case.size}",
                                       marks=marks)  # fmt: skip


@pytest.mark.parametrize(("name", "provider", "case"), providers())
def test_a_provider_computes_the_operation_each_time_anew(monkeypatch, name, provider, case, device):
    if name == "rows":
        monkeypatch.setattr(torch, "compile", lambda fn, dynamic: fn)  # the compiler takes half a minute
    if (absent := provider.missing()) is not None:
        pytest.skip(absent)
    inputs = case.inputs()
    before = [x if x is None else x.detach().clone() for x in inputs]
    # The configurations on offer are larger than the case; 8 makes several chunks of it.
    offered = (*provider.configs, *([8] if provider.configs and name != "rows" else [])) or (None,)
    tolerance = OPERATIONS[name].tolerance if case.dtype == "float32" else 2e-2
    for config in offered:
        try:
            run = case.call(provider, config, inputs)
        except Unsupported as why:
            pytest.skip(f"{provider.name}: {why}")
        for _ in range(2):
            assert missed(case, run(), inputs, provider) < tolerance
        assert getattr(case, "backend", None) != "triton" or fastcse.last_backend() == "triton"
    assert all(x is b or torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize(("name", "provider"), [(name, p) for name in PROVIDERS for p in PROVIDERS[name].values()])
def test_a_provider_says_how_to_get_it_what_it_lacks_and_is_found_by_another_process(name, provider):
    assert bool(provider.modules) == bool(provider.install)
    assert pickle.loads(pickle.dumps(provider)) == provider
    for case in OPERATIONS[name].cases if name in OPERATIONS else ():
        if provider.variants and case.variant not in provider.variants:
            with pytest.raises(Unsupported, match=f"not {case.variant}"):
                case.call(provider, (provider.configs or (None,))[0], case.inputs())


def test_no_provider_is_imported_before_it_runs():
    ours = {*sys.stdlib_module_names, "numpy", "rich", "torch"}
    for path in Path(bench.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= ours, path


# What is counted, and the lower bounds


@pytest.mark.parametrize(
    ("case", "flops", "output"),
    [
        (loss(m=60), 3 * 2 * 24 * 60 * 33, 4 * 84 * 33),
        (loss(loss="symmetric"), 4 * 2 * 24 * 24 * 33, 4 * 48 * 33),
        (loss(mode="no-grad-forward"), 2 * 24 * 24 * 33, 0),
        (topk(), 2 * 70 * 200 * 24, 70 * 5 * 12),
        (clusters(what="assignment"), 2 * 300 * 6 * 16, 8 * 300),
        (clusters(what="update"), 300 * 16, 4 * 6 * 16),
        (clusters(iterations=3), 4 * 2 * 300 * 6 * 16, 8 * 300 + 4 * 6 * 16),
        *((rows(op=op, mode=mode), None, size * 40 * 24 * 4) for (op, mode), size in zip(PASSES, (4, 0, 1, 0, 1))),
    ],
    ids=lambda x: getattr(x, "title", ""),
)
def test_what_is_counted(case, flops, output):
    assert (case.flops, case.output_bytes(case.inputs())) == (flops, output)
    if isinstance(case, RowwiseCase):
        assert case.bytes == PASSES[case.op, case.mode] * 40 * 24 * 4 == 2 * replace(case, dtype="bfloat16").bytes


@pytest.mark.parametrize("panel_rows", [1, 5, 100])
def test_the_bare_products_are_the_products(monkeypatch, panel_rows, recwarn):
    written = {"mm": [], "addmm": []}
    for name, found in written.items():
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, f=found, r=real, **k: f.append(r(*a, **k)) or f[-1])
    monkeypatch.setattr(losses, "PANEL_BYTES", panel_rows * 60 * 4)
    monkeypatch.setattr(topk_search, "PANEL_BYTES", {"cpu": 4 * 200 * panel_rows})
    anchor, candidate = (x.detach() for x in loss(m=60, device="cpu").inputs())
    loss(m=60, device="cpu").lower_bound()(anchor, candidate)
    torch.testing.assert_close(written["addmm"][-1], (anchor @ candidate.T).T @ anchor, rtol=1e-4, atol=1e-2)
    written["mm"].clear()
    query, corpus = topk(device="cpu").inputs()
    topk(device="cpu").lower_bound()(query, corpus)
    last = written["mm"][-1]
    torch.testing.assert_close(last, query[-len(last) :] @ corpus.T)
    assert sum(map(len, written["mm"])) == 70
    for what, times in (("assignment", 1), ("update", 1), ("iteration", 4)):
        written["mm"].clear()
        case = clusters(what=what, device="cpu")
        inputs = case.inputs()
        written["mm"].clear()
        case.lower_bound()(*inputs)
        assert sum(x.numel() for x in written["mm"]) == times * 300 * 6
    assert not recwarn.list  # a panel of another size would be made anew


@pytest.mark.parametrize(("op", "mode"), PASSES)
def test_the_copy_leaves_the_inputs_alone_and_bandwidth_is_held_against_it(op, mode):
    case = rows(op=op, mode=mode)
    inputs = case.inputs()
    before = [x.detach().clone() for x in inputs]
    for _ in range(2):
        copied = case.lower_bound()(*inputs)
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))
    if op == "adversarial":
        assert torch.equal(copied, inputs[0] + inputs[1])
    for x in inputs:
        is_copied = (op, mode) == ("quadruplet", "full")
        assert x.grad is None if not is_copied else torch.equal(x.grad, x) and x.grad.data_ptr() != x.data_ptr()
    result = measured(case, *(PROVIDERS["rows"][name] for name in ("fastcse", "eager")))
    limit = result.rows[0]
    assert (limit.provider, limit.to_products, limit.of_copy) == ("copy", 1, 1)
    for row in result.rows:
        assert row.gb_s == pytest.approx(case.bytes / (row.ms * 1e-3) / 1e9)
        assert row.of_copy == pytest.approx(limit.ms / row.ms)


# Losses


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_as_documented(kind):
    def cosines(stage):
        anchor, candidate = (x.detach() for x in LossCase(400, 400, 256, data=kind, stage=stage).inputs())
        s = F.normalize(anchor, dim=1) @ F.normalize(candidate, dim=1).T
        return s.diagonal().mean().item(), s[~torch.eye(400, dtype=torch.bool)].mean().item()

    (early, unrelated), (late, unrelated_late) = cosines("early"), cosines("late")
    assert late > early + 0.1 > unrelated + 0.2
    if kind == "random":
        assert (early, late) == (pytest.approx(0.45, abs=0.02), pytest.approx(0.95, abs=0.01))
    low, high = {"random": (-0.01, 0.01), "anisotropic": (0.5, 1.0), "clustered": (0.02, 0.5)}[kind]
    assert low < unrelated_late < high


@pytest.mark.parametrize("name", OPERATIONS)
def test_inputs_are_those_of_the_seed_and_the_type(name):
    for case in OPERATIONS[name].cases:
        one, same, other = (replace(case, seed=seed).inputs() for seed in (3, 3, 4))
        assert all(x is y or torch.equal(x, y) for x, y in zip(one, same, strict=True))
        assert not torch.equal(one[0], other[0])
        assert one[0].dtype == case.torch_dtype
        assert one[0].requires_grad == (case.mode == "full")


def test_candidates_must_be_enough():
    for name, wanted in (("symmetric", "exactly"), ("infonce", "at least")):
        with pytest.raises(OptionError, match=f"m is 20: {name} needs {wanted} as many candidates as n, which is 24"):
            LossCase(24, 20, loss=name)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_the_forced_backend_is_what_ran(backend):
    assert measured(loss(backend=backend, device="cpu"), PEERS["fastcse"]).backend == backend


@pytest.mark.parametrize(("eager", "allowed"), [(1.001, True), (1.0, False), (math.nan, False)])
@pytest.mark.parametrize("case", [loss(), rows()], ids=["loss", "rows"])
def test_what_plain_torch_misses_is_allowed_twice_and_no_number_excuses_nothing(monkeypatch, case, eager, allowed):
    by_hand = loss_by_hand if isinstance(case, LossCase) else rows_by_hand
    right = by_hand(case, *case.inputs())
    outcomes = {"fastcse": gradient(1.0015)(right), "eager": gradient(eager)(right)}
    both = returning(monkeypatch, case, outcomes)
    if allowed:
        assert measured(case, *both).row("fastcse").ms > 0
        return
    with pytest.raises(WrongAnswer, match=r"gradient error .* is above"):
        measured(case, *both)


@pytest.mark.skipif(DEVICE != "cuda", reason="the CUDA kernels run in the device lane")
@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_peer_computes_the_loss_in_bfloat16(peer, device):
    """At a size that nobody's limits exclude and a temperature at which rounded logits do little harm."""
    for name in peer.variants or LOSSES:
        case = LossCase(256, 256, 128, name, dtype="bfloat16", device=DEVICE, temperature=0.2)
        inputs = case.inputs()
        for config in peer.configs or (None,):
            if (absent := peer.missing()) is not None:
                pytest.skip(absent)
            try:
                run = case.call(peer, config, inputs)
            except Unsupported as why:
                pytest.skip(str(why))
            assert missed(case, run(), inputs) < 5e-2


@pytest.mark.parametrize(
    ("name", "reason", "case"),
    [
        ("Inf-CL", "multiple of 64 anchors, not 37", LossCase(37, 37, 64)),
        ("Inf-CL", "multiple of 16, not 33", LossCase(64, 64, 33)),
        ("flex_attention", "256 at most, not 384", LossCase(64, 64, 384)),
        ("Cut Cross-Entropy", "bfloat16 and float16 only", LossCase(64, 64, 64)),
        ("Cut Cross-Entropy exact", "bfloat16 and float16 only", LossCase(64, 64, 64)),
    ],
)
def test_a_limit_is_said_before_the_peer_is_imported(name, reason, case):
    with pytest.raises(Unsupported, match=reason):
        PEERS[name].build(replace(case, device="cuda"))
    with pytest.raises(Unsupported, match="CUDA only"):
        PEERS[name].build(case)


def test_kernels_of_hopper_say_so(monkeypatch):
    for capability, says in (((8, 0), r"capability 9\.0 only, this is 8\.0"), ((9, 0), "bfloat16 only, not float32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        with pytest.raises(Unsupported, match=says):
            need_hopper(LossCase(24, device="cuda"))


def test_the_embeddings_of_a_stage_are_in_mini_batches():
    parts = cached(mini_batch=7).inputs()
    assert [len(part) for part in parts] == 2 * [7, 7, 7, 7, 2]
    assert list(map(len, cached_stage.columns(parts))) == [5, 5]


# Top-k


def test_a_tie_is_a_matter_of_the_providers_rounding():
    corpus = torch.tensor([[1.0, 0.0], [1.0 - 1e-4, 0.0], [0.0, 1.0]])
    case, query = TopkCase(1, 3, 2, 1, dtype="bfloat16"), torch.tensor([[1.0, 0.0]])

    def recalls(index, corpus, rounded=False):
        row = case.row("x")
        answer = torch.tensor([[corpus[index, 0]]]), torch.tensor([[index]])
        case.score(row, Provider("x", None, rounded=rounded), answer, case.exact(query, corpus))
        return row.recall, row.recall_tied

    assert (recalls(1, corpus), recalls(1, corpus, True)) == ((0.0, 0.0), (0.0, 1.0))
    assert recalls(1, corpus[[0, 0, 2]]) == (1.0, 1.0)


# K-means


def test_clusters_without_points_begin_again_at_the_farthest():
    # Two places, and three centroids at the first: the second and third find nothing.
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0], [30.0, 0.0]])
    right = clusters(n=5, m=3, d=2, iterations=1, device="cpu").exact(points, torch.zeros(3, 2), None).clustering
    torch.testing.assert_close(right.centroids[1:], points[[4, 2]].double())
    assert sorted(right.labels.unique().tolist()) == [0, 1, 2]


def test_half_precision_iterations_have_wider_bounds():
    assert clusters(dtype="bfloat16").bounds == ROUNDED_BOUNDS
    for case in (clusters(), clusters(what="assignment", dtype="bfloat16"), clusters(what="update", dtype="bfloat16")):
        assert case.bounds == BOUNDS


def test_faiss_takes_all_points_and_iterates_as_often_as_asked(monkeypatch):
    faiss, made = pytest.importorskip("faiss"), []
    plain = faiss.Kmeans
    monkeypatch.setattr(faiss, "Kmeans", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    case = clusters(n=3000, m=2, d=4, iterations=4, device="cpu")  # 1500 of a cluster, where FAISS by default takes 256
    case.call(PROVIDERS["kmeans"]["FAISS"], None, case.inputs())()
    assert len(made[-1].obj) == 4
    assert made[-1].cp.max_points_per_centroid == 3000


# Row-wise operations


@pytest.mark.parametrize(("op", "mode"), PASSES)
def test_inputs_cost_all_of_the_work_and_both_ways_to_write_it_are_right(op, mode):
    case = rows(op=op, mode=mode, d=256)
    inputs = case.inputs()
    if op == "quadruplet":
        p, b, c = (torch.cosine_similarity(inputs[0], x, dim=1) for x in inputs[1:])
        assert (WEIGHTS[0] * b + WEIGHTS[1] * c - p + MARGIN > 0).all()  # a row at rest would cost less
    if op == "adversarial":
        torch.testing.assert_close(inputs[2], STEP * inputs[0].norm(dim=1))
    if op == "normalize":  # factors are compared with factors
        right = rows_by_hand(case, *inputs)
        factors = 1.01 / inputs[0].detach().double().norm(dim=1)
        assert missed(case, right._replace(value=factors), inputs) == pytest.approx(0.01)
    for fn in PLAIN[op].values():
        assert missed(case, case.run_once(fn, inputs), inputs) < 1e-5


def test_what_cannot_run_says_why(monkeypatch):
    compiled = PROVIDERS["rows"]["torch.compile"]
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    assert compiled.missing() is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compiled.missing().startswith("torch.compile needs a C++ compiler, and none of g++, ")
    row = measured(rows(op="normalize", backend="reference"), PROVIDERS["rows"]["fastcse"]).row("fastcse")
    assert row.reason == "normalize is a step of cpp and triton; the backend here is reference"


# Mining


def test_the_table_model_gives_each_text_its_row():
    table = 3 * torch.randn(4, 8)
    model = table_model(["a", "b", "c", "d"], table)
    torch.testing.assert_close(torch.from_numpy(model.encode_query(["c", "a"])), table[[2, 0]])
    found = model.encode_document(["d"], normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(found, F.normalize(table[[3]]))
    assert model.get_embedding_dimension() == 8


@pytest.mark.parametrize("relative_margin", [0.05, 0.5])
def test_our_miner_gives_their_triplets(relative_margin):
    miners = PROVIDERS["mining"]
    result = measured(MiningCase(300, 16, relative_margin=relative_margin), *miners.values())
    assert {row.provider: row.same for row in result.rows[1:] if row.status == "measured"} == dict.fromkeys(
        (name for name, miner in miners.items() if not miner.missing()), 1.0
    )


def test_a_miner_must_give_the_same_triplets(monkeypatch):
    case = MiningCase(200, 16)
    mined = PROVIDERS["mining"]["sentence-transformers"].build(case, *case.inputs())()
    with pytest.raises(WrongAnswer, match=r"only 0\.9\d+ of fastcse's and sentence-transformers' triplets"):
        measured(case, *returning(monkeypatch, case, {"fastcse": mined.select(range(30, len(mined)))}))
