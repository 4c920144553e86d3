"""Scores of queries with a corpus, tile by tile: rounded as they are stored, with the maximum of every SPAN columns."""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import halves
from .pairwise import BATCH_SIZES
from .tile import dot_tile, rounded, tile_of

# Columns whose maximum is kept: as few as leave no more maxima than a selecting program holds.
SPANS, MOST_GROUPS = (64, 128), 8192
# Columns that are worked off together: a tile's accumulator fills half of the registers.
PART = 32


def span_of(m: int) -> int:
    """Columns whose maximum is kept, of a corpus of m rows."""
    return next((span for span in SPANS if m <= span * MOST_GROUPS), SPANS[-1])


@triton.jit
def score_part(
    acc, arrays, MAXIMA, tile_n, slot, N, M, stride_s, IDS: tl.constexpr, BOUNDED: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, CUTS: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """S <- scores of the columns slot BLOCK_M and on, -inf where a pair takes no part; returns the rows' maxima.
    MAXIMA has the type of S."""
    ROW, COL, ROW_ID, COL_ID, S = arrays
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), slot * BLOCK_M + tl.arange(0, BLOCK_M)
    in_n, in_m = offs_n < N, offs_m < M
    row_scale = tl.load(ROW + offs_n, mask=in_n, other=0.0)
    col_scale = tl.load(COL + offs_m, mask=in_m, other=0.0)
    bias = tl.load(COL + M + offs_m, mask=in_m, other=-float("inf"))
    s = rounded(acc * row_scale[:, None] * col_scale[None, :] + bias[None, :], CUTS)
    if BOUNDED:  # what is compared is what is stored
        s = s.to(MAXIMA.dtype.element_ty).to(tl.float32)
        least = tl.load(ROW + N + offs_n, mask=in_n, other=0.0)
        most = tl.load(ROW + 2 * N + offs_n, mask=in_n, other=0.0)
        s = tl.where((s >= least[:, None]) & (s <= most[:, None]), s, -float("inf"))
    if IDS:
        row_id = tl.load(ROW_ID + offs_n, mask=in_n, other=0)
        col_id = tl.load(COL_ID + offs_m, mask=in_m, other=0)
        s = tl.where(row_id[:, None] != col_id[None, :], s, -float("inf"))
    if DESCRIBED:  # what lies past the end the engine leaves out
        S.store([tile_n * BLOCK_N, slot * BLOCK_M], s.to(S.dtype))
    else:
        at = offs_n.to(tl.int64)[:, None] * stride_s + offs_m[None, :]
        tl.store(S + at, s.to(S.dtype.element_ty), mask=in_n[:, None] & (offs_m < stride_s)[None, :])
    return tl.max(s, 1)


@triton.jit
def score_tile(
    acc, arrays, MAXIMA, tile_n, slot, N, M, stride_s, IDS: tl.constexpr, BOUNDED: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, SPAN: tl.constexpr, PART: tl.constexpr, CUTS: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """`score_part` of every PART columns; MAXIMA (groups, N) <- the largest of every SPAN. `slot` counts BLOCK_M."""
    if BLOCK_M <= PART:
        top = score_part(
            acc, arrays, MAXIMA, tile_n, slot, N, M, stride_s, IDS, BOUNDED, BLOCK_N, BLOCK_M, CUTS, DESCRIBED
        )
    else:
        left, right = halves(acc, BLOCK_N, BLOCK_M)
        top = score_tile(
            left, arrays, MAXIMA, tile_n, 2 * slot, N, M, stride_s, IDS, BOUNDED, BLOCK_N, BLOCK_M // 2, SPAN, PART,
            CUTS, DESCRIBED,
        )  # fmt: skip
        more = score_tile(
            right, arrays, MAXIMA, tile_n, 2 * slot + 1, N, M, stride_s, IDS, BOUNDED, BLOCK_N, BLOCK_M // 2, SPAN,
            PART, CUTS, DESCRIBED,
        )  # fmt: skip
        top = tl.maximum(top, more)
    if BLOCK_M == SPAN:
        offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # Rounding keeps the order: the largest rounded score is the largest score, rounded.
        top = top.to(MAXIMA.dtype.element_ty)
        tl.store(MAXIMA + slot.to(tl.int64) * N + offs_n, top, mask=(offs_n < N) & (slot * SPAN < stride_s))
    return top


@triton.jit(do_not_specialize=BATCH_SIZES)
def scores_kernel(
    A, C, ROW, COL, ROW_ID, COL_ID, S, MAXIMA, N, M, D, stride_a, stride_c, stride_s, IDS: tl.constexpr,
    BOUNDED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    EVEN_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr, SPAN: tl.constexpr, PART: tl.constexpr,
    CUTS: tl.constexpr,
):  # fmt: skip
    """S (N, groups SPAN) and MAXIMA (groups, N), one program a tile, operands by pointers: any strides, any alignment.

    ROW (3, N): scale and, looked at if BOUNDED, the least and the most that take part; COL (2, M): scale and bias. A
    column that is out has the bias -inf and finite products.
    """
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = dot_tile(
        A, C, offs_n, offs_m, N, M, D, stride_a, stride_c, BLOCK_N, BLOCK_M, BLOCK_D, EVEN_D, RAISE, PRECISION
    )
    arrays = (ROW, COL, ROW_ID, COL_ID, S)
    score_tile(
        acc, arrays, MAXIMA, tile_n, tile_m, N, M, stride_s, IDS, BOUNDED, BLOCK_N, BLOCK_M, SPAN, PART, CUTS, False
    )


@triton.jit(do_not_specialize=BATCH_SIZES)
def persistent_scores_kernel(
    A, C, ROW, COL, ROW_ID, COL_ID, S, MAXIMA, N, M, D, stride_s, IDS: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, RAISE: tl.constexpr,
    PRECISION: tl.constexpr, SPAN: tl.constexpr, PART: tl.constexpr, CUTS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """The same, a fixed number of programs walking over all tiles: A, C and S are tensor descriptors."""
    tiles = tl.cdiv(N, BLOCK_N) * tl.cdiv(M, BLOCK_M)
    arrays = (ROW, COL, ROW_ID, COL_ID, S)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        tile_n, tile_m = tile_of(tile, N, M, BLOCK_N, BLOCK_M, GROUP)
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for d in range(0, D, BLOCK_D):  # past the end of D, N and M the engine reads zeros
            a, c = A.load([tile_n * BLOCK_N, d]), C.load([tile_m * BLOCK_M, d])
            if RAISE:
                a, c = a.to(tl.float32), c.to(tl.float32)
            acc = tl.dot(a, tl.trans(c), acc, input_precision=PRECISION)
        score_tile(
            acc, arrays, MAXIMA, tile_n, tile_m, N, M, stride_s, IDS, BOUNDED, BLOCK_N, BLOCK_M, SPAN, PART, CUTS, True
        )
