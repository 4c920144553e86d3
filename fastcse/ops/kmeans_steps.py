"""Nearest centroids and sums of clusters as custom ops: what k-means is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from .. import reference
from . import checks
from .dispatch import choose_backend, launchers, record

METRICS = ("cosine", "euclidean")


class Assignment(NamedTuple):
    """`index` int64 and `value` of the nearest centroid, (N,); or of the nearest two, (N, 2)."""

    index: Tensor
    value: Tensor


class ClusterSums(NamedTuple):
    """`sums` (K, D) of the points of each cluster and `counts` (K,) int64."""

    sums: Tensor
    counts: Tensor


@custom_op("fastcse::assign", mutates_args=())
def assign_op(points: Tensor, centroids: Tensor, wanted: int, metric: str, backend: str) -> list[Tensor]:
    """[index, value], (N, wanted) each."""
    record(backend)
    return list(launchers(backend).assign(points, centroids, wanted, metric))


@assign_op.register_fake
def _(points, centroids, wanted, metric, backend):
    shape = (points.shape[0], wanted)
    return [points.new_empty(shape, dtype=torch.int64), points.new_empty(shape, dtype=torch.float32)]


@custom_op("fastcse::cluster_sums", mutates_args=())
def cluster_sums_op(points: Tensor, index: Tensor, clusters: int, normalize: bool, backend: str) -> list[Tensor]:
    """[sums, counts]."""
    checks.check_index("index", index, clusters, "the sums", none=True)
    record(backend)
    sums, counts = launchers(backend).cluster_sums(points, index, clusters, normalize)
    return [sums.float(), counts]


@cluster_sums_op.register_fake
def _(points, index, clusters, normalize, backend):
    sums = points.new_empty((clusters, points.shape[1]), dtype=torch.float32)
    return [sums, points.new_empty(clusters, dtype=torch.int64)]


@torch.no_grad()
def assign(
    points: Tensor,
    centroids: Tensor,
    *,
    second: bool = False,
    metric: str = "cosine",
    backend: str | None = None,
) -> Assignment:
    r"""The nearest centroid of each point, or the nearest two, without the (N, K) matrix.

        cosine:    argmax_k <x_i, c_k> / (|x_i| |c_k|)
        euclidean: argmin_k |x_i - c_k|^2

    Args:
        points:    (N, D) float16 | bfloat16 | float32 | float64, any strides. Read only.
        centroids: (K, D) on the same device; float32 beside half-precision points too.
        second:    also the second nearest.
        metric:    "cosine" | "euclidean".
        backend:   "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        Assignment(index, value): (N,) int64 and float32 (float64 for float64 points), with `second` (N, 2), nearest
        first: cosines, or squared distances. Ties to the lowest index. No gradient flows through them.

    Raises:
        ValueError: shapes or devices disagree, empty input, one centroid where the second is asked for, unknown metric
            or backend.
        RuntimeError: the backend asked for cannot run here.

    Numerics:
        By "cpp" what may be nearest is scored again from the rows in float32; "triton" ranks by its float32 (or TF32)
        products, float32 centroids beside half-precision points going in as parts that keep their digits, and then
        takes values from the rows. A row shorter than 1e-8 has cosine 0. A point that is not finite has index -1 and
        value NaN; a centroid that is not finite is never found. Same input, same bits.

    Example:
        >>> assign(torch.tensor([[3.0, 0.1], [0.0, 2.0]]), torch.eye(2), second=True).index
        tensor([[0, 1],
                [1, 0]])
    """
    _check(points, centroids, metric)
    if second and centroids.shape[0] < 2:
        raise ValueError(f"second needs at least 2 centroids, got {centroids.shape[0]}")
    chosen, wanted = choose_backend(points, backend, "points"), 2 if second else 1
    if chosen == "reference":
        record(chosen)
        index, value = reference.assign(points.detach(), centroids.detach(), wanted, metric)
    else:
        index, value = assign_op(points.detach(), centroids.detach(), wanted, metric, chosen)
    return Assignment(index, value) if second else Assignment(index[:, 0], value[:, 0])


@torch.no_grad()
def cluster_sums(
    points: Tensor, index: Tensor, n_clusters: int, *, normalize: bool = False, backend: str | None = None
) -> ClusterSums:
    """Sum and number of the points of each cluster, added in the order of the points.

    Args:
        points:     (N, D) float16 | bfloat16 | float32 | float64, any strides. Read only.
        index:      (N,) int64, the cluster of each point; -1 is none.
        n_clusters: K.
        normalize:  bring each point to length 1 first; a row shorter than 1e-8 stays out.
        backend:    "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        ClusterSums(sums, counts): (K, D) float32 (float64 for float64 points) and (K,) int64.

    Raises:
        ValueError: shapes or devices disagree, empty input, n_clusters below 1.
        IndexError: an index outside -1 to K - 1, on the CPU; a GPU, which would stall, does not check.
        RuntimeError: the backend asked for cannot run here.

    Numerics: "cpp" and "reference" add in float64, "triton" in float32 with a correction. Same input, same bits.

    Example:
        >>> cluster_sums(torch.eye(3), torch.tensor([1, 0, 1]), 2).sums
        tensor([[0., 1., 0.],
                [1., 0., 1.]])
    """
    checks.check_rows("points", points)
    checks.check_vector("index", index, points.shape[0], "points", points)
    checks.check_count("n_clusters", n_clusters)
    chosen = choose_backend(points, backend, "points")
    if chosen == "reference":
        checks.check_index("index", index, n_clusters, "the sums", none=True)
        record(chosen)
        sums, counts = reference.cluster_sums(points.detach(), index, n_clusters, normalize)
        return ClusterSums(sums if points.dtype == torch.float64 else sums.float(), counts)
    return ClusterSums(*cluster_sums_op(points.detach(), index.contiguous(), int(n_clusters), normalize, chosen))


def _check(points: Tensor, centroids: Tensor, metric: str) -> None:
    checks.check_rows("points", points)
    checks.check_rows("centroids", centroids)
    if centroids.shape[1] != points.shape[1]:
        shapes = f"{tuple(centroids.shape)} and {tuple(points.shape)}"
        raise ValueError(f"centroids and points must have rows of one length, got {shapes}")
    if centroids.device != points.device:
        raise ValueError(f"centroids and points must be on one device, got {centroids.device} and {points.device}")
    if points.dtype != centroids.dtype and torch.float64 in (points.dtype, centroids.dtype):
        raise ValueError(f"centroids and points must both be float64, got {centroids.dtype} and {points.dtype}")
    checks.check_choice("metric", metric, METRICS)
