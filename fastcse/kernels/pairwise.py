"""The sweep kernels: a tile of similarities becomes exponentials, their sums, and the weights of the gradient.

Arrays that go together travel together: ROW (3, N) float32 holds scale, shift and weight of each row, COL (4, M)
float32 scale, bias, shift and weight of each column, SCALARS (2,) float32 the inverse temperature and the gate. SUMS
(2, tiles_m, N) receives each tile's sums of e and of weight e f: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile import dot_tile, rounded, tile_of

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def logits_tile(
    A, C, ROW, COL, SCALARS, OWN, offs_n, offs_m, N, M, D, stride_a, stride_c, margin, own_log_weight, F: tl.constexpr,
    OWN_WEIGHT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    RAISE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Similarity s, transform f, what is added to f / temperature, each row's own column, the columns' scales.

    Logits are x = f inv_temperature + bias; columns past the end have bias -inf, so that e is 0 there.
    """
    acc = dot_tile(
        A, C, offs_n, offs_m, N, M, D, stride_a, stride_c, BLOCK_N, BLOCK_M, BLOCK_D, EVEN_D, RAISE, PRECISION
    )
    in_n, in_m = offs_n < N, offs_m < M
    row_scale = tl.load(ROW + offs_n, mask=in_n, other=0.0)
    col_scale = tl.load(COL + offs_m, mask=in_m, other=0.0)
    bias = tl.load(COL + M + offs_m, mask=in_m, other=-float("inf"))
    own = tl.load(OWN + offs_n, mask=in_n, other=-1).to(tl.int32)
    s = acc * row_scale[:, None] * col_scale[None, :]
    f = F(s, margin)
    bias = tl.broadcast_to(bias[None, :], (BLOCK_N, BLOCK_M))
    if OWN_WEIGHT:
        bias += tl.where(own[:, None] == offs_m[None, :], own_log_weight, 0.0)
    return s, f, bias, own, col_scale


@triton.jit
def exp_logit(f, inv_temperature, bias, shift):
    """exp(x - shift). The shift joins before the product is rounded: the error is then that of x - shift, not of x."""
    return tl.exp2((f * inv_temperature + (bias - shift)) * LOG2E)


@triton.jit
def leave_out(bias, own, offs_n, offs_m, ROW_ID, COL_ID, N, M, IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr):
    """The bias with -inf at each anchor's own positive, and at columns of equal id."""
    if LEAVE_OWN_OUT:
        bias = tl.where(own[:, None] == offs_m[None, :], -float("inf"), bias)
    if IDS:
        row_id = tl.load(ROW_ID + offs_n, mask=offs_n < N, other=0)
        col_id = tl.load(COL_ID + offs_m, mask=offs_m < M, other=0)
        bias = tl.where(row_id[:, None] == col_id[None, :], -float("inf"), bias)
    return bias


@triton.jit
def store_stats(STATS_F, STATS_I, s, bias, tile_m, offs_n, N, M, BLOCK_M: tl.constexpr):
    """STATS_F (3, tiles_m, N) float32: sum of s, number of pairs, largest s; STATS_I (tiles_m, N) int32: its column."""
    tiles_m, in_n = tl.cdiv(M, BLOCK_M), offs_n < N
    keep = bias != -float("inf")
    hardest, where = tl.max(tl.where(keep, s, -float("inf")), 1, return_indices=True)
    tl.store(STATS_F + tile_m * N + offs_n, tl.sum(tl.where(keep, s, 0.0), 1), mask=in_n)
    tl.store(STATS_F + (tiles_m + tile_m) * N + offs_n, tl.sum(keep.to(tl.float32), 1), mask=in_n)
    tl.store(STATS_F + (2 * tiles_m + tile_m) * N + offs_n, hardest, mask=in_n)
    tl.store(STATS_I + tile_m * N + offs_n, where.to(tl.int32) + tile_m * BLOCK_M, mask=in_n)


@triton.jit
def sweep_kernel(
    A, C, ROW, COL, SCALARS, OWN, ROW_ID, COL_ID, E, SUMS, STATS_F, STATS_I, N, M, D, stride_a, stride_c, stride_e,
    margin, own_log_weight,
    F: tl.constexpr, DF: tl.constexpr, STORE: tl.constexpr, F_SUM: tl.constexpr, IDS: tl.constexpr,
    LEAVE_OWN_OUT: tl.constexpr,
    OWN_WEIGHT: tl.constexpr, STATS: tl.constexpr, GATED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr, EVEN_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row direction. E <- weight e f'(s) col_scale if STORE, with e = exp(x - shift), 0 at pairs that are left out.

    E has room for whole tiles: nothing there is masked. F_SUM: also sums of weight e f, for the gradient of a learned
    temperature.
    """
    if GATED:  # noqa: SIM102 - only this one is decided when compiling
        if tl.load(SCALARS + 1) == 0:
            return
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    s, f, bias, own, col_scale = logits_tile(
        A, C, ROW, COL, SCALARS, OWN, offs_n, offs_m, N, M, D, stride_a, stride_c, margin, own_log_weight, F,
        OWN_WEIGHT, BLOCK_N, BLOCK_M,
        BLOCK_D, EVEN_D, RAISE, PRECISION,
    )  # fmt: skip
    bias = leave_out(bias, own, offs_n, offs_m, ROW_ID, COL_ID, N, M, IDS, LEAVE_OWN_OUT)
    in_n, tiles_m = offs_n < N, tl.cdiv(M, BLOCK_M)
    if STATS:
        store_stats(STATS_F, STATS_I, s, bias, tile_m, offs_n, N, M, BLOCK_M)
    shift = tl.load(ROW + N + offs_n, mask=in_n, other=0.0)
    weight = tl.load(ROW + 2 * N + offs_n, mask=in_n, other=0.0)
    e = exp_logit(f, tl.load(SCALARS), bias, shift[:, None])
    tl.store(SUMS + tile_m * N + offs_n, tl.sum(e, 1), mask=in_n)
    if F_SUM:
        tl.store(SUMS + (tiles_m + tile_m) * N + offs_n, tl.sum(e * f, 1) * weight, mask=in_n)
    if STORE:
        out = e * DF(s, margin) * weight[:, None] * col_scale[None, :]
        tl.store(
            E + offs_n.to(tl.int64)[:, None] * stride_e + offs_m[None, :], rounded(out, RAISE).to(E.dtype.element_ty)
        )


@triton.jit
def symmetric_kernel(
    A, C, ROW, COL, SCALARS, OWN, ROW_ID, COL_ID, E, SUMS, COL_SUMS, STATS_F, STATS_I, N, M, D, stride_a, stride_c,
    stride_e, margin,
    F: tl.constexpr, DF: tl.constexpr, STORE: tl.constexpr, F_SUM: tl.constexpr, IDS: tl.constexpr, STATS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, EVEN_D: tl.constexpr,
    RAISE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Both directions. Sums of rows into SUMS and of columns into COL_SUMS (tiles_n, M); with STORE, the gradient
    weights of both,
    E <- (weight exp(x - shift) + H exp(x - d)) f'(s) col_scale, and no sums but, with F_SUM, those of E's first
    factor times f.
    """
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    s, f, bias, own, col_scale = logits_tile(
        A, C, ROW, COL, SCALARS, OWN, offs_n, offs_m, N, M, D, stride_a, stride_c, margin, 0.0, F, False, BLOCK_N,
        BLOCK_M, BLOCK_D, EVEN_D,
        RAISE, PRECISION,
    )  # fmt: skip
    bias = leave_out(bias, own, offs_n, offs_m, ROW_ID, COL_ID, N, M, IDS, True)
    in_n, in_m, tiles_m = offs_n < N, offs_m < M, tl.cdiv(M, BLOCK_M)
    if STATS:
        store_stats(STATS_F, STATS_I, s, bias, tile_m, offs_n, N, M, BLOCK_M)
    inv_temperature = tl.load(SCALARS)
    shift = tl.load(ROW + N + offs_n, mask=in_n, other=0.0)
    col_shift = tl.load(COL + 2 * M + offs_m, mask=in_m, other=0.0)
    if STORE:
        weight = tl.load(ROW + 2 * N + offs_n, mask=in_n, other=0.0)
        height = tl.load(COL + 3 * M + offs_m, mask=in_m, other=0.0)
        both = exp_logit(f, inv_temperature, bias, shift[:, None]) * weight[:, None]
        both += exp_logit(f, inv_temperature, bias, col_shift[None, :]) * height[None, :]
        if F_SUM:
            tl.store(SUMS + (tiles_m + tile_m) * N + offs_n, tl.sum(both * f, 1), mask=in_n)
        out = both * DF(s, margin) * col_scale[None, :]
        tl.store(
            E + offs_n.to(tl.int64)[:, None] * stride_e + offs_m[None, :], rounded(out, RAISE).to(E.dtype.element_ty)
        )
    else:
        e = exp_logit(f, inv_temperature, bias, shift[:, None])
        tl.store(SUMS + tile_m * N + offs_n, tl.sum(e, 1), mask=in_n)
        e_col = tl.where(in_n[:, None], exp_logit(f, inv_temperature, bias, col_shift[None, :]), 0.0)
        tl.store(COL_SUMS + tile_n.to(tl.int64) * M + offs_m, tl.sum(e_col, 0), mask=in_m)


@triton.jit
def largest_kernel(
    A, C, ROW, COL, SCALARS, OWN, ROW_ID, COL_ID, BY_ROW, BY_COL, N, M, D, stride_a, stride_c, margin,
    own_log_weight, F: tl.constexpr,
    IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr, OWN_WEIGHT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, GROUP: tl.constexpr, EVEN_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Largest logit of each row and column of a tile: BY_ROW (tiles_m, N), BY_COL (tiles_n, M). Returns at once where
    the gate is shut.
    """
    if tl.load(SCALARS + 1) == 0:
        return
    tile_n, tile_m = tile_of(tl.program_id(0), N, M, BLOCK_N, BLOCK_M, GROUP)
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    _, f, bias, own, _ = logits_tile(
        A, C, ROW, COL, SCALARS, OWN, offs_n, offs_m, N, M, D, stride_a, stride_c, margin, own_log_weight, F,
        OWN_WEIGHT, BLOCK_N, BLOCK_M,
        BLOCK_D, EVEN_D, RAISE, PRECISION,
    )  # fmt: skip
    bias = leave_out(bias, own, offs_n, offs_m, ROW_ID, COL_ID, N, M, IDS, LEAVE_OWN_OUT)
    x = f * tl.load(SCALARS) + bias
    tl.store(BY_ROW + tile_m * N + offs_n, tl.max(x, 1), mask=offs_n < N)
    x = tl.where((offs_n < N)[:, None], x, -float("inf"))
    tl.store(BY_COL + tile_n.to(tl.int64) * M + offs_m, tl.max(x, 0), mask=offs_m < M)


@triton.jit
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
