"""The two gradient products, on the library's matrix product (cuBLAS), with float32 results."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pairs import Block


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
