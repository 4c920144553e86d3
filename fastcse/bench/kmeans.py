"""K-means: inertia and labels against float64, and the products of all pairs as the lower bound of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from ..ops.kmeans_steps import METRICS
from ..options import option
from .case import ArrayCase, Measurement, Metric, Result, make_rows
from .provider import Provider
from .topk_search import bare_product

PARTS = ("assignment", "update", "iteration")
PIECE_BYTES = 1 << 27
# Largest inertia error, and least share of float64's labels: points between two centroids may fall to either by
# rounding, and move these a little.
BOUNDS = (1e-4, 0.999)
# Half-precision centroids are rounded before each product, and the borders between them move: of 2000 points in 16
# clusters plain torch in bfloat16 has 0.95 of the labels after three iterations, and an inertia error of 4e-4.
ROUNDED_BOUNDS = (2e-3, 0.9)


@dataclass
class KMeansMeasurement(Measurement):
    """A provider of k-means. `inertia_error` is relative to the exact inertia, below 0 where it is better;
    `same_labels` the share of float64's labels, None for an update, whose labels are given."""

    inertia_error: float | None = None
    same_labels: float | None = None


class Clustering(NamedTuple):
    """(N,) labels and (K, D) centroids; what the case does not compute is what it was given."""

    labels: Tensor
    centroids: Tensor


class Exact(NamedTuple):
    """The float64 clustering of the points, and its inertia."""

    points: Tensor
    clustering: Clustering
    inertia: float


@dataclass(frozen=True)
class KMeansCase(ArrayCase):
    """A part of k-means of N points of width D and `m` = K centroids.

    assignment: the nearest centroid of each point. update: the centroids of given labels. iteration: `iterations` times
    both from the start, and the labels of the centroids that result; all points take part in each.

    `backend` forces one of fastcse's.
    """

    n: int = option(100_000, "Points.", least=1, several=True)
    m: int = option(1024, "Clusters.", least=1, several=True, flag="--k")
    d: int = option(384, "Width of a point.", least=1, several=True)
    what: str = option("iteration", "Part of k-means.", choices=PARTS, several=",".join(PARTS))
    iterations: int = option(3, "Iterations of --what iteration, the same for everyone.", least=1)
    metric: str = option("euclidean", "Distance.", choices=tuple(METRICS), several=True)

    row = KMeansMeasurement
    metrics = (
        Metric("inertia_error", "inertia\nerror", "+.1e"),
        Metric("same_labels", "same\nlabels", ".5f"),
    )
    legend = (
        "MiB: beyond points, labels and centroids; inertia error: relative to float64 with the same start and "
        "iterations, below 0 is better than that; same labels: share that are float64's."
    )
    axes = ("what", "n", "m", "d", "metric", "data")
    operations = tuple(f"kmeans {part}" for part in PARTS)
    sizes = (("N", "n"), ("K", "m"), ("D", "d"))

    def __post_init__(self):
        super().__post_init__()
        if self.m > self.n:
            raise OptionError("m", f" is {self.m}: expected at most as many clusters as points, ", "n", f" = {self.n}")

    @property
    def operation(self) -> str:
        return f"kmeans {self.what}"

    @property
    def variant(self) -> str:
        return self.what

    @property
    def cosine(self) -> bool:
        return self.metric == "cosine"

    @property
    def assignments(self) -> int:
        """How often all points meet all centroids: once more than there are iterations, for the labels at the end."""
        return self.iterations + 1 if self.what == "iteration" else 1

    @property
    def flops(self) -> float:
        """Of the products of all points with all centroids; of an update, its additions."""
        if self.what == "update":
            return float(self.n * self.d)
        return 2.0 * self.assignments * self.n * self.m * self.d

    @property
    def setting(self) -> str:
        times = [f"{self.iterations} iterations"] if self.what == "iteration" else []
        return ", ".join([*times, self.metric, self.where, f"{self.data} rows"])

    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(N, D) points, (K, D) of them to start from, unit rows for cosines, and for an update (N,) labels."""
        points = make_rows(self)[0]
        generator = torch.Generator().manual_seed(self.seed)
        start = points[torch.randperm(self.n, generator=generator)[: self.m].to(points.device)]
        start = F.normalize(start, dim=1) if self.cosine else start
        if self.what != "update":
            return points, start, None
        return points, start, nearest(points, start, self.cosine, max(1, (1 << 22) // self.m))[0]

    def exact(self, points: Tensor, start: Tensor, labels: Tensor | None) -> Exact:
        """The plain algorithm in float64, some points at a time."""
        centroids = start.double()
        if self.what == "update":
            centroids = self._update(points, labels, centroids, None)
        else:
            for _ in range(self.assignments - 1):
                found, rank = self._nearest(points, centroids)
                centroids = self._update(points, found, centroids, rank)
            labels = self._nearest(points, centroids)[0]
        clustering = Clustering(labels, centroids)
        return Exact(points, clustering, self._inertia(points, clustering))

    def score(self, row: KMeansMeasurement, provider: Provider, outcome: Clustering, exact: Exact) -> None:
        labels, centroids = outcome.labels.long().to(exact.points.device), outcome.centroids.to(exact.points.device)
        inertia = self._inertia(exact.points, Clustering(labels, centroids))
        # The plain difference where all points are one.
        row.inertia_error = inertia / exact.inertia - 1 if exact.inertia else inertia
        if self.what != "update":
            row.same_labels = (labels == exact.clustering.labels).double().mean().item()

    @property
    def bounds(self) -> tuple[float, float]:
        """Largest inertia error and least share of float64's labels that fastcse may have."""
        return ROUNDED_BOUNDS if self.dtype != "float32" and self.what == "iteration" else BOUNDS

    def fault(self, ours: KMeansMeasurement, result: Result) -> str | None:
        largest, least = self.bounds
        if not abs(ours.inertia_error) <= largest:
            return f"fastcse's inertia is off by {ours.inertia_error:.1e}, more than {largest:.0e}"
        if ours.same_labels is not None and not ours.same_labels >= least:
            return f"only {ours.same_labels:.5f} of fastcse's labels are float64's, less than {least:g}"
        return None

    def lower_bound(self) -> Callable[..., None]:
        """All products of points and centroids in panels, as often as the case needs them."""
        product = bare_product(self)

        def run(points: Tensor, start: Tensor, labels: Tensor | None) -> None:
            for _ in range(self.assignments):
                product(points, start)

        return run

    @property
    def lower_bound_note(self) -> str:
        if self.what == "iteration":
            return "iteration: the products of all assignments in panels, nothing found"
        of_what = "of the one assignment that it belongs to" if self.what == "update" else "once"
        return f"{self.what}: the products {of_what} in panels, nothing found"

    def output_bytes(self, inputs: tuple) -> int:
        """int64 labels and float32 centroids, those that the case computes."""
        labels, centroids = 8 * self.n, 4 * self.m * self.d
        return {"assignment": labels, "update": centroids, "iteration": labels + centroids}[self.what]

    def _rows(self, width: int) -> int:
        return max(1, PIECE_BYTES // (8 * width))

    def _pieces(self, points: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for piece, own in zip(*(x.split(self._rows(self.d)) for x in (points, labels))):
            yield piece.double(), own

    def _inertia(self, points: Tensor, clustering: Clustering) -> float:
        """Summed squared distances, or 1 - cos, of the points from the centroids of their labels; NaN where a label is
        none."""
        labels, centroids = clustering.labels, clustering.centroids.double()
        if labels.shape != (self.n,) or not bool(((labels >= 0) & (labels < self.m)).all()):
            return float("nan")
        total = torch.zeros((), dtype=torch.float64, device=points.device)
        for x, own in self._pieces(points, labels):
            c = centroids[own]
            total += (1 - F.cosine_similarity(x, c)).sum() if self.cosine else (x - c).square().sum()
        return total.item()

    def _nearest(self, points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        labels, rank = nearest(points, centroids, self.cosine, self._rows(max(self.m, self.d)))
        if self.cosine:
            return labels, rank
        square = torch.cat([x.double().square().sum(1) for x in points.split(self._rows(self.d))])
        return labels, rank - square / 2

    def _update(self, points: Tensor, labels: Tensor, old: Tensor, rank: Tensor | None) -> Tensor:
        """Centroids of the labels. With ranks, clusters without points begin again at the farthest of all points, one
        each in their order, as scikit-learn's and fastcse's do."""
        total, counts = torch.zeros_like(old), torch.zeros(self.m, dtype=torch.long, device=old.device)
        for piece, own in self._pieces(points, labels):
            part = sums(piece, own, self.m, self.cosine, torch.float64)
            total, counts = total + part[0], counts + part[1]
        empty = (counts == 0).nonzero()[:, 0]
        if rank is not None and len(empty):
            for cluster, far in zip(empty, rank.argsort()[: len(empty)]):
                x = points[far].double()
                x = F.normalize(x, dim=0) if self.cosine else x
                total[labels[far]] -= x
                counts[labels[far]] -= 1
                total[cluster], counts[cluster] = x, 1
        return means(total, counts, old, self.cosine)


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
