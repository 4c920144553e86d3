"""Nearest centroids and sums of clusters on the CPU: products through BLAS, one C++ pass over each piece of them.

The products only say which centroids may be nearest; those are scored again from the rows. So they may be rough: where
the processor multiplies bfloat16 several times faster (AMX) they are bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..operands import SHORTEST_NORM
from .extension import _C
from .rows import _stride, address, empty, half_rows, inverse_norms
from .sweep import prepare
from .topk_search import multiplies_half

# A piece of products stays in the last-level cache between the product and the pass over it.
PIECE_BYTES = 4 << 20
MOST_ROWS = 8192
HALF_EPSILON, EPSILON = 2.0**-9, 2.0**-24
# Where more than this share of the centroids had to be scored from the rows, bfloat16 cannot tell them apart.
CROWDED = 0.05


@dataclass
class Centroids:
    """Rows in float32, what ranks a product (scale and bias by centroid), 1 / |c|, and the longest scaled row."""

    rows: Tensor
    scale: Tensor
    bias: Tensor
    norm_scale: Tensor
    longest: float

    @classmethod
    def of(cls, centroids: Tensor, distance: bool) -> Centroids:
        rows = prepare(centroids)
        length = torch.linalg.vector_norm(rows, dim=1)
        known = torch.isfinite(length)
        norm_scale = inverse_norms(rows)
        scale = torch.ones_like(length) if distance else norm_scale
        bias = -0.5 * length.square() if distance else torch.zeros_like(length)
        bias = torch.where(known, bias, torch.nan)
        scaled = torch.where(known, length if distance else (length >= SHORTEST_NORM).float(), 0.0)
        return cls(rows, scale, bias, norm_scale, float(scaled.max()))


def assign(points: Tensor, centroids: Tensor, wanted: int, metric: str) -> tuple[Tensor, Tensor]:
    """(N, wanted) int64 nearest centroids, -1 for none, and their cosines or squared distances."""
    n, distance = points.shape[0], metric == "euclidean"
    c = Centroids.of(centroids, distance)
    k = c.rows.shape[0]
    half = multiplies_half() and n >= 64
    multiplied = half_rows(c.rows) if half else c.rows
    size = max(16, min(n, MOST_ROWS, PIECE_BYTES // (4 * k)))
    products = empty(size * k)
    index, value = empty(n, wanted, dtype=torch.int64), empty(n, wanted)
    for first in range(0, n, size):
        rows = slice(first, min(first + size, n))
        looked = _assign_piece(prepare(points[rows]), c, multiplied, products, index[rows], value[rows], distance)
        if multiplied.dtype == torch.bfloat16 and looked > CROWDED * k * (rows.stop - rows.start):
            multiplied = c.rows
    return index, value


def _assign_piece(
    x: Tensor, c: Centroids, multiplied: Tensor, products: Tensor, index: Tensor, value: Tensor, distance: bool
) -> int:
    """One piece of points; says how many pairs were scored from the rows."""
    n, d = x.shape
    k, half = c.rows.shape[0], multiplied.dtype == torch.bfloat16
    dot = products.view(multiplied.dtype)[: n * k].view(n, k)
    torch.mm(half_rows(x) if half else x, multiplied.T, out=dot)
    row_scale = None if distance else inverse_norms(x)
    slack = _slack(torch.linalg.vector_norm(x, dim=1), c.longest, d, half, row_scale)
    looked = empty(n, dtype=torch.int64)
    fields = {
        "dot": address(dot), "half": half, "stride": k, "rows": n, "cols": k, "col_scale": address(c.scale),
        "col_bias": address(c.bias), "slack": address(slack), "point": address(x), "point_stride": _stride(x),
        "centroid": address(c.rows), "centroid_stride": _stride(c.rows), "d": d, "row_scale": address(row_scale),
        "norm_scale": address(c.norm_scale), "distance": distance, "wanted": index.shape[1],
        "index": address(index), "value": address(value), "looked": address(looked),
    }  # fmt: skip
    _C.assign_rows(fields, torch.get_num_threads())
    return int(looked.sum())


def _slack(length: Tensor, longest: float, d: int, half: bool, row_scale: Tensor | None) -> Tensor:
    """(N,) twice by how much the rank of a product and the score that decides may be wrong together: what is nearest by
    that score is then among what is looked at, whatever the products were."""
    # Of a bfloat16 product both operands and the result are rounded.
    slack = length * longest * (2 * ((3 * HALF_EPSILON * 1.01 if half else 0.0) + (2 * d + 4) * EPSILON))
    if row_scale is None:  # a rank is half of a squared distance, which takes the rounding of both lengths
        return slack + (d + 4) * EPSILON * (length + longest).square()
    # A zero row has cosine 0 with all, whatever its small products say: all are looked at.
    return torch.where((row_scale == 0) & torch.isfinite(length), torch.finfo(torch.float32).max, slack)


def cluster_sums(points: Tensor, index: Tensor, clusters: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """(clusters, D) float64 sums of the points of each cluster in their order, and (clusters,) int64 counts."""
    sorted_index, order = index.sort(stable=True)
    starts = torch.searchsorted(sorted_index, torch.arange(clusters + 1, device="cpu"))
    sums = torch.zeros(clusters, points.shape[1], dtype=torch.float64, device="cpu")
    x = prepare(points)
    scale = inverse_norms(x) if normalize else None
    fields = {
        "point": address(x), "point_stride": _stride(x), "n": x.shape[0], "d": x.shape[1], "clusters": clusters,
        "scale": address(scale), "order": address(order), "starts": address(starts), "sums": address(sums),
    }  # fmt: skip
    _C.cluster_sums(fields, torch.get_num_threads())
    return sums, starts.diff()
