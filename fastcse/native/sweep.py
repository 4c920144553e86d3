"""One chunk of anchor rows against one block of candidates on the CPU, in float32.

The product runs tile by tile, and each tile's exponentials are taken while it is still in cache; the gradient
products then run on the whole chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..operands import Block, Columns, Logits, RowChunk
from ..transforms import get
from .extension import _C
from .rows import FLOAT, address, empty, inv_temperature

# 1024 x 1024 floats are 4 MiB: a tile stays in the last-level cache between the product and the pass over it. On 2
# cores with 32 MiB of L3 tiles of 512, 1024 and 2048 columns differ by less than the noise; rows below 512 make the
# three products slower (benchmarks/NOTES.md).
TILE_COLS = 1024
MOST_ROWS = 1024
LEAST_ROWS = 128
DEFAULT_WORKSPACE = 32 << 20


class Workspace:
    """Memory for the gradient weights of one chunk: (rows, M) for each block, or one tile of it when nothing is
    kept.
    """

    def __init__(self, rows: int, blocks: list[Block], keep: bool):
        width = sum(b.rows.shape[0] for b in blocks) if keep else min(TILE_COLS, max(b.rows.shape[0] for b in blocks))
        self.buffer = empty(rows, width)
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


def keeps_products(n: int, blocks: list[Block], max_workspace_bytes: int | None) -> bool:
    """Whether the dot products of all pairs fit into the workspace, so that a second pass need not make them again."""
    return 4 * n * sum(b.rows.shape[0] for b in blocks) <= (max_workspace_bytes or DEFAULT_WORKSPACE)


def prepare(x: Tensor) -> Tensor:
    """float32 rows with unit stride along D. A copy only of half-precision or oddly strided input."""
    x = x.to(torch.float32)
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _fields(chunk: RowChunk, block: Block, logits: Logits, columns: Columns | None, store: bool) -> dict:
    fields = {
        "rows": chunk.rows.shape[0],
        "row_scale": address(chunk.scale),
        "row_shift": address(chunk.shift),
        "row_weight": address(chunk.weight),
        "own": address(chunk.positive if block.holds_positives else chunk.own if block.own_log_weight else None),
        "own_log_weight": -math.inf if block.holds_positives else block.own_log_weight,
        "inv_temperature": inv_temperature(logits),
        "margin": logits.margin,
        "store": store,
        "row_sum": address(chunk.sum),
        "row_f_sum": address(chunk.f_sum),
    }
    if block.id is not None and chunk.id is not None:
        fields["row_id"] = address(chunk.id)
    if chunk.stats is not None and not (store and columns):
        stats = chunk.stats
        fields |= {
            "row_similarity_sum": address(stats.similarity_sum),
            "row_count": address(stats.count),
            "row_hardest": address(stats.hardest),
            "row_hardest_col": address(stats.hardest_col),
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
    predicate: Tensor | None = None,
    dots_cached: bool = False,
) -> None:
    """Sums of exponentials over one block into `chunk`; with `store`, gradient weights into `weights` (R, M); with
    `columns`, column sums too.

    `predicate` (0-dim bool) False: nothing is done; here the caller has read it already. Without `store`, `weights`
    as wide as the block are left with the dot products; `dots_cached`: they hold them.
    """
    fields = _fields(chunk, block, logits, columns, store)
    rows, m = chunk.rows.shape[0], block.rows.shape[0]
    panels = -(-rows // _C.panel_rows)
    for first in range(0, m, TILE_COLS):
        last = min(first + TILE_COLS, m)
        tile = weights[:, first:last] if weights.shape[1] == m else weights[:, : last - first]
        if not dots_cached:
            torch.mm(chunk.rows, block.rows[first:last].T, out=tile)
        fields |= {
            "dot": address(tile), "stride": weights.stride(0), "cols": last - first, "first_col": first,
            "col_scale": address(block.scale, first), "col_bias": address(block.bias, first),
        }  # fmt: skip
        if "row_id" in fields:
            fields["col_id"] = address(block.id, first)
        if columns is not None:
            fields["col_shift"] = address(columns.shift, first)
            fields["col_weight"] = address(columns.weight, first)
            if not store:
                panel_sums = torch.zeros(panels, last - first, **FLOAT)
                fields["col_sum"] = address(panel_sums)
        _C.sweep(logits.transform, fields, torch.get_num_threads())
        if columns is not None and not store:
            columns.sum[first:last] += panel_sums.sum(0)


def times_candidates(weights: Tensor, block: Block, out: Tensor, accumulate: bool) -> None:
    """out (R, D) = or += weights (R, M) @ rows (M, D)."""
    torch.addmm(out, weights, block.rows, beta=1 if accumulate else 0, out=out)


def accumulate_transposed(out: Tensor, weights: Tensor, rows: Tensor, accumulate: bool) -> None:
    """out (M, D) = or += weights (R, M)^T @ rows (R, D)."""
    torch.addmm(out, weights.T, rows, beta=1 if accumulate else 0, out=out)


def must_launch(predicate: Tensor) -> bool:
    """Whether work behind `predicate` must be launched. Reading it costs nothing on the CPU."""
    return bool(predicate)


def largest_logits(chunk: RowChunk, block: Block, logits: Logits, predicate: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) and (M,) largest logit of each row and column over the negatives that take part. Rare: plain torch, tile
    by tile.
    """
    f = get(logits.transform).f
    by_row, by_column = (
        torch.full((size,), -torch.inf, **FLOAT) for size in (chunk.rows.shape[0], block.rows.shape[0])
    )
    for first in range(0, chunk.rows.shape[0], MOST_ROWS):
        rows = slice(first, first + MOST_ROWS)
        for start in range(0, block.rows.shape[0], TILE_COLS):
            cols = slice(start, start + TILE_COLS)
            s = (chunk.rows[rows] @ block.rows[cols].T) * chunk.scale[rows, None] * block.scale[cols]
            x = f(s, logits.margin) * logits.inv_temperature + block.bias[cols]
            if block.id is not None and chunk.id is not None:
                x = x.masked_fill(chunk.id[rows, None] == block.id[cols], -torch.inf)
            own = chunk.positive if block.holds_positives or chunk.own is None else chunk.own
            at_own = own[rows, None] == torch.arange(start, start + x.shape[1], device="cpu")
            x = torch.where(at_own, -torch.inf if block.holds_positives else x + block.own_log_weight, x)
            by_row[rows] = torch.maximum(by_row[rows], x.amax(1))
            by_column[cols] = torch.maximum(by_column[cols], x.amax(0))
    return by_row, by_column


def all_pairs(
    anchor: Tensor, candidate: Tensor, anchor_scale: Tensor | None, candidate_scale: Tensor | None, out: Tensor
) -> None:
    """out (N, M) = dot products, times the scales of row and column where given."""
    torch.mm(anchor, candidate.T, out=out)
    if anchor_scale is not None:
        out.mul_(anchor_scale[:, None]).mul_(candidate_scale)
