"""`fastcse bench kmeans`: what is computed and by whom, what it is compared with, and what is not reported."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DEVICE
from typer.testing import CliRunner

from fastcse.bench import measure as frame
from fastcse.bench.clusters import cuda, truth
from fastcse.bench.clusters.plain import make_inputs
from fastcse.bench.clusters.problem import WHATS, ClustersProblem
from fastcse.bench.clusters.provider import Provider
from fastcse.bench.clusters.subject import (  # fmt: skip
    BOUNDS,
    CLUSTERS,
    PROVIDERS,
    ROUNDED_BOUNDS,
    WrongClusters,
    bounds,
)
from fastcse.bench.clusters.truth import Outcome
from fastcse.bench.measure import measure
from fastcse.bench.peers import Unsuitable
from fastcse.cli import app

every_what = pytest.mark.parametrize("what", WHATS)
every_metric = pytest.mark.parametrize("metric", ["euclidean", "cosine"])


def small(what="iteration", metric="euclidean", **more):
    return ClustersProblem(**{**dict(n=70, m=6, d=16, what=what, metric=metric, device=DEVICE), **more})


def by_formula(problem):
    """Labels and centroids by loops over whole matrices in float64."""
    points, centroids, labels = (x if x is None else x.double().cpu().numpy() for x in make_inputs(problem))
    if problem.metric == "cosine":
        points = points / np.linalg.norm(points, axis=1, keepdims=True)

    def found():
        if problem.metric == "cosine":
            return (points @ centroids.T).argmax(1)
        return ((points[:, None] - centroids) ** 2).sum(2).argmin(1)

    def moved(labels):
        sums = np.stack([points[labels == k].sum(0) for k in range(problem.m)])
        if problem.metric == "cosine":
            return sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / np.bincount(labels.astype(int), minlength=problem.m)[:, None]

    if problem.what == "update":
        centroids = moved(labels)
    else:
        for _ in range(problem.iterations if problem.what == "iteration" else 0):
            centroids = moved(found())
        labels = found()
    return Outcome(torch.from_numpy(labels).long(), torch.from_numpy(centroids))


def plant(monkeypatch, change, name="fastcse", **more):
    """A provider whose outcome is the right one, changed."""

    def build(problem, points, start, labels):
        right = truth.exact(problem, points, start, labels).outcome
        return lambda: change(right)

    monkeypatch.setitem(PROVIDERS, name, Provider(name, build, **more))


# What is computed


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(what="fit"), "what must be one of assignment, update, iteration, got 'fit'"),
        (dict(metric="l2"), "metric must be one of"),
        (dict(m=71), "got m = 71, n = 70"),
        (dict(iterations=0), "iterations must be at least 1, got 0"),
    ],
)
def test_a_problem_that_is_none_is_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        small(**wrong)


def test_operations_are_those_of_all_assignments():
    assert small("assignment").flops == 2 * 70 * 6 * 16
    assert small("iteration", iterations=3).flops == 4 * small("assignment").flops  # and the labels after them
    assert small("update").flops == 70 * 16


@every_metric
@every_what
def test_inputs_are_the_same_for_the_same_seed(what, metric):
    one, same, other = (make_inputs(small(what, metric, seed=seed)) for seed in (3, 3, 4))
    assert all(a is b or torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert len(one[1].unique(dim=0)) == 6
    assert (one[2] is None) == (what != "update")
    if metric == "cosine":
        torch.testing.assert_close(one[1].norm(dim=1), torch.ones(6, device=DEVICE))


# The truth


@every_metric
@every_what
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_the_truth_is_the_formula_in_pieces(monkeypatch, what, metric, rows_at_once):
    monkeypatch.setattr(truth, "PIECE_BYTES", 8 * 16 * rows_at_once)
    problem = small(what, metric)
    exact, right = truth.exact(problem, *make_inputs(problem)), by_formula(problem)
    assert torch.equal(exact.outcome.labels.cpu(), right.labels)
    torch.testing.assert_close(exact.outcome.centroids.cpu(), right.centroids, rtol=1e-9, atol=1e-9)
    inertia, same = truth.misses(right, exact)
    assert abs(inertia) < 1e-9
    assert same == (None if what == "update" else 1)


def test_misses_see_wrong_labels_and_centroids():
    problem = small()
    exact = truth.exact(problem, *make_inputs(problem))
    right = exact.outcome
    other = right.labels.clone()
    other[-7:] = (other[-7:] + 1) % 6  # the last, and no others
    inertia, same = truth.misses(right._replace(labels=other), exact)
    assert inertia > 0
    assert same == pytest.approx(0.9)
    assert truth.misses(right._replace(centroids=right.centroids * 1.1), exact).inertia > 1e-3
    for bad in (-1, 6):
        wrong = right.labels.clone()
        wrong[-1] = bad
        assert math.isnan(truth.misses(right._replace(labels=wrong), exact).inertia)
    assert math.isnan(truth.misses(right._replace(centroids=right.centroids * math.nan), exact).inertia)


def test_clusters_without_points_begin_again_at_the_farthest():
    # Two places, and three centroids at the first: the second and third find nothing.
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0], [30.0, 0.0]])
    start = torch.zeros(3, 2)
    problem = small(n=5, m=3, d=2, iterations=1, device="cpu")
    right = truth.exact(problem, points, start, None).outcome
    torch.testing.assert_close(right.centroids[1:], points[[4, 2]].double())
    assert sorted(right.labels.unique().tolist()) == [0, 1, 2]


# Whom it measures


@every_metric
@every_what
@pytest.mark.parametrize("name", ["fastcse", "torch chunked", "FAISS", "scikit-learn"])
def test_a_provider_computes_what_is_asked_each_time_anew(name, what, metric):
    provider, problem = PROVIDERS[name], small(what, metric, n=300, m=8)
    if provider.missing():
        pytest.skip(provider.missing())
    inputs = make_inputs(problem)
    before = [x if x is None else x.clone() for x in inputs]
    exact = truth.exact(problem, *inputs)
    for choice in provider.choices or (None,):
        try:
            run = CLUSTERS.prepare(provider, problem, choice, inputs)
        except Unsuitable as why:
            assert name in ("FAISS", "scikit-learn")
            assert str(why).startswith(("computes assignment and iteration, not update", "computes euclidean only"))  # noqa: PT017
            return
        for _ in range(2):
            inertia, same = truth.misses(run(), exact)
            assert abs(inertia) < 1e-5
            assert same in (None, 1)
    assert all(x is b or torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize(
    ("what", "dtype"),
    [("assignment", "float32"), ("assignment", "bfloat16"), ("update", "bfloat16"), ("iteration", "float32")],
)
def test_fastcse_passes_its_own_rule_on_the_gpus_kernels(what, dtype):
    problem = small(what, dtype=dtype, n=48, iterations=2, backend="triton")
    result = measure(problem, ["fastcse", "torch chunked"], repeat=1, memory=False)
    assert result.backend == "triton"
    assert {row.status for row in result.rows} == {"measured"}


def test_faiss_takes_all_points_and_iterates_as_often_as_asked(monkeypatch):
    faiss, made = pytest.importorskip("faiss"), []
    plain = faiss.Kmeans
    monkeypatch.setattr(faiss, "Kmeans", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    problem = small(n=3000, m=2, d=4, iterations=4, device="cpu")  # 1500 of a cluster, where FAISS by default takes 256
    CLUSTERS.prepare(PROVIDERS["FAISS"], problem, None, make_inputs(problem))()
    assert len(made[-1].obj) == 4
    assert made[-1].cp.max_points_per_centroid == 3000


def test_scikit_learn_beside_faiss_and_torch_says_nothing(tmp_path):
    """OpenBLAS writes thousands of lines from C, past sys.stderr."""
    for module in ("sklearn", "faiss"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "fastcse.cli", "bench", "kmeans", "--device", "cpu", "--n", "20000", "--k",
               "210", "--d", "16", "--what", "assignment,iteration", "--repeat", "1", "--no-memory", "--peers",
               "FAISS,scikit-learn,torch chunked"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "OpenBLAS" not in done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert done.stdout.count("scikit-learn ") >= 2


@pytest.mark.parametrize("provider", cuda.PROVIDERS, ids=lambda provider: provider.name)
def test_what_is_not_installed_or_not_suitable_says_why(monkeypatch, provider):
    row = measure(small("assignment"), [provider.name], repeat=1, memory=False).row(provider.name)
    if provider.missing():
        assert (row.status, row.reason) == ("absent", provider.missing())
        assert provider.install in row.reason
    if DEVICE == "cpu":
        monkeypatch.setattr(Provider, "missing", lambda self: None)
        row = measure(small("iteration"), [provider.name], repeat=1, memory=False).row(provider.name)
        assert (row.status, row.reason) == ("unsuitable", "runs on CUDA only")


# The frame


@every_what
def test_the_limit_is_the_products_as_often_as_they_are_needed(monkeypatch, what):
    problem, shapes, plain = small(what), [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: shapes.append((*a.shape, b.shape[1])) or plain(a, b, **more))
    CLUSTERS.limit(problem)(*make_inputs(problem))
    assert shapes == [(70, 16, 6)] * (4 if what == "iteration" else 1)


def test_what_is_handed_back_is_nobodys_memory():
    labels, centroids = 8 * 70, 4 * 6 * 16
    for what, size in (("assignment", labels), ("update", centroids), ("iteration", labels + centroids)):
        assert CLUSTERS.output_bytes(small(what), ()) == size


def test_memory_is_weighed_by_the_matrix_of_all_pairs(monkeypatch):
    weighed = []
    monkeypatch.setattr(frame, "extra_memory", lambda problem, name, choice: weighed.append(problem.n) or 1.0)
    monkeypatch.setattr(frame, "SMALLEST_WEIGHED", 20)
    measure(small("update", m=5), ["torch chunked"], repeat=1)  # 350 pairs
    assert not weighed
    result = measure(small("update", m=6), ["torch chunked"], repeat=1)  # 420
    assert result.row("torch chunked").extra_mib == 1.0


@every_what
def test_a_wrong_answer_is_not_reported(monkeypatch, what):
    right = lambda outcome: outcome  # noqa: E731
    far = lambda outcome: outcome._replace(centroids=outcome.centroids * 1.05)  # noqa: E731

    def one_label(outcome):
        labels = outcome.labels.clone()
        labels[0] = (labels[0] + 1) % 6
        return outcome._replace(labels=labels)

    plant(monkeypatch, right)
    measure(small(what), ["fastcse"], repeat=1, memory=False)
    plant(monkeypatch, far)
    with pytest.raises(WrongClusters, match=r"inertia is off by .* nothing is reported"):
        measure(small(what), ["fastcse"], repeat=1, memory=False)
    if what != "update":
        monkeypatch.setattr("fastcse.bench.clusters.subject.BOUNDS", (1.0, 0.999))
        plant(monkeypatch, one_label)
        with pytest.raises(WrongClusters, match=r"of fastcse.s labels are float64.s, less than 0\.999"):
            measure(small(what), ["fastcse"], repeat=1, memory=False)


def test_a_failure_of_ours_is_not_reported_and_a_peers_is(monkeypatch):
    def broken(problem, *inputs):
        raise RuntimeError("broken")

    monkeypatch.setitem(PROVIDERS, "FAISS", Provider("FAISS", broken))
    assert measure(small(), ["fastcse", "FAISS"], repeat=1, memory=False).row("FAISS").reason == "RuntimeError: broken"
    monkeypatch.setitem(PROVIDERS, "fastcse", Provider("fastcse", broken))
    with pytest.raises(WrongClusters, match="fastcse failed at kmeans iteration, N = 70, K = 6, D = 16"):
        measure(small(), ["fastcse"], repeat=1, memory=False)


def test_rounded_centroids_may_move_more_points():
    assert bounds(small(dtype="bfloat16")) == ROUNDED_BOUNDS
    for exact in (small(), small("assignment", dtype="bfloat16"), small("update", dtype="bfloat16")):
        assert bounds(exact) == BOUNDS


# The command


def call(*arguments):
    size = ("--n", "70", "--k", "6", "--d", "16", "--repeat", "1", "--no-memory")
    return CliRunner().invoke(app, ["bench", "kmeans", "--device", DEVICE, *size, *map(str, arguments)])


def test_the_command_writes_json_csv_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "rounds", lambda problem, repeat: repeat)
    files = {name: tmp_path / f"k.{name}" for name in ("json", "csv", "png")}
    done = call("--d", "8,16", "--metric", "euclidean,cosine", "--dtype", "float32", "--peers", "torch chunked",
                "--output", files["json"], "--csv", files["csv"], "--plot", files["png"], "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    made = json.loads(files["json"].read_text())
    assert json.loads(done.stdout)["results"] == made["results"]
    assert {(r["what"], r["metric"], r["d"]) for r in made["results"]} == {
        (what, metric, d) for what in WHATS for metric in ("euclidean", "cosine") for d in (8, 16)
    }
    for result in made["results"]:
        names = [row["provider"] for row in result["rows"] if row["status"] == "measured"]
        assert names == ["bare products", "fastcse", "torch chunked"]
    assert files["csv"].read_text().count("inertia error") == 2 * len(made["results"])
    assert files["png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--what", "fit"), "--what is 'fit': expected one of assignment, update, iteration"),
        (("--metric", "l2"), "--metric is 'l2'"),
        (("--k", 71), "--k is 71 and --n is 70: expected at most as many clusters as points"),
        (("--iterations", 0), "--iterations is 0: expected at least 1"),
        (("--peers", "cuML"), "--peers is 'cuML'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says):
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]
