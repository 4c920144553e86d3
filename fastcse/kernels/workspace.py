"""Memory of one chunk of anchor rows on the GPU, and the two gradient products over it (cuBLAS, float32 results)."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..operands import Block
from .configs import INTERPRETED, LARGEST_TILE

DEFAULT_WORKSPACE = 4 << 30
TILE_ROWS = 128
# Output tiles of the (rows, D) product for every multiprocessor. With one, a first run on a GPU spent more on launches,
# and on reading and writing the candidates' float32 gradient for every chunk, than three times the workspace is worth.
WAVES = 3


class Workspace:
    """Memory for the gradient weights of one chunk: (rows, M) for each block. Nothing where nothing is kept."""

    def __init__(self, rows: int, blocks: list[Block], keep: bool):
        self.columns = [b.rows.shape[0] for b in blocks]
        # Whole tiles, so that kernels store without masks; the part past the end is never read.
        height = triton.cdiv(rows, LARGEST_TILE) * LARGEST_TILE if keep else 1
        widths = [triton.cdiv(m, LARGEST_TILE) * LARGEST_TILE if keep else 1 for m in self.columns]
        new = {"dtype": weight_type(blocks[0].rows), "device": blocks[0].rows.device}
        self.buffers = [torch.empty(height, width, **new) for width in widths]

    def weights(self, rows: int, block: int) -> Tensor:
        """(rows, M) that a block's sweep writes, with whole tiles of memory behind it, and the products read."""
        return self.buffers[block][:rows, : self.columns[block]]


def weight_type(rows: Tensor) -> torch.dtype:
    """bfloat16 has the range of float32, which e needs; float16 has not, so weights are never float16."""
    return torch.float32 if rows.dtype == torch.float32 else torch.bfloat16


def plan_rows(n: int, blocks: list[Block], keep: bool, max_workspace_bytes: int | None) -> int:
    """Rows of a chunk: a few output tiles of the (rows, D) gradient product for every multiprocessor, as many as fit
    into the workspace.
    """
    device = blocks[0].rows.device
    if device.type != "cuda":
        return min(n, 2 * INTERPRETED.block_n)
    tiles_d = triton.cdiv(blocks[0].rows.shape[1], 256)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    rows = max(1, processors // tiles_d) * TILE_ROWS
    # By-products alone take up to a byte a pair, sums of a part's columns.
    width = sum(b.rows.shape[0] * (weight_type(b.rows).itemsize if keep else 1) for b in blocks)
    fitting = (max_workspace_bytes or DEFAULT_WORKSPACE) // width // TILE_ROWS * TILE_ROWS
    # Whole waves, where one fits at all: a part of one leaves multiprocessors without a tile.
    waves = max(1, min(WAVES if keep else 4, fitting // rows))
    return min(n, max(TILE_ROWS, min(waves * rows, fitting)))


def keeps_products(n: int, blocks: list[Block], max_workspace_bytes: int | None) -> bool:
    """Never: a tile's dot products live in registers, and float32 ones would cost more traffic than their product."""
    return False


def prepare(x: Tensor) -> Tensor:
    """Rows with unit stride along D, in their own type; a copy only of oddly strided input."""
    return x if x.stride(1) == 1 else x.contiguous()


def _candidates(block: Block) -> Tensor:
    """The block's rows in the type of the gradient weights. Half-precision weights are bfloat16 even for float16
    rows.
    """
    if block.rows.dtype != torch.float16:
        return block.rows
    if block.half_rows is None:
        block.half_rows = block.rows.to(torch.bfloat16)
    return block.half_rows


def _accumulate(out: Tensor, a: Tensor, b: Tensor, accumulate: bool) -> None:
    """out = or += a @ b, summed in float32."""
    beta = 1 if accumulate else 0
    if a.dtype == torch.float32:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=beta, out=out)
    else:  # the interpreter's lane: the CPU's product has no float32 result for half operands
        torch.addmm(out, a.float(), b.float(), beta=beta, out=out)


def times_candidates(weights: Tensor, block: Block, out: Tensor, accumulate: bool) -> None:
    """out (R, D) = or += weights (R, M) @ rows (M, D)."""
    _accumulate(out, weights, _candidates(block), accumulate)


def accumulate_transposed(out: Tensor, weights: Tensor, rows: Tensor, accumulate: bool) -> None:
    """out (M, D) = or += weights (R, M)^T @ rows (R, D)."""
    _accumulate(out, weights.T, rows, accumulate)
