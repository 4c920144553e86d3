"""Nearest centroids and sums of clusters on the GPU, without a float atomic and without a matrix of all pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..operands import SHORTEST_NORM
from .configs import TileConfig, tile_config
from .kmeans_assign import WIDTH, assign_kernel, persistent_assign_kernel, settle_kernel
from .kmeans_split import Centroids, fitting, parts_of, prepare_centroids
from .rows import inverse_norms
from .tma import fits_descriptor, multiprocessors
from .workspace import prepare

COLUMNS = 128


@triton.jit
def cluster_sums_kernel(X, SCALE, ORDER, STARTS, SUMS, D, stride_x, HAS_SCALE: tl.constexpr, BLOCK_D: tl.constexpr):
    """SUMS (K, D) <- the points of each cluster, added in their order."""
    cluster = tl.program_id(0)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = offs_d < D
    total = tl.zeros((BLOCK_D,), tl.float32)
    lost = tl.zeros((BLOCK_D,), tl.float32)
    for entry in range(tl.load(STARTS + cluster), tl.load(STARTS + cluster + 1)):
        point = tl.load(ORDER + entry)
        x = tl.load(X + point * stride_x + offs_d, mask=inside, other=0.0).to(tl.float32)
        if HAS_SCALE:
            x = x * tl.load(SCALE + point)
        # Neumaier's sum: a cluster of a million points keeps its digits.
        next_total = total + x
        lost += tl.where(tl.abs(total) >= tl.abs(x), (total - next_total) + x, (x - next_total) + total)
        total = next_total
    tl.store(SUMS + cluster.to(tl.int64) * D + offs_d, total + lost, mask=inside)


def assign(points: Tensor, centroids: Tensor, wanted: int, metric: str) -> tuple[Tensor, Tensor]:
    """(N, wanted) int64 nearest centroids, -1 for none, and their cosines or squared distances."""
    x, c = prepare(points), prepare(centroids)
    n, d = x.shape
    distance = metric == "euclidean"
    described = fits_descriptor(x)
    config = tile_config(x.dtype, d, "sums", x.device, described)
    config = fitting(config, parts_of(x.dtype, c.dtype, d), x.element_size())
    ready = prepare_centroids(c, x, distance, config)
    new = {"device": x.device}
    rank = torch.empty(ready.segments, wanted, n, dtype=torch.float32, **new)
    at = torch.empty(ready.segments, wanted, n, dtype=torch.int32, **new)
    _launch(x, ready, rank, at, config)
    index = torch.empty(n, wanted, dtype=torch.int64, **new)
    value = torch.empty(n, wanted, dtype=torch.float32, **new)
    sizes = settling(d)
    settle_kernel[(triton.cdiv(n, sizes["ROWS"]),)](
        x, c, ready.norm_scale, ready.lowest, rank, at, index, value, n, d, ready.segments, x.stride(0), c.stride(0),
        SHORTEST_NORM, TWO=wanted == 2, DISTANCE=distance, **sizes,
    )  # fmt: skip
    return index, value


def settling(d: int) -> dict:
    """Launch options of `settle_kernel`: a program has about 4096 entries."""
    block = triton.next_power_of_2(d)
    rows = max(1, min(16, 4096 // block))
    return {"BLOCK_D": block, "ROWS": rows, "num_warps": max(1, min(16, rows * block // 1024))}


def _launch(x: Tensor, ready: Centroids, rank: Tensor, at: Tensor, config: TileConfig) -> None:
    """RANK and AT (segments, wanted, N) <- the best of each segment of centroids."""
    (_, wanted, n), d = rank.shape, x.shape[1]
    interpreted = triton.knobs.runtime.interpret
    options = {
        "TWO": wanted == 2, "PARTS": ready.parts, "BLOCK_N": config.block_n, "BLOCK_M": config.block_m,
        "BLOCK_D": config.block_d, "RAISE": interpreted and x.dtype != torch.float32, "WIDTH": WIDTH,
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip
    units = triton.cdiv(n, config.block_n) * ready.segments
    arrays = (ready.col, rank, at, n, d, ready.columns, ready.segments, ready.per_segment)
    if config.programs == 0:
        even = d % config.block_d == 0
        assign_kernel[(units,)](x, ready.rows, *arrays, x.stride(0), ready.rows.stride(0), EVEN_D=even, **options)
        return
    described = (
        TensorDescriptor.from_tensor(x, [config.block_n, config.block_d]),
        TensorDescriptor.from_tensor(ready.rows, [config.block_m, config.block_d]),
    )
    programs = min(units, config.programs * multiprocessors(x.device))
    persistent_assign_kernel[(programs,)](*described, *arrays, FLATTEN=config.flatten, **options)


def cluster_sums(points: Tensor, index: Tensor, clusters: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """(clusters, D) float32 sums of the points of each cluster in their order, and (clusters,) int64 counts."""
    x = prepare(points)
    sorted_index, order = index.sort(stable=True)
    starts = torch.searchsorted(sorted_index, torch.arange(clusters + 1, device=x.device))
    sums = torch.empty(clusters, x.shape[1], dtype=torch.float32, device=x.device)
    scale = inverse_norms(x) if normalize else sums
    cluster_sums_kernel[(clusters, triton.cdiv(x.shape[1], COLUMNS))](
        x, scale, order, starts, sums, x.shape[1], x.stride(0), HAS_SCALE=normalize, BLOCK_D=COLUMNS, num_warps=1
    )
    return sums, starts.diff()
