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
from triton.tools.tensor_descriptor import TensorDescriptor

from ..operands import TopKQuery
from .configs import TileConfig, tile_config
from .rows import inverse_norms
from .tile import fits_descriptor, multiprocessors
from .topk_scores import PART, persistent_scores_kernel, scores_kernel, span_of
from .topk_select import can_select, select

EXTRA = 16
WORKSPACE, TILE_ROWS = 1 << 30, 128


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
    """Rows as kernels read them, their scales, the columns' bias, |a|^2 / 2 for distances else 0, by how much a score
    of a query may be wrong before and, relatively, by its last rounding, and whether any query bounds its scores."""

    a: Tensor
    c: Tensor
    a_scale: Tensor
    c_scale: Tensor
    bias: Tensor
    half_square: Tensor
    slack: Tensor
    rounding: float
    bounded: bool


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
        doubtful = []
        size = _chunk_rows(o, take)
        for part in rows.split(size):
            score[part], column[part], doubt = _search(q, o, part, take)
            doubtful.append(part[doubt])
        # A look at the device's memory: how many queries there are to do again.
        rows, extra = torch.cat(doubtful), 4 * extra
        if rows.numel() == 0:
            return score, column, torch.isfinite(score).sum(1)


def _chunk_rows(o: Operands, take: int) -> int:
    """Queries of a chunk: whole tiles within the workspace, which holds their scores and what is selected of them."""
    m, itemsize = o.c.shape[0], 2 if _is_half(o) else 4
    span = span_of(m)
    row = itemsize * (m + span) + 32 * take
    if not can_select(triton.cdiv(m, span), take + 1, span):
        row += (8 + itemsize) * span * min(take + 1, m // span + 1)
    return max(1, WORKSPACE // row // TILE_ROWS * TILE_ROWS or WORKSPACE // row)


def _is_half(o: Operands) -> bool:
    return o.a.dtype == o.c.dtype != torch.float32


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
    # A look at the device's memory: most searches have neither, and then no score is compared with anything.
    bounded, all_finite = torch.stack([((q.least > -torch.inf) | (q.most < torch.inf)).any(), finite.all()]).tolist()
    # The products of a column that is out must be finite: its bias is all that tells.
    c = c if all_finite else c.masked_fill(~finite[:, None], 0.0)
    return Operands(a, c, a_scale, c_scale.where(finite, 0.0), bias.masked_fill(~finite, -torch.inf), half_square,
                    slack, 2.0**-8 if half else 2.0**-23, bounded)  # fmt: skip


def _search(q: TopKQuery, o: Operands, rows: Tensor, take: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score and column (R, k) of some queries, and whether more than `take` columns must be looked at."""
    scores, maxima = _scores(q, o, rows)
    rough, column = _best(scores, maxima, take + 1)
    following = rough[:, take] if rough.shape[1] > take else torch.full_like(rough[:, 0], -torch.inf)
    rough, column = rough[:, :take], column[:, :take].contiguous()
    score = _rescored(q, o, rows, column)
    slack = o.slack[rows]
    lost = ~torch.isfinite(slack)  # a query that is not finite finds nothing
    outside = (score < q.least[rows, None]) | (score > q.most[rows, None]) | lost[:, None]
    score = score.masked_fill(outside | (rough == -torch.inf), -torch.inf)
    score, column = _in_order(score, column)
    kth = score[:, q.k - 1] / (2 if q.metric == "l2" else 1) + o.half_square[rows]
    reachable = following + (slack + following.abs() * o.rounding * 1.01)
    return score[:, : q.k], column[:, : q.k], (following > -torch.inf) & ~(kth > reachable) & ~lost


def _in_order(score: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Best first, equal scores by ascending column: one sort of whole numbers, the score's bits above the column's."""
    bits = (score + 0.0).view(torch.int32).long()  # -0 is 0
    key = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) * 2**32 + (2**32 - 1 - column)
    key = key.sort(dim=1, descending=True).values
    bits = key >> 32
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).int()
    return bits.view(torch.float32), 2**32 - 1 - (key & (2**32 - 1))


def _scores(q: TopKQuery, o: Operands, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, groups SPAN) scores in the scale of the products, rounded, and (R, groups) their maxima."""
    a, n, m = o.a[rows], rows.shape[0], o.c.shape[0]
    half, interpret = _is_half(o), triton.knobs.runtime.interpret
    config, span = _config(a, o.c, half), span_of(m)
    new = {"dtype": torch.bfloat16 if half else torch.float32, "device": a.device}
    out = torch.empty(n, triton.cdiv(m, span) * span, **new)
    # Columns of a tile lie in one row each: written along the queries, maxima leave in whole sectors.
    maxima = torch.empty(out.shape[1] // span, n, **new)
    packed = torch.stack([o.a_scale[rows], *(_loose_bounds(q, o, rows) if o.bounded else ())])
    ids = (q.query_id[rows], q.corpus_id) if q.query_id is not None else (packed, packed)
    arrays = (packed, torch.stack([o.c_scale, o.bias]), *ids)
    options = {
        "IDS": q.query_id is not None, "BOUNDED": o.bounded, "BLOCK_N": config.block_n, "BLOCK_M": config.block_m,
        "BLOCK_D": config.block_d, "GROUP": config.group, "SPAN": span, "PART": PART, "CUTS": interpret and half,
        "RAISE": a.dtype != o.c.dtype or (interpret and half), "num_warps": config.num_warps,
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "num_stages": config.num_stages,
    }  # fmt: skip
    _launch_scores(config, a, o.c, arrays, out, maxima, options)
    return out, maxima.T.contiguous()


def _config(a: Tensor, c: Tensor, half: bool) -> TileConfig:
    described = a.dtype == c.dtype and fits_descriptor(a) and fits_descriptor(c)
    kind = "sums" if described else "busy"
    config = tile_config(torch.bfloat16 if half else torch.float32, c.shape[1], kind, a.device, described)
    return config._replace(block_m=max(config.block_m, span_of(c.shape[0])))


def _launch_scores(
    config: TileConfig, a: Tensor, c: Tensor, arrays: tuple, out: Tensor, maxima: Tensor, options: dict
) -> None:
    n, (m, d) = a.shape[0], c.shape
    tiles = triton.cdiv(n, config.block_n) * triton.cdiv(m, config.block_m)
    if config.programs == 0:
        scores_kernel[(tiles,)](
            a, c, *arrays, out, maxima, n, m, d, a.stride(0), c.stride(0), out.stride(0),
            EVEN_D=d % config.block_d == 0, **options,
        )  # fmt: skip
        return
    described = (
        TensorDescriptor.from_tensor(a, [config.block_n, config.block_d]),
        TensorDescriptor.from_tensor(c, [config.block_m, config.block_d]),
    )
    described_out = TensorDescriptor.from_tensor(out, [config.block_n, PART])
    programs = min(tiles, config.programs * multiprocessors(a.device))
    persistent_scores_kernel[(programs,)](
        *described, *arrays, described_out, maxima, n, m, d, out.stride(0), FLATTEN=config.flatten, **options
    )


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
    """The `take` largest scores of each row, the smallest of them last, and their columns; or all."""
    groups = maxima.shape[1]
    span = scores.shape[1] // groups
    if can_select(groups, take, span):
        return select(scores, maxima, take)
    if take >= groups:
        rough, column = scores.topk(min(take, scores.shape[1]), dim=1)
        return rough.float(), column
    group = maxima.topk(take, dim=1).indices  # (R, take)
    by_group = scores.view(scores.shape[0], groups, span)
    inside = by_group.gather(1, group[:, :, None].expand(-1, -1, span)).flatten(1)
    rough, place = inside.topk(take, dim=1)
    return rough.float(), group.gather(1, place // span) * span + place % span


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
