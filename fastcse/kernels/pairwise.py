"""The sweep kernels: a tile of similarities becomes exponentials, their sums, and the weights of the gradient.

ROW_* (N,) and COL_* (M,) are float32; what a form does not read may be anything. SCALARS float32 holds the inverse
temperature and, where there is one, the predicate. SUMS (2, tiles_m, N) receives each tile's sums of e and of e f: no
atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import largest_part, store_sums, sweep_tile
from .tile import dot_tile, tile_of

# A batch of another size must not compile again: the last one of an epoch would stop training for seconds.
BATCH_SIZES = ["N", "M"]
# Nor must one whose rows' arrays, parts of larger ones, start elsewhere.
ROW_ARRAYS = ["ROW_SCALE", "ROW_SHIFT", "ROW_WEIGHT"]


@triton.jit(do_not_specialize=BATCH_SIZES, do_not_specialize_on_alignment=ROW_ARRAYS)
def sweep_kernel(
    A, C, ROW_SCALE, ROW_SHIFT, ROW_WEIGHT, COL_SCALE, COL_BIAS, COL_SHIFT, COL_WEIGHT, SCALARS, OWN, ROW_ID, COL_ID, E,
    SUMS, COL_SUMS, STATS_F, STATS_I, N, M, D, stride_a, stride_c, stride_e, margin, own_log_weight,
    F: tl.constexpr, DF: tl.constexpr, STORE: tl.constexpr, WEIGHTED: tl.constexpr, F_SUM: tl.constexpr,
    IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr, OWN_WEIGHT: tl.constexpr, STATS: tl.constexpr, BOTH: tl.constexpr,
    GATED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    PARTS: tl.constexpr, EVEN_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile, operands by pointers: any strides, any alignment.

    E <- weight e f'(s) col_scale if STORE, with e = exp(x - shift), 0 at pairs that are left out, and the row's weight
    1 unless WEIGHTED; E has room for whole tiles, nothing there is masked. F_SUM: also sums of weight e f, for the
    gradient of a learned temperature. BOTH: e = exp(x - shift) weight + exp(x - column shift) column weight with
    STORE; without, the columns' sums go to COL_SUMS (tiles_n, M).
    """
    if GATED:  # noqa: SIM102 - only this one is decided when compiling
        if tl.load(SCALARS + 1) == 0:
            return
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = dot_tile(
        A, C, offs_n, offs_m, N, M, D, stride_a, stride_c, BLOCK_N, BLOCK_M, BLOCK_D, EVEN_D, RAISE, PRECISION
    )
    row, col = (ROW_SCALE, ROW_SHIFT, ROW_WEIGHT), (COL_SCALE, COL_BIAS, COL_SHIFT, COL_WEIGHT)
    arrays = (row, col, SCALARS, OWN, ROW_ID, COL_ID, E, COL_SUMS, STATS_F, STATS_I)
    tiles_m = tl.cdiv(M, BLOCK_M)
    total, f_total = sweep_tile(
        acc, arrays, tile_n, tile_m * PARTS, tiles_m * PARTS, N, M, stride_e, margin, own_log_weight, F, DF, STORE,
        WEIGHTED, F_SUM, IDS, LEAVE_OWN_OUT, OWN_WEIGHT, STATS, BOTH, BLOCK_N, BLOCK_M, PARTS, RAISE, False,
    )  # fmt: skip
    store_sums(SUMS, total, f_total, tile_n, tile_m, N, tiles_m, F_SUM, BLOCK_N)


@triton.jit(do_not_specialize=BATCH_SIZES, do_not_specialize_on_alignment=ROW_ARRAYS)
def persistent_sweep_kernel(
    A, C, ROW_SCALE, ROW_SHIFT, ROW_WEIGHT, COL_SCALE, COL_BIAS, COL_SHIFT, COL_WEIGHT, SCALARS, OWN, ROW_ID, COL_ID, E,
    SUMS, COL_SUMS, STATS_F, STATS_I, N, M, D, stride_a, stride_c, stride_e, margin, own_log_weight,
    F: tl.constexpr, DF: tl.constexpr, STORE: tl.constexpr, WEIGHTED: tl.constexpr, F_SUM: tl.constexpr,
    IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr, OWN_WEIGHT: tl.constexpr, STATS: tl.constexpr, BOTH: tl.constexpr,
    GATED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    PARTS: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """The same, a fixed number of programs walking over all tiles: A, C and E are tensor descriptors, which the copy
    engine reads and writes, so that no thread holds an address and the next tile's loads run under this one's epilogue.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles = tl.cdiv(N, BLOCK_N) * tiles_m
    if GATED:
        tiles = tl.where(tl.load(SCALARS + 1) == 0, 0, tiles)
    row, col = (ROW_SCALE, ROW_SHIFT, ROW_WEIGHT), (COL_SCALE, COL_BIAS, COL_SHIFT, COL_WEIGHT)
    arrays = (row, col, SCALARS, OWN, ROW_ID, COL_ID, E, COL_SUMS, STATS_F, STATS_I)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        tile_n, tile_m = tile_of(tile, N, M, BLOCK_N, BLOCK_M, GROUP)
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for d in range(0, D, BLOCK_D):  # past the end of D, N and M the engine reads zeros
            a, c = A.load([tile_n * BLOCK_N, d]), C.load([tile_m * BLOCK_M, d])
            if RAISE:
                a, c = a.to(tl.float32), c.to(tl.float32)
            acc = tl.dot(a, tl.trans(c), acc, input_precision=PRECISION)
        total, f_total = sweep_tile(
            acc, arrays, tile_n, tile_m * PARTS, tiles_m * PARTS, N, M, stride_e, margin, own_log_weight, F, DF, STORE,
            WEIGHTED, F_SUM, IDS, LEAVE_OWN_OUT, OWN_WEIGHT, STATS, BOTH, BLOCK_N, BLOCK_M, PARTS, RAISE, True,
        )  # fmt: skip
        store_sums(SUMS, total, f_total, tile_n, tile_m, N, tiles_m, F_SUM, BLOCK_N)


@triton.jit(do_not_specialize=BATCH_SIZES, do_not_specialize_on_alignment=ROW_ARRAYS)
def largest_kernel(
    A, C, ROW_SCALE, ROW_SHIFT, ROW_WEIGHT, COL_SCALE, COL_BIAS, COL_SHIFT, COL_WEIGHT, SCALARS, OWN, ROW_ID, COL_ID,
    BY_ROW, BY_COL, N, M, D, stride_a, stride_c, margin, own_log_weight, F: tl.constexpr, IDS: tl.constexpr,
    LEAVE_OWN_OUT: tl.constexpr, OWN_WEIGHT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, GROUP: tl.constexpr, EVEN_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Largest logit of each row and column of a tile: BY_ROW (tiles_m, N), BY_COL (tiles_n, M). Returns at once where
    the predicate is false.
    """
    if tl.load(SCALARS + 1) == 0:
        return
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = dot_tile(
        A, C, offs_n, offs_m, N, M, D, stride_a, stride_c, BLOCK_N, BLOCK_M, BLOCK_D, EVEN_D, RAISE, PRECISION
    )
    arrays = ((ROW_SCALE,), (COL_SCALE, COL_BIAS), SCALARS, OWN, ROW_ID, COL_ID)
    largest_part(
        acc, arrays, BY_ROW, BY_COL, tile_n, tile_m, offs_n, offs_m, N, M, margin, own_log_weight, F, IDS,
        LEAVE_OWN_OUT, OWN_WEIGHT, BLOCK_N, BLOCK_M,
    )  # fmt: skip


@triton.jit(do_not_specialize=BATCH_SIZES)
def similarity_kernel(
    A, C, ROW_SCALE, COL_SCALE, S, N, M, D, stride_a, stride_c, stride_s, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, GROUP: tl.constexpr, EVEN_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S (N, M) float32 <- dot products times both scales."""
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = dot_tile(
        A, C, offs_n, offs_m, N, M, D, stride_a, stride_c, BLOCK_N, BLOCK_M, BLOCK_D, EVEN_D, RAISE, PRECISION
    )
    row_scale = tl.load(ROW_SCALE + offs_n, mask=offs_n < N, other=0.0)
    col_scale = tl.load(COL_SCALE + offs_m, mask=offs_m < M, other=0.0)
    at = offs_n.to(tl.int64)[:, None] * stride_s + offs_m[None, :]
    tl.store(S + at, acc * row_scale[:, None] * col_scale[None, :], mask=(offs_n < N)[:, None] & (offs_m < M)[None, :])
