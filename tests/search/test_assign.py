"""assign and cluster_sums against float64 loops on every backend: ties, rows that are not finite, sizes, arguments."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import LAYOUTS
from cluster_oracle import EPSILON, TINY, assert_nearest, nearest, sums
from conftest import DEVICE

import fastcse

pytestmark = pytest.mark.interpreted_by_value
METRICS = ("cosine", "euclidean")
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture
def find(forced, device):
    """(N, 1 or 2) index and value on the CPU, of arguments put on the device; the form is checked on the way."""

    def go(points, centroids, metric, *, second=False):
        got = forced(fastcse.assign, points.to(device), centroids.to(device), second=second, metric=metric)
        assert isinstance(got, fastcse.Assignment)
        assert got._fields == ("index", "value")
        assert got.index.shape == got.value.shape == ((len(points), 2) if second else (len(points),))
        assert got.index.dtype == torch.int64
        assert got.value.dtype == (torch.float64 if points.dtype == torch.float64 else torch.float32)
        assert got.index.device == got.value.device == points.to(device).device
        assert not got.value.requires_grad
        index, value = got.index.cpu(), got.value.cpu()
        return (index, value) if second else (index[:, None], value[:, None])

    return go


@pytest.fixture
def check(find, backend):
    """Runs with and without the second nearest and holds both to the oracle; returns the (N, 2) of the second. The
    interpreter takes many points one way or the other."""

    def go(points, centroids, metric, *, roughly=backend == "triton"):
        if backend == "triton" and DEVICE == "cpu" and len(points) > 60 and len(centroids) % 2 == 0:
            two = find(points, centroids, metric, second=True)
            assert_nearest(*two, points, centroids, metric, roughly)
            return two
        one = find(points, centroids, metric)
        assert_nearest(*one, points, centroids, metric, roughly)
        if len(centroids) == 1 or (backend == "triton" and DEVICE == "cpu" and len(points) > 60):
            return one
        two = find(points, centroids, metric, second=True)
        assert_nearest(*two, points, centroids, metric, roughly)
        above = (one[1] > TINY) | (one[1] == 0) if metric == "euclidean" else one[0] >= 0
        assert torch.equal(two[0][:, :1][above], one[0][above]), "the nearest is another one where two are asked for"
        assert_same_bits(two[1][:, :1][above], one[1][above])
        return two

    return go


@pytest.fixture
def rows(backend):
    """Points of a test: the interpreter takes milliseconds for each. From 64 on the C++ products may be rough."""
    return 4 if backend == "triton" else 70


def assert_same_bits(one, two):
    np.testing.assert_array_equal(one.cpu().numpy(), two.cpu().numpy())


# ---------------------------------------------------------------- nearest centroids

SHAPES = [
    (1, 1, 1), (1, 129, 64), (1, 15, 96), (2, 2, 3), (2, 33, 96), (63, 15, 17), (63, 17, 1), (64, 16, 64), (64, 129, 3),
    (64, 2, 1), (65, 17, 96), (65, 1, 17), (130, 33, 64), (130, 16, 3), (130, 129, 96),
]  # fmt: skip


@every_metric
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(check, shape, metric):
    n, k, d = shape
    check(torch.randn(n, d), torch.randn(k, d), metric)


@every_metric
def test_points_that_are_centroids_find_themselves(check, metric):
    centroids = torch.randn(40, 24)
    order = torch.randperm(40)
    index, value = check(centroids[order], centroids, metric)
    assert index[:, 0].tolist() == order.tolist()
    torch.testing.assert_close(value[:, 0], torch.full((40,), float(metric == "cosine")), rtol=1e-6, atol=1e-6)
    if metric == "euclidean":
        assert (value[:, 0] == 0).all()
        assert not torch.signbit(value[:, 0]).any(), "-0 is no distance"


@every_metric
@pytest.mark.parametrize(
    "places", [(0, 1), (3, 4, 19), (14, 15, 16, 17), (40, 127, 128), (15, 31, 47), (126, 134)], ids=str
)
def test_equal_centroids_go_to_the_lowest_index(check, rows, metric, places):
    centroids = -torch.eye(5)[torch.arange(135) % 5]
    centroids[list(places)] = torch.tensor([1.0, 2, 0, 0, 0])
    points = torch.tensor([[1.0, 2, 0, 0, 0], [2, 3, 0, 0, 0]]).repeat(rows // 2, 1)
    index, value = check(points, centroids, metric)
    assert index.tolist() == [list(places[:2])] * rows
    assert (value[:, 0] == value[:, 1]).all()


@every_metric
def test_ties_of_small_integers(find, metric):
    # Products and distances are exact in every type; so are cosines of unit rows.
    points, centroids = torch.randint(-1, 2, (70, 4)).float(), torch.randint(-1, 2, (133, 4)).float()
    if metric == "cosine":
        points, centroids = (
            torch.eye(4)[torch.arange(70) % 4],
            torch.cat([torch.eye(4), -torch.eye(4)])[torch.randint(0, 8, (133,))],
        )
    index, value = find(points, centroids, metric, second=True)
    best, best_value = nearest(points, centroids, 2, metric)
    np.testing.assert_array_equal(index.numpy(), best)
    np.testing.assert_array_equal(value.numpy(), best_value)


@every_metric
def test_all_centroids_are_equal(check, rows, metric):
    index, value = check(torch.randn(rows, 12), torch.randn(1, 12).repeat(70, 1), metric)
    assert (index == torch.tensor([0, 1])).all()
    assert torch.equal(value[:, 0], value[:, 1])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e-10])
def test_zero_rows_have_cosine_zero_with_all(check, rows, size):
    # The nearest by direction is the last: who forgets that the row counts as zero finds that.
    points = torch.cat([size * torch.ones(rows, 4), torch.ones(1, 4)])
    centroids = torch.cat([torch.eye(4), torch.ones(1, 4)]) * torch.linspace(1, 2, 5)[:, None]
    index, value = check(points, centroids, "cosine")
    assert index.tolist() == [[0, 1]] * rows + [[4, 0]]
    assert (value[:rows] == 0).all()
    index, value = check(torch.ones(1, 4), torch.cat([-torch.eye(4), size * torch.ones(2, 4)]), "cosine")
    assert index.tolist() == [[4, 5]]
    assert (value == 0).all()


def test_zero_rows_have_a_distance(check):
    index, value = check(torch.zeros(2, 3), torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 2, 0]]), "euclidean")
    assert index.tolist() == [[1, 0]] * 2
    assert value.tolist() == [[0, 3]] * 2


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_that_are_not_finite(check, metric, dtype):
    points, centroids = torch.randn(70, 9), torch.randn(90, 9)
    for rows, places in ((points, (0, 20, 69)), (centroids, (0, 33, 89))):
        for place, bad in zip(places, (torch.nan, torch.inf, -torch.inf)):
            rows[place, place % 9] = bad
    points[31], centroids[50] = torch.inf, -torch.inf
    points[40], centroids[7] = 0, 0  # infinity times nothing must not pass for a number
    index, value = check(points.to(dtype), centroids.to(dtype), metric)
    lost = torch.zeros(70, dtype=torch.bool)
    lost[[0, 20, 31, 69]] = True
    assert (index[lost] == -1).all()
    assert value[lost].isnan().all()
    assert (index[~lost] >= 0).all()
    assert not np.isin(index, [0, 33, 50, 89]).any()


@every_metric
@pytest.mark.parametrize("width", [9, 64])
def test_a_point_that_is_not_finite_is_nobody_elses_matter(find, backend, metric, width):
    n = 19 if backend == "triton" else 70
    points, centroids = torch.randn(n, width), torch.randn(90, width)
    clean = find(points, centroids, metric)
    # First and last columns of even and odd rows: what reads past a row's end finds its neighbour's.
    bad = [4, 8, 11, 14, 17]
    points[bad, [2, 0, 0, -1, -1]] = torch.tensor([torch.nan, torch.inf, torch.nan, torch.nan, -torch.inf])
    others = ~torch.isin(torch.arange(n), torch.tensor(bad))
    for one, two in zip(find(points, centroids, metric), clean):
        assert torch.equal(one[others], two[others])


@every_metric
def test_a_centroid_that_is_not_finite_is_nobody_elses_matter(find, rows, metric):
    points, centroids = torch.randn(rows, 9), torch.randn(40, 9)
    clean = find(points, torch.cat([centroids[:20], centroids[21:]]), metric, second=True)
    centroids[20] = torch.inf
    index, value = find(points, centroids, metric, second=True)
    assert torch.equal(index - (index > 20).long(), clean[0])
    torch.testing.assert_close(value, clean[1], rtol=1e-6, atol=1e-6)


@every_metric
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_no_centroid_or_only_one_is_finite(check, rows, metric, bad):
    centroids = torch.full((37, 5), bad)
    index, value = check(torch.randn(rows, 5), centroids, metric)
    assert (index == -1).all()
    assert value.isnan().all()
    for place in (0, 20, 36):
        alone = centroids.clone()
        alone[place] = torch.randn(5)
        assert (check(torch.randn(rows, 5), alone, metric)[0] == torch.tensor([place, -1])).all()


@every_metric
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(find, rows, metric, layout):
    points, centroids = torch.randn(rows, 7), torch.randn(40, 7)
    got = find(LAYOUTS[layout](points), LAYOUTS[layout](centroids), metric, second=True)
    plain = find(points, centroids, metric, second=True)
    assert torch.equal(got[0], plain[0])
    torch.testing.assert_close(got[1], plain[1], rtol=1e-6, atol=1e-6)
    expanded = find(points[:1].expand(rows, 7), centroids, metric)
    assert torch.equal(expanded[0], plain[0][:1, :1].expand(rows, 1))


@every_metric
@pytest.mark.parametrize("beside", ["half", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(check, rows, metric, dtype, beside):
    centroids = torch.randn(90, 33)
    check(torch.randn(rows, 33).to(dtype), centroids.to(dtype) if beside == "half" else centroids, metric)


@every_metric
def test_float64_is_not_rounded(device, metric):
    angle = torch.tensor([0.5, 2e-6, 1e-6, 3e-6], dtype=torch.float64, device=device)
    centroids = torch.stack([angle.cos(), angle.sin()], 1)
    points = torch.tensor([[1.0, 0.0]], dtype=torch.float64, device=device)
    got = fastcse.assign(points, centroids, second=True, metric=metric)
    assert fastcse.last_backend() == "reference"
    assert got.index.tolist() == [[2, 1]]
    assert got.value.dtype == torch.float64


@every_metric
@pytest.mark.parametrize("offset", [30.0, 1e3])
def test_rows_that_differ_little(check, rows, metric, offset):
    check(offset + torch.randn(rows, 24), offset + torch.randn(90, 24), metric)


@every_metric
@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e6, 1e15])
def test_long_and_short_rows(check, rows, metric, size):
    check(size * torch.randn(rows, 12), size * torch.randn(90, 12), metric)
    check(size * torch.randn(rows, 12), torch.randn(90, 12), metric)
    check(torch.randn(rows, 12), size * torch.randn(90, 12), metric)


@every_metric
def test_rows_of_every_length_at_once(check, rows, metric):
    lengths = 10.0 ** torch.linspace(-7, 15, 100)[torch.randperm(100), None]
    check(torch.randn(rows, 12), lengths * torch.randn(100, 12), metric)
    check((lengths * torch.randn(100, 12))[: rows + 8], torch.randn(70, 12), metric)


# ---------------------------------------------------------------- sums


def assert_sums(got, points, index, clusters, normalize):
    total, count, size = sums(points, index, clusters, normalize)
    assert isinstance(got, fastcse.ClusterSums)
    assert got._fields == ("sums", "counts")
    assert got.sums.dtype == (torch.float64 if points.dtype == torch.float64 else torch.float32)
    assert got.counts.dtype == torch.int64
    np.testing.assert_array_equal(got.counts.cpu().numpy(), count)
    error = np.abs(got.sums.cpu().double().numpy() - total)
    # One rounding of the sum; of unit rows each is rounded first.
    terms = (points.shape[1] + 8) * EPSILON if normalize else 2.0**-44
    allowed = 2 * EPSILON * np.abs(total) + terms * size
    assert (error <= allowed).all(), f"error {error.max()}, where {allowed.reshape(-1)[error.argmax()]} is allowed"


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s != (130, 129, 96)] + [(40, 3, 300)], ids=str)
def test_sums_of_any_shape(forced, device, shape, normalize):
    n, k, d = shape
    points, index = torch.randn(n, d), torch.randint(-1, k, (n,))
    got = forced(fastcse.cluster_sums, points.to(device), index.to(device), k, normalize=normalize)
    assert got.sums.shape == (k, d)
    assert_sums(got, points, index, k, normalize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
def test_empty_clusters_and_points_of_none(forced, device, dtype, normalize):
    points = torch.randn(50, 6).to(dtype)
    points[[3, 9]] = torch.tensor([torch.nan, torch.inf], dtype=dtype)[:, None]
    points[5] = 0
    index = torch.randint(0, 7, (50,))
    index[index == 4] = 2
    index[[3, 9, 20]] = -1
    index[5] = 1
    got = forced(fastcse.cluster_sums, points.to(device), index.to(device), 9, normalize=normalize)
    assert got.counts[[4, 7, 8]].tolist() == [0, 0, 0]
    assert (got.sums[[4, 7, 8]] == 0).all()
    points[[3, 9]] = 0
    assert_sums(got, points, index, 9, normalize)
    none = forced(fastcse.cluster_sums, points.to(device), torch.full_like(index, -1).to(device), 3)
    assert none.counts.tolist() == [0, 0, 0]
    assert (none.sums == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_point_that_is_not_finite_spoils_its_own_cluster_only(forced, device, bad):
    points, index = torch.randn(30, 5), torch.arange(30) % 3
    points[4, 2] = bad
    got = forced(fastcse.cluster_sums, points.to(device), index.to(device), 3)
    assert not torch.isfinite(got.sums[1, 2])
    points[4, 2] = 0
    good = torch.tensor([0, 2])
    expected = torch.tensor(sums(points, index, 3, False)[0]).float()
    torch.testing.assert_close(got.sums.cpu()[good], expected[good], rtol=1e-6, atol=1e-6)


def test_a_large_cluster_keeps_its_digits(forced, device, backend):
    n = 600 if backend == "triton" else 200_000
    points = torch.rand(n, 2) + 1000
    points[0] = 1e7
    index = torch.zeros(n, dtype=torch.int64)
    assert_sums(forced(fastcse.cluster_sums, points.to(device), index.to(device), 1), points, index, 1, False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_any_strides(forced, device, layout):
    points, index = torch.randn(20, 7), torch.randint(-1, 4, (20,))
    strided = index.repeat_interleave(2)[::2].to(device)
    for normalize in (False, True):
        got = forced(fastcse.cluster_sums, LAYOUTS[layout](points.to(device)), strided, 4, normalize=normalize)
        assert_sums(got, points, index, 4, normalize)


def test_sums_of_float64(device):
    points, index = torch.randn(50, 3, dtype=torch.float64, device=device), torch.arange(50, device=device) % 4
    got = fastcse.cluster_sums(points, index, 4)
    assert got.sums.dtype == torch.float64
    np.testing.assert_allclose(got.sums.cpu().numpy(), sums(points, index, 4, False)[0], rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------- the same bits


@every_metric
def test_twice_the_same_bits(forced, device, backend, metric):
    n, k = (40, 20) if backend == "triton" else (3000, 300)
    points, centroids = torch.randn(n, 24, device=device), torch.randn(k, 24, device=device)
    one, two = (forced(fastcse.assign, points, centroids, second=True, metric=metric) for _ in range(2))
    assert torch.equal(one.index, two.index)
    assert_same_bits(one.value, two.value)
    cosine = metric == "cosine"
    one, two = (forced(fastcse.cluster_sums, points, one.index[:, 0], k, normalize=cosine) for _ in range(2))
    assert_same_bits(one.sums, two.sums)


def test_nothing_is_written_to_and_nothing_learns(forced, device):
    points, centroids = torch.randn(66, 5, device=device), torch.randn(9, 5, device=device)
    index = torch.randint(-1, 9, (66,), device=device)
    given = points, centroids, index
    copies, versions = [x.clone() for x in given], [x._version for x in given]
    points.requires_grad_()
    centroids.requires_grad_()
    for metric in METRICS:
        assert not forced(fastcse.assign, points, centroids, metric=metric).value.requires_grad
    for normalize in (False, True):
        assert not forced(fastcse.cluster_sums, points, index, 9, normalize=normalize).sums.requires_grad
    for x, copy, version in zip(given, copies, versions):
        assert torch.equal(x, copy)
        assert x._version == version


@pytest.mark.parametrize("second", [False, True], ids=["one", "two"])
def test_compile(device, backend, second):
    centroids = torch.randn(9, 6, device=device)

    def function(points, centroids):
        found = fastcse.assign(2 * points, centroids, second=second, backend=backend)
        label = found.index[:, 0] if second else found.index
        total = fastcse.cluster_sums(points, label, 9, normalize=True, backend=backend)
        return found.value + 1, found.index, total.sums * 2, total.counts

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (5, 8):
        points = torch.randn(n, 6, device=device)
        got = compiled(points, centroids)
        assert fastcse.last_backend() == backend
        for one, two in zip(got, function(points, centroids)):
            assert one.dtype == two.dtype
            torch.testing.assert_close(one, two)


# ---------------------------------------------------------------- the C++ module's own ways

clusters = sys.modules["fastcse.native.kmeans"] if fastcse.backends()["cpp"].available else None
on_cpu = pytest.mark.skipif(clusters is None or DEVICE != "cpu", reason="needs the C++ module: the lane that builds it")


@pytest.fixture
def module():
    """The compiled module, with its instruction set and the number of threads put back afterwards."""
    isa, threads = clusters._C.isa(), torch.get_num_threads()
    yield clusters._C
    clusters._C.use(isa)
    torch.set_num_threads(threads)


def misleading(kind):
    """Points and centroids that rough products cannot tell apart, or can, or that tie."""
    if kind == "offset":
        return 1e3 + torch.randn(150, 40), 1e3 + torch.randn(75, 40)
    if kind == "integers":
        return torch.randint(-1, 2, (150, 5)).float(), torch.randint(-1, 2, (133, 5)).float()
    if kind == "far":  # distances are rounded by more than they differ
        return 1e6 * torch.randn(150, 12), torch.randn(75, 12)
    if kind == "near":
        centroids = torch.randn(75, 40)
        return centroids.repeat(2, 1) * (1 + 1e-3 * torch.randn(150, 40)), centroids
    if kind == "twins":
        centroids = torch.randn(40, 17)
        return torch.randn(150, 17), torch.cat([centroids, centroids * (1 + 1e-6 * torch.randn(40, 17)), centroids])
    return torch.randn(150, 33), torch.randn(131, 33)


KINDS = ("random", "offset", "integers", "near", "twins", "far")


def cpp(points, centroids, metric, second=True):
    got = fastcse.assign(points, centroids, second=second, metric=metric, backend="cpp")
    return (got.index, got.value) if second else (got.index[:, None], got.value[:, None])


@on_cpu
@every_metric
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", clusters._C.usable() if clusters else ())
def test_every_way_gives_the_same_bits(module, monkeypatch, isa, kind, metric):
    """Instruction sets may add in another order; products, pieces and threads may not change a bit."""
    can = clusters.multiplies_half()
    points, centroids = misleading(kind)
    module.use(isa)
    monkeypatch.setattr(clusters, "multiplies_half", lambda: False)
    plain = cpp(points, centroids, metric)
    assert_nearest(*plain, points, centroids, metric)
    pieces = ({}, {"MOST_ROWS": 64}, {"PIECE_BYTES": 1}, {"MOST_ROWS": 64, "CROWDED": 0.0}, {"MOST_ROWS": 7})
    for half, way in product([True, False] if can else [False], pieces):
        monkeypatch.setattr(clusters, "multiplies_half", lambda half=half: half)
        with monkeypatch.context() as patch:
            for name, value in way.items():
                patch.setattr(clusters, name, value)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for one, two in zip(cpp(points, centroids, metric), plain):
                    assert_same_bits(one, two)
                for one, two in zip(cpp(points, centroids, metric, second=False), plain):
                    assert_same_bits(one, two[:, :1])


@on_cpu
def test_rows_that_bfloat16_cannot_tell_apart_are_multiplied_in_float32(monkeypatch):
    """CROWDED: after a piece of which most had to be scored from the rows."""
    if not clusters.multiplies_half():
        pytest.skip("needs a processor that multiplies bfloat16 (AMX)")
    seen, mm = [], torch.mm

    def watched(a, b, *, out):
        seen.append(a.dtype)
        return mm(a, b, out=out)

    monkeypatch.setattr(clusters, "MOST_ROWS", 50)
    monkeypatch.setattr(torch, "mm", watched)
    cpp(*misleading("offset"), "euclidean")
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
    seen.clear()
    # Centroids at right angles: nothing needs a second look.
    cpp(torch.eye(75).repeat(2, 1), torch.eye(75), "euclidean", second=False)
    assert seen == [torch.bfloat16] * 3


@on_cpu
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
def test_sums_do_not_depend_on_the_threads(module, normalize):
    points, index = torch.randn(3000, 300), torch.randint(-1, 20, (3000,))
    torch.set_num_threads(1)
    plain = fastcse.cluster_sums(points, index, 20, normalize=normalize, backend="cpp")
    assert_sums(plain, points, index, 20, normalize)
    torch.set_num_threads(2)
    assert_same_bits(fastcse.cluster_sums(points, index, 20, normalize=normalize, backend="cpp").sums, plain.sums)


WEIGHED = """
import sys, torch, fastcse
from fastcse.bench.memory import peak_of_process
module = sys.modules["fastcse.native.kmeans"]
points, centroids = torch.randn(20_000, 32), torch.randn(4096, 32)
can = module.multiplies_half()
for half in ([True, False] if can else [False]):
    module.multiplies_half = lambda: half
    fastcse.assign(points[:2000], centroids, second=True, backend="cpp")
    for metric in ("cosine", "euclidean"):
        print(peak_of_process(lambda: fastcse.assign(points, centroids, second=True, metric=metric, backend="cpp")))
index = fastcse.assign(points, centroids).index
fastcse.cluster_sums(points[:2000], index[:2000], 4096, backend="cpp")
print(peak_of_process(lambda: fastcse.cluster_sums(points, index, 4096, normalize=True, backend="cpp")))
"""


@on_cpu
def test_memory_stays_far_below_the_matrix():
    # 20,000 x 4,096 float32 is 312 MiB.
    root = Path(fastcse.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", WEIGHED], env=dict(os.environ), capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    if "None" in done.stdout:
        pytest.skip("this system does not tell the peak of a process")
    for line in done.stdout.split():
        assert int(line) < 40 * 2**20, f"{int(line) / 2**20:.0f} MiB"


# ---------------------------------------------------------------- arguments

R = torch.randn
ASSIGN = {
    "no points": ((R(0, 3), R(4, 3)), {}, "points", r"\(0, 3\)"),
    "no centroids": ((R(4, 3), R(0, 3)), {}, "centroids", r"\(0, 3\)"),
    "no columns": ((R(4, 0), R(4, 0)), {}, "points", r"\(4, 0\)"),
    "one dimension": ((R(11), R(4, 3)), {}, "points", "11"),
    "centroids of one dimension": ((R(4, 3), R(13)), {}, "centroids", "13"),
    "an array": ((np.ones((4, 3)), R(4, 3)), {}, "points", "ndarray"),
    "integers": ((torch.ones(4, 3, dtype=torch.int64), R(4, 3)), {}, "points", "int64"),
    "widths": ((R(4, 3), R(5, 17)), {}, "centroids", r"(?s)3.*17|17.*3"),
    "one of float64": ((R(4, 3), R(4, 3).double()), {}, "centroids", r"(?s)float64.*float32"),
    "the other of float64": ((R(4, 3).double(), R(4, 3)), {}, "centroids", r"(?s)float32.*float64"),
    "devices": ((R(4, 3), R(4, 3, device="meta")), {}, "centroids", r"(?s)cpu.*meta|meta.*cpu"),
    "metric": ((R(4, 3), R(4, 3)), {"metric": "manhattan"}, "metric", "(?s)cosine.*euclidean.*manhattan"),
    "second of one": ((R(4, 3), R(1, 3)), {"second": True}, "second", "(?s)2.*1"),
    "backend": ((R(4, 3), R(4, 3)), {"backend": "cuda_magic"}, "backend", "(?s)triton.*cuda_magic"),
    "float64 by force": ((R(4, 3).double(), R(4, 3).double()), {"backend": "cpp"}, "points", "(?s)cpp.*float64"),
}
SUMS = {
    "no points": ((R(0, 3), torch.arange(0), 3), {}, "points", r"\(0, 3\)"),
    "one dimension": ((R(11), torch.arange(11), 3), {}, "points", "11"),
    "integers": ((torch.ones(4, 3, dtype=torch.int64), torch.arange(4), 4), {}, "points", "int64"),
    "index length": ((R(4, 3), torch.arange(13), 3), {}, "index", r"(?s)4.*13"),
    "index shape": ((R(4, 3), torch.zeros(4, 1, dtype=torch.int64), 3), {}, "index", r"(?s)4.*\(4, 1\)"),
    "index dtype": ((R(4, 3), torch.arange(4).int(), 4), {}, "index", "(?s)int64.*int32"),
    "index of a list": ((R(4, 3), [0, 1, 2, 3], 4), {}, "index", "(?s)4.*list"),
    "index device": ((R(4, 3), torch.arange(4, device="meta"), 4), {}, "index", "(?s)meta.*cpu"),
    "no clusters": ((R(4, 3), torch.arange(4), 0), {}, "n_clusters", "(?s)1.*0"),
    "half a cluster": ((R(4, 3), torch.arange(4), 2.5), {}, "n_clusters", "(?s)1.*2.5"),
    "backend": ((R(4, 3), torch.arange(4), 4), {"backend": "cuda_magic"}, "backend", "(?s)triton.*cuda_magic"),
    "float64 by force": ((R(4, 3).double(), torch.arange(4), 4), {"backend": "cpp"}, "points", "(?s)cpp.*float64"),
}


@pytest.mark.parametrize("name", ASSIGN)
def test_bad_arguments_of_assign_are_value_errors_that_name_both_values(name):
    arguments, options, argument, values = ASSIGN[name]
    with pytest.raises(ValueError, match=values) as caught:
        fastcse.assign(*arguments, **options)
    assert argument in str(caught.value)


@pytest.mark.parametrize("name", SUMS)
def test_bad_arguments_of_cluster_sums_are_value_errors_that_name_both_values(name):
    arguments, options, argument, values = SUMS[name]
    with pytest.raises(ValueError, match=values) as caught:
        fastcse.cluster_sums(*arguments, **options)
    assert argument in str(caught.value)
