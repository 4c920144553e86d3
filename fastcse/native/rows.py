"""Row-wise work over the C++ module, one pass over memory each: norms, positives, last steps of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import SHORTEST_NORM, Block, Logits, RowChunk
from .extension import _C

FLOAT = {"dtype": torch.float32, "device": "cpu"}
HALF_WIDTH = 32  # entries of bfloat16 in a row of an AMX tile


def _stride(x: Tensor) -> int:
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def inverse_norms(x: Tensor) -> Tensor:
    """(N,) 1 / |x_i|; 0 for a zero row."""
    scale = empty(x.shape[0])
    _C.inverse_norms(address(x), _stride(x), *x.shape, SHORTEST_NORM, address(scale), torch.get_num_threads())
    return scale


def half_rows(x: Tensor) -> Tensor:
    """x in bfloat16, filled up with zeros to the width of the processor's tiles: of other widths oneDNN's product reads
    past the end of a row, and an infinity of the next row, times 0, made a NaN of this one.
    """
    n, d = x.shape
    if d % HALF_WIDTH == 0:
        return x.to(torch.bfloat16)
    out = torch.zeros(n, -(-d // HALF_WIDTH) * HALF_WIDTH, dtype=torch.bfloat16, device="cpu")
    out[:, :d] = x
    return out


def inv_temperature(logits: Logits) -> float:
    """1 / temperature as a number; on the CPU a tensor can be read."""
    value = logits.inv_temperature_value
    return float(logits.inv_temperature) if value is None else value


def positive_logits(
    rows: Tensor, scale: Tensor, block: Block, index: Tensor, logits: Logits, ceiling: Tensor | float, offset: float
) -> Tensor:
    """(3, R): similarity and logit of each row's positive, and shift = max(logit, ceiling) + offset."""
    n, d = rows.shape
    out = empty(3, n)
    by_row = ceiling.expand(n).contiguous() if isinstance(ceiling, Tensor) else None
    _C.open_rows(
        logits.transform, address(rows), _stride(rows), address(scale), address(block.rows), _stride(block.rows),
        address(block.scale), address(index), n, d, address(by_row), 0.0 if by_row is not None else ceiling,
        offset,
        inv_temperature(logits), logits.margin, address(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def row_loss(chunk: RowChunk) -> Tensor:
    """(3, R): loss, 1 - p of the positive, and 1 / Z."""
    n = chunk.rows.shape[0]
    out = empty(3, n)
    _C.close_rows(address(chunk.sum), address(chunk.shift), address(chunk.logit), n, address(out))
    return out


def positive_gradient(
    chunk: RowChunk, block: Block, logits: Logits, one_minus_p: Tensor, inverse: Tensor | None, by: float = 1.0
) -> Tensor:
    """(3, R): factor of the weights' rows, weight of the positive, both times `by`, and part of the gradient
    of 1 / temperature.
    """
    n = chunk.rows.shape[0]
    out = empty(3, n)
    _C.pull_rows(
        logits.transform, address(one_minus_p), address(inverse), address(chunk.similarity), address(chunk.f_sum),
        address(chunk.scale), address(block.scale), address(chunk.positive), n,
        inv_temperature(logits) * by, logits.margin, address(out),
    )  # fmt: skip
    return out


def address(x: Tensor | None, first: int = 0) -> int:
    """Where entry `first` of a vector lies; 0 for an absent one. The only way to C++, which reads CPU memory."""
    if x is None:
        return 0
    if not x.is_cpu:
        raise RuntimeError(f"the C++ module takes tensors on 'cpu', got one of shape {tuple(x.shape)} on {x.device}")
    return x.data_ptr() + first * x.element_size()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """New CPU memory, whatever the caller's default device and dtype are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def scale_rows(rows: Tensor, factor: Tensor) -> Tensor:
    """rows_i factor_i, in the type that `accumulate_transposed` multiplies with."""
    return rows * factor[:, None]


def project_gradient(
    out: Tensor,
    rows: Tensor,
    scale: Tensor | None,
    *,
    factor: Tensor | None = None,
    positive_weight: Tensor | None = None,
    others: Tensor | None = None,
    index: Tensor | None = None,
    into: Tensor | None = None,
) -> None:
    """into_i <- factor_i out_i - weight_i others_{index_i}, less its part along rows_i where `scale` is given.

    `out` is float32, and changed; `into` is it, if None, or of the type wanted. Rows past the end of
    `positive_weight` have none.
    """
    weighted_rows = out.shape[0] if positive_weight is None else positive_weight.shape[0]
    for first, last, i in ((0, weighted_rows, index), (weighted_rows, out.shape[0], None)):
        if first == last:
            continue
        _C.finish_rows(
            address(out[first:]), last - first, out.shape[1], address(factor, first), address(positive_weight),
            address(others), 0 if others is None else _stride(others), address(i), address(rows[first:]), _stride(rows),
            address(scale, first), torch.get_num_threads(),
        )  # fmt: skip
    if into is not None and address(into) != address(out):
        into.copy_(out)


def scatter_rows(out: Tensor, rows: Tensor, positive_weight: Tensor, index: Tensor, index_is_arange: bool) -> None:
    """out_{index_i} -= weight_i rows_i, in a fixed order."""
    _C.scatter_rows(
        address(out), out.shape[1], address(rows), _stride(rows), address(positive_weight), address(index),
        rows.shape[0], index_is_arange,
        torch.get_num_threads(),
    )  # fmt: skip


def add_at(out: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """out_{index_i} += values_i for vectors, in the order of i."""
    return out.index_add_(0, index, values)
