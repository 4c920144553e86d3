"""One chunk of anchor rows against one block of candidates on the GPU: packs the arrays, launches, adds up what the
tiles left.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..pairs import Block, Columns, Logits, RowChunk
from ..transforms import get
from .configs import INTERPRETED, LARGEST_TILE, tile_config
from .pairwise import largest_kernel, similarity_kernel, sweep_kernel, symmetric_kernel
from .tile import device_fn

DEFAULT_WORKSPACE = 4 << 30
TILE_ROWS = 128


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
    """Rows of a chunk: one output tile of the (rows, D) gradient product on every multiprocessor, within the
    workspace.
    """
    device = blocks[0].rows.device
    if device.type != "cuda":
        return min(n, 2 * INTERPRETED.block_n)
    tiles_d = triton.cdiv(blocks[0].rows.shape[1], 256)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    rows = max(1, processors // tiles_d) * TILE_ROWS
    if not keep:
        return min(n, 4 * rows)
    width = sum(b.rows.shape[0] * weight_type(b.rows).itemsize for b in blocks)
    fitting = (max_workspace_bytes or DEFAULT_WORKSPACE) // width // TILE_ROWS * TILE_ROWS
    return min(n, max(TILE_ROWS, min(rows, fitting)))


def prepare(x: Tensor) -> Tensor:
    """Rows with unit stride along D, in their own type; a copy only of oddly strided input."""
    return x if x.stride(1) == 1 else x.contiguous()


def _meta(a: Tensor, busy: bool = False) -> dict:
    """Launch options for operands like `a`."""
    config = tile_config(a.dtype, busy)
    tf32 = torch.get_float32_matmul_precision() != "highest"
    options = {
        "BLOCK_N": config.block_n, "BLOCK_M": config.block_m, "BLOCK_D": config.block_d, "GROUP": config.group,
        "EVEN_D": a.shape[1] % config.block_d == 0,
        "RAISE": triton.knobs.runtime.interpret and a.dtype != torch.float32,
        "PRECISION": "tf32" if tf32 else "ieee", "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip
    return options if config.max_registers is None else {**options, "maxnreg": config.max_registers}


def _grid(n: int, m: int, meta: dict) -> tuple[int, tuple[int, int]]:
    tiles = triton.cdiv(n, meta["BLOCK_N"]), triton.cdiv(m, meta["BLOCK_M"])
    return tiles[0] * tiles[1], tiles


def _operands(chunk: RowChunk, block: Block, logits: Logits, gate: Tensor | None, columns: Columns | None) -> tuple:
    """Packed arrays in the order of the kernels' parameters, up to COL_ID."""
    scalars = logits.inv_temperature.reshape(1)
    scalars = torch.cat([scalars, scalars if gate is None else gate.to(torch.float32).reshape(1)])
    shift = block.bias if columns is None else columns.shift
    height = block.bias if columns is None or columns.weight is None else columns.weight
    own = chunk.positive if block.holds_positives or chunk.own is None else chunk.own
    weight = torch.ones_like(chunk.shift) if chunk.weight is None else chunk.weight
    has_ids = block.id is not None and chunk.id is not None
    return (
        chunk.rows, block.rows, torch.stack([chunk.scale, chunk.shift, weight]),
        torch.stack([block.scale, block.bias, shift, height]), scalars, own, chunk.id if has_ids else own,
        block.id if has_ids else own,
    )  # fmt: skip


def _options(chunk: RowChunk, block: Block) -> dict:
    return {
        "IDS": block.id is not None and chunk.id is not None,
        "LEAVE_OWN_OUT": block.holds_positives,
        "OWN_WEIGHT": not block.holds_positives and block.own_log_weight != 0,
    }


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
    """Sums of exponentials over one block into `chunk`; with `store`, gradient weights into `weights` (R, M); with
    `columns`, column sums too.

    `gate` (0-dim bool) False: the programs return at once; the host never reads it.
    """
    n, m, d = *chunk.rows.shape[:1], *block.rows.shape
    stats, transform = chunk.stats is not None, get(logits.transform)
    # Only a learned temperature asks for the sums of e f.
    f_sum = store and logits.inv_temperature_value is None
    options = _options(chunk, block)
    meta = _meta(chunk.rows, busy=stats or f_sum or options["IDS"] or (store and columns is not None))
    grid, tiles = _grid(n, m, meta)
    new = {"dtype": torch.float32, "device": chunk.rows.device}
    # Zeros only where programs may return without writing.
    sums = torch.zeros(2, tiles[1], n, **new) if gate is not None else torch.empty(2, tiles[1], n, **new)
    sizes = (n, m, d, chunk.rows.stride(0), block.rows.stride(0), weights.stride(0), logits.margin)
    stats_f = torch.empty(3, tiles[1], n, **new) if stats else sums
    stats_i = torch.empty(tiles[1], n, dtype=torch.int32, device=sums.device) if stats else sums
    f = {"F": device_fn(transform.f), "DF": device_fn(transform.df), "STORE": store, "F_SUM": f_sum, "STATS": stats}
    operands = _operands(chunk, block, logits, gate, columns)
    if columns is not None:
        col_sums = torch.empty(1 if store else tiles[0], m, **new)
        symmetric_kernel[(grid,)](
            *operands, weights, sums, col_sums, stats_f, stats_i, *sizes, **f, IDS=options["IDS"], **meta
        )
        if not store:
            columns.sum += col_sums.sum(0)
    else:
        options |= {**f, "GATED": gate is not None}
        sweep_kernel[(grid,)](
            *operands, weights, sums, stats_f, stats_i, *sizes, block.own_log_weight, **options, **meta
        )
    if stats:
        _merge_stats(chunk, stats_f, stats_i)
    if not (columns is not None and store):
        chunk.sum += sums[0].sum(0)
    if f_sum:
        chunk.f_sum += sums[1].sum(0)


def _merge_stats(chunk: RowChunk, stats_f: Tensor, stats_i: Tensor) -> None:
    stats = chunk.stats
    stats.similarity_sum += stats_f[0].sum(0)
    stats.count += stats_f[1].sum(0)
    hardest = stats_f[2].amax(0)
    lowest = torch.where(stats_f[2] == hardest, stats_i, torch.iinfo(torch.int32).max).amin(0)
    better = hardest > stats.hardest
    stats.hardest_col = torch.where(better, lowest.to(torch.int64), stats.hardest_col)
    stats.hardest = torch.where(better, hardest, stats.hardest)


def largest_logits(chunk: RowChunk, block: Block, logits: Logits, gate: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) and (M,) largest logit of each row and column over the negatives that take part; -inf where the gate is
    shut.
    """
    n, m, d = *chunk.rows.shape[:1], *block.rows.shape
    meta, f = _meta(chunk.rows), device_fn(get(logits.transform).f)
    grid, tiles = _grid(n, m, meta)
    by_row = torch.full((tiles[1], n), -torch.inf, device=chunk.rows.device)
    by_column = torch.full((tiles[0], m), -torch.inf, device=chunk.rows.device)
    sizes = (n, m, d, chunk.rows.stride(0), block.rows.stride(0), logits.margin, block.own_log_weight)
    operands = _operands(chunk, block, logits, gate, None)
    largest_kernel[(grid,)](*operands, by_row, by_column, *sizes, F=f, **_options(chunk, block), **meta)
    return by_row.amax(0), by_column.amax(0)


def is_open(gate: Tensor) -> bool:
    """Whether work behind `gate` must be launched: always, since kernels look at the gate themselves and reading it
    here would stall the GPU.
    """
    return True


def all_pairs(
    anchor: Tensor, candidate: Tensor, anchor_scale: Tensor | None, candidate_scale: Tensor | None, out: Tensor
) -> None:
    """out (N, M) = dot products, times the scales of row and column where given."""
    n, m, d = *anchor.shape[:1], *candidate.shape
    row_scale = torch.ones(n, device=out.device) if anchor_scale is None else anchor_scale
    col_scale = torch.ones(m, device=out.device) if candidate_scale is None else candidate_scale
    meta = _meta(anchor)
    sizes = (n, m, d, anchor.stride(0), candidate.stride(0), out.stride(0))
    similarity_kernel[(_grid(n, m, meta)[0],)](anchor, candidate, row_scale, col_scale, out, *sizes, **meta)
