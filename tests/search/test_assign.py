"""assign and cluster_sums against float64 loops on every backend: sizes, ties, rows that are not finite, types."""

import sys
from itertools import product

import numpy as np
import pytest
import torch
from cluster_oracle import EPSILON, TINY, assert_nearest, nearest, sums
from conftest import DEVICE

import fastcse

METRICS = ("cosine", "euclidean")
every_metric = pytest.mark.parametrize("metric", METRICS)
each_way = pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def find(forced, device):
    """(N, 1 or 2) index and value on the CPU, of arguments put on the device; the form is checked on the way."""

    def go(points, centroids, metric, *, second=False):
        got = forced(fastcse.assign, points.to(device), centroids.to(device), second=second, metric=metric)
        assert isinstance(got, fastcse.Assignment)
        assert got._fields == ("index", "value")
        assert got.index.shape == got.value.shape == ((len(points), 2) if second else (len(points),))
        assert got.index.dtype == torch.int64
        assert got.value.dtype == (DOUBLE if points.dtype == DOUBLE else SINGLE)
        assert got.index.device == got.value.device == points.to(device).device
        return tuple(x.cpu().reshape(len(points), -1) for x in got)

    return go


@pytest.fixture
def check(find, backend):
    """Runs with and without the second nearest and holds both to the oracle; returns the (N, 2) of the second. The
    interpreter takes many points one way or the other."""

    def go(points, centroids, metric, *, roughly=backend == "triton"):
        slow = backend == "triton" and DEVICE == "cpu" and len(points) > 40
        found = []
        for second in (False, True):
            if (second and len(centroids) == 1) or (slow and second != (len(centroids) % 2 == 0)):
                continue
            found.append(find(points, centroids, metric, second=second))
            assert_nearest(*found[-1], points, centroids, metric, roughly)
        one, two = found[0], found[-1]
        above = (one[1] > TINY) | (one[1] == 0) if metric == "euclidean" else one[0] >= 0
        above = above[:, :1]
        assert torch.equal(two[0][:, :1][above], one[0][:, :1][above]), "another nearest where two are asked for"
        assert_same_bits(two[1][:, :1][above], one[1][:, :1][above])
        return two

    return go


@pytest.fixture
def rows(backend):
    """Points of a test: the interpreter takes milliseconds for each. From 64 on the C++ products may be rough."""
    return 4 if backend == "triton" else 70


def assert_same_bits(one, two):
    np.testing.assert_array_equal(one.cpu().numpy(), two.cpu().numpy())


# ---------------------------------------------------------------- nearest centroids

EDGES = [(1, 1, 1), (1, 33, 64), (33, 31, 17), (34, 65, 33)]  # of the interpreter's tiles
SHAPES = [
    (1, 129, 64), (1, 15, 96), (2, 2, 3), (2, 33, 96), (63, 15, 17), (63, 17, 1), (64, 16, 64), (64, 129, 3),
    (64, 2, 1), (65, 17, 96), (65, 1, 17), (130, 33, 64), (130, 16, 3), (130, 129, 96),
    *(pytest.param(shape, marks=pytest.mark.interpreted) for shape in EDGES),
]  # fmt: skip


@every_metric
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(check, shape, metric):
    n, k, d = shape
    check(torch.randn(n, d), torch.randn(k, d), metric)


@every_metric
@pytest.mark.interpreted
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
    "places", [(0, 1), (3, 4, 19), (14, 15, 16, 17), (40, 127, 128), (15, 31, 47), (126, 134), range(135)], ids=str
)
@pytest.mark.interpreted_by_value
def test_equal_centroids_go_to_the_lowest_index(check, rows, metric, places):
    centroids = -torch.eye(5)[torch.arange(135) % 5]
    centroids[list(places)] = torch.tensor([1.0, 2, 0, 0, 0])
    points = torch.tensor([[1.0, 2, 0, 0, 0], [2, 3, 0, 0, 0]]).repeat(rows // 2, 1)
    index, value = check(points, centroids, metric)
    assert index.tolist() == [list(places[:2])] * rows
    assert (value[:, 0] == value[:, 1]).all()


def small_integers(n, metric):
    """Products and distances are exact in every type; so are cosines of unit rows."""
    if metric == "cosine":
        eye = torch.eye(4)
        return eye[torch.arange(n) % 4], torch.cat([eye, -eye])[torch.randint(0, 8, (133,))]
    return torch.randint(-1, 2, (n, 4)).float(), torch.randint(-1, 2, (133, 4)).float()


@every_metric
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN], ids=str)
@pytest.mark.interpreted_by_value
def test_ties_of_small_integers_are_exact(find, rows, metric, dtype):
    points, centroids = small_integers(8 * rows, metric)
    index, value = find(points.to(dtype), centroids, metric, second=True)
    best, best_value = nearest(points, centroids, 2, metric)
    np.testing.assert_array_equal(index.numpy(), best)
    np.testing.assert_array_equal(value.numpy(), best_value)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e-10])
@pytest.mark.interpreted
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
    index, value = check(torch.zeros(2, 3), torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 2, 0]]), "euclidean")
    assert index.tolist() == [[1, 0]] * 2
    assert value.tolist() == [[0, 3]] * 2


@every_metric
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN], ids=str)
@pytest.mark.interpreted_by_value
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
@pytest.mark.interpreted
def test_what_is_not_finite_is_nobody_elses_matter(find, backend, metric, width):
    n = 19 if backend == "triton" else 70
    points, centroids = torch.randn(n, width), torch.randn(90, width)
    clean = find(points, centroids, metric, second=True)
    # First and last columns of even and odd rows: what reads past a row's end finds its neighbour's.
    bad = [4, 8, 11, 14, 17]
    points[bad, [2, 0, 0, -1, -1]] = torch.tensor([torch.nan, torch.inf, torch.nan, torch.nan, -torch.inf])
    others = ~torch.isin(torch.arange(n), torch.tensor(bad))
    more = torch.cat([centroids[:20], torch.full((1, width), torch.inf), centroids[20:]])
    index, value = find(points, centroids, metric, second=True)
    assert torch.equal(index[others], clean[0][others])
    assert torch.equal(value[others], clean[1][others])
    index, value = find(points, more, metric, second=True)
    assert torch.equal((index - (index > 20).long())[others], clean[0][others])
    torch.testing.assert_close(value[others], clean[1][others], rtol=1e-6, atol=1e-6)


@every_metric
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.interpreted_by_value
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
@pytest.mark.parametrize("types", [(HALF, HALF), (HALF, SINGLE), (BRAIN, BRAIN), (BRAIN, SINGLE)], ids=str)
@pytest.mark.interpreted_by_value
def test_half_precision(check, rows, metric, types):
    check(torch.randn(rows, 33).to(types[0]), torch.randn(90, 33).to(types[1]), metric)


@every_metric
def test_float64_is_not_rounded(device, metric):
    angle = torch.tensor([0.5, 2e-6, 1e-6, 3e-6], dtype=DOUBLE, device=device)
    points = torch.tensor([[1.0, 0.0]], dtype=DOUBLE, device=device)
    got = fastcse.assign(points, torch.stack([angle.cos(), angle.sin()], 1), second=True, metric=metric)
    assert fastcse.last_backend() == "reference"
    assert got.index.tolist() == [[2, 1]]
    assert got.value.dtype == DOUBLE
    points, index = torch.randn(50, 3, dtype=DOUBLE, device=device), torch.arange(50, device=device) % 4
    total = fastcse.cluster_sums(points, index, 4).sums
    assert total.dtype == DOUBLE
    np.testing.assert_allclose(total.cpu().numpy(), sums(points, index, 4, False)[0], rtol=1e-14, atol=1e-14)


@every_metric
@pytest.mark.interpreted
def test_rows_that_differ_little(check, rows, metric):
    for offset in (30.0, 1e3):
        check(offset + torch.randn(rows, 24), offset + torch.randn(90, 24), metric)


@every_metric
@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e6, 1e15])
@pytest.mark.interpreted_by_value
def test_long_and_short_rows(check, rows, metric, size):
    check(size * torch.randn(rows, 12), size * torch.randn(90, 12), metric)
    check(size * torch.randn(rows, 12), torch.randn(90, 12), metric)
    check(torch.randn(rows, 12), size * torch.randn(90, 12), metric)


@every_metric
@pytest.mark.interpreted
def test_rows_of_every_length_at_once(check, rows, metric):
    lengths = 10.0 ** torch.linspace(-7, 15, 100)[torch.randperm(100), None]
    check(torch.randn(rows, 12), lengths * torch.randn(100, 12), metric)
    check((lengths * torch.randn(100, 12))[: rows + 8], torch.randn(70, 12), metric)


# ---------------------------------------------------------------- sums


def assert_sums(got, points, index, clusters, normalize):
    total, count, size = sums(points, index, clusters, normalize)
    assert isinstance(got, fastcse.ClusterSums)
    assert got._fields == ("sums", "counts")
    assert got.sums.shape == (clusters, points.shape[1])
    assert (got.sums.dtype, got.counts.dtype) == (SINGLE, torch.int64)
    np.testing.assert_array_equal(got.counts.cpu().numpy(), count)
    error = np.abs(got.sums.cpu().double().numpy() - total)
    # One rounding of the sum; of unit rows each is rounded first.
    terms = (points.shape[1] + 8) * EPSILON if normalize else 2.0**-44
    allowed = 2 * EPSILON * np.abs(total) + terms * size
    assert (error <= allowed).all(), f"error {error.max()}, where {allowed.reshape(-1)[error.argmax()]} is allowed"


@pytest.fixture
def add(forced, device):
    return lambda points, index, *args, **options: forced(
        fastcse.cluster_sums, points.to(device), index.to(device), *args, **options
    )


@each_way
@pytest.mark.parametrize(
    "shape", [*SHAPES[:13], *SHAPES[14:], pytest.param((40, 3, 300), marks=pytest.mark.interpreted)], ids=str
)
def test_sums_of_any_shape(add, shape, normalize):
    n, k, d = shape
    points, index = torch.randn(n, d), torch.randint(-1, k, (n,))
    assert_sums(add(points, index, k, normalize=normalize), points, index, k, normalize)


@each_way
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN], ids=str)
@pytest.mark.interpreted_by_value
def test_empty_clusters_and_points_of_none(add, dtype, normalize):
    points = torch.randn(50, 6).to(dtype)
    points[[3, 9]] = torch.tensor([torch.nan, torch.inf], dtype=dtype)[:, None]
    points[5] = 0
    index = torch.randint(0, 7, (50,))
    index[index == 4] = 2
    index[[3, 9, 20]] = -1
    index[5] = 1
    got = add(points, index, 9, normalize=normalize)
    assert got.counts[[4, 7, 8]].tolist() == [0, 0, 0]
    assert (got.sums[[4, 7, 8]] == 0).all()
    points[[3, 9]] = 0
    assert_sums(got, points, index, 9, normalize)
    none = add(points, torch.full_like(index, -1), 3)
    assert none.counts.tolist() == [0, 0, 0]
    assert (none.sums == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.interpreted
def test_a_point_that_is_not_finite_spoils_its_own_cluster_only(add, bad):
    points, index = torch.randn(30, 5), torch.arange(30) % 3
    points[4, 2] = bad
    got = add(points, index, 3)
    assert not torch.isfinite(got.sums[1, 2])
    points[4, 2] = 0
    expected = torch.tensor(sums(points, index, 3, False)[0]).float()
    torch.testing.assert_close(got.sums.cpu()[[0, 2]], expected[[0, 2]], rtol=1e-6, atol=1e-6)


@pytest.mark.interpreted
def test_a_large_cluster_keeps_its_digits(add, backend):
    n = 600 if backend == "triton" else 200_000
    points, index = torch.rand(n, 2) + 1000, torch.zeros(n, dtype=torch.int64)
    points[0] = 1e7
    assert_sums(add(points, index, 1), points, index, 1, False)


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
@each_way
def test_sums_do_not_depend_on_the_threads(module, normalize):
    points, index = torch.randn(3000, 300), torch.randint(-1, 20, (3000,))
    torch.set_num_threads(1)
    plain = fastcse.cluster_sums(points, index, 20, normalize=normalize, backend="cpp")
    assert_sums(plain, points, index, 20, normalize)
    torch.set_num_threads(2)
    assert_same_bits(fastcse.cluster_sums(points, index, 20, normalize=normalize, backend="cpp").sums, plain.sums)
