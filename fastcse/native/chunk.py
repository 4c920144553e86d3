"""One chunk of anchor rows against one block of candidates on the CPU, in float32.

The product runs tile by tile, and each tile's exponentials are taken while it is still in cache; the gradient products then run on the whole chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..pairs import SHORTEST_NORM, Block, Columns, Logits, RowChunk
from ..transforms import get
from .module import _C

# 1024 x 1024 floats are 4 MiB: a tile stays in the last-level cache between the product and the pass over it. On 2 cores with 32 MiB of L3 tiles of
# 512, 1024 and 2048 columns differ by less than the noise; rows below 512 make the three products slower (benchmarks/NOTES.md).
TILE_COLS = 1024
MOST_ROWS = 1024
LEAST_ROWS = 128
DEFAULT_WORKSPACE = 32 << 20


class Workspace:
    """Memory for the gradient weights of one chunk: (rows, M) for each block, or one tile of it when nothing is kept."""

    def __init__(self, rows: int, blocks: list[Block], keep: bool):
        width = sum(b.rows.shape[0] for b in blocks) if keep else min(TILE_COLS, max(b.rows.shape[0] for b in blocks))
        self.buffer = torch.empty(rows, width, dtype=torch.float32)
        self.keep = keep
        self.first = [0]
        for block in blocks:
            self.first.append(self.first[-1] + block.rows.shape[0])

    def weights(self, rows: int, block: int) -> Tensor:
        """(rows, M) view that a block's sweep writes and the products read."""
        return self.buffer[:rows, self.first[block] : self.first[block + 1]] if self.keep else self.buffer[:rows]


def plan_rows(n: int, blocks: list[Block], keep: bool, max_workspace_bytes: int | None) -> int:
    """Rows of a chunk: as many as the workspace holds, between 128 and 1024."""
    if not keep:
        return min(n, MOST_ROWS)
    width = sum(b.rows.shape[0] for b in blocks)
    fitting = (max_workspace_bytes or DEFAULT_WORKSPACE) // (4 * width)
    return min(n, max(LEAST_ROWS, min(MOST_ROWS, fitting)))


def prepare(x: Tensor) -> Tensor:
    """float32 rows with unit stride along D. A copy only of half-precision or oddly strided input."""
    x = x.to(torch.float32)
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _stride(x: Tensor) -> int:
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def inverse_norms(x: Tensor) -> Tensor:
    """(N,) 1 / |x_i|; 0 for a zero row."""
    scale = torch.empty(x.shape[0], dtype=torch.float32)
    _C.inverse_norms(x.data_ptr(), _stride(x), *x.shape, SHORTEST_NORM, scale.data_ptr(), torch.get_num_threads())
    return scale


def _inv_temperature(logits: Logits) -> float:
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
        block.scale.data_ptr(), index.data_ptr(), n, d, _address(by_row), 0.0 if by_row is not None else ceiling, offset,
        _inv_temperature(logits), logits.margin, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def close_rows(chunk: RowChunk) -> Tensor:
    """(3, R): loss, the positive's share 1 - p, and 1 / Z."""
    n = chunk.rows.shape[0]
    out = torch.empty(3, n, dtype=torch.float32)
    _C.close_rows(chunk.sum.data_ptr(), chunk.shift.data_ptr(), chunk.logit.data_ptr(), n, out.data_ptr())
    return out


def pull_rows(chunk: RowChunk, block: Block, logits: Logits, share: Tensor, inverse: Tensor | None) -> Tensor:
    """(3, R): factor of the weights' rows, pull between a row and its positive, part of the gradient of 1 / temperature."""
    n = chunk.rows.shape[0]
    out = torch.empty(3, n, dtype=torch.float32)
    _C.pull_rows(
        logits.transform, share.data_ptr(), _address(inverse), chunk.similarity.data_ptr(), chunk.f_sum.data_ptr(),
        chunk.scale.data_ptr(), block.scale.data_ptr(), chunk.positive.data_ptr(), n, _inv_temperature(logits),
        logits.margin, out.data_ptr(),
    )  # fmt: skip
    return out


def _address(x: Tensor | None, first: int = 0) -> int:
    return 0 if x is None else x.data_ptr() + first * x.element_size()


def _fields(chunk: RowChunk, block: Block, logits: Logits, columns: Columns | None, store: bool) -> dict:
    fields = {
        "rows": chunk.rows.shape[0],
        "row_scale": _address(chunk.scale),
        "row_shift": _address(chunk.shift),
        "row_weight": _address(chunk.weight),
        "own": _address(chunk.positive if block.holds_positives else chunk.own if block.own_log_weight else None),
        "own_log_weight": -math.inf if block.holds_positives else block.own_log_weight,
        "inv_temperature": _inv_temperature(logits),
        "margin": logits.margin,
        "store": store,
        "row_sum": _address(chunk.sum),
        "row_f_sum": _address(chunk.f_sum),
    }
    if block.id is not None and chunk.id is not None:
        fields["row_id"] = _address(chunk.id)
    if chunk.stats is not None and not (store and columns):
        stats = chunk.stats
        fields |= {
            "row_similarity_sum": _address(stats.similarity_sum),
            "row_count": _address(stats.count),
            "row_hardest": _address(stats.hardest),
            "row_hardest_col": _address(stats.hardest_col),
        }
    return fields


def sweep(
    chunk: RowChunk,
    block: Block,
    logits: Logits,
    weights: Tensor,
    *,
    store: bool,
    columns: Columns | None = None,
    gate: Tensor | None = None,
) -> None:
    """Sums of exponentials over one block into `chunk`; with `store`, gradient weights into `weights` (R, M); with `columns`, column sums too.

    `gate` (0-dim bool) False: nothing is done. Here the caller has looked at it already.
    """
    fields = _fields(chunk, block, logits, columns, store)
    rows, m = chunk.rows.shape[0], block.rows.shape[0]
    panels = -(-rows // _C.panel_rows)
    for first in range(0, m, TILE_COLS):
        last = min(first + TILE_COLS, m)
        tile = weights[:, first:last] if store else weights[:, : last - first]
        torch.mm(chunk.rows, block.rows[first:last].T, out=tile)
        fields |= {
            "dot": tile.data_ptr(), "stride": weights.stride(0), "cols": last - first, "first_col": first,
            "col_scale": _address(block.scale, first), "col_bias": _address(block.bias, first),
        }  # fmt: skip
        if "row_id" in fields:
            fields["col_id"] = _address(block.id, first)
        if columns is not None:
            fields["col_shift"] = _address(columns.shift, first)
            fields["col_weight"] = _address(columns.weight, first)
            if not store:
                panel_sums = torch.zeros(panels, last - first)
                fields["col_sum"] = panel_sums.data_ptr()
        _C.sweep(logits.transform, fields, torch.get_num_threads())
        if columns is not None and not store:
            columns.sum[first:last] += panel_sums.sum(0)


def times_candidates(weights: Tensor, block: Block, out: Tensor, accumulate: bool) -> None:
    """out (R, D) = or += weights (R, M) @ rows (M, D)."""
    torch.addmm(out, weights, block.rows, beta=1 if accumulate else 0, out=out)


def accumulate_transposed(out: Tensor, weights: Tensor, rows: Tensor, accumulate: bool) -> None:
    """out (M, D) = or += weights (R, M)^T @ rows (R, D)."""
    torch.addmm(out, weights.T, rows, beta=1 if accumulate else 0, out=out)


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
    block: Block | None = None,
    index: Tensor | None = None,
) -> None:
    """out_i <- factor_i out_i - pull_i candidate_{index_i}, less its part along rows_i where `scale` is given. One pass, in place."""
    c = block.rows if block is not None else None
    _C.finish_rows(
        out.data_ptr(), *out.shape, _address(factor), _address(pull), _address(c), _stride(c) if c is not None else 0, _address(index),
        rows.data_ptr(), _stride(rows), _address(scale), torch.get_num_threads(),
    )  # fmt: skip


def scatter_rows(out: Tensor, rows: Tensor, pull: Tensor, index: Tensor, distinct: bool) -> None:
    """out_{index_i} -= pull_i rows_i, in a fixed order."""
    _C.scatter_rows(
        out.data_ptr(), out.shape[1], rows.data_ptr(), _stride(rows), pull.data_ptr(), index.data_ptr(), rows.shape[0], distinct,
        torch.get_num_threads(),
    )  # fmt: skip


def add_at(out: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """out_{index_i} += values_i for vectors, in the order of i."""
    return out.index_add_(0, index, values)


def is_open(gate: Tensor) -> bool:
    """Whether work behind `gate` must be launched. Reading it costs nothing on the CPU."""
    return bool(gate)


def largest_logits(chunk: RowChunk, block: Block, logits: Logits, gate: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) and (M,) largest logit of each row and column over the negatives that take part. Rare: plain torch, tile by tile."""
    f = get(logits.transform).f
    by_row, by_column = (torch.full((size,), -torch.inf) for size in (chunk.rows.shape[0], block.rows.shape[0]))
    for first in range(0, chunk.rows.shape[0], MOST_ROWS):
        rows = slice(first, first + MOST_ROWS)
        for start in range(0, block.rows.shape[0], TILE_COLS):
            cols = slice(start, start + TILE_COLS)
            s = (chunk.rows[rows] @ block.rows[cols].T) * chunk.scale[rows, None] * block.scale[cols]
            x = f(s, logits.margin) * logits.inv_temperature + block.bias[cols]
            if block.id is not None and chunk.id is not None:
                x = x.masked_fill(chunk.id[rows, None] == block.id[cols], -torch.inf)
            own = chunk.positive if block.holds_positives or chunk.own is None else chunk.own
            at_own = own[rows, None] == torch.arange(start, start + x.shape[1])
            x = torch.where(at_own, -torch.inf if block.holds_positives else x + block.own_log_weight, x)
            by_row[rows] = torch.maximum(by_row[rows], x.amax(1))
            by_column[cols] = torch.maximum(by_column[cols], x.amax(0))
    return by_row, by_column


def all_pairs(anchor: Tensor, candidate: Tensor, anchor_scale: Tensor | None, candidate_scale: Tensor | None, out: Tensor) -> None:
    """out (N, M) = dot products, times the scales of row and column where given."""
    torch.mm(anchor, candidate.T, out=out)
    if anchor_scale is not None:
        out.mul_(anchor_scale[:, None]).mul_(candidate_scale)
