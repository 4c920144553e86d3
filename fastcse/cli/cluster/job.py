"""The job, whole: rows, clusters, files."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import torch

from ...clustering.kmeans import KMeans
from ...clustering.seeding import INITS
from ...errors import InputError
from ...ops.clusters import METRICS
from ...ops.dispatch import last_backend
from ...training.options import check_at_least, check_backend, flag
from .files import make_folders, open_vectors, output_files, write_arrays

# Names of `KMeans` in the words of the command line.
WORDS = {"n_clusters": "--clusters", "max_iter": "--max-iter", "points": "VECTORS"}


@dataclass(frozen=True)
class ClusterOptions:
    """The options of a run, under the names of the command line; their meanings are those of `KMeans`.

    Raises:
        InputError: an option outside its range, named with the value that came.
    """

    vectors: str
    clusters: int
    metric: str = "euclidean"
    init: str = "k-means++"
    max_iter: int = 300
    tol: float = 1e-4
    seed: int = 0
    backend: str | None = None
    output_dir: str | None = None
    labels: str | None = None
    centroids: str | None = None
    overwrite: bool = False

    def __post_init__(self):
        for name, known in (("metric", METRICS), ("init", INITS)):
            if getattr(self, name) not in known:
                raise InputError(f"{flag(name)} is {getattr(self, name)!r}: expected one of {', '.join(known)}")
        for name, lowest in (("clusters", 1), ("max_iter", 1), ("seed", 0)):
            check_at_least(name, getattr(self, name), lowest)
        if not (self.tol >= 0 and math.isfinite(self.tol)):
            raise InputError(f"--tol is {self.tol}: expected a number of at least 0")
        if self.backend != "faiss":
            check_backend(self.backend)


def run_cluster(options: ClusterOptions) -> dict[str, Any]:
    """Cluster, write the files, and return the report, which is what `--json` prints.

    Raises:
        InputError: the file is not what it should be, it has fewer points than clusters, a point is not finite, or a
            result cannot be written.
    """
    files = output_files(options.vectors, options.output_dir, options.labels, options.centroids, options.overwrite)
    points = open_vectors(options.vectors)
    make_folders(files)
    kmeans = KMeans(options.clusters, metric=options.metric, init=options.init, max_iter=options.max_iter,
                    tol=options.tol, seed=options.seed, backend=options.backend, progress=True)  # fmt: skip
    start = time.perf_counter()
    try:
        kmeans.fit(points)
    except ValueError as error:
        raise InputError(_as_words(str(error), options.vectors)) from error
    seconds = time.perf_counter() - start
    centroids = kmeans.cluster_centers_.float().numpy()
    write_arrays(files, {"labels": kmeans.labels_.numpy(), "centroids": centroids})
    return {
        "vectors": options.vectors, "points": points.shape[0], "width": points.shape[1], "dtype": str(points.dtype),
        "clusters": options.clusters, "metric": options.metric, "init": options.init, "seed": options.seed,
        "iterations": kmeans.n_iter_, "inertia": kmeans.inertia_, "sizes": _sizes(kmeans.labels_, options.clusters),
        "seconds": round(seconds, 2), "backend": "faiss" if options.backend == "faiss" else last_backend(),
        **{name: str(files[name]) if name in files else None for name in ("labels", "centroids")},
    }  # fmt: skip


def _sizes(labels: torch.Tensor, clusters: int) -> dict[str, int | float]:
    sizes = torch.bincount(labels, minlength=clusters)
    return {
        "smallest": int(sizes.min()), "median": float(sizes.double().quantile(0.5)), "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
    }  # fmt: skip


def _as_words(message: str, vectors: str) -> str:
    words = re.sub(rf"\b({'|'.join(WORDS)})\b", lambda found: WORDS[found[0]], message, count=1)
    return words.replace("VECTORS", f"VECTORS {vectors!r}")
