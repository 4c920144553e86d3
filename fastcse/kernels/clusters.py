"""Nearest centroids and sums of clusters on the GPU, without a float atomic and without a matrix of all pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import plain, tile_config
from .nearest import rescore_kernel
from .rows import inverse_norms
from .tile import dot_tile
from .workspace import prepare

COLUMNS = 128


@triton.jit
def _better(value, index, other, other_index):
    """The larger of two, of equal ones that with the lower index."""
    take = (other > value) | ((other == value) & (other_index < index))
    return tl.where(take, other, value), tl.where(take, other_index, index)


@triton.jit(do_not_specialize=["N"])
def assign_kernel(
    X, C, ROW, COL, INDEX, N, K, D, stride_x, stride_c, TWO: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """INDEX (N, 1 or 2) <- the centroids of the largest ranks dot scale + bias, or -1; ROW (N,): 0 for a zero
    row of cosines, else 1; COL (2, K): scale and bias."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = offs_n < N
    row = tl.load(ROW + offs_n, mask=in_n, other=0.0)
    last: tl.constexpr = 2147483647
    none = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    first, second = none, none
    first_index = tl.full((BLOCK_N,), last, tl.int32)
    second_index = first_index
    for start in range(0, K, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        in_m = offs_m < K
        acc = dot_tile(
            X, C, offs_n, offs_m, N, K, D, stride_x, stride_c, BLOCK_N, BLOCK_M, BLOCK_D, EVEN_D, RAISE, PRECISION
        )
        scale = tl.load(COL + offs_m, mask=in_m, other=0.0)
        bias = tl.load(COL + K + offs_m, mask=in_m, other=float("-inf"))
        s = acc * scale[None, :] * row[:, None] + bias[None, :]
        s = tl.where((s == s) & in_m[None, :], s, float("-inf"))  # a NaN is near to nothing
        top = tl.max(s, 1)
        at = tl.min(tl.where((s == top[:, None]) & (s > float("-inf")), offs_m[None, :], last), 1)
        if TWO:
            rest = tl.where(offs_m[None, :] == at[:, None], float("-inf"), s)
            next_top = tl.max(rest, 1)
            found = (rest == next_top[:, None]) & (rest > float("-inf"))
            next_at = tl.min(tl.where(found, offs_m[None, :], last), 1)
            # The loser of the two firsts, or the better of the two seconds.
            lost = (top > first) | ((top == first) & (at < first_index))
            runner, runner_at = tl.where(lost, first, top), tl.where(lost, first_index, at)
            second, second_index = _better(second, second_index, runner, runner_at)
            second, second_index = _better(second, second_index, next_top, next_at)
        first, first_index = _better(first, first_index, top, at)
    width: tl.constexpr = 2 if TWO else 1
    out = INDEX + offs_n.to(tl.int64) * width
    tl.store(out, tl.where(first_index == last, -1, first_index).to(tl.int64), mask=in_n)
    if TWO:
        tl.store(out + 1, tl.where(second_index == last, -1, second_index).to(tl.int64), mask=in_n)


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
    x, c = prepare(points), prepare(centroids.to(points.dtype))
    n, (k, d) = x.shape[0], c.shape
    norm_scale = inverse_norms(c)
    square = c.float().square().sum(1)
    known = torch.isfinite(square)
    distance = metric == "euclidean"
    scale = torch.ones_like(norm_scale) if distance else norm_scale
    bias = torch.where(known, -0.5 * square if distance else 0.0, torch.nan)
    index = torch.empty(n, wanted, dtype=torch.int64, device=x.device)
    config = plain(tile_config(x.dtype, d, "sums", x.device, False), x.dtype)
    interpreted = triton.knobs.runtime.interpret
    tf32 = torch.get_float32_matmul_precision() != "highest"
    assign_kernel[(triton.cdiv(n, config.block_n),)](
        x, c, torch.ones(n, device=x.device) if distance else (inverse_norms(x) != 0).float(),
        torch.stack([scale, bias]), index, n, k, d, x.stride(0), c.stride(0), TWO=wanted == 2,
        BLOCK_N=config.block_n, BLOCK_M=config.block_m, BLOCK_D=config.block_d, EVEN_D=d % config.block_d == 0,
        RAISE=interpreted and x.dtype != torch.float32, PRECISION="tf32" if tf32 else "ieee",
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    index = torch.where(torch.isfinite(x.float().square().sum(1))[:, None], index, -1)
    return index, _values(x, c, norm_scale, index, distance)


def _values(x: Tensor, c: Tensor, norm_scale: Tensor, index: Tensor, distance: bool) -> Tensor:
    """Cosines or squared distances of the pairs in `index`, from the rows themselves; NaN where there is none."""
    value = torch.empty(index.shape, dtype=torch.float32, device=x.device)
    rescore_kernel[(x.shape[0], 1)](
        x, c, inverse_norms(x), norm_scale, index.clamp_min(0), value, index.shape[1], x.shape[1], x.stride(0),
        c.stride(0), DISTANCE=distance, BLOCK_K=2, BLOCK_D=COLUMNS,
    )  # fmt: skip
    return torch.where(index >= 0, 0.0 - value if distance else value, torch.nan)


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
