"""K-means with the manners of scikit-learn: every point takes part in every iteration."""

from __future__ import annotations

from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ..ops import checks
from ..ops.dispatch import NAMES, choose_backend
from ..ops.kmeans_steps import METRICS
from ..reference import unit_rows
from ..retrieval.arrays import as_rows, check_finite
from .faiss_kmeans import fit_faiss
from .lloyd import Lloyd
from .seeding import INITS, draw_centroids, given_centroids, working_dtype
from .steps import steps

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
