"""The labels and centroids in float64, and how far an outcome is from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .plain import means, nearest, sums
from .problem import ClustersProblem

PIECE_BYTES = 1 << 27


class Outcome(NamedTuple):
    """(N,) labels and (K, D) centroids; what the problem does not ask for is what it gave."""

    labels: Tensor
    centroids: Tensor


class Truth(NamedTuple):
    """The right outcome, and what it is worth."""

    problem: ClustersProblem
    points: Tensor
    outcome: Outcome
    inertia: float


class Misses(NamedTuple):
    """`inertia`: of the outcome's labels and centroids, relative to the truth's, less 1. `same`: the share of labels
    that are float64's; None for an update, which is given them."""

    inertia: float
    same: float | None


def exact(problem: ClustersProblem, points: Tensor, start: Tensor, labels: Tensor | None) -> Truth:
    """The plain algorithm in float64, some points at a time."""
    centroids = start.double()
    if problem.what == "update":
        centroids = _update(problem, points, labels, centroids, None)
    else:
        for _ in range(problem.assignments - 1):
            found, rank = _nearest(problem, points, centroids)
            centroids = _update(problem, points, found, centroids, rank)
        labels = _nearest(problem, points, centroids)[0]
    outcome = Outcome(labels, centroids)
    return Truth(problem, points, outcome, inertia(problem, points, outcome))


def misses(outcome: Outcome, truth: Truth) -> Misses:
    """How far an outcome is from the truth; NaN where it is none."""
    labels = outcome.labels.long().to(truth.points.device)
    centroids = outcome.centroids.to(truth.points.device)
    worth = inertia(truth.problem, truth.points, Outcome(labels, centroids))
    # The plain difference where all points are one.
    error = worth / truth.inertia - 1 if truth.inertia else worth
    if truth.problem.what == "update":
        return Misses(error, None)
    return Misses(error, (labels == truth.outcome.labels).double().mean().item())


def inertia(problem: ClustersProblem, points: Tensor, outcome: Outcome) -> float:
    """Summed squared distances, or 1 - cos, of the points from the centroids of their labels."""
    labels, centroids = outcome.labels, outcome.centroids.double()
    if labels.shape != (problem.n,) or not bool(((labels >= 0) & (labels < problem.m)).all()):
        return float("nan")
    total = torch.zeros((), dtype=torch.float64, device=points.device)
    for piece, own in zip(*(x.split(_rows(problem, problem.d)) for x in (points, labels))):
        x, c = piece.double(), centroids[own]
        total += (1 - F.cosine_similarity(x, c)).sum() if problem.metric == "cosine" else (x - c).square().sum()
    return total.item()


def _rows(problem: ClustersProblem, width: int) -> int:
    return max(1, PIECE_BYTES // (8 * width))


def _nearest(problem: ClustersProblem, points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    cosine = problem.metric == "cosine"
    labels, rank = nearest(points, centroids, cosine, _rows(problem, max(problem.m, problem.d)))
    if cosine:
        return labels, rank
    square = torch.cat([x.double().square().sum(1) for x in points.split(_rows(problem, problem.d))])
    return labels, rank - square / 2


def _update(problem: ClustersProblem, points: Tensor, labels: Tensor, old: Tensor, rank: Tensor | None) -> Tensor:
    """Centroids of the labels. With ranks, clusters without points begin again at the farthest of all points, one each
    in their order, as scikit-learn's and fastcse's do."""
    cosine = problem.metric == "cosine"
    total, counts = torch.zeros_like(old), torch.zeros(problem.m, dtype=torch.long, device=old.device)
    for piece, own in zip(*(x.split(_rows(problem, problem.d)) for x in (points, labels))):
        part = sums(piece.double(), own, problem.m, cosine, torch.float64)
        total, counts = total + part[0], counts + part[1]
    empty = (counts == 0).nonzero()[:, 0]
    if rank is not None and len(empty):
        for cluster, far in zip(empty, rank.argsort()[: len(empty)]):
            x = points[far].double()
            x = F.normalize(x, dim=0) if cosine else x
            total[labels[far]] -= x
            counts[labels[far]] -= 1
            total[cluster], counts[cluster] = x, 1
    return means(total, counts, old, cosine)
