"""One chunk of anchor rows against one block of candidates on the GPU: packs the arrays, chooses the form of the
kernel, launches, adds up what the tiles left.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..operands import Block, Columns, Logits, RowChunk
from ..transforms import get
from .configs import TileConfig, narrow, plain, tile_config
from .pairwise import largest_kernel, persistent_sweep_kernel, similarity_kernel, sweep_kernel
from .tile import device_fn, fits_descriptor, multiprocessors

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


def _meta(config: TileConfig, a: Tensor) -> dict:
    """Launch options for operands like `a`."""
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return {
        "BLOCK_N": config.block_n, "BLOCK_M": config.block_m, "BLOCK_D": config.block_d, "GROUP": config.group,
        "EVEN_D": a.shape[1] % config.block_d == 0,
        "RAISE": triton.knobs.runtime.interpret and a.dtype != torch.float32,
        "PRECISION": "tf32" if tf32 else "ieee", "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip


def _grid(n: int, m: int, config: TileConfig) -> tuple[int, tuple[int, int]]:
    tiles = triton.cdiv(n, config.block_n), triton.cdiv(m, config.block_m)
    return tiles[0] * tiles[1], tiles


def _operands(
    chunk: RowChunk, block: Block, logits: Logits, predicate: Tensor | None, columns: Columns | None
) -> tuple:
    """Arrays in the order of the kernels' parameters, up to COL_ID; in the place of an absent one stands another."""
    scalars = logits.inv_temperature
    if predicate is not None:
        scalars = torch.stack([scalars, predicate.to(torch.float32)])
    shift = block.bias if columns is None else columns.shift
    height = block.bias if columns is None or columns.weight is None else columns.weight
    own = chunk.positive if block.holds_positives or chunk.own is None else chunk.own
    weight = chunk.shift if chunk.weight is None else chunk.weight
    has_ids = block.id is not None and chunk.id is not None
    return (
        chunk.rows, block.rows, chunk.scale, chunk.shift, weight, block.scale, block.bias, shift, height, scalars, own,
        chunk.id if has_ids else own, block.id if has_ids else own,
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
    predicate: Tensor | None = None,
) -> None:
    """Sums of exponentials over one block into `chunk`; with `store`, gradient weights into `weights` (R, M); with
    `columns`, column sums too.

    `predicate` (0-dim bool) False: the programs return at once; the host never reads it.
    """
    n, m = chunk.rows.shape[0], block.rows.shape[0]
    # Only a learned temperature asks for the sums of e f.
    stats, f_sum, both = chunk.stats is not None, store and logits.inv_temperature_value is None, columns is not None
    options = {**_options(chunk, block), "F_SUM": f_sum, "STATS": stats, "BOTH": both, "STORE": store,
               "WEIGHTED": store and chunk.weight is not None}  # fmt: skip
    busy = stats or f_sum or both or options["IDS"]
    config = _sweep_config(chunk.rows, block.rows, "busy" if busy else "gradients" if store else "sums")
    tiles = _grid(n, m, config)[1]
    new = {"dtype": torch.float32, "device": chunk.rows.device}
    # Zeros only where programs may return without writing.
    sums = torch.zeros(2, tiles[1], n, **new) if predicate is not None else torch.empty(2, tiles[1], n, **new)
    col_sums = torch.empty(tiles[0], m, **new) if both and not store else sums
    slots = tiles[1] * config.parts
    stats_f = torch.empty(3, slots, n, **new) if stats else sums
    stats_i = torch.empty(slots, n, dtype=torch.int32, device=sums.device) if stats else sums
    operands = (*_operands(chunk, block, logits, predicate, columns), weights, sums, col_sums, stats_f, stats_i)
    _launch_sweep(config, operands, block, logits, {**options, "GATED": predicate is not None})
    if stats:
        _merge_stats(chunk, stats_f, stats_i)
    if both and not store:
        columns.sum += col_sums.sum(0)
    if f_sum or not (both and store):
        add_sums(sums, chunk, not (both and store), f_sum)


def _sweep_config(a: Tensor, c: Tensor, kind: str) -> TileConfig:
    return tile_config(a.dtype, a.shape[1], kind, a.device, fits_descriptor(a) and fits_descriptor(c))


def _launch_sweep(config: TileConfig, operands: tuple, block: Block, logits: Logits, options: dict) -> None:
    a, c, *arrays, e, sums, col_sums, stats_f, stats_i = operands
    n, m, d = a.shape[0], *c.shape
    sizes = (n, m, d, a.stride(0), c.stride(0), e.stride(0), logits.margin, block.own_log_weight)
    outputs, transform = (sums, col_sums, stats_f, stats_i), get(logits.transform)
    options |= {"F": device_fn(transform.f), "DF": device_fn(transform.df), "PARTS": config.parts}
    options |= _meta(config, a)
    grid = _grid(n, m, config)[0]
    if config.programs == 0:
        sweep_kernel[(grid,)](a, c, *arrays, e, *outputs, *sizes, **options)
        return
    del options["EVEN_D"]
    part = [config.block_n, config.block_m // config.parts]
    described = (
        TensorDescriptor.from_tensor(a, [config.block_n, config.block_d]),
        TensorDescriptor.from_tensor(c, [config.block_m, config.block_d]),
        _describe_weights(e, part) if options["STORE"] else TensorDescriptor.from_tensor(a, part),  # never written
    )
    programs = min(grid, config.programs * multiprocessors(a.device))
    persistent_sweep_kernel[(programs,)](
        *described[:2], *arrays, described[2], *outputs, *sizes, **options, FLATTEN=config.flatten
    )


def _describe_weights(e: Tensor, part: list[int]) -> TensorDescriptor:
    """The weights with the whole tiles of memory behind them, so that no store is cut."""
    height = e.untyped_storage().nbytes() // (e.stride(0) * e.itemsize)
    return TensorDescriptor(e, [height, e.stride(0)], [e.stride(0), 1], part)


def _merge_stats(chunk: RowChunk, stats_f: Tensor, stats_i: Tensor) -> None:
    stats = chunk.stats
    stats.similarity_sum += stats_f[0].sum(0)
    stats.count += stats_f[1].sum(0)
    hardest = stats_f[2].amax(0)
    lowest = torch.where(stats_f[2] == hardest, stats_i, torch.iinfo(torch.int32).max).amin(0)
    better = hardest > stats.hardest
    stats.hardest_col = torch.where(better, lowest.to(torch.int64), stats.hardest_col)
    stats.hardest = torch.where(better, hardest, stats.hardest)


def largest_logits(chunk: RowChunk, block: Block, logits: Logits, predicate: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) and (M,) largest logit of each row and column over the negatives that take part; -inf where the predicate is
    false.
    """
    n, m, d = *chunk.rows.shape[:1], *block.rows.shape
    config = narrow(plain(_sweep_config(chunk.rows, block.rows, "sums"), chunk.rows.dtype))
    meta, f = _meta(config, chunk.rows), device_fn(get(logits.transform).f)
    grid, tiles = _grid(n, m, config)
    by_row = torch.full((tiles[1], n), -torch.inf, device=chunk.rows.device)
    by_column = torch.full((tiles[0], m), -torch.inf, device=chunk.rows.device)
    sizes = (n, m, d, chunk.rows.stride(0), block.rows.stride(0), logits.margin, block.own_log_weight)
    operands = _operands(chunk, block, logits, predicate, None)
    largest_kernel[(grid,)](*operands, by_row, by_column, *sizes, F=f, **_options(chunk, block), **meta)
    return by_row.amax(0), by_column.amax(0)


def must_launch(predicate: Tensor) -> bool:
    """Whether work behind `predicate` must be launched: always, since kernels read it themselves and reading it here
    would stall the GPU.
    """
    return True


def all_pairs(
    anchor: Tensor, candidate: Tensor, anchor_scale: Tensor | None, candidate_scale: Tensor | None, out: Tensor
) -> None:
    """out (N, M) = dot products, times the scales of row and column where given."""
    n, m, d = *anchor.shape[:1], *candidate.shape
    row_scale = torch.ones(n, device=out.device) if anchor_scale is None else anchor_scale
    col_scale = torch.ones(m, device=out.device) if candidate_scale is None else candidate_scale
    config = plain(_sweep_config(anchor, candidate, "sums"), anchor.dtype)
    sizes = (n, m, d, anchor.stride(0), candidate.stride(0), out.stride(0))
    meta = _meta(config, anchor)
    similarity_kernel[(_grid(n, m, config)[0],)](anchor, candidate, row_scale, col_scale, out, *sizes, **meta)
