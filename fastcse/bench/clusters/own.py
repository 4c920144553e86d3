"""fastcse, and what one writes by hand in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...clustering.kmeans import KMeans
from ...ops.kmeans_steps import assign, cluster_sums
from .plain import means, nearest, sums
from .problem import ClustersProblem
from .provider import Provider, Run
from .truth import Outcome


def _fastcse(problem: ClustersProblem, points: Tensor, start: Tensor, labels: Tensor | None) -> Run:
    cosine, backend = problem.metric == "cosine", problem.backend

    def assignment() -> Outcome:
        return Outcome(assign(points, start, metric=problem.metric, backend=backend).index, start)

    def update() -> Outcome:
        found = cluster_sums(points, labels, problem.m, normalize=cosine, backend=backend)
        return Outcome(labels, means(*found, start, cosine))

    def iteration() -> Outcome:
        kmeans = KMeans(problem.m, metric=problem.metric, init=start, max_iter=problem.iterations, tol=0,
                        backend=backend).fit(points)  # fmt: skip
        return Outcome(kmeans.labels_, kmeans.cluster_centers_)

    return {"assignment": assignment, "update": update, "iteration": iteration}[problem.what]


def _by_hand(
    problem: ClustersProblem, points: Tensor, start: Tensor, labels: Tensor | None, rows: int | None = None
) -> Run:
    """Some points at a time against all centroids; sums in float32."""
    cosine = problem.metric == "cosine"

    def step(found: Tensor, centroids: Tensor) -> Tensor:
        total = torch.zeros(problem.m, problem.d, device=points.device)
        counts = torch.zeros(problem.m, dtype=torch.long, device=points.device)
        for piece, own in zip(points.split(rows), found.split(rows)):
            part = sums(piece, own, problem.m, cosine, torch.float32)
            total, counts = total.add_(part[0]), counts.add_(part[1])
        return means(total, counts, centroids, cosine)

    def run() -> Outcome:
        if problem.what == "update":
            return Outcome(labels, step(labels, start))
        centroids = start
        for _ in range(problem.assignments - 1):
            found = nearest(points, centroids.to(points.dtype), cosine, rows)[0]
            centroids = step(found, centroids)
        return Outcome(nearest(points, centroids.to(points.dtype), cosine, rows)[0], centroids)

    return run


PROVIDERS = (
    Provider("fastcse", _fastcse, note="iteration: KMeans.fit, which looks through the points for NaN first"),
    Provider("torch chunked", _by_hand, note="mm and max, index_add, some points at a time; products in the points' "
             "own type", choices=(1024, 4096, 16384)),
)  # fmt: skip
