"""Exact top-k on the GPU: tiles of scores with the maxima of their groups, and exact scores for what may be among the
best.

The k groups with the largest maxima hold all of the k best columns, since each of those makes its own group's maximum
at least as large as the k-th score. So a chunk's scores are written once, in the inputs' precision, and only the
columns of a few groups are read again. Those scores are rounded: `EXTRA` columns more are taken, scored again in
float32, and a query whose k-th score is not above what the next column could still have goes through it again with
more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..pairs import TopKQuery
from .configs import tile_config
from .pairwise import BATCH_SIZES
from .rows import inverse_norms
from .tile import dot_tile, rounded, tile_of

SPAN = 64
EXTRA = 16
WORKSPACE = 1 << 30


@triton.jit(do_not_specialize=[*BATCH_SIZES, "groups"])
def scores_kernel(
    A, C, ROW, COL, ROW_ID, COL_ID, S, MAXIMA, N, M, D, groups, stride_a, stride_c, stride_s, IDS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, EVEN_D: tl.constexpr,
    RAISE: tl.constexpr, PRECISION: tl.constexpr, SPAN: tl.constexpr, CUTS: tl.constexpr,
):  # fmt: skip
    """S (N, groups SPAN) <- scores, -inf where a pair takes no part; MAXIMA (N, groups) <- largest of each group.

    ROW (3, N): scale, least and most; COL (2, M): scale and bias. Masks come before the maxima.
    """
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    in_n, in_m = offs_n < N, offs_m < M
    acc = dot_tile(
        A, C, offs_n, offs_m, N, M, D, stride_a, stride_c, BLOCK_N, BLOCK_M, BLOCK_D, EVEN_D, RAISE, PRECISION
    )
    row_scale = tl.load(ROW + offs_n, mask=in_n, other=0.0)
    least = tl.load(ROW + N + offs_n, mask=in_n, other=0.0)
    most = tl.load(ROW + 2 * N + offs_n, mask=in_n, other=0.0)
    col_scale = tl.load(COL + offs_m, mask=in_m, other=0.0)
    bias = tl.load(COL + M + offs_m, mask=in_m, other=-float("inf"))
    s = rounded(acc * row_scale[:, None] * col_scale[None, :] + bias[None, :], CUTS).to(S.dtype.element_ty)
    s = s.to(tl.float32)
    take = (s >= least[:, None]) & (s <= most[:, None])  # false for NaN
    if IDS:
        row_id = tl.load(ROW_ID + offs_n, mask=in_n, other=0)
        col_id = tl.load(COL_ID + offs_m, mask=in_m, other=0)
        take = take & (row_id[:, None] != col_id[None, :])
    s = tl.where(take & in_m[None, :], s, -float("inf"))
    at = offs_n.to(tl.int64)[:, None] * stride_s + offs_m[None, :]
    tl.store(S + at, s.to(S.dtype.element_ty), mask=in_n[:, None] & (offs_m < groups * SPAN)[None, :])
    top = tl.max(tl.reshape(s, (BLOCK_N, BLOCK_M // SPAN, SPAN)), 2)
    offs_g = tile_m * (BLOCK_M // SPAN) + tl.arange(0, BLOCK_M // SPAN)
    at = offs_n.to(tl.int64)[:, None] * groups + offs_g[None, :]
    tl.store(MAXIMA + at, top, mask=in_n[:, None] & (offs_g < groups)[None, :])


@triton.jit
def rescore_kernel(
    A, C, A_SCALE, C_SCALE, INDEX, OUT, K, D, stride_a, stride_c, DISTANCE: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """OUT (N, K) <- float32 score of each row of A with the rows INDEX (N, K) of C, in a fixed order of its sum."""
    row = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    in_k = offs_k < K
    col = tl.load(INDEX + row * K + offs_k, mask=in_k, other=0)
    total = tl.zeros((BLOCK_K,), tl.float32)
    for d in range(0, D, BLOCK_D):
        offs_d = d + tl.arange(0, BLOCK_D)
        in_d = offs_d < D
        a = tl.load(A + row * stride_a + offs_d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        c = tl.load(C + col[:, None] * stride_c + offs_d[None, :], mask=in_d[None, :], other=0.0).to(tl.float32)
        total += tl.sum((a - c) * (a - c) if DISTANCE else a * c, 1)
    score = -total if DISTANCE else total * tl.load(A_SCALE + row) * tl.load(C_SCALE + col)
    tl.store(OUT + row * K + offs_k, score, mask=in_k)


class Operands(NamedTuple):
    """Rows as kernels read them, their scales, the columns' bias, |a|^2 / 2 for distances else 0, and by how much a
    score of a query may be wrong before and, relatively, by its last rounding."""

    a: Tensor
    c: Tensor
    a_scale: Tensor
    c_scale: Tensor
    bias: Tensor
    half_square: Tensor
    slack: Tensor
    rounding: float


def topk(q: TopKQuery) -> tuple[Tensor, Tensor, Tensor]:
    """(N, k) scores, best first, (N, k) int64 columns, and (N,) int64 how many there are.

    A score is larger the better: a squared distance is negative. Entries beyond the count are undefined.
    """
    n, m = q.query.shape[0], q.corpus.shape[0]
    o = _operands(q)
    rows, extra = torch.arange(n, device=q.query.device), EXTRA
    score = torch.empty(n, q.k, dtype=torch.float32, device=q.query.device)
    column = torch.empty(n, q.k, dtype=torch.int64, device=q.query.device)
    while True:
        take = min(m, q.k + extra)
        size = max(1, WORKSPACE // (4 * (m + 2 * SPAN * min(take, m // SPAN + 1))))
        doubtful = []
        for part in rows.split(size):
            score[part], column[part], doubt = _search(q, o, part, take)
            doubtful.append(part[doubt])
        # The one look at the device's memory: how many queries there are to do again.
        rows, extra = torch.cat(doubtful), 4 * extra
        if rows.numel() == 0:
            return score, column, torch.isfinite(score).sum(1)


def _operands(q: TopKQuery) -> Operands:
    a, c = (x if x.stride(1) == 1 else x.contiguous() for x in (q.query, q.corpus))
    new = {"dtype": torch.float32, "device": a.device}
    lengths = [torch.linalg.vector_norm(x, dim=1, dtype=torch.float32) for x in (a, c)]
    finite = torch.isfinite(lengths[1])
    a_scale, c_scale = (inverse_norms(x) if q.metric == "cosine" else torch.ones(x.shape[0], **new) for x in (a, c))
    bias = lengths[1].square() / -2 if q.metric == "l2" else torch.zeros(c.shape[0], **new)
    half_square = lengths[0].square() / 2 if q.metric == "l2" else torch.zeros(a.shape[0], **new)
    longest = (lengths[1] * c_scale).masked_fill(~finite, 0.0).amax()
    reach = lengths[0] * a_scale * longest
    bound = reach + half_square + (longest.square() / 2 if q.metric == "l2" else 0.0)
    # Products of half-precision numbers are exact; tf32 cuts each factor to 11 bits.
    half = a.dtype == c.dtype != torch.float32
    product = 0.0 if half or torch.get_float32_matmul_precision() == "highest" else 2.0**-9
    slack = bound * ((a.shape[1] + 16) * 2.0**-23 + product)
    return Operands(a, c, a_scale, c_scale, bias.masked_fill(~finite, -torch.inf), half_square, slack,
                    2.0**-8 if half else 2.0**-23)  # fmt: skip


def _search(q: TopKQuery, o: Operands, rows: Tensor, take: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score and column (R, k) of some queries, and whether more than `take` columns must be looked at."""
    scores, maxima = _scores(q, o, rows)
    rough, column = _best(scores, maxima, take + 1)
    following = rough[:, take] if rough.shape[1] > take else torch.full_like(rough[:, 0], -torch.inf)
    rough, column = rough[:, :take], column[:, :take].contiguous()
    score = _rescored(q, o, rows, column)
    outside = (score < q.least[rows, None]) | (score > q.most[rows, None])
    score = score.masked_fill(outside | (rough == -torch.inf), -torch.inf)
    # Equal scores by ascending column.
    column, order = column.sort(dim=1)
    score, order = score.gather(1, order).sort(dim=1, descending=True, stable=True)
    column = column.gather(1, order)
    kth = score[:, q.k - 1] / (2 if q.metric == "l2" else 1) + o.half_square[rows]
    reachable = following + (o.slack[rows] + following.abs() * o.rounding * 1.01)
    return score[:, : q.k], column[:, : q.k], (following > -torch.inf) & ~(kth > reachable)


def _scores(q: TopKQuery, o: Operands, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, groups SPAN) scores in the scale of the products, rounded, and (R, groups) float32 maxima."""
    a, n, (m, d) = o.a[rows], rows.shape[0], o.c.shape
    half, interpret = a.dtype == o.c.dtype != torch.float32, triton.knobs.runtime.interpret
    # Masks and maxima keep more alive than sums do: on sm_80 they spilled 8 bytes at 128 columns.
    config = tile_config(torch.bfloat16 if half else torch.float32, d, "busy", a.device, described=False)
    config = config._replace(block_m=max(config.block_m, SPAN))
    groups = triton.cdiv(m, SPAN)
    out = torch.empty(n, groups * SPAN, dtype=torch.bfloat16 if half else torch.float32, device=a.device)
    maxima = torch.empty(n, groups, dtype=torch.float32, device=a.device)
    packed = torch.stack([o.a_scale[rows], *_loose_bounds(q, o, rows)]).contiguous()
    ids = (q.query_id[rows], q.corpus_id) if q.query_id is not None else (packed, packed)
    grid = triton.cdiv(n, config.block_n) * triton.cdiv(m, config.block_m)
    scores_kernel[(grid,)](
        a, o.c, packed, torch.stack([o.c_scale, o.bias]), *ids, out, maxima, n, m, d, groups, a.stride(0),
        o.c.stride(0), out.stride(0), IDS=q.query_id is not None, BLOCK_N=config.block_n, BLOCK_M=config.block_m,
        BLOCK_D=config.block_d, GROUP=config.group, EVEN_D=d % config.block_d == 0, SPAN=SPAN,
        RAISE=a.dtype != o.c.dtype or (interpret and half), CUTS=interpret and half,
        PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out, maxima


def _loose_bounds(q: TopKQuery, o: Operands, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) least and most rounded score of what may lie within the bounds; NaN, which nothing meets, for a query that
    is not finite."""
    share, offset, slack = 2 if q.metric == "l2" else 1, o.half_square[rows], o.slack[rows]
    least, most = ((bound[rows] / share).float() + offset for bound in (q.least, q.most))
    least = least - slack - (least.abs() * o.rounding * 1.01).nan_to_num(posinf=0.0)
    most = most + slack + (most.abs() * o.rounding * 1.01).nan_to_num(posinf=0.0)
    finite = torch.isfinite(o.slack[rows])
    return least.where(finite, torch.nan), most.where(finite, torch.nan)


def _best(scores: Tensor, maxima: Tensor, take: int) -> tuple[Tensor, Tensor]:
    """The `take` largest scores of each row and their columns, or all."""
    groups = maxima.shape[1]
    if take >= groups:
        rough, column = scores.topk(min(take, scores.shape[1]), dim=1)
        return rough.float(), column
    group = maxima.topk(take, dim=1).indices  # (R, take)
    by_group = scores.view(scores.shape[0], groups, SPAN)
    inside = by_group.gather(1, group[:, :, None].expand(-1, -1, SPAN)).flatten(1)
    rough, place = inside.topk(take, dim=1)
    return rough.float(), group.gather(1, place // SPAN) * SPAN + place % SPAN


def _rescored(q: TopKQuery, o: Operands, rows: Tensor, column: Tensor) -> Tensor:
    a, (n, k), d = o.a[rows], column.shape, o.c.shape[1]
    out = torch.empty(n, k, dtype=torch.float32, device=a.device)
    # A column past the end stands where fewer took part: its score is never looked at.
    index = column.clamp_max(o.c.shape[0] - 1)
    sizes = {"BLOCK_K": 16, "BLOCK_D": min(128, triton.next_power_of_2(d))}
    rescore_kernel[(n, triton.cdiv(k, sizes["BLOCK_K"]))](
        a, o.c, o.a_scale[rows], o.c_scale, index, out, k, d, a.stride(0), o.c.stride(0),
        DISTANCE=q.metric == "l2", num_warps=4, **sizes,
    )  # fmt: skip
    return out
