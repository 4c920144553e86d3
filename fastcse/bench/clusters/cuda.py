"""K-means of other packages on CUDA: flash-kmeans, FlashLib, fastkmeans, fast-pytorch-kmeans."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from ..peers.limits import need_cuda
from ..peers.linear import unit
from ..peers.peer import need
from .problem import ClustersProblem
from .provider import Provider, Run
from .truth import Outcome


def _flash_kmeans(problem: ClustersProblem, points: Tensor, start: Tensor, labels: Tensor | None) -> Run:
    need_cuda(problem)
    from flash_kmeans import assign_euclid_triton, centroid_update_triton, kmeans_triton_impl

    def assign(x: Tensor, c: Tensor) -> Tensor:
        if problem.metric == "cosine":
            return assign_euclid_triton.cosine_assign_triton(x, c)
        return assign_euclid_triton.euclid_assign_triton(x, c, x.float().square().sum(-1))

    return _batched(problem, points, start, labels, assign, centroid_update_triton, kmeans_triton_impl)


def _flashlib(problem: ClustersProblem, points: Tensor, start: Tensor, labels: Tensor | None) -> Run:
    need_cuda(problem)
    from flashlib.primitives import kmeans

    def assign(x: Tensor, c: Tensor) -> Tensor:
        return (kmeans.cosine_assign_triton if problem.metric == "cosine" else kmeans.euclid_assign_triton)(x, c)

    return _batched(problem, points, start, labels, assign, kmeans, None)


def _batched(
    problem: ClustersProblem, points: Tensor, start: Tensor, labels: Tensor | None, assign, updates: ModuleType,
    loops: ModuleType | None,
) -> Run:  # fmt: skip
    """Of arrays (1, N, D); the labels that their loops give are those before the last update, so they assign once more,
    as everybody does."""
    cosine = problem.metric == "cosine"
    as_rows = unit if cosine else (lambda x: x)

    def assignment() -> Outcome:
        return Outcome(assign(as_rows(points)[None], start[None])[0], start)

    def update() -> Outcome:
        kind = updates.triton_centroid_update_sorted_cosine if cosine else updates.triton_centroid_update_sorted_euclid
        return Outcome(labels, kind(as_rows(points)[None], labels[None], start[None])[0])

    def iteration() -> Outcome:
        options = {"max_iters": problem.iterations, "tol": 0.0, "init_centroids": start[None]}
        if loops is None:
            from flashlib import flash_kmeans

            centroids = flash_kmeans(points[None], problem.m, metric=problem.metric, **options)[1]
        else:
            loop = loops.batch_kmeans_Cosine if cosine else loops.batch_kmeans_Euclid
            centroids = loop(points[None], problem.m, **options)[1]
        found = assign(as_rows(points)[None], centroids.to(points.dtype))
        return Outcome(found[0], centroids[0])

    return {"assignment": assignment, "update": update, "iteration": iteration}[problem.what]


def _fastkmeans(problem: ClustersProblem, points: Tensor, start: Tensor, labels: None) -> Run:
    need_cuda(problem)
    need(problem.metric == "euclidean", f"computes euclidean only, not {problem.metric}")
    need(problem.dtype != "bfloat16", "takes numpy arrays, which have no bfloat16")
    from fastkmeans import FastKMeans

    rows = points.cpu().numpy()

    def run() -> Outcome:
        # A tolerance that nothing is below: all iterations are run.
        kmeans = FastKMeans(problem.d, problem.m, niter=problem.iterations, tol=-1.0, seed=problem.seed,
                            device=problem.device, dtype=problem.torch_dtype)  # fmt: skip
        kmeans.train(rows)
        return Outcome(torch.from_numpy(kmeans.predict(rows)), torch.from_numpy(kmeans.centroids))

    return run


def _fast_pytorch_kmeans(problem: ClustersProblem, points: Tensor, start: Tensor, labels: None) -> Run:
    need_cuda(problem)
    need(problem.dtype != "bfloat16", "computes float32 and float16 only, not bfloat16")
    from fast_pytorch_kmeans import KMeans

    make = functools.partial(KMeans, problem.m, max_iter=problem.iterations, tol=-1.0, mode=problem.metric)

    def run() -> Outcome:
        kmeans = make()
        if problem.what == "assignment":
            kmeans.centroids = start
        else:
            kmeans.fit(points, centroids=start)
        return Outcome(kmeans.predict(points), kmeans.centroids)

    return run


TRITON = "assignment and update by its Triton kernels; iteration: its loop, then one assignment for the labels"
PROVIDERS = (
    Provider("flash-kmeans", _flash_kmeans, modules=("flash_kmeans",), install="pip install flash-kmeans", note=TRITON),
    Provider("FlashLib", _flashlib, modules=("flashlib",), install="pip install flashlib", note=TRITON),
    Provider("fastkmeans", _fastkmeans, ("iteration",), ("fastkmeans",), "pip install fastkmeans", "starts at random "
             "points, for it takes none; its points come from the host in each iteration"),
    Provider("fast-pytorch-kmeans", _fast_pytorch_kmeans, ("assignment", "iteration"), ("fast_pytorch_kmeans",),
             "pip install fast-pytorch-kmeans", "sums as a product with a dense (K, N) matrix"),
)  # fmt: skip
