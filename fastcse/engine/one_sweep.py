"""One direction, one upstream gradient for all rows: losses and gradients in a single sweep."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..pairs import Columns, RowChunk
from .problem import OFF_POWERS_OF_TWO, Gradients, Problem

# Sums below this have lost digits to underflow: their rows are done again with an exact maximum.
SMALLEST_SUM = 1e-30


def sweep_blocks(p: Problem, chunk: RowChunk, space, store: bool, columns: Columns | None = None) -> list[Tensor]:
    """Every block into the chunk's sums and by-products; returns the weights by block."""
    kept = []
    for k, block in enumerate(p.blocks):
        kept.append(space.weights(chunk.rows.shape[0], k))
        p.launchers.sweep(chunk, block, p.logits, kept[-1], store=store, columns=columns if k == 0 else None)
        if chunk.stats is not None and k == 0:
            p.stats.append({"hardest": chunk.stats.hardest.clone(), "hardest_col": chunk.stats.hardest_col.clone()})
    return kept


def sweep_in_range(p: Problem, chunk: RowChunk, x_positive: Tensor, space, store: bool) -> tuple[list[Tensor], Tensor]:
    """Sweeps, and again with exact maxima for rows that left the range of the static shift. Returns the weights and Z (R,)."""
    weights = sweep_blocks(p, chunk, space, store)
    z = chunk.sum + torch.exp(x_positive - chunk.shift)
    if p.always_in_range():
        return weights, z
    bad = ~(z > SMALLEST_SUM) | torch.isinf(z)
    gate = bad.any()
    if not p.launchers.is_open(gate):
        return weights, z
    largest = x_positive
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
    return weights, chunk.sum + torch.exp(x_positive - chunk.shift)


def mean_with_gradient(p: Problem) -> tuple[Tensor, Gradients]:
    """(N,) losses, and the gradients of their sum. 6 N M D operations."""
    size = p.launchers.plan_rows(p.anchor.shape[0], p.blocks, True, p.max_workspace_bytes)
    space, g, losses = p.launchers.Workspace(size, p.blocks, True), Gradients.like(p), []
    for rows in p.chunks(size):
        s_positive, x_positive = p.positive_logits(rows)
        chunk = p.chunk(rows, p.static_shift(rows, x_positive))
        weights, z = sweep_in_range(p, chunk, x_positive, space, True)
        t = chunk.sum.log() + (chunk.shift - x_positive)
        losses.append(softplus(t))
        share = torch.sigmoid(t)
        g.inv_temperature += (chunk.f_sum / z - share * p.transform.f_positive(s_positive, p.logits.margin)).sum()
        g.add_chunk(p, rows, chunk, weights, 1.0 / z, share, s_positive)
        p.finish_stats(chunk, s_positive, x_positive + losses[-1])
    g.finish(p)
    return torch.cat(losses), g
