"""One direction, one upstream gradient for all rows: losses and gradients in a single sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import Columns, RowChunk
from .gradients import Gradients
from .problem import OFF_POWERS_OF_TWO, Problem

# Sums below this have lost digits to underflow: their rows are done again with an exact maximum.
SMALLEST_SUM = 1e-30


def sweep_blocks(
    p: Problem, chunk: RowChunk, space, store: bool, columns: Columns | None = None, ready: bool = False
) -> list[Tensor]:
    """Every block into the chunk's sums and by-products; returns the weights by block. `ready`: an earlier sweep left
    the dot products in `space`."""
    kept, options = [], {"store": store, **({"ready": True} if ready else {})}
    for k, block in enumerate(p.blocks):
        kept.append(space.weights(chunk.rows.shape[0], k))
        p.launchers.sweep(chunk, block, p.logits, kept[-1], columns=columns if k == 0 else None, **options)
        if chunk.stats is not None and k == 0:
            p.stats.append({"hardest": chunk.stats.hardest.clone(), "hardest_col": chunk.stats.hardest_col.clone()})
    return kept


def sweep_in_range(p: Problem, chunk: RowChunk, space, store: bool) -> list[Tensor]:
    """Sweeps, and again with exact maxima for rows that left the range of the static shift. Returns the weights."""
    weights = sweep_blocks(p, chunk, space, store)
    if p.always_in_range():
        return weights
    z = chunk.sum + torch.exp(chunk.logit - chunk.shift)
    bad = ~(z > SMALLEST_SUM) | torch.isinf(z)
    gate = bad.any()
    if not p.launchers.is_open(gate):
        return weights
    largest = chunk.logit
    for block in p.blocks:
        largest = torch.maximum(largest, p.launchers.largest_logits(chunk, block, p.logits, gate)[0])
    chunk.shift = torch.where(bad, largest + OFF_POWERS_OF_TWO, chunk.shift)
    chunk.sum.masked_fill_(gate, 0.0)
    chunk.f_sum.masked_fill_(gate, 0.0)
    # By-products do not depend on the shift: they are right already.
    stats, chunk.stats = chunk.stats, None
    for k, block in enumerate(p.blocks):
        p.launchers.sweep(chunk, block, p.logits, weights[k], store=store, gate=gate)
    chunk.stats = stats
    return weights


def mean_with_gradient(p: Problem, factor: float) -> tuple[Tensor, Gradients]:
    """(N,) losses, and the gradients of factor times their sum. 6 N M D operations."""
    size = p.launchers.plan_rows(p.anchor.shape[0], p.blocks, True, p.max_workspace_bytes)
    space, g, losses = p.launchers.Workspace(size, p.blocks, True), Gradients.like(p, size, factor), []
    opened, sums = p.opened(), p.zero_sums()
    for rows in p.chunks(size):
        chunk = p.chunk(rows, opened, sums)
        weights = sweep_in_range(p, chunk, space, True)
        loss, share, inverse = p.launchers.close_rows(chunk)
        g.add_chunk(p, rows, chunk, weights, share, inverse)
        p.finish_stats(chunk, loss)
        losses.append(loss)
    del space, weights  # the largest memory of all, before the gradients take their last form
    g.finish(p)
    return torch.cat(losses) if len(losses) > 1 else losses[0], g
