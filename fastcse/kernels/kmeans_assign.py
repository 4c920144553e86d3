"""The kernels that find the nearest centroids of points.

A point's rank of a centroid is dot scale + bias, larger the nearer. Every thread keeps the best rank of the columns
that it holds itself, as it meets them: nothing is exchanged between threads until a program's last tile, and an element
costs one multiply-add, one comparison and two selections. Ties stay with the column met first, which is the lower one.

Points have half as many digits as float32 centroids. So these come in PARTS, each the rounding of what the ones before
left over: products of half-precision numbers are exact, and all parts add up in one float32 accumulator.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import halves

# Columns that a thread's running best is kept for: as many as a row of the tensor cores' smallest tile.
WIDTH = 8


@triton.jit
def offer(s, number, best, at, second, second_at, TWO: tl.constexpr):
    """The best and second best so far, and their numbers, after s: numbers come in ascending order, so that of equal
    ones those stay that are there. A NaN is near to nothing."""
    above = s > best
    if TWO:
        between = s > second
        second_at = tl.where(above, at, tl.where(between, number, second_at))
        second = tl.where(above, best, tl.where(between, s, second))
    return tl.where(above, s, best), tl.where(above, number, at), second, second_at


@triton.jit
def offer_tile(
    acc, COL, columns, first, best, at, second, second_at, TWO: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile's ranks, WIDTH columns at a time from left to right; `first` is the number of its first WIDTH columns."""
    if BLOCK_M == WIDTH:
        offs_m = first * WIDTH + tl.arange(0, WIDTH)
        s = acc * tl.load(COL + offs_m)[None, :] + tl.load(COL + columns + offs_m)[None, :]
        best, at, second, second_at = offer(s, first, best, at, second, second_at, TWO)
    else:
        left, right = halves(acc, BLOCK_N, BLOCK_M)
        best, at, second, second_at = offer_tile(
            left, COL, columns, first, best, at, second, second_at, TWO, BLOCK_N, BLOCK_M // 2, WIDTH
        )
        best, at, second, second_at = offer_tile(
            right, COL, columns, first + BLOCK_M // (2 * WIDTH), best, at, second, second_at, TWO, BLOCK_N,
            BLOCK_M // 2, WIDTH,
        )  # fmt: skip
    return best, at, second, second_at


@triton.jit
def store_best(
    RANK, AT, best, at, second, second_at, tile_n, segment, N, TWO: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """RANK, AT (segments, 1 or 2, N) <- the best of a row's columns and where it is; -inf where there is none."""
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    last: tl.constexpr = 2147483647
    column = at * WIDTH + tl.arange(0, WIDTH)[None, :]
    top = tl.max(best, 1)
    place = tl.min(tl.where(best == top[:, None], column, last), 1)
    wanted: tl.constexpr = 2 if TWO else 1
    out = segment.to(tl.int64) * wanted * N + offs_n
    tl.store(RANK + out, top, mask=offs_n < N)
    tl.store(AT + out, place, mask=offs_n < N)
    if TWO:
        taken = column == place[:, None]
        best = tl.where(taken, second, best)
        column = tl.where(taken, second_at * WIDTH + tl.arange(0, WIDTH)[None, :], column)
        top = tl.max(best, 1)
        place = tl.min(tl.where(best == top[:, None], column, last), 1)
        tl.store(RANK + out + N, top, mask=offs_n < N)
        tl.store(AT + out + N, place, mask=offs_n < N)


@triton.jit(do_not_specialize=["N", "segments", "per_segment"])
def assign_kernel(
    X, C, COL, RANK, AT, N, D, columns, segments, per_segment, stride_x, stride_c, TWO: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    RAISE: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program a tile of points and a segment of centroids, operands by pointers: any strides, any alignment.

    C (PARTS columns, D): `columns` whole tiles, so that nothing there is masked; COL (2, columns): scale and bias.
    """
    tile_n, segment = tl.program_id(0) // segments, tl.program_id(0) % segments
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_x = tl.minimum(offs_n, N - 1).to(tl.int64)[:, None] * stride_x
    best = tl.full((BLOCK_N, WIDTH), float("-inf"), tl.float32)
    at = tl.zeros((BLOCK_N, WIDTH), tl.int32)
    second, second_at = best, at
    for step in range(0, per_segment):
        tile_m = segment * per_segment + step
        rows_c = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None] * stride_c
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for d in range(0, D, BLOCK_D):
            offs_d = (d + tl.arange(0, BLOCK_D))[None, :]
            x = tl.load(X + rows_x + offs_d) if EVEN_D else tl.load(X + rows_x + offs_d, mask=offs_d < D, other=0.0)
            if RAISE:
                x = x.to(tl.float32)
            for part in tl.static_range(PARTS):
                at_c = C + rows_c + part * columns.to(tl.int64) * stride_c + offs_d
                c = tl.load(at_c) if EVEN_D else tl.load(at_c, mask=offs_d < D, other=0.0)
                if RAISE:
                    c = c.to(tl.float32)
                acc = tl.dot(x, tl.trans(c), acc, input_precision=PRECISION)
        best, at, second, second_at = offer_tile(
            acc, COL, columns, tile_m * (BLOCK_M // WIDTH), best, at, second, second_at, TWO, BLOCK_N, BLOCK_M, WIDTH
        )
    store_best(RANK, AT, best, at, second, second_at, tile_n, segment, N, TWO, BLOCK_N, WIDTH)


@triton.jit(do_not_specialize=["N", "segments", "per_segment"])
def persistent_assign_kernel(
    X, C, COL, RANK, AT, N, D, columns, segments, per_segment, TWO: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, RAISE: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """The same, a fixed number of programs walking over all: X and C are tensor descriptors, and the next tile's loads
    run under this one's ranks. Programs that run together share points and centroids in L2."""
    programs = tl.num_programs(0)
    units = tl.cdiv(N, BLOCK_N) * segments
    best = tl.full((BLOCK_N, WIDTH), float("-inf"), tl.float32)
    at = tl.zeros((BLOCK_N, WIDTH), tl.int32)
    second, second_at = best, at
    steps = tl.cdiv(units - tl.program_id(0), programs) * per_segment
    for step in tl.range(0, steps, flatten=FLATTEN):
        unit, within = tl.program_id(0) + step // per_segment * programs, step % per_segment
        tile_n, segment = unit // segments, unit % segments
        tile_m = segment * per_segment + within
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for d in range(0, D, BLOCK_D):  # past the end of D and N the engine reads zeros
            x = X.load([tile_n * BLOCK_N, d])
            if RAISE:
                x = x.to(tl.float32)
            for part in tl.static_range(PARTS):
                c = C.load([part * columns + tile_m * BLOCK_M, d])
                if RAISE:
                    c = c.to(tl.float32)
                acc = tl.dot(x, tl.trans(c), acc, input_precision=PRECISION)
        best = tl.where(within == 0, float("-inf"), best)
        second = tl.where(within == 0, float("-inf"), second)
        best, at, second, second_at = offer_tile(
            acc, COL, columns, tile_m * (BLOCK_M // WIDTH), best, at, second, second_at, TWO, BLOCK_N, BLOCK_M, WIDTH
        )
        if within == per_segment - 1:
            store_best(RANK, AT, best, at, second, second_at, tile_n, segment, N, TWO, BLOCK_N, WIDTH)


@triton.jit(do_not_specialize=["N", "segments"])
def settle_kernel(
    X, C, C_SCALE, LOWEST, RANK, AT, INDEX, VALUE, N, D, segments, stride_x, stride_c, shortest, TWO: tl.constexpr,
    DISTANCE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """INDEX (N, 1 or 2) <- the best of all segments, -1 for none; VALUE <- their cosines or squared distances, from the
    rows themselves. LOWEST (2,): the nearest of a zero row, which has cosine 0 with all. One pass over the points."""
    offs_n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_n, offs_d = offs_n < N, tl.arange(0, BLOCK_D)[None, :]
    wanted: tl.constexpr = 2 if TWO else 1
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    at = tl.full((ROWS,), -1, tl.int32)
    second, second_at = best, at
    place = offs_n.to(tl.int64)
    for _ in range(0, segments * wanted):
        rank = tl.load(RANK + place, mask=in_n, other=float("-inf"))
        best, at, second, second_at = offer(rank, tl.load(AT + place, mask=in_n, other=0), best, at, second, second_at,
                                            TWO)  # fmt: skip
        place += N
    x = tl.load(X + offs_n.to(tl.int64)[:, None] * stride_x + offs_d, mask=in_n[:, None] & (offs_d < D), other=0.0)
    x = x.to(tl.float32)
    # Entries are measured against the largest one, so that their squares stay in range.
    top = tl.max(tl.abs(x), 1)
    safe = tl.where(top > 0, top, 1.0)
    norm = safe * tl.sqrt(tl.sum((x / safe[:, None]) * (x / safe[:, None]), 1))
    scale = tl.where((top == 0) | (norm < shortest), 0.0, 1.0 / norm)
    for r in tl.static_range(wanted):
        found = at if r == 0 else second_at
        found = found if DISTANCE else tl.where(scale == 0, tl.load(LOWEST + r), found)
        row = tl.maximum(found, 0).to(tl.int64)
        c = tl.load(C + row[:, None] * stride_c + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
        far = tl.sum((x - c) * (x - c) if DISTANCE else x * c, 1)
        value = far if DISTANCE else far * scale * tl.load(C_SCALE + row)
        # Of a point that is not finite nothing else is; it is near to nothing.
        there = (found >= 0) & (tl.abs(value) < float("inf"))
        out = offs_n.to(tl.int64) * wanted + r
        tl.store(INDEX + out, tl.where(there, found, -1).to(tl.int64), mask=in_n)
        tl.store(VALUE + out, tl.where(there, value, float("nan")), mask=in_n)
