"""Nearest centroids and sums of clusters on the GPU, without a float atomic and without a matrix of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..operands import SHORTEST_NORM
from .configs import TileConfig, tile_config
from .kmeans_assign import WIDTH, assign_kernel, persistent_assign_kernel, settle_kernel
from .rows import inverse_norms
from .tile import fits_descriptor, multiprocessors
from .workspace import prepare

# Segments of centroids that are ranked apart: what runs together then needs few points and few centroids in L2 (a
# sweep of all centroids by each program would bring all points from memory once for every tile), and few points are
# enough to keep every multiprocessor at work.
SEGMENTS = 8
# What a segment's end costs is spread over this many tiles, where there are points enough.
LEAST_TILES, MANY_TILES = 4, 512
# bfloat16 centroids in two parts miss 2^-16 of a product, a float32 sum of D terms D 2^-24.
TWO_PARTS_FROM = 256
# Largest entry of a float16 row: its digits down to 2^-38 of that are kept.
TOP_EXPONENT = 14
SHARED_MEMORY, PROGRAMS = 220 << 10, 2
NONE = 2**31 - 1


class Centroids(NamedTuple):
    """`rows` (parts columns, D) for `columns` = segments per_segment BLOCK_M centroids, those past the end zero; `col`
    (2, columns): scale and bias, -inf for a centroid that is out; `norm_scale` (K,) 1 / |c|; `lowest` (2,) the first
    two that are not out, or -1."""

    rows: Tensor
    col: Tensor
    norm_scale: Tensor
    lowest: Tensor
    parts: int
    columns: int
    segments: int
    per_segment: int


def parts_of(points: torch.dtype, centroids: torch.dtype, d: int) -> int:
    """In how many parts centroids are multiplied, so that what is cut off is no more than a float32 sum may miss.

    One product with rounded centroids and a second look at the doubtful points would be provable too, but the bound
    |x| |c - c'| is about D^(1/2) times what rounding does: of rows of 768 that bfloat16 centroids swapped for 0.9% of
    the points it left 56% in doubt, and a first run on a GPU saw 3.8% swapped.
    """
    if points in (torch.float32, centroids):
        return 1
    return 2 if points == torch.float16 or d >= TWO_PARTS_FROM else 3


def prepare_centroids(c: Tensor, points: Tensor, distance: bool, config: TileConfig) -> Centroids:
    """Centroids (K, D) of any type for these points, in the tiles of `config`."""
    k, d = c.shape
    per_segment = _per_segment(points.shape[0], k, config)
    segments = triton.cdiv(triton.cdiv(k, config.block_m), per_segment)
    columns = segments * per_segment * config.block_m
    length = torch.linalg.vector_norm(c, dim=1, dtype=torch.float64)
    known, norm_scale = torch.isfinite(length), inverse_norms(c)
    parts = parts_of(points.dtype, c.dtype, d)
    finite, power = c.masked_fill(~known[:, None], 0.0), None
    if parts > 1 and points.dtype == torch.float16:
        finite, power = _in_range(finite.float())
    # Rows start at multiples of 16 elements, which the copy engine asks for.
    rows = torch.zeros(parts, columns, triton.cdiv(d, 16) * 16, dtype=points.dtype, device=c.device)[:, :, :d]
    for part in rows:
        part[:k] = finite
        finite = finite - part[:k] if parts > 1 else finite
    scale = torch.ones_like(norm_scale) if distance else norm_scale
    col = torch.zeros(2, columns, dtype=torch.float32, device=c.device)
    col[0, :k] = torch.where(known, scale if power is None else scale * power, 0.0)
    col[1] = -torch.inf
    col[1, :k] = torch.where(known, length.square() / -2 if distance else 0.0, -torch.inf)
    order = torch.where(known, torch.arange(k, device=c.device), NONE)
    lowest = torch.full((2,), NONE, dtype=torch.int64, device=c.device)
    lowest[: min(2, k)] = order.topk(min(2, k), largest=False).values
    lowest = torch.where(lowest == NONE, -1, lowest).int()
    return Centroids(rows.flatten(0, 1), col, norm_scale, lowest, parts, columns, segments, per_segment)


def _per_segment(n: int, k: int, config: TileConfig) -> int:
    """Tiles of centroids in a segment."""
    tiles = triton.cdiv(k, config.block_m)
    several = LEAST_TILES if triton.cdiv(n, config.block_n) >= MANY_TILES else 1
    return max(triton.cdiv(tiles, SEGMENTS), min(several, tiles))


def _in_range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows times powers of 2, so that float16 holds them and what their first part leaves; and the inverse powers."""
    exponent = torch.frexp(rows.abs().amax(1)).exponent.clamp_min(-100) - TOP_EXPONENT
    return torch.ldexp(rows, -exponent[:, None]), torch.ldexp(torch.ones_like(rows[:, 0]), exponent)


def fitting(config: TileConfig, parts: int, itemsize: int) -> TileConfig:
    """`config` with as deep a pipeline as leaves room for as many programs on a multiprocessor as it asks for."""
    room = SHARED_MEMORY // (config.programs or PROGRAMS)
    depth = config.block_d

    def stage() -> int:
        return (config.block_n + parts * config.block_m) * depth * itemsize

    while 2 * stage() > room and depth > 16:
        depth //= 2
    # Not flattened (on sm_100), two parts spilled 8 bytes with 4 warps.
    warps = 8 if config.programs and parts > 1 and not config.flatten else config.num_warps
    stages = max(2, min(config.num_stages + 1, room // stage()))
    return config._replace(block_d=depth, num_warps=warps, num_stages=stages)


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
