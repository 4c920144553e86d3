"""Row-wise work over the C++ module, one pass over memory each: norms, positives, last steps of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pairs import SHORTEST_NORM, Block, Logits, RowChunk
from .module import _C

HALF_WIDTH = 32  # entries of bfloat16 in a row of an AMX tile


def _stride(x: Tensor) -> int:
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def inverse_norms(x: Tensor) -> Tensor:
    """(N,) 1 / |x_i|; 0 for a zero row."""
    scale = torch.empty(x.shape[0], dtype=torch.float32)
    _C.inverse_norms(x.data_ptr(), _stride(x), *x.shape, SHORTEST_NORM, scale.data_ptr(), torch.get_num_threads())
    return scale


def half_rows(x: Tensor) -> Tensor:
    """x in bfloat16, filled up with zeros to the width of the processor's tiles: of other widths oneDNN's product reads
    past the end of a row, and an infinity of the next row, times 0, made a NaN of this one.
    """
    n, d = x.shape
    if d % HALF_WIDTH == 0:
        return x.to(torch.bfloat16)
    out = torch.zeros(n, -(-d // HALF_WIDTH) * HALF_WIDTH, dtype=torch.bfloat16)
    out[:, :d] = x
    return out


def inv_temperature(logits: Logits) -> float:
    """1 / temperature as a number; on the CPU a tensor can be read."""
    value = logits.inv_temperature_value
    return float(logits.inv_temperature) if value is None else value


def open_rows(
    rows: Tensor, scale: Tensor, block: Block, index: Tensor, logits: Logits, ceiling: Tensor | float, offset: float
) -> Tensor:
    """(3, R): similarity and logit of each row's positive, and shift = max(logit, ceiling) + offset."""
    n, d = rows.shape
    out = torch.empty(3, n, dtype=torch.float32)
    by_row = ceiling.expand(n).contiguous() if isinstance(ceiling, Tensor) else None
    _C.open_rows(
        logits.transform, rows.data_ptr(), _stride(rows), scale.data_ptr(), block.rows.data_ptr(), _stride(block.rows),
        block.scale.data_ptr(), index.data_ptr(), n, d, address(by_row), 0.0 if by_row is not None else ceiling,
        offset,
        inv_temperature(logits), logits.margin, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def close_rows(chunk: RowChunk) -> Tensor:
    """(3, R): loss, the positive's share 1 - p, and 1 / Z."""
    n = chunk.rows.shape[0]
    out = torch.empty(3, n, dtype=torch.float32)
    _C.close_rows(chunk.sum.data_ptr(), chunk.shift.data_ptr(), chunk.logit.data_ptr(), n, out.data_ptr())
    return out


def pull_rows(
    chunk: RowChunk, block: Block, logits: Logits, share: Tensor, inverse: Tensor | None, by: float = 1.0
) -> Tensor:
    """(3, R): factor of the weights' rows, pull between a row and its positive, both times `by`, and part of the
    gradient of 1 / temperature.
    """
    n = chunk.rows.shape[0]
    out = torch.empty(3, n, dtype=torch.float32)
    _C.pull_rows(
        logits.transform, share.data_ptr(), address(inverse), chunk.similarity.data_ptr(), chunk.f_sum.data_ptr(),
        chunk.scale.data_ptr(), block.scale.data_ptr(), chunk.positive.data_ptr(), n,
        inv_temperature(logits) * by, logits.margin, out.data_ptr(),
    )  # fmt: skip
    return out


def address(x: Tensor | None, first: int = 0) -> int:
    """Where entry `first` of a vector lies; 0 for an absent one."""
    return 0 if x is None else x.data_ptr() + first * x.element_size()


def scale_rows(rows: Tensor, factor: Tensor) -> Tensor:
    """rows_i factor_i, in the type that `accumulate_transposed` multiplies with."""
    return rows * factor[:, None]


def finish_rows(
    out: Tensor,
    rows: Tensor,
    scale: Tensor | None,
    *,
    factor: Tensor | None = None,
    pull: Tensor | None = None,
    others: Tensor | None = None,
    index: Tensor | None = None,
    into: Tensor | None = None,
) -> None:
    """into_i <- factor_i out_i - pull_i others_{index_i}, less its part along rows_i where `scale` is given. One pass.

    `out` is float32, and changed; `into` is it, if None, or of the type wanted. Rows past the end of `pull` have none.
    """
    pulled = out.shape[0] if pull is None else pull.shape[0]
    for first, last, i in ((0, pulled, index), (pulled, out.shape[0], None)):
        if first == last:
            continue
        _C.finish_rows(
            out[first:].data_ptr(), last - first, out.shape[1], address(factor, first), address(pull), address(others),
            0 if others is None else _stride(others), address(i), rows[first:].data_ptr(), _stride(rows),
            address(scale, first), torch.get_num_threads(),
        )  # fmt: skip
    if into is not None and into.data_ptr() != out.data_ptr():
        into.copy_(out)


def scatter_rows(out: Tensor, rows: Tensor, pull: Tensor, index: Tensor, distinct: bool) -> None:
    """out_{index_i} -= pull_i rows_i, in a fixed order."""
    _C.scatter_rows(
        out.data_ptr(), out.shape[1], rows.data_ptr(), _stride(rows), pull.data_ptr(), index.data_ptr(),
        rows.shape[0], distinct,
        torch.get_num_threads(),
    )  # fmt: skip


def add_at(out: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """out_{index_i} += values_i for vectors, in the order of i."""
    return out.index_add_(0, index, values)
