"""K-means as one writes it by hand, in pieces of the points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import make_rows
from .problem import ClustersProblem


def nearest(points: Tensor, centroids: Tensor, cosine: bool, rows: int) -> tuple[Tensor, Tensor]:
    """(N,) labels, and a rank of each point, larger for the nearer: the cosine of unit rows, or x c - |c|^2 / 2."""
    labels, ranks = [], []
    half_square = None if cosine else centroids.square().sum(1) / 2
    for piece in points.split(rows):
        x = F.normalize(piece.to(centroids.dtype), dim=1) if cosine else piece.to(centroids.dtype)
        s = x @ centroids.T
        found = (s if half_square is None else s.sub_(half_square)).max(1)
        labels.append(found.indices)
        ranks.append(found.values)
    return torch.cat(labels), torch.cat(ranks)


def sums(points: Tensor, labels: Tensor, clusters: int, cosine: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(K, D) sums of the points (of unit rows) of each cluster in `dtype`, and (K,) counts."""
    x = (F.normalize(points, dim=1) if cosine else points).to(dtype)
    total = torch.zeros(clusters, points.shape[1], dtype=dtype, device=points.device).index_add_(0, labels, x)
    return total, torch.bincount(labels, minlength=clusters)


def means(total: Tensor, counts: Tensor, old: Tensor, cosine: bool) -> Tensor:
    """(K, D) means, or their directions; a cluster without points stays where it is."""
    new = F.normalize(total, dim=1) if cosine else total / counts.clamp_min(1)[:, None]
    return torch.where((counts > 0)[:, None], new, old.to(new.dtype))


def make_inputs(problem: ClustersProblem) -> tuple[Tensor, Tensor, Tensor | None]:
    """(N, D) points, (K, D) of them to start from, unit rows for cosines, and for an update (N,) labels."""
    points = make_rows(problem)[0]
    generator = torch.Generator().manual_seed(problem.seed)
    start = points[torch.randperm(problem.n, generator=generator)[: problem.m].to(points.device)]
    cosine = problem.metric == "cosine"
    if cosine:
        start = F.normalize(start, dim=1)
    if problem.what != "update":
        return points, start, None
    return points, start, nearest(points, start, cosine, max(1, (1 << 22) // problem.m))[0]
