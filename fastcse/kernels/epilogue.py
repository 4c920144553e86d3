"""What happens to a tile of dot products: logits, exponentials, their sums, and the weights of the gradient.

A tile is worked off in parts, columns beside columns: its accumulator fills half of the registers, and a part's
logits, exponentials and weights must live in the other half. Whole tiles spilled up to 1136 bytes, eighths none.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile import rounded

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def logits_part(
    acc, ROW, COL, OWN, ROW_ID, COL_ID, offs_n, offs_m, N, M, margin, own_log_weight, F: tl.constexpr,
    IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr, OWN_WEIGHT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Similarity s, transform f, the columns' scales, and what is added to f / temperature.

    Logits are x = f inv_temperature + bias. The bias is -inf, so that e is 0, at columns past the end, at each anchor's
    own positive and at columns of equal id.
    """
    in_n, in_m = offs_n < N, offs_m < M
    row_scale = tl.load(ROW[0] + offs_n, mask=in_n, other=0.0)
    col_scale = tl.load(COL[0] + offs_m, mask=in_m, other=0.0)
    bias = tl.load(COL[1] + offs_m, mask=in_m, other=-float("inf"))
    own = tl.load(OWN + offs_n, mask=in_n, other=-1).to(tl.int32)
    s = acc * row_scale[:, None] * col_scale[None, :]
    bias = tl.broadcast_to(bias[None, :], (BLOCK_N, BLOCK_M))
    if OWN_WEIGHT:
        bias += tl.where(own[:, None] == offs_m[None, :], own_log_weight, 0.0)
    if LEAVE_OWN_OUT:
        bias = tl.where(own[:, None] == offs_m[None, :], -float("inf"), bias)
    if IDS:
        row_id = tl.load(ROW_ID + offs_n, mask=in_n, other=0)
        col_id = tl.load(COL_ID + offs_m, mask=in_m, other=0)
        bias = tl.where(row_id[:, None] == col_id[None, :], -float("inf"), bias)
    return s, F(s, margin), col_scale, bias


@triton.jit
def exp_logit(f, inv_temperature, bias, shift):
    """exp(x - shift). The shift joins before the product is rounded: the error is then that of x - shift, not of x."""
    return tl.exp2((f * inv_temperature + (bias - shift)) * LOG2E)


@triton.jit
def store_stats(STATS_F, STATS_I, s, bias, slot, slots, start_m, offs_n, N):
    """STATS_F (3, slots, N) float32: sum of s, number of pairs, largest s; STATS_I (slots, N) int32: its column."""
    in_n, keep = offs_n < N, bias != -float("inf")
    slot, slots = slot.to(tl.int64), slots.to(tl.int64)  # a slot is narrow: there may be more than 2^31 entries
    hardest, where = tl.max(tl.where(keep, s, -float("inf")), 1, return_indices=True)
    tl.store(STATS_F + slot * N + offs_n, tl.sum(tl.where(keep, s, 0.0), 1), mask=in_n)
    tl.store(STATS_F + (slots + slot) * N + offs_n, tl.sum(keep.to(tl.float32), 1), mask=in_n)
    tl.store(STATS_F + (2 * slots + slot) * N + offs_n, hardest, mask=in_n)
    tl.store(STATS_I + slot * N + offs_n, where.to(tl.int32) + start_m, mask=in_n)


@triton.jit
def sweep_part(
    acc, arrays, tile_n, slot, slots, N, M, stride_e, margin, own_log_weight, F: tl.constexpr, DF: tl.constexpr,
    STORE: tl.constexpr, WEIGHTED: tl.constexpr, F_SUM: tl.constexpr, IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr,
    OWN_WEIGHT: tl.constexpr, STATS: tl.constexpr, BOTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    RAISE: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Columns slot BLOCK_M and on of one row of tiles. Returns the rows' sums of e and of weight e f (or, without
    F_SUM, of e again)."""
    ROW, COL, SCALARS, OWN, ROW_ID, COL_ID, E, COL_SUMS, STATS_F, STATS_I = arrays
    offs_n, offs_m = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), slot * BLOCK_M + tl.arange(0, BLOCK_M)
    in_n, in_m = offs_n < N, offs_m < M
    s, f, col_scale, bias = logits_part(
        acc, ROW, COL, OWN, ROW_ID, COL_ID, offs_n, offs_m, N, M, margin, own_log_weight, F, IDS, LEAVE_OWN_OUT,
        OWN_WEIGHT, BLOCK_N, BLOCK_M,
    )  # fmt: skip
    if STATS:
        store_stats(STATS_F, STATS_I, s, bias, slot, slots, slot * BLOCK_M, offs_n, N)
    inv_temperature = tl.load(SCALARS)
    e = exp_logit(f, inv_temperature, bias, tl.load(ROW[1] + offs_n, mask=in_n, other=0.0)[:, None])
    total = tl.sum(e, 1)
    if WEIGHTED:
        e *= tl.load(ROW[2] + offs_n, mask=in_n, other=0.0)[:, None]
    if BOTH:
        col_shift = tl.load(COL[2] + offs_m, mask=in_m, other=0.0)
        e_col = exp_logit(f, inv_temperature, bias, col_shift[None, :])
        if STORE:
            e += e_col * tl.load(COL[3] + offs_m, mask=in_m, other=0.0)[None, :]
        else:
            e_col = tl.where(in_n[:, None], e_col, 0.0)
            tl.store(COL_SUMS + tile_n.to(tl.int64) * M + offs_m, tl.sum(e_col, 0), mask=in_m)
    f_total = total
    if F_SUM:
        f_total = tl.sum(e * f, 1)
    if STORE:
        out = rounded(e * DF(s, margin) * col_scale[None, :], RAISE)
        if DESCRIBED:
            E.store([tile_n * BLOCK_N, slot * BLOCK_M], out.to(E.dtype))
        else:
            at = offs_n.to(tl.int64)[:, None] * stride_e + offs_m[None, :]
            tl.store(E + at, out.to(E.dtype.element_ty))
    return total, f_total


@triton.jit
def halves(x, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """The left and the right columns of x (BLOCK_N, BLOCK_M)."""
    return tl.split(tl.permute(tl.reshape(x, (BLOCK_N, 2, BLOCK_M // 2)), (0, 2, 1)))


@triton.jit
def sweep_tile(
    acc, arrays, tile_n, first, slots, N, M, stride_e, margin, own_log_weight, F: tl.constexpr, DF: tl.constexpr,
    STORE: tl.constexpr, WEIGHTED: tl.constexpr, F_SUM: tl.constexpr, IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr,
    OWN_WEIGHT: tl.constexpr, STATS: tl.constexpr, BOTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    PARTS: tl.constexpr, RAISE: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """`sweep_part` of every part of a tile, left to right; returns the sums over all of them."""
    if PARTS == 1:
        total, f_total = sweep_part(
            acc, arrays, tile_n, first, slots, N, M, stride_e, margin, own_log_weight, F, DF, STORE, WEIGHTED, F_SUM,
            IDS, LEAVE_OWN_OUT, OWN_WEIGHT, STATS, BOTH, BLOCK_N, BLOCK_M, RAISE, DESCRIBED,
        )  # fmt: skip
    else:
        left, right = halves(acc, BLOCK_N, BLOCK_M)
        total, f_total = sweep_tile(
            left, arrays, tile_n, first, slots, N, M, stride_e, margin, own_log_weight, F, DF, STORE, WEIGHTED, F_SUM,
            IDS, LEAVE_OWN_OUT, OWN_WEIGHT, STATS, BOTH, BLOCK_N, BLOCK_M // 2, PARTS // 2, RAISE, DESCRIBED,
        )  # fmt: skip
        more, f_more = sweep_tile(
            right, arrays, tile_n, first + PARTS // 2, slots, N, M, stride_e, margin, own_log_weight, F, DF, STORE,
            WEIGHTED, F_SUM, IDS, LEAVE_OWN_OUT, OWN_WEIGHT, STATS, BOTH, BLOCK_N, BLOCK_M // 2, PARTS // 2, RAISE,
            DESCRIBED,
        )  # fmt: skip
        total += more
        f_total += f_more
    return total, f_total


@triton.jit
def store_sums(SUMS, total, f_total, tile_n, tile_m, N, tiles_m, F_SUM: tl.constexpr, BLOCK_N: tl.constexpr):
    """SUMS (2, tiles_m, N) <- a tile's sums over its columns."""
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(SUMS + tile_m * N + offs_n, total, mask=offs_n < N)
    if F_SUM:
        tl.store(SUMS + (tiles_m + tile_m) * N + offs_n, f_total, mask=offs_n < N)


@triton.jit
def largest_part(
    acc, arrays, BY_ROW, BY_COL, tile_n, tile_m, offs_n, offs_m, N, M, margin, own_log_weight, F: tl.constexpr,
    IDS: tl.constexpr, LEAVE_OWN_OUT: tl.constexpr, OWN_WEIGHT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Largest logit of each row and column of a tile."""
    ROW, COL, SCALARS, OWN, ROW_ID, COL_ID = arrays
    _, f, _, bias = logits_part(
        acc, ROW, COL, OWN, ROW_ID, COL_ID, offs_n, offs_m, N, M, margin, own_log_weight, F, IDS, LEAVE_OWN_OUT,
        OWN_WEIGHT, BLOCK_N, BLOCK_M,
    )  # fmt: skip
    x = f * tl.load(SCALARS) + bias
    tl.store(BY_ROW + tile_m * N + offs_n, tl.max(x, 1), mask=offs_n < N)
    x = tl.where((offs_n < N)[:, None], x, -float("inf"))
    tl.store(BY_COL + tile_n.to(tl.int64) * M + offs_m, tl.max(x, 0), mask=offs_m < M)
