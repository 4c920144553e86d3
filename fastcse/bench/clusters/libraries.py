"""K-means of other packages on the CPU: FAISS and scikit-learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peers.peer import need
from .problem import ClustersProblem
from .provider import Provider, Run
from .truth import Outcome

BOTH = ("assignment", "iteration")


def _need_cpu(problem: ClustersProblem) -> None:
    need(not problem.device.startswith("cuda"), "runs on the CPU only")
    need(problem.dtype == "float32", f"computes float32 only, not {problem.dtype}")


def _faiss(problem: ClustersProblem, points: Tensor, start: Tensor, labels: None) -> Run:
    _need_cpu(problem)
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    cosine = problem.metric == "cosine"

    def rows() -> object:
        return (F.normalize(points, dim=1) if cosine else points).numpy()

    def assignment() -> Outcome:
        index = faiss.IndexFlatIP(problem.d) if cosine else faiss.IndexFlatL2(problem.d)
        index.add(start.numpy())
        return Outcome(torch.from_numpy(index.search(rows(), 1)[1][:, 0]), start)

    def iteration() -> Outcome:
        # By default it would take 256 points of each cluster, and warn of fewer than 39.
        kmeans = faiss.Kmeans(problem.d, problem.m, niter=problem.iterations, spherical=cosine,
                              min_points_per_centroid=1, max_points_per_centroid=problem.n)  # fmt: skip
        x = rows()
        kmeans.train(x, init_centroids=start.numpy())
        return Outcome(torch.from_numpy(kmeans.assign(x)[1]), torch.from_numpy(kmeans.centroids))

    return assignment if problem.what == "assignment" else iteration


def _scikit_learn(problem: ClustersProblem, points: Tensor, start: Tensor, labels: None) -> Run:
    # Its public calls alone: they keep its BLAS at one thread inside their own parallel loop. The loop called without
    # that has OpenBLAS warn on stderr, thousands of times, as soon as FAISS or torch is in the process.
    _need_cpu(problem)
    need(problem.metric == "euclidean", f"computes euclidean only, not {problem.metric}")
    from sklearn.cluster import KMeans

    def kmeans(iterations: int) -> KMeans:
        return KMeans(problem.m, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")

    def iteration() -> Outcome:
        fitted = kmeans(problem.iterations).fit(points.numpy())
        return Outcome(torch.from_numpy(fitted.labels_), torch.from_numpy(fitted.cluster_centers_))

    if problem.what == "iteration":
        return iteration
    known = kmeans(1).fit(start.numpy())  # each its own cluster: the centroids are the start
    return lambda: Outcome(torch.from_numpy(known.predict(points.numpy())), start)


PROVIDERS = (
    Provider("FAISS", _faiss, BOTH, ("faiss",), "pip install faiss-cpu", "IndexFlat with k = 1; iteration: Kmeans, all "
             "points, then assign"),
    Provider("scikit-learn", _scikit_learn, BOTH, ("sklearn",), "pip install scikit-learn", "KMeans: predict, and fit "
             "by lloyd, which copies the points to subtract their mean"),
)  # fmt: skip
