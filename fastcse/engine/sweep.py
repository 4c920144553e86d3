"""One pass where all rows have one upstream gradient; else two: sums first, gradient weights when it is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..operands import Columns, RowChunk
from .gradients import Gradients
from .problem import HEADROOM, SHIFT_DITHER, Problem

# Sums below this have lost digits to underflow: their rows are done again with an exact maximum.
SMALLEST_SUM = 1e-30


def sweep_blocks(
    p: Problem, chunk: RowChunk, workspace, store: bool, columns: Columns | None = None, dots_cached: bool = False
) -> list[Tensor]:
    """Every block into the chunk's sums and by-products; returns the weights by block. `dots_cached`: an earlier sweep
    left the dot products in `workspace`."""
    kept, options = [], {"store": store, **({"dots_cached": True} if dots_cached else {})}
    for k, block in enumerate(p.blocks):
        kept.append(workspace.weights(chunk.rows.shape[0], k))
        p.launchers.sweep(chunk, block, p.logits, kept[-1], columns=columns if k == 0 else None, **options)
        if chunk.stats is not None and k == 0:
            p.stats.append({"hardest": chunk.stats.hardest.clone(), "hardest_col": chunk.stats.hardest_col.clone()})
    return kept


def sweep_in_range(p: Problem, chunk: RowChunk, workspace, store: bool) -> list[Tensor]:
    """Sweeps, and again with exact maxima for rows that left the range of the static shift. Returns the weights."""
    weights = sweep_blocks(p, chunk, workspace, store)
    if p.always_in_range():
        return weights
    z = chunk.sum + torch.exp(chunk.logit - chunk.shift)
    bad = ~(z > SMALLEST_SUM)  # NaN too; the static shift leaves no sum that overflows
    predicate = bad.any()
    if not p.launchers.must_launch(predicate):
        return weights
    largest = chunk.logit
    for block in p.blocks:
        largest = torch.maximum(largest, p.launchers.largest_logits(chunk, block, p.logits, predicate)[0])
    chunk.shift = torch.where(bad, largest + SHIFT_DITHER, chunk.shift)
    chunk.sum.masked_fill_(predicate, 0.0)
    chunk.f_sum.masked_fill_(predicate, 0.0)
    # By-products do not depend on the shift: they are right already.
    stats, chunk.stats = chunk.stats, None
    for k, block in enumerate(p.blocks):
        p.launchers.sweep(chunk, block, p.logits, weights[k], store=store, predicate=predicate)
    chunk.stats = stats
    return weights


def one_pass(p: Problem, factor: float) -> tuple[Tensor, Gradients]:
    """(N,) losses, and the gradients of factor times their sum. 6 N M D operations."""
    size = p.launchers.plan_rows(p.anchor.shape[0], p.blocks, True, p.max_workspace_bytes)
    workspace, g, losses = p.launchers.Workspace(size, p.blocks, True), Gradients.like(p, size, factor), []
    opened, sums = p.opened(), p.zero_sums()
    for rows in p.chunks(size):
        chunk = p.chunk(rows, opened, sums)
        weights = sweep_in_range(p, chunk, workspace, True)
        loss, one_minus_p, inverse = p.launchers.row_loss(chunk)
        g.add_chunk(p, rows, chunk, weights, one_minus_p, inverse)
        p.finish_stats(chunk, loss)
        losses.append(loss)
    del workspace, weights  # the largest memory of all, before the gradients take their last form
    g.finish(p)
    return torch.cat(losses) if len(losses) > 1 else losses[0], g


@dataclass
class RowLosses:
    """First pass: `row` (N,) loss, and what it was taken with: `shift` (N,), `inverse` (N,) 1 / Z.

    The same of the column direction: `column` (N,) loss of each anchor's positive, `column_shift` and
    `column_inverse` (M,). Shift and sum stay apart: their logarithm together, the lse, would be rounded at the
    magnitude of the logits, and every weight of the second pass would have that error.
    """

    row: Tensor
    shift: Tensor
    inverse: Tensor
    column: Tensor
    column_shift: Tensor
    column_inverse: Tensor

    @property
    def symmetric(self) -> bool:
        return self.column.numel() > 0


def two_passes(p: Problem, factor: float) -> tuple[Tensor, Gradients]:
    """(N,) losses of both directions, and the gradients of factor times their sum. 8 N M D operations; 6 where the
    backend can keep the dot products of the first pass within the workspace.
    """
    n = p.anchor.shape[0]
    workspace = None
    if p.launchers.keeps_products(n, p.blocks, p.max_workspace_bytes):
        workspace = p.launchers.Workspace(n, p.blocks, True)
    saved = row_losses(p, True, workspace)
    # By-products are complete after the first pass.
    upstream = torch.full((n,), factor, dtype=torch.float32, device=p.anchor.device)
    g = row_gradients(replace(p, want_stats=False, stats=[]), saved, upstream, workspace)
    return (saved.row + saved.column) / 2, g


def row_losses(p: Problem, symmetric: bool, workspace=None) -> RowLosses:
    """Losses without gradients. 2 N M D operations; 4 if `symmetric` and logits may leave the static shift's range.

    `workspace`, a workspace for all rows at once, is left with the dot products.
    """
    opened, sums = p.opened(), p.zero_sums()
    exact = _exact_shifts(p, opened) if symmetric else None
    columns = _new_columns(p, opened[1], exact) if symmetric else None
    size, parts = p.anchor.shape[0], []
    if workspace is None:
        size = p.launchers.plan_rows(size, p.blocks, False, p.max_workspace_bytes)
        workspace = p.launchers.Workspace(size, p.blocks, False)
    for rows in p.chunks(size):
        chunk = p.chunk(rows, opened, sums, None if exact is None else exact[0])
        if symmetric:
            sweep_blocks(p, chunk, workspace, False, columns)
        else:
            sweep_in_range(p, chunk, workspace, False)
        loss, _, inverse = p.launchers.row_loss(chunk)
        parts.append((loss, chunk.shift, inverse))
        p.finish_stats(chunk, loss)
    row = [torch.cat(part) for part in zip(*parts)]
    column = _column_losses(p, columns, opened[1]) if symmetric else [row[0].new_empty(0) for _ in range(3)]
    return RowLosses(*row, *column)


def _exact_shifts(p: Problem, opened: Tensor) -> tuple[Tensor, Tensor] | None:
    """(N,) and (M,) shifts from exact maxima, or None where the static ones are known to do."""
    if p.always_in_range():
        return None
    predicate = p.out_of_range()
    if not p.launchers.must_launch(predicate):
        return None
    x_positive = opened[1]
    chunk = p.chunk(p.everything, opened, p.zero_sums())
    largest = [p.launchers.largest_logits(chunk, block, p.logits, predicate) for block in p.blocks]
    row_max = torch.stack([x_positive, *[by_row for by_row, _ in largest]]).amax(0)
    column_max = largest[0][1].scatter_reduce(0, p.positive, x_positive, "amax")
    return (
        torch.where(predicate, row_max + SHIFT_DITHER, opened[2]),
        torch.where(predicate, column_max + SHIFT_DITHER, _static_column_shift(p, x_positive)),
    )


def _static_column_shift(p: Problem, x_positive: Tensor) -> Tensor:
    """(M,) d_j: the largest logit among the anchors whose positive is j, or what the bound asks for."""
    m = p.blocks[0].rows.shape[0]
    floor = p.largest_possible() - HEADROOM
    if p.paired and not isinstance(floor, Tensor):
        return x_positive.clamp_min(floor) + SHIFT_DITHER
    floor = torch.as_tensor(floor, dtype=torch.float32, device=x_positive.device)
    return floor.amax().expand(m).scatter_reduce(0, p.positive, x_positive, "amax") + SHIFT_DITHER


def _new_columns(p: Problem, x_positive: Tensor, exact: tuple[Tensor, Tensor] | None) -> Columns:
    shift = _static_column_shift(p, x_positive) if exact is None else exact[1]
    shift = torch.where(torch.isfinite(shift), shift, 0.0)  # a fully masked column has no largest logit
    return Columns(shift, sum=torch.zeros_like(shift))


def _column_losses(p: Problem, columns: Columns, x_positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) loss of each anchor's positive among all anchors; (M,) shift and inverse of each column's sum."""
    shift = p.of_positives(columns.shift)
    e = torch.exp(x_positive - shift)  # (N,)
    together = p.at_positives(e)  # (M,)
    others = p.of_positives(columns.sum)
    if not p.paired:
        # Other anchors may have the same positive. Where none has, the difference is exactly 0 and nothing cancels.
        others = others + (p.of_positives(together) - e)
    loss = softplus(others.log() + (shift - x_positive))
    z = columns.sum + together
    # A fully masked column is nobody's positive: it has no loss, and carries no gradient.
    return loss, columns.shift, torch.where(z > 0, 1 / z, 0.0)


def row_gradients(p: Problem, saved: RowLosses, upstream: Tensor, workspace=None) -> Gradients:
    """Gradients of sum_i upstream_i loss_i; loss is (row + column) / 2 if there are columns. 6 N M D operations; 4 with
    a `workspace` that holds the dot products of all rows.
    """
    upstream = upstream.to(torch.float32) * (0.5 if saved.symmetric else 1.0)
    one_minus_p = upstream * -torch.expm1(-saved.row)
    columns = None
    if saved.symmetric:
        height = p.at_positives(upstream)  # (M,) H_j
        columns = Columns(saved.column_shift, weight=height * saved.column_inverse)
        one_minus_p = one_minus_p - upstream * torch.expm1(-saved.column)
        if not p.paired:
            one_minus_p = one_minus_p - (p.of_positives(height) - upstream) * torch.exp(-saved.column)
    weight = upstream * saved.inverse
    dots_cached, size = workspace is not None, p.anchor.shape[0]
    if not dots_cached:
        size = p.launchers.plan_rows(size, p.blocks, True, p.max_workspace_bytes)
        workspace = p.launchers.Workspace(size, p.blocks, True)
    g, opened, sums = Gradients.like(p, size), p.opened(), p.zero_sums()
    for rows in p.chunks(size):
        chunk = p.chunk(rows, opened, sums, saved.shift, weight)
        weights = sweep_blocks(p, chunk, workspace, True, columns, dots_cached)
        g.add_chunk(p, rows, chunk, weights, one_minus_p[rows], None)
    g.finish(p)
    return g
