"""Who computes k-means: fastcse, torch by hand, FAISS and scikit-learn; on CUDA flash-kmeans, FlashLib, fastkmeans and
fast-pytorch-kmeans."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clustering.kmeans import KMeans
from ..ops.kmeans_steps import assign, cluster_sums
from .kmeans import Clustering, KMeansCase, means, nearest, sums
from .provider import Provider, named, need, need_cuda, need_numpy, unit

Run = Callable[[], Clustering]


def _fastcse(case: KMeansCase, points: Tensor, start: Tensor, labels: Tensor | None) -> Run:
    def assignment() -> Clustering:
        return Clustering(assign(points, start, metric=case.metric, backend=case.backend).index, start)

    def update() -> Clustering:
        found = cluster_sums(points, labels, case.m, normalize=case.cosine, backend=case.backend)
        return Clustering(labels, means(*found, start, case.cosine))

    def iteration() -> Clustering:
        options = {"metric": case.metric, "init": start, "max_iter": case.iterations, "tol": 0}
        kmeans = KMeans(case.m, **options, backend=case.backend).fit(points)
        return Clustering(kmeans.labels_, kmeans.cluster_centers_)

    return {"assignment": assignment, "update": update, "iteration": iteration}[case.what]


def _by_hand(case: KMeansCase, points: Tensor, start: Tensor, labels: Tensor | None, rows: int) -> Run:
    """Some points at a time against all centroids; sums in float32."""

    def step(found: Tensor, centroids: Tensor) -> Tensor:
        total = torch.zeros(case.m, case.d, device=points.device)
        counts = torch.zeros(case.m, dtype=torch.long, device=points.device)
        for piece, own in zip(points.split(rows), found.split(rows)):
            part = sums(piece, own, case.m, case.cosine, torch.float32)
            total, counts = total.add_(part[0]), counts.add_(part[1])
        return means(total, counts, centroids, case.cosine)

    def run() -> Clustering:
        if case.what == "update":
            return Clustering(labels, step(labels, start))
        centroids = start
        for _ in range(case.assignments - 1):
            found = nearest(points, centroids.to(points.dtype), case.cosine, rows)[0]
            centroids = step(found, centroids)
        return Clustering(nearest(points, centroids.to(points.dtype), case.cosine, rows)[0], centroids)

    return run


def _faiss(case: KMeansCase, points: Tensor, start: Tensor, labels: None) -> Run:
    need_numpy(case)
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())

    def rows() -> object:
        return (F.normalize(points, dim=1) if case.cosine else points).numpy()

    def assignment() -> Clustering:
        index = faiss.IndexFlatIP(case.d) if case.cosine else faiss.IndexFlatL2(case.d)
        index.add(start.numpy())
        return Clustering(torch.from_numpy(index.search(rows(), 1)[1][:, 0]), start)

    def iteration() -> Clustering:
        # By default it would take 256 points of each cluster, and warn of fewer than 39.
        count = {"min_points_per_centroid": 1, "max_points_per_centroid": case.n}
        kmeans = faiss.Kmeans(case.d, case.m, niter=case.iterations, spherical=case.cosine, **count)
        x = rows()
        kmeans.train(x, init_centroids=start.numpy())
        return Clustering(torch.from_numpy(kmeans.assign(x)[1]), torch.from_numpy(kmeans.centroids))

    return assignment if case.what == "assignment" else iteration


def _scikit_learn(case: KMeansCase, points: Tensor, start: Tensor, labels: None) -> Run:
    # Its public calls alone: they keep its BLAS at one thread inside their own parallel loop. The loop called without
    # that has OpenBLAS warn on stderr, thousands of times, as soon as FAISS or torch is in the process.
    need_numpy(case)
    need(case.metric == "euclidean", f"computes euclidean only, not {case.metric}")
    from sklearn.cluster import KMeans

    def kmeans(iterations: int) -> KMeans:
        return KMeans(case.m, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")

    def iteration() -> Clustering:
        fitted = kmeans(case.iterations).fit(points.numpy())
        return Clustering(torch.from_numpy(fitted.labels_), torch.from_numpy(fitted.cluster_centers_))

    if case.what == "iteration":
        return iteration
    known = kmeans(1).fit(start.numpy())  # each its own cluster: the centroids are the start
    return lambda: Clustering(torch.from_numpy(known.predict(points.numpy())), start)


def _flash_kmeans(case: KMeansCase, points: Tensor, start: Tensor, labels: Tensor | None) -> Run:
    need_cuda(case)
    from flash_kmeans import assign_euclid_triton, centroid_update_triton, kmeans_triton_impl

    def assign(x: Tensor, c: Tensor) -> Tensor:
        if case.cosine:
            return assign_euclid_triton.cosine_assign_triton(x, c)
        return assign_euclid_triton.euclid_assign_triton(x, c, x.float().square().sum(-1))

    loop = kmeans_triton_impl.batch_kmeans_Cosine if case.cosine else kmeans_triton_impl.batch_kmeans_Euclid
    return _batched(case, (points, start, labels), assign, centroid_update_triton, loop)


def _flashlib(case: KMeansCase, points: Tensor, start: Tensor, labels: Tensor | None) -> Run:
    need_cuda(case)
    from flashlib import flash_kmeans
    from flashlib.primitives import kmeans

    assign = kmeans.cosine_assign_triton if case.cosine else kmeans.euclid_assign_triton

    def loop(x: Tensor, clusters: int, **options) -> tuple:
        return flash_kmeans(x, clusters, metric=case.metric, **options)

    return _batched(case, (points, start, labels), assign, kmeans, loop)


def _batched(case: KMeansCase, inputs: tuple, assign: Callable, updates: ModuleType, loop: Callable) -> Run:
    """Of arrays (1, N, D); the labels that their loops give are those before the last update, so they assign once more,
    as everybody does."""
    points, start, labels = inputs
    as_rows = unit if case.cosine else (lambda x: x)

    def assignment() -> Clustering:
        return Clustering(assign(as_rows(points)[None], start[None])[0], start)

    def update() -> Clustering:
        move = getattr(updates, f"triton_centroid_update_sorted_{'cosine' if case.cosine else 'euclid'}")
        return Clustering(labels, move(as_rows(points)[None], labels[None], start[None])[0])

    def iteration() -> Clustering:
        centroids = loop(points[None], case.m, max_iters=case.iterations, tol=0.0, init_centroids=start[None])[1]
        found = assign(as_rows(points)[None], centroids.to(points.dtype))
        return Clustering(found[0], centroids[0])

    return {"assignment": assignment, "update": update, "iteration": iteration}[case.what]


def _fastkmeans(case: KMeansCase, points: Tensor, start: Tensor, labels: None) -> Run:
    need_cuda(case)
    need(case.metric == "euclidean", f"computes euclidean only, not {case.metric}")
    need(case.dtype != "bfloat16", "takes numpy arrays, which have no bfloat16")
    from fastkmeans import FastKMeans

    rows = points.cpu().numpy()
    # A tolerance that nothing is below: all iterations are run.
    options = {"niter": case.iterations, "tol": -1.0, "seed": case.seed}

    def run() -> Clustering:
        kmeans = FastKMeans(case.d, case.m, **options, device=case.device, dtype=case.torch_dtype)
        kmeans.train(rows)
        return Clustering(torch.from_numpy(kmeans.predict(rows)), torch.from_numpy(kmeans.centroids))

    return run


def _fast_pytorch_kmeans(case: KMeansCase, points: Tensor, start: Tensor, labels: None) -> Run:
    need_cuda(case)
    need(case.dtype != "bfloat16", "computes float32 and float16 only, not bfloat16")
    from fast_pytorch_kmeans import KMeans

    def run() -> Clustering:
        kmeans = KMeans(case.m, max_iter=case.iterations, tol=-1.0, mode=case.metric)
        if case.what == "assignment":
            kmeans.centroids = start
        else:
            kmeans.fit(points, centroids=start)
        return Clustering(kmeans.predict(points), kmeans.centroids)

    return run


BOTH = ("assignment", "iteration")
TRITON = "assignment and update by its Triton kernels; iteration: its loop, then one assignment for the labels"
PROVIDERS = named(
    Provider("fastcse", _fastcse, note="iteration: KMeans.fit, which looks through the points for NaN first"),
    Provider("torch chunked", _by_hand, configs=(1024, 4096, 16384),
             note="mm and max, index_add, some points at a time; products in the points' own type"),
    Provider("FAISS", _faiss, BOTH, ("faiss",), "pip install faiss-cpu",
             "IndexFlat with k = 1; iteration: Kmeans, all points, then assign"),
    Provider("scikit-learn", _scikit_learn, BOTH, ("sklearn",), "pip install scikit-learn",
             "KMeans: predict, and fit by lloyd, which copies the points to subtract their mean"),
    Provider("flash-kmeans", _flash_kmeans, modules=("flash_kmeans",), install="pip install flash-kmeans", note=TRITON),
    Provider("FlashLib", _flashlib, modules=("flashlib",), install="pip install flashlib", note=TRITON),
    Provider("fastkmeans", _fastkmeans, ("iteration",), ("fastkmeans",), "pip install fastkmeans",
             "starts at random points, for it takes none; its points come from the host in each iteration"),
    Provider("fast-pytorch-kmeans", _fast_pytorch_kmeans, BOTH, ("fast_pytorch_kmeans",),
             "pip install fast-pytorch-kmeans", "sums as a product with a dense (K, N) matrix"),
)  # fmt: skip
