"""KMeans: agreement with scikit-learn and with loops in float64, invariants, empty clusters, seeds, memory maps."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster_oracle import array, assert_nearest, lloyd, pairs, sums, unit
from conftest import BACKENDS, DEVICE

import fastcse
from fastcse import KMeans
from fastcse.reference import unit_rows

VECTORS = Path(__file__).parents[3] / "shared" / "data" / "vectors"
with_vectors = pytest.mark.skipif(
    not VECTORS.exists(), reason="needs ../shared/data/vectors, which is not in the repository"
)
every_metric = pytest.mark.parametrize("metric", ["euclidean", "cosine"])


@pytest.fixture
def fit(backend, device):
    """A fitted KMeans on the forced backend; the form of what it says is checked on the way."""

    def go(points, clusters, **options):
        metric = options.get("metric", "euclidean")
        kmeans = KMeans(clusters, backend=backend, **options)
        points = points.to(device) if isinstance(points, torch.Tensor) else points
        assert kmeans.fit(points) is kmeans
        assert fastcse.last_backend() == backend
        assert_form(kmeans, points, clusters, metric)
        return kmeans

    return go


@pytest.fixture
def rows(backend):
    """Points of a test: the interpreter takes milliseconds for each."""
    return 16 if backend == "triton" else 80


def assert_form(kmeans, points, clusters, metric):
    n, d = points.shape
    centroids, labels = kmeans.cluster_centers_, kmeans.labels_
    assert labels.shape == (n,)
    assert labels.dtype == torch.int64
    assert ((labels >= 0) & (labels < clusters)).all()
    assert centroids.shape == (clusters, d)
    assert centroids.dtype == (torch.float64 if "float64" in str(points.dtype) else torch.float32)
    assert torch.isfinite(centroids).all()
    assert not centroids.requires_grad
    assert type(kmeans.inertia_) is float
    assert type(kmeans.n_iter_) is int
    if metric == "cosine":
        torch.testing.assert_close(centroids.norm(dim=1).cpu().float(), torch.ones(clusters))


def blobs(clusters, each, d, apart=10.0, dtype=torch.float32):
    """(clusters * each, d) points in groups of standard deviation 1 around random places, and their groups."""
    places = apart * torch.randn(clusters, d, dtype=dtype)
    group = torch.arange(clusters * each) % clusters
    return places[group] + torch.randn(len(group), d, dtype=dtype), group


def inertia(points, centroids, metric):
    value = pairs(points, centroids, metric)
    return value.min(1).sum() if metric == "euclidean" else (1 - value.max(1)).sum()


# ---------------------------------------------------------------- scikit-learn


@pytest.fixture(scope="module")
def glove():
    return np.load(VECTORS / "glove_twitter25.f32.npy")


@pytest.fixture(scope="module")
def sift():
    return np.load(VECTORS / "sift5k.npz")["base"].astype(np.float32)


def sklearn_fit(points, start, **options):
    cluster = pytest.importorskip("sklearn.cluster", reason="needs scikit-learn")
    kmeans = cluster.KMeans(len(start), init=start, n_init=1, algorithm="lloyd", **options)
    return kmeans.fit(points)


def assert_agree(ours, theirs, points, rtol):
    """Labels and centroids, but for points that two centroids share to float32's last digits."""
    assert ours.n_iter_ == theirs.n_iter_
    # scikit-learn adds float32 in float32, by thread.
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=10 * rtol)
    scale = np.abs(points).max()
    np.testing.assert_allclose(
        ours.cluster_centers_.cpu().numpy(), theirs.cluster_centers_, rtol=0, atol=20 * rtol * scale
    )
    other = ours.labels_.cpu().numpy() != theirs.labels_
    assert other.mean() < 1e-3
    for point in points[other]:
        one, two = np.sort(pairs(point[None], ours.cluster_centers_.cpu(), "euclidean")[0])[:2]
        assert two - one <= 100 * rtol * two


# The corpora take the interpreter an hour; it is held to the loops below.
native = pytest.mark.parametrize("backend", [b for b in BACKENDS if DEVICE != "cpu" or b == "cpp"], indirect=True)


@with_vectors
@native
@pytest.mark.parametrize(
    ("clusters", "options"),
    [(8, {}), (50, {"max_iter": 15, "tol": 0.0}), (300, {"max_iter": 5, "tol": 0.0}), (20, {"tol": 1e-2})],
    ids=["converged", "50", "300", "loose"],
)
def test_words_agree_with_scikit_learn(fit, glove, clusters, options):
    # Where no look is skipped the number of iterations is the same too.
    start = glove[:: len(glove) // clusters][:clusters]
    theirs = sklearn_fit(glove, start, **options)
    ours = fit(torch.tensor(glove), clusters, init=start, **options)
    assert_agree(ours, theirs, glove, 1e-5)


@with_vectors
@native
def test_images_agree_with_scikit_learn_until_no_label_changes(fit, sift):
    start = sift[::480]
    theirs = sklearn_fit(sift, start, tol=0.0)
    ours = fit(torch.tensor(sift), 10, init=torch.tensor(start), tol=0.0)
    assert 5 < theirs.n_iter_ < 300
    assert_agree(ours, theirs, sift, 1e-6)
    assert torch.equal(ours.labels_.cpu(), torch.tensor(theirs.labels_).long())


@with_vectors
def test_images_agree_with_scikit_learn_in_float64(device, sift):
    points = sift[:1000].astype(np.float64)
    theirs = sklearn_fit(points, points[::100], tol=0.0)
    ours = KMeans(10, init=points[::100], tol=0.0).fit(torch.tensor(points, device=device))
    assert fastcse.last_backend() == "reference"
    assert ours.cluster_centers_.dtype == torch.float64
    assert_agree(ours, theirs, points, 1e-12)
    np.testing.assert_array_equal(ours.labels_.cpu().numpy(), theirs.labels_)


# ---------------------------------------------------------------- loops in float64


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.interpreted_by_value
def test_agrees_with_loops(fit, device, rows, metric, dtype):
    wide = dtype == torch.float64
    points = blobs(4, rows // 4, 5, apart=2.0)[0].to(dtype)
    options = dict(init=points[:4], metric=metric, max_iter=8, tol=0.0)
    got = KMeans(4, **options).fit(points.to(device)) if wide else fit(points, 4, **options)
    assert not wide or fastcse.last_backend() == "reference"
    assert_form(got, points, 4, metric)
    expected = lloyd(points, points[:4], metric, max_iter=8, tol=0.0)
    if DEVICE == "cpu":
        assert got.n_iter_ == expected[3]
    tight = 1e-12 if wide else 3e-6
    np.testing.assert_array_equal(got.labels_.cpu().numpy(), expected[1])
    np.testing.assert_allclose(got.cluster_centers_.cpu().numpy(), expected[0], rtol=tight, atol=10 * tight)
    assert got.inertia_ == pytest.approx(expected[2], rel=10 * tight)


@with_vectors
@native
def test_directions_of_words_agree_with_loops_step_by_step(fit, glove, backend):
    """Two of these centroids are as near to a word as float32 can tell, so that processors differ in one label and then
    in the whole run: each step is compared from where it began."""
    points, exact = torch.tensor(glove[:3000]), unit(array(glove[:3000]))
    centroids = points[:20]
    for _ in range(12):
        index, value = fastcse.assign(points, unit_rows(centroids), metric="cosine", backend=backend)
        assert_nearest(index[:, None], value[:, None], points, unit_rows(centroids), "cosine", roughly=True)
        total, _, _ = sums(exact, index, 20, normalize=False)
        got = fit(points, 20, init=centroids, metric="cosine", max_iter=1, tol=0.0)
        np.testing.assert_allclose(got.cluster_centers_.numpy(), unit(total), atol=1e-6)
        centroids = got.cluster_centers_
    whole = fit(points, 20, init=points[:20], metric="cosine", max_iter=12, tol=0.0)
    assert whole.inertia_ == pytest.approx(inertia(points, whole.cluster_centers_, "cosine"), rel=1e-5)
    assert whole.inertia_ == pytest.approx(lloyd(points, points[:20], "cosine", max_iter=12, tol=0.0)[2], rel=1e-2)


# ---------------------------------------------------------------- invariants


@every_metric
def test_inertia_never_rises_and_is_that_of_the_labels(fit, rows, metric):
    n, most = (16, 4) if rows == 16 else (200, 12)
    points, start = torch.randn(n, 6), torch.randn(6, 6)
    before = np.inf
    for number in range(1, most):
        got = fit(points, 6, init=start, metric=metric, max_iter=number, tol=0.0)
        assert got.n_iter_ <= number
        assert got.inertia_ <= before * (1 + 1e-6)
        before = got.inertia_
        value = pairs(points, got.cluster_centers_, metric)
        own = value[np.arange(n), got.labels_.cpu().numpy()]
        total = own.sum() if metric == "euclidean" else (1 - own).sum()
        assert got.inertia_ == pytest.approx(total, rel=1e-5)
        assert got.inertia_ == pytest.approx(inertia(points, got.cluster_centers_, metric), rel=1e-5)


@every_metric
def test_a_relabelled_start_relabels_the_result(fit, rows, metric):
    points, order = torch.randn(rows, 5), torch.tensor([3, 1, 4, 0, 2])
    one = fit(points, 5, init=points[:5], metric=metric, max_iter=4)
    two = fit(points, 5, init=points[:5][order], metric=metric, max_iter=4)
    assert torch.equal(order.to(two.labels_.device)[two.labels_], one.labels_)
    assert torch.equal(one.cluster_centers_[order.to(two.labels_.device)], two.cluster_centers_)
    assert one.n_iter_ == two.n_iter_
    assert one.inertia_ == pytest.approx(two.inertia_, rel=1e-6)


@pytest.mark.interpreted
def test_every_point_takes_part(fit, backend):
    # Few clusters and many points, where FAISS and others draw a sample: each mean is that of all its points.
    n = {"triton": 24, "cpp": 5000, "reference": 1000}[backend]
    points = torch.randn(n, 3)
    got = fit(points, 2, seed=1, max_iter=40, tol=0.0)
    assert len(got.labels_) == n
    labels = got.labels_.cpu()
    if got.n_iter_ < 40:
        for k in range(2):
            mean = points[labels == k].double().mean(0)
            torch.testing.assert_close(got.cluster_centers_[k].cpu().double(), mean, rtol=1e-6, atol=1e-6)
    points[n // 2] = 1e4
    assert fit(points, 2, init=points[[0, n // 2]]).labels_[n // 2] == 1


@every_metric
def test_groups_far_apart_are_found(fit, rows, metric):
    points, group = blobs(4, rows // 4, 8, apart=30.0)
    for seed in (1, 2):
        got = fit(points, 4, seed=seed, metric=metric)
        first = got.labels_[:4].cpu()
        assert sorted(first.tolist()) == [0, 1, 2, 3]
        assert torch.equal(got.labels_.cpu(), first[group])


# ---------------------------------------------------------------- empty clusters, few points, equal points


@pytest.mark.interpreted
def test_an_empty_cluster_begins_again_at_the_farthest_point(fit):
    points = torch.cat([torch.randn(20, 3), torch.tensor([[40.0, 0, 0]])])
    start = torch.cat([points[:2], torch.full((1, 3), 1e3)])
    got = fit(points, 3, init=start, max_iter=1)
    # The farthest point leaves its cluster's mean, and is a centroid from now on.
    torch.testing.assert_close(got.cluster_centers_[2].cpu(), points[20])
    expected = lloyd(points, start, max_iter=1)
    np.testing.assert_allclose(got.cluster_centers_.cpu().numpy(), expected[0], rtol=1e-5, atol=1e-5)
    theirs = sklearn_fit(points.numpy(), start.numpy(), max_iter=1)
    np.testing.assert_allclose(got.cluster_centers_.cpu().numpy(), theirs.cluster_centers_, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.labels_.cpu().numpy(), theirs.labels_)


@every_metric
@pytest.mark.interpreted
def test_several_empty_clusters_begin_at_distinct_points(fit, rows, metric):
    points = torch.randn(rows, 4)
    start = torch.cat([points[:1], torch.full((5, 4), -1e4), points[1:2]])
    if metric == "cosine":
        start[1:6] = start[:1]  # ties: the lowest of the equal ones has all
    got = fit(points, 7, init=start, metric=metric, max_iter=1)
    centroids = got.cluster_centers_.cpu()
    assert len(centroids.unique(dim=0)) == 7
    expected = lloyd(points, start, metric, max_iter=1)[0]
    empty = slice(1, 6)
    np.testing.assert_allclose(np.sort(centroids[empty].numpy(), 0), np.sort(expected[empty], 0), rtol=1e-5, atol=1e-6)
    # The clusters that they left.
    np.testing.assert_allclose(centroids[[0, 6]].numpy(), expected[[0, 6]], rtol=1e-5, atol=1e-5)
    rows = torch.nn.functional.normalize(points, dim=1) if metric == "cosine" else points
    for k in range(1, 6):
        assert (rows - centroids[k]).norm(dim=1).min() < 1e-5
    long = fit(points, 7, init=start, metric=metric, max_iter=4)
    assert len(long.labels_.unique()) == 7


@every_metric
def test_two_equal_centroids_in_the_start_part(fit, metric):
    points, _ = blobs(3, 12, 4, apart=20.0)
    got = fit(points, 3, init=torch.cat([points[:2], points[1:2]]), metric=metric)
    assert len(got.labels_.unique()) == 3
    expected = lloyd(points, torch.cat([points[:2], points[1:2]]), metric)
    np.testing.assert_array_equal(got.labels_.cpu().numpy(), expected[1])


@every_metric
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_as_few_and_as_many_clusters_as_there_can_be(fit, metric, init):
    options = dict(metric=metric, init=init, seed=3)
    points = torch.randn(17, 6) + 1
    got = fit(points, 17, **options)
    assert sorted(got.labels_.tolist()) == list(range(17))
    assert got.inertia_ == pytest.approx(0, abs=1e-5)
    got = fit(points, 1, **options)
    assert (got.labels_ == 0).all()
    mean = (torch.tensor(unit(points.double().numpy())) if metric == "cosine" else points.double()).mean(0)
    mean = mean / mean.norm() if metric == "cosine" else mean
    torch.testing.assert_close(got.cluster_centers_[0].cpu().double(), mean, rtol=1e-6, atol=1e-6)
    assert fit(points[:1], 1, **options).labels_.tolist() == [0]
    got = fit(points[:1].repeat(20, 1), 4, **options)
    assert len(got.labels_.unique()) == 1
    assert got.inertia_ == pytest.approx(0, abs=1e-5)
    row = points[:1] / points[:1].norm() if metric == "cosine" else points[:1]
    torch.testing.assert_close(got.cluster_centers_.cpu(), row.expand(4, 6))


def test_fewer_different_points_than_clusters_and_directions_that_cancel(fit):
    got = fit(torch.tensor([[0.0, 0], [5, 5], [9, 0]]).repeat(5, 1), 6, seed=0)
    assert len(got.labels_.unique()) == 3
    assert got.inertia_ == 0
    got = fit(torch.tensor([[1.0, 0], [-1, 0]]), 1, metric="cosine", init=torch.tensor([[3.0, 0]]))
    assert got.labels_.tolist() == [0, 0]
    assert got.inertia_ == pytest.approx(2)
    points, _ = blobs(2, 10, 4)
    points[[3, 8]] = 0
    got = fit(points, 2, metric="cosine", seed=0)
    assert got.inertia_ >= 2  # a zero row is 1 away from everything
    assert got.inertia_ == pytest.approx(inertia(points, got.cluster_centers_, "cosine"), rel=1e-5)


# ---------------------------------------------------------------- starts and seeds


@pytest.mark.parametrize("init", ["k-means++", "random"])
@every_metric
@pytest.mark.interpreted_by_value
def test_the_same_seed_gives_the_same_bits_and_another_another(fit, rows, metric, init):
    points = torch.randn(rows, 6)
    one, two, other = (fit(points, 5, metric=metric, init=init, seed=s, max_iter=2) for s in (7, 7, 8))
    assert torch.equal(one.cluster_centers_, two.cluster_centers_)
    assert torch.equal(one.labels_, two.labels_)
    assert one.inertia_ == two.inertia_
    assert not torch.equal(one.cluster_centers_, other.cluster_centers_)


def test_without_a_seed_torch_draws_one(device):
    points = torch.randn(60, 4, device=device)
    torch.manual_seed(5)
    one = KMeans(6, max_iter=1).fit(points)
    two = KMeans(6, max_iter=1).fit(points)
    assert not torch.equal(one.cluster_centers_, two.cluster_centers_)
    torch.manual_seed(5)
    assert torch.equal(KMeans(6, max_iter=1).fit(points).cluster_centers_, one.cluster_centers_)
    state = torch.get_rng_state()
    KMeans(6, max_iter=1, seed=1).fit(points)
    assert torch.equal(torch.get_rng_state(), state), "a seed of one's own leaves torch's alone"


def first_centroids(points, clusters, **options):
    """What a fit starts from: the centroids that its first step is given."""
    seen = []
    module = sys.modules["fastcse.clustering.kmeans"]
    step = module.Lloyd.step

    def watched(self, centroids):
        seen.append(centroids.clone())
        return step(self, centroids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Lloyd, "step", watched)
        KMeans(clusters, max_iter=1, **options).fit(points)
    return seen[0].cpu()


@every_metric
def test_plus_plus_spreads_better_than_random(device, metric):
    points, _ = blobs(10, 20, 6, apart=10.0)
    mean = {
        how: np.mean([
            inertia(points, first_centroids(points.to(device), 10, init=how, metric=metric, seed=s), metric)
            for s in range(12)
        ])
        for how in ("k-means++", "random")
    }  # fmt: skip
    assert mean["k-means++"] < 0.7 * mean["random"]


def test_plus_plus_draws_by_the_squared_distance(device):
    # From the origin, 3/4 of the weight is at distance 3 and 1/4 at distance 1 three times.
    points = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, 3.0]], device=device)
    drawn = []
    for seed in range(600):
        start = first_centroids(points, 2, seed=seed)
        if (start[0] == 0).all():
            drawn.append(float(start[1].norm()))
    assert len(drawn) > 80
    assert np.mean(np.array(drawn) == 3) == pytest.approx(9 / 12, abs=0.12)
    assert 0 not in drawn


@every_metric
@pytest.mark.parametrize("how", ["k-means++", "random"])
def test_no_point_is_drawn_twice_while_others_are_apart(device, metric, how):
    for offset in (0.0, 100.0):
        rows = torch.randn(24, 5) + offset
        for seed in range(6):
            start = first_centroids(rows.to(device), 24, init=how, metric=metric, seed=seed)
            assert len(start.unique(dim=0)) == 24, f"offset {offset}, seed {seed}"
            assert metric == "cosine" or all((rows == row).all(1).any() for row in start)
    # A long row is not at distance 0 from itself once the distance is rounded.
    rows = torch.cat([3e3 * torch.randn(12, 5), 1e-2 * torch.randn(12, 5)])
    start = first_centroids(rows.to(device), 24, init=how, metric=metric, seed=0)
    assert len(start.unique(dim=0)) == 24
    # Nor one of its twins, by k-means++.
    if how == "k-means++":
        for offset in (0.0, 100.0):
            twins = (torch.randn(6, 5) + offset).repeat(8, 1)
            for seed in range(6):
                start = first_centroids(twins.to(device), 6, metric=metric, seed=seed)
                assert len(start.unique(dim=0)) == 6, f"offset {offset}, seed {seed}"


def test_plus_plus_sees_groups_that_are_far_from_the_origin(device):
    group = torch.arange(80) % 8
    points = 1e4 + 8 * torch.eye(8)[group] + 0.1 * torch.randn(80, 8)
    spread = [inertia(points, first_centroids(points.to(device), 8, seed=s), "euclidean") for s in range(6)]
    near = [inertia(points - 1e4, first_centroids(points.to(device) - 1e4, 8, seed=s), "euclidean") for s in range(6)]
    assert np.mean(spread) < 3 * np.mean(near) + 100


# ---------------------------------------------------------------- arrays, memory maps, dtypes


@every_metric
def test_a_memory_map_is_read_in_blocks_and_not_changed(tmp_path, monkeypatch, metric):
    n, d = 81_920, 64  # 20 MiB
    rows, _ = blobs(12, n // 12 + 1, d, apart=1.0)
    rows = rows[:n].numpy()
    path = tmp_path / "rows.f32"
    rows.tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(n, d))
    options = dict(init=rows[:12], metric=metric, max_iter=4, tol=0.0)
    whole = KMeans(12, **options).fit(torch.tensor(rows))
    most, assign = [0], sys.modules["fastcse.clustering.kmeans"].assign

    def watched(points, *args, **more):
        most[0] = max(most[0], points.numel() * 4)
        return assign(points, *args, **more)

    monkeypatch.setattr(sys.modules["fastcse.clustering.kmeans"], "assign", watched)
    streamed = KMeans(12, block_bytes=1 << 20, **options).fit(mapped)
    assert 0 < most[0] <= 1 << 20
    assert (streamed.labels_ != whole.labels_).float().mean() < 1e-4
    torch.testing.assert_close(streamed.cluster_centers_, whole.cluster_centers_, rtol=1e-4, atol=1e-5)
    assert streamed.inertia_ == pytest.approx(whole.inertia_, rel=1e-6)
    assert streamed.n_iter_ == whole.n_iter_
    assert torch.equal(streamed.predict(mapped[:5000]), streamed.labels_[:5000])
    np.testing.assert_array_equal(np.fromfile(path, np.float32).reshape(n, d), rows)


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.interpreted_by_value
def test_blocks_of_any_size_give_the_same(fit, rows, init):
    points, options = torch.randn(rows, 6), dict(init=init, seed=3, max_iter=3, tol=0.0)
    whole = fit(points, 4, **options)
    for size in (7 * 24, rows * 24, 1)[: 2 if rows == 16 else 3]:  # a block holds a row at least
        got = fit(points, 4, block_bytes=size, **options)
        assert torch.equal(got.labels_, whole.labels_)
        torch.testing.assert_close(got.cluster_centers_, whole.cluster_centers_, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_an_array_is_taken_as_a_tensor_is_and_not_changed(dtype):
    rows = np.random.default_rng(0).normal(size=(60, 5)).astype(dtype)
    copy = rows.copy()
    one, two = KMeans(4, seed=1).fit(rows), KMeans(4, seed=1).fit(torch.tensor(rows))
    assert torch.equal(one.labels_, two.labels_)
    assert torch.equal(one.cluster_centers_, two.cluster_centers_)
    assert torch.equal(one.predict(rows), one.labels_)
    rows.flags.writeable = False
    assert torch.equal(KMeans(4, seed=1).fit(rows).labels_, one.labels_)
    np.testing.assert_array_equal(rows, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.interpreted_by_value
def test_half_precision(fit, dtype):
    points = blobs(4, 12, 7, apart=8.0)[0]
    got = fit(points.to(dtype), 4, seed=0)
    assert got.cluster_centers_.dtype == torch.float32
    labels = got.labels_.cpu()
    for k in range(4):
        mean = points.to(dtype).double()[labels == k].mean(0)
        torch.testing.assert_close(got.cluster_centers_[k].cpu().double(), mean, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.predict(points.to(dtype).to(got.labels_.device)), got.labels_)


def test_strided_points_and_given_centroids_are_not_written_to(fit, rows, device):
    wide, start = torch.randn(rows, 10, device=device), torch.randn(3, 5, device=device)
    points, copies = wide[:, ::2], (wide.clone(), start.clone())
    one = fit(points, 3, init=start, max_iter=3)
    two = fit(points.contiguous(), 3, init=start.cpu().numpy(), max_iter=3)
    assert torch.equal(one.labels_, two.labels_)
    torch.testing.assert_close(one.cluster_centers_, two.cluster_centers_)
    assert torch.equal(wide, copies[0])
    assert torch.equal(start, copies[1])
    learning = points.clone().requires_grad_()
    assert not fit(learning, 3, init=start, max_iter=1).cluster_centers_.requires_grad


# ---------------------------------------------------------------- predict


@every_metric
@pytest.mark.interpreted_by_value
def test_predict(fit, device, metric):
    points, _ = blobs(3, 12, 5)
    got = fit(points, 3, seed=0, metric=metric)
    assert torch.equal(got.predict(points.to(device)), got.labels_)
    again = KMeans(3, seed=0, metric=metric, backend=got.backend)
    with pytest.raises(RuntimeError, match="fit"):
        again.predict(points)
    assert torch.equal(again.fit_predict(points.to(device)), got.labels_)
    assert torch.equal(again.labels_, got.labels_)
    fresh = torch.randn(9, 5) * 10
    fresh[4, 1], fresh[7, 0] = torch.nan, torch.inf
    labels = got.predict(fresh.to(device)).cpu()
    assert labels.dtype == torch.int64
    value = pairs(fresh, got.cluster_centers_, metric)
    expected = value.argmax(1) if metric == "cosine" else value.argmin(1)
    expected[[4, 7]] = -1
    assert labels.tolist() == expected.tolist()


# ---------------------------------------------------------------- stopping


@every_metric
def test_tolerance_is_a_share_of_the_mean_variance(device, metric):
    # Long and short rows: of directions the variance is that of the unit rows.
    points = torch.randn(400, 6)
    for scale in (1.0, 1e3):
        counts = []
        for tol in (0.0, 1e-4, 1e-2, 0.5, 1e9):
            got = KMeans(12, init=scale * points[:12], tol=tol, metric=metric).fit((scale * points).to(device))
            counts.append(got.n_iter_)
            if DEVICE == "cpu":
                assert got.n_iter_ == lloyd(scale * points, scale * points[:12], metric, tol=tol)[3]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[3] > counts[4] == 1
    assert KMeans(20, seed=0, max_iter=3, tol=0.0, metric=metric).fit(points.to(device)).n_iter_ == 3


# ---------------------------------------------------------------- FAISS, bars


@every_metric
def test_faiss_by_name(metric):
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    points, _ = blobs(8, 200, 12, apart=1.0)
    start = points[:8]
    ours = KMeans(8, init=start, metric=metric, max_iter=25).fit(points)
    theirs = KMeans(8, init=start, metric=metric, max_iter=25, backend="faiss").fit(points)
    assert_form(theirs, points, 8, metric)
    assert theirs.inertia_ == pytest.approx(ours.inertia_, rel=0.02)
    assert theirs.inertia_ == pytest.approx(inertia(points, theirs.cluster_centers_, metric), rel=1e-5)
    assert theirs.n_iter_ == 25
    assert torch.equal(theirs.predict(points), theirs.labels_)
    once = KMeans(8, init=start, metric=metric, max_iter=1, backend="faiss").fit(points)
    expected = lloyd(points, start, metric, max_iter=1)
    np.testing.assert_allclose(once.cluster_centers_.numpy(), expected[0], rtol=1e-4, atol=1e-4)


def test_faiss_that_is_not_installed_is_an_error_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"(?s)k-means.*faiss.*pip install"):
        KMeans(2, backend="faiss").fit(torch.randn(20, 3))


def test_bars_are_on_stderr_and_only_when_asked(capsys, device):
    points = torch.randn(50, 3, device=device)
    KMeans(3, seed=0).fit(points)
    assert capsys.readouterr() == ("", "")
    KMeans(3, seed=0, progress=True).fit(points)
    out, err = capsys.readouterr()
    assert out == ""
    assert "k-means++" in err
    assert "iterations" in err
    KMeans(3, init=points[:3], progress=True).fit(points)
    assert "k-means++" not in capsys.readouterr().err
