"""What the tiles of a sweep left, added up in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..pairs import RowChunk

ROWS, TILES = 32, 64


@triton.jit(do_not_specialize=["N", "TILES_M"], do_not_specialize_on_alignment=["SUM", "F_SUM"])
def add_sums_kernel(
    SUMS, SUM, F_SUM, N, TILES_M, E: tl.constexpr, EF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr
):
    """SUM (N,) += the sum of SUMS[0] (tiles_m, N) over its tiles if E; F_SUM the same of SUMS[1] if EF."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = offs_n < N
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    f_total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for start in range(0, TILES_M, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        # Tiles times rows of a million pass 2^31.
        at = tile.to(tl.int64)[:, None] * N + offs_n[None, :]
        there = (tile < TILES_M)[:, None] & inside[None, :]
        if E:
            total += tl.load(SUMS + at, mask=there, other=0.0)
        if EF:
            f_total += tl.load(SUMS + TILES_M.to(tl.int64) * N + at, mask=there, other=0.0)
    if E:
        tl.store(SUM + offs_n, tl.load(SUM + offs_n, mask=inside) + tl.sum(total, 0), mask=inside)
    if EF:
        tl.store(F_SUM + offs_n, tl.load(F_SUM + offs_n, mask=inside) + tl.sum(f_total, 0), mask=inside)


def add_sums(sums: Tensor, chunk: RowChunk, e: bool, ef: bool) -> None:
    """The tiles' sums of e, of e f, or both, (2, tiles_m, R), into the chunk's. One launch."""
    n = sums.shape[2]
    add_sums_kernel[(triton.cdiv(n, ROWS),)](
        sums, chunk.sum, chunk.f_sum, n, sums.shape[1], E=e, EF=ef, BLOCK_N=ROWS, BLOCK_T=TILES
    )
