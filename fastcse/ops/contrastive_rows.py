"""The two-pass form as custom ops: a loss for every row, both directions, or no gradient at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from ..engine import two_pass
from .contrastive import (
    _as_arguments,
    _fake_gradients,
    _fake_stats,
    _gradients,
    _nothing_to_save,
    _problem,
    _refuse_twice,
    _stats,
    note_arguments,
)


def rows_forward(
    anchor: Tensor, rows: list[Tensor], log_weights: list[Tensor | None], ids: list[Tensor | None],
    own_log_weights: list[float],
    positive: Tensor | None, anchor_id: Tensor | None, inv_temperature: Tensor | None, temperature: float,
    transform: str,
    margin: float, normalize: bool, needs_grad: list[bool], want_stats: bool, max_workspace_bytes: int | None,
    backend: str,
    symmetric: bool,
) -> list[Tensor]:  # fmt: skip
    """Loss of each row, and what the second pass needs: [loss, row, lse, column, column_lse, *stats]."""
    p = _problem(anchor, rows, log_weights, ids, own_log_weights, positive, anchor_id, inv_temperature, temperature,
    transform, margin,
                 normalize, needs_grad, want_stats, max_workspace_bytes, backend)  # fmt: skip
    saved = two_pass.row_losses(p, symmetric)
    if not symmetric:
        nothing = saved.row.new_empty(0)
        return [saved.row.clone(), saved.row, saved.lse, nothing, nothing.clone(), *_stats(p)]
    return [(saved.row + saved.column) / 2, saved.row, saved.lse, saved.column, saved.column_lse, *_stats(p)]


contrastive_rows = custom_op("fastcse::contrastive_rows", rows_forward, mutates_args=())


@contrastive_rows.register_fake
def _(anchor, rows, log_weights, ids, own_log_weights, positive, anchor_id, inv_temperature, temperature, transform,
margin, normalize,
      needs_grad, want_stats, max_workspace_bytes, backend, symmetric):  # fmt: skip
    n, m = anchor.shape[0], rows[0].shape[0]
    new = [
        anchor.new_empty(size, dtype=torch.float32) for size in (n, n, n, n if symmetric else 0, m if symmetric else 0)
    ]
    return [*new, *_fake_stats(anchor, want_stats)]


def rows_backward(
    upstream: Tensor, saved: list[Tensor],
    anchor: Tensor, rows: list[Tensor], log_weights: list[Tensor | None], ids: list[Tensor | None],
    own_log_weights: list[float],
    positive: Tensor | None, anchor_id: Tensor | None, inv_temperature: Tensor | None, temperature: float,
    transform: str,
    margin: float, normalize: bool, needs_grad: list[bool], max_workspace_bytes: int | None, backend: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients for an upstream gradient of every row (N,): [danchor, dinv_temperature, *drows]. `saved` is [row,
    lse, column, column_lse].
    """
    p = _problem(anchor, rows, log_weights, ids, own_log_weights, positive, anchor_id, inv_temperature, temperature,
    transform, margin,
                 normalize, needs_grad, False, max_workspace_bytes, backend)  # fmt: skip
    column = saved[2:] if saved[2].numel() else (None, None)
    g = two_pass.row_gradients(p, two_pass.RowLosses(saved[0], saved[1], *column), upstream)
    return _gradients(g, anchor.dtype)


contrastive_rows_backward = custom_op("fastcse::contrastive_rows_backward", rows_backward, mutates_args=())


@contrastive_rows_backward.register_fake
def _(upstream, saved, anchor, rows, log_weights, ids, own_log_weights, positive, anchor_id, inv_temperature,
temperature, transform, margin,
      normalize, needs_grad, max_workspace_bytes, backend):  # fmt: skip
    return _fake_gradients(anchor, rows, needs_grad)


contrastive_rows_backward.register_autograd(_refuse_twice, setup_context=_nothing_to_save)


def _setup(ctx, inputs, output):
    note_arguments(ctx, inputs)
    anchor, rows, log_weights, ids, own, positive, anchor_id, inv_temperature = inputs[:8]
    optional = [*log_weights, *ids, positive, anchor_id, inv_temperature]
    ctx.present = [x is not None for x in optional]
    ctx.plain = (own, *inputs[8:13], *inputs[14:16])
    ctx.save_for_backward(anchor, *rows, *[x for x in optional if x is not None], *output[1:5])


def _backward(ctx, grads):
    if grads[0] is None:
        return (None,) * 17
    *tensors, row, lse, column, column_lse = ctx.saved_tensors
    k = ctx.blocks
    anchor, rows, rest = tensors[0], list(tensors[1 : 1 + k]), iter(tensors[1 + k :])
    optional = [next(rest) if present else None for present in ctx.present]
    own, temperature, transform, margin, normalize, needs_grad, workspace, backend = ctx.plain
    gradients = contrastive_rows_backward(
        grads[0], [row, lse, column, column_lse], anchor, rows, optional[:k], optional[k : 2 * k], own,
        *optional[2 * k :], temperature,
        transform, margin, normalize, needs_grad, workspace, backend,
    )  # fmt: skip
    return (*_as_arguments(gradients, ctx), None)


contrastive_rows.register_autograd(_backward, setup_context=_setup)
