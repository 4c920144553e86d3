"""Tile sizes by architecture, width and type: a table, not a search. The search that fills it is part of the GPU
lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton


class TileConfig(NamedTuple):
    """Sizes of a tile and of the launch."""

    block_n: int
    block_m: int
    block_d: int
    group: int
    num_warps: int
    num_stages: int
    max_registers: int | None


# Not timed yet: chosen from the compiled code alone (benchmarks/results/compiled.csv). Without a limit the compiler
# takes up to 255 registers and the main kernels spill nothing; held to 128, which would let two programs share a
# multiprocessor, the sweep spills 736 bytes a thread on sm_90.
HALF = TileConfig(128, 128, 64, 8, 8, 3, None)
SINGLE = TileConfig(128, 128, 32, 8, 8, 3, None)
# By-products, ids, a learned temperature and the second direction keep more values alive at once than 128 x 128 leaves
# registers for: those forms spilled up to 720 bytes a thread.
HALF_BUSY = TileConfig(128, 64, 64, 8, 8, 3, None)
SINGLE_BUSY = TileConfig(128, 64, 32, 8, 8, 3, None)
INTERPRETED = TileConfig(32, 32, 32, 2, 4, 1, None)
# Every tile's sides divide this one: memory with room for whole tiles of it has room for any.
LARGEST_TILE = 128


def tile_config(dtype: torch.dtype, busy: bool = False) -> TileConfig:
    """The tile for operands of `dtype` on this device; `busy` for an epilogue with more than sums and weights."""
    if triton.knobs.runtime.interpret:
        return INTERPRETED
    if dtype == torch.float32:
        return SINGLE_BUSY if busy else SINGLE
    return HALF_BUSY if busy else HALF
