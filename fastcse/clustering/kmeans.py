"""K-means with the manners of scikit-learn: every point takes part in every iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ..encoding import progress_bar
from ..ops import checks
from ..ops.dispatch import NAMES, choose_backend
from ..ops.kmeans_steps import METRICS, assign, cluster_sums
from ..reference import unit_rows
from ..retrieval.arrays import as_rows, check_finite
from ..retrieval.faiss_index import import_faiss


def steps(numbers: range, what: str, unit: str, show: bool) -> Iterator[int]:
    """The numbers, with a bar on stderr that moves on after each one if `show`."""
    with progress_bar(what, len(numbers), unit, show) as bar:
        for number in numbers:
            yield number
            bar.update(1)


INITS = ("k-means++", "random")


def given_centroids(init: Tensor | np.ndarray, clusters: int, points: Tensor) -> Tensor:
    """(K, D) float centroids as the caller gave them."""
    rows = torch.as_tensor(init, device=points.device).detach()
    if rows.shape != (clusters, points.shape[1]):
        expected = (clusters, points.shape[1])
        raise ValueError(
            f"init must have shape {expected}, one row of the points' length for each cluster, got {tuple(rows.shape)}"
        )
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows).all(1)).nonzero()[0])
        raise ValueError(f"init must be finite, got NaN or infinity in row {bad}")
    return rows.to(working_dtype(points))


def working_dtype(points: Tensor) -> torch.dtype:
    """float64 for float64 points, else float32."""
    return torch.promote_types(points.dtype, torch.float32)


def draw_centroids(
    points: Tensor, clusters: int, how: str, cosine: bool, generator: torch.Generator, blocks: list[slice], show: bool
) -> Tensor:
    """(K, D) rows of the points: distinct ones at random, or by k-means++, each with a probability that grows with
    the squared distance (of cosines: 1 - cos) from those before."""
    if how == "random":
        chosen = torch.randperm(points.shape[0], generator=generator, device="cpu")[:clusters]
        return points[chosen.to(points.device)].to(working_dtype(points))
    return _plus_plus(points, clusters, cosine, generator, blocks, show)


def _plus_plus(
    points: Tensor, clusters: int, cosine: bool, generator: torch.Generator, blocks: list[slice], show: bool
) -> Tensor:
    n, dtype = points.shape[0], working_dtype(points)
    centroids = torch.empty(clusters, points.shape[1], dtype=dtype, device=points.device)
    nearest = torch.full((n,), torch.inf, dtype=dtype, device=points.device)
    # Distances do not change when all points move; far from 0 their squares would swallow them.
    middle = sum(_rows(points[b], dtype, cosine).sum(0, dtype=torch.float64) for b in blocks) / n
    middle = middle.to(dtype)
    square = torch.cat([(_rows(points[b], dtype, cosine) - middle).square().sum(1) for b in blocks])
    place = torch.randint(n, (1,), generator=generator, device="cpu")
    rounding = 4000 * torch.finfo(dtype).eps
    for k in steps(range(clusters), "k-means++", "centroids", show):
        centroids[k] = _rows(points[place.to(points.device)], dtype, cosine)[0]
        apart_from_middle = centroids[k] - middle
        own = apart_from_middle.square().sum()
        for b in blocks:
            apart = square[b] + own - 2 * ((_rows(points[b], dtype, cosine) - middle) @ apart_from_middle)
            # Where rounding may be a thousandth of it, from the rows: a twin is at distance 0, and is not drawn.
            close = (apart <= rounding * (square[b] + own)).nonzero()[:, 0]
            near = _rows(points[b][close], dtype, cosine) - centroids[k]
            apart[close] = near.square().sum(1)
            nearest[b] = torch.minimum(nearest[b], apart)
        total = nearest.double().cumsum(0)
        lot = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu").to(points.device) * total[-1]
        place = torch.searchsorted(total, lot, right=True).clamp_max(n - 1)
    return centroids


def _rows(x: Tensor, dtype: torch.dtype, unit: bool) -> Tensor:
    return unit_rows(x.to(dtype)) if unit else x.to(dtype)


def fit_faiss(points: Tensor, start: Tensor, metric: str, iterations: int) -> Tensor:
    """(K, D) centroids after `iterations` from `start`.

    Raises:
        ModuleNotFoundError: faiss is not installed; the message has the command that does.
    """
    faiss = import_faiss("k-means")
    k, d = start.shape
    rows = points.detach().cpu().float()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
    kmeans = faiss.Kmeans(
        d, k, niter=iterations, spherical=metric == "cosine", min_points_per_centroid=1,
        max_points_per_centroid=rows.shape[0],
    )  # fmt: skip
    kmeans.train(rows.contiguous().numpy(), init_centroids=start.cpu().float().contiguous().numpy())
    return torch.from_numpy(kmeans.centroids).reshape(k, d).to(start)


BLOCK_BYTES = 256 << 20
# Whether to stop is read from the device this often: on a GPU each look waits for it.
LOOK_EVERY = {"cpu": 1, "cuda": 8}


class KMeans:
    r"""Lloyd's k-means over all points, on the CPU and on a GPU; of arrays larger than memory too.

        euclidean: minimise sum_i |x_i - c_{label_i}|^2, c the means of their points
        cosine:    minimise sum_i (1 - cos(x_i, c_{label_i})), c the directions of the means of the unit rows

    Args:
        n_clusters:  K, at most the number of points.
        metric:      "euclidean" | "cosine" (spherical k-means).
        init:        "k-means++" | "random" | (K, D) centroids to start from.
        max_iter:    iterations at most.
        tol:         stop when the centroids' summed squared move is at most this share of the mean variance of the
                     columns, as in scikit-learn; 0 goes on until no label changes. On a GPU one iteration in eight is
                     looked at.
        seed:        of `init`; the same seed gives the same bits. None draws one from torch.
        backend:     "triton" | "cpp" | "reference" | "faiss"; None chooses by device and dtype. FAISS runs `max_iter`
                     iterations on a float32 copy.
        progress:    show bars on stderr.
        block_bytes: points are read in blocks of this size.

    After `fit`: `cluster_centers_` (K, D) float32 (float64 for float64 points), `labels_` (N,) int64, `inertia_` the
    sum above, `n_iter_` iterations made.

    Raises:
        ValueError: more clusters than points, a point that is not finite (its row is named), an option out of range.
        RuntimeError: `predict` before `fit`; the backend asked for cannot run here.

    Numerics:
        Sums in float64 on the CPU. A cluster that loses all its points begins again at the point farthest from its
        centroid, several at distinct ones. Equal points share one cluster; the centroids of the others then coincide.

    Source: Lloyd (1982); Arthur and Vassilvitskii (2007) for k-means++, without its greedy variant.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
        >>> kmeans = KMeans(2, init=points[[0, 2]]).fit(points)
        >>> kmeans.labels_, kmeans.inertia_
        (tensor([0, 0, 1, 1]), 1.0)
    """

    cluster_centers_: Tensor
    labels_: Tensor
    inertia_: float
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str = "euclidean",
        init: str | Tensor | np.ndarray = "k-means++",
        max_iter: int = 300,
        tol: float = 1e-4,
        seed: int | None = None,
        backend: str | None = None,
        progress: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ):
        checks.check_count("n_clusters", n_clusters)
        checks.check_count("max_iter", max_iter)
        checks.check_count("block_bytes", block_bytes)
        checks.check_choice("metric", metric, METRICS)
        if isinstance(init, str):
            checks.check_choice("init", init, INITS)
        elif not isinstance(init, Tensor | np.ndarray):
            raise ValueError(f"init must be one of {INITS} or a matrix of centroids, got {type(init).__name__}")
        if not isinstance(tol, Real) or not tol >= 0:
            raise ValueError(f"tol must be a number of at least 0, got {tol!r}")
        if seed is not None:
            checks.check_count("seed", seed, 0)
            if seed >= 2**63:
                raise ValueError(f"seed must be below 2^63, got {seed}")
        if backend is not None:
            checks.check_choice("backend", backend, (*NAMES, "faiss"))
        self.n_clusters, self.metric, self.init, self.max_iter, self.tol = n_clusters, metric, init, max_iter, tol
        self.seed, self.backend, self.progress, self.block_bytes = seed, backend, progress, block_bytes

    @torch.no_grad()
    def fit(self, points: Tensor | np.ndarray) -> KMeans:
        """Cluster (N, D) points: a tensor on any device, an array, or a memory map, which is not copied."""
        x = self._rows(points)
        if x.shape[0] < self.n_clusters:
            raise ValueError(f"n_clusters must be at most the number of points, got {self.n_clusters} and {x.shape[0]}")
        check_finite("points", x, torch.arange(x.shape[0], device=x.device))
        lloyd = self._lloyd(x)
        start = self._start(x, lloyd)
        if self.backend == "faiss":
            centroids, self.n_iter_ = fit_faiss(x, start, self.metric, self.max_iter), self.max_iter
            labels, far = lloyd.nearest(centroids)
        else:
            centroids, labels, far = self._run(lloyd, start)
        self.cluster_centers_, self.labels_, self.inertia_ = centroids, labels, float(far.sum(dtype=torch.float64))
        return self

    @torch.no_grad()
    def predict(self, points: Tensor | np.ndarray) -> Tensor:
        """(N,) int64, the nearest centroid of each point; -1 for one that is not finite."""
        if not hasattr(self, "cluster_centers_"):
            raise RuntimeError("predict needs centroids: call fit first")
        x = self._rows(points)
        return self._lloyd(x).nearest(self.cluster_centers_.to(x.device, working_dtype(x)))[0]

    def fit_predict(self, points: Tensor | np.ndarray) -> Tensor:
        """`labels_` after `fit`."""
        return self.fit(points).labels_

    def _rows(self, points: Tensor | np.ndarray) -> Tensor:
        return as_rows("points", points)[0]

    def _lloyd(self, x: Tensor) -> Lloyd:
        fused = None if self.backend == "faiss" else self.backend
        choose_backend(x, fused, "points")  # an error here, before minutes of work
        size = max(1, self.block_bytes // (x.shape[1] * x.element_size()))
        blocks = [slice(first, min(first + size, x.shape[0])) for first in range(0, x.shape[0], size)]
        return Lloyd(x, self.metric, fused, blocks)

    def _start(self, x: Tensor, lloyd: Lloyd) -> Tensor:
        if not isinstance(self.init, str):
            given = given_centroids(self.init, self.n_clusters, x)
            return unit_rows(given) if lloyd.cosine else given
        seed = int(torch.randint(2**62, (1,), device="cpu")) if self.seed is None else self.seed
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = draw_centroids(x, self.n_clusters, self.init, lloyd.cosine, generator, lloyd.blocks, self.progress)
        return unit_rows(drawn) if lloyd.cosine else drawn

    def _run(self, lloyd: Lloyd, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Iterates; (centroids, labels, distances)."""
        enough = self.tol * lloyd.mean_variance() if self.tol > 0 else 0.0
        before, every = None, LOOK_EVERY.get(centroids.device.type, 1)
        for number in steps(range(1, self.max_iter + 1), "k-means", "iterations", self.progress):
            self.n_iter_ = number
            labels, far, moved = lloyd.step(centroids)
            shift, centroids, old = (moved - centroids).square().sum(), moved, before
            before = labels
            if number % every:
                continue
            if old is not None and torch.equal(labels, old):
                return centroids, labels, far
            if float(shift) <= enough:
                break
        return centroids, *lloyd.nearest(centroids)


@dataclass
class Lloyd:
    """One run over `points` (N, D), which are read a block at a time."""

    points: Tensor
    metric: str
    backend: str | None
    blocks: list[slice]

    @property
    def cosine(self) -> bool:
        return self.metric == "cosine"

    def nearest(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) labels, and how far each point is from its centroid: squared distance, or 1 - cos."""
        labels, far = zip(*(self._block(b, centroids) for b in self.blocks))
        return torch.cat(labels), torch.cat(far)

    def step(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(labels, distances) of these centroids, and the centroids that follow."""
        k = centroids.shape[0]
        sums = torch.zeros(centroids.shape, dtype=torch.float64, device=centroids.device)
        counts = torch.zeros(k, dtype=torch.int64, device=centroids.device)
        found = []
        for b in self.blocks:
            labels, far = self._block(b, centroids)
            part = cluster_sums(self.points[b], labels, k, normalize=self.cosine, backend=self.backend)
            sums += part.sums
            counts += part.counts
            found.append((labels, far))
        labels, far = (torch.cat(x) for x in zip(*found))
        # Reading whether any is empty would stall a GPU: there the step is always taken, and changes nothing if not.
        if sums.is_cuda or bool((counts == 0).any()):
            sums, counts = self._relocate_empty_clusters(sums, counts, labels, far)
        return labels, far, self._means(sums, counts, centroids)

    def _block(self, b: slice, centroids: Tensor) -> tuple[Tensor, Tensor]:
        found = assign(self.points[b], centroids, metric=self.metric, backend=self.backend)
        # A cosine may be rounded to a little more than 1.
        return found.index, (1 - found.value).clamp_min(0) if self.cosine else found.value

    def _relocate_empty_clusters(
        self, sums: Tensor, counts: Tensor, labels: Tensor, far: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The farthest points, one for each empty cluster, leave their cluster and begin that one."""
        k, empty = counts.shape[0], counts == 0
        source = far.topk(k).indices[(empty.cumsum(0) - 1).clamp_min(0)]  # (K,)
        rows = self.points[source].double()
        rows = unit_rows(rows) if self.cosine else rows
        old = labels[source]
        # index_put_ adds in a fixed order on a GPU, index_add_ on the CPU.
        leaving, one = torch.where(empty[:, None], -rows, 0.0), empty.long()
        if sums.is_cuda:
            sums = sums.index_put((old,), leaving, accumulate=True)
            counts = counts.index_put((old,), -one, accumulate=True)
        else:
            sums, counts = sums.index_add(0, old, leaving), counts.index_add(0, old, -one)
        return torch.where(empty[:, None], rows, sums), torch.where(empty, 1, counts)

    def _means(self, sums: Tensor, counts: Tensor, old: Tensor) -> Tensor:
        """Means, or their directions; a cluster without points, or whose points cancel out, stays where it is."""
        length = torch.linalg.vector_norm(sums, dim=1) if self.cosine else counts.double()
        known = (counts > 0) & (length > 0)
        mean = sums / torch.where(known, length, 1.0)[:, None]
        return torch.where(known[:, None], mean, old.double()).to(old.dtype)

    def mean_variance(self) -> float:
        """Mean over the columns of their variance, of unit rows for cosines."""
        n, total, square = self.points.shape[0], 0.0, 0.0
        for b in self.blocks:
            x = self.points[b].double()
            x = unit_rows(x) if self.cosine else x
            total, square = total + x.sum(0), square + x.square().sum(0)
        return float((square / n - (total / n).square()).clamp_min(0).mean())
