"""The contrastive sweep as custom ops: opaque to torch.compile, with shapes and gradients registered."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from ..engine.sweep import RowLosses, one_pass, row_gradients, row_losses, two_passes
from .call import (
    SCHEMA,
    Sweep,
    fake_gradients,
    fake_stats,
    gradients_of,
    no_double_backward,
    problem,
    save_nothing,
    stats_of,
)

ARGUMENTS = len(Sweep._fields)
# What a first pass leaves for the second, after the loss: the fields of RowLosses.
SAVED = 6


def mean_forward(*arguments) -> list[Tensor]:
    """Sum or mean of the row losses with its gradients already made: [value, *stats, danchor, dinv_temperature,
    *drows]."""
    *call, symmetric, mean = arguments
    p = problem(Sweep(*call))
    # Not an argument of the op: as a number it would make the size of a batch a constant of compiled code.
    factor = 1.0 / p.anchor.shape[0] if mean else 1.0
    losses, g = (two_passes if symmetric else one_pass)(p, factor)
    return [losses.mean() if mean else losses.sum(), *stats_of(p), *gradients_of(g)]


def rows_forward(*arguments) -> list[Tensor]:
    """Loss of each row, and what the second pass needs: [loss, *RowLosses, *stats]."""
    *call, symmetric = arguments
    p = problem(Sweep(*call))
    saved = row_losses(p, symmetric)
    loss = (saved.row + saved.column) / 2 if symmetric else saved.row.clone()
    return [loss, saved.row, saved.shift, saved.inverse, saved.column, saved.column_shift, saved.column_inverse,
            *stats_of(p)]  # fmt: skip


def rows_backward(upstream: Tensor, saved: list[Tensor], *arguments) -> list[Tensor]:
    """[danchor, dinv_temperature, *drows] for an upstream gradient of every row (N,)."""
    call = Sweep(*arguments)._replace(want_stats=False)
    g = row_gradients(problem(call), RowLosses(*saved), upstream)
    return gradients_of(g)


def scale_forward(upstream: Tensor, gradients: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """gradients times the upstream gradient (0-dim), in their own type.

    `inputs` are not read: with them a second derivative is refused instead of being silently wrong.
    """
    return [(g * upstream).to(g.dtype) for g in gradients]


def _op(name: str, fn, arguments: str):
    return custom_op(f"fastcse::{name}", fn, mutates_args=(), schema=f"({arguments}) -> Tensor[]")


contrastive_mean = _op("contrastive_mean", mean_forward, f"{SCHEMA}, bool symmetric, bool mean")
contrastive_rows = _op("contrastive_rows", rows_forward, f"{SCHEMA}, bool symmetric")
contrastive_rows_backward = _op(
    "contrastive_rows_backward", rows_backward, f"Tensor upstream, Tensor[] saved, {SCHEMA}"
)
scale_gradients = _op("scale_gradients", scale_forward, "Tensor upstream, Tensor[] gradients, Tensor[] inputs")


@contrastive_mean.register_fake
def _(*arguments):
    call = Sweep(*arguments[:ARGUMENTS])
    return [call.anchor.new_empty((), dtype=torch.float32), *fake_stats(call), *fake_gradients(call)]


@contrastive_rows.register_fake
def _(*arguments):
    *call, symmetric = arguments
    call = Sweep(*call)
    n, m = call.anchor.shape[0], call.rows[0].shape[0]
    sizes = (n, n, n, n, *((n, m, m) if symmetric else (0, 0, 0)))
    return [*[call.anchor.new_empty(size, dtype=torch.float32) for size in sizes], *fake_stats(call)]


@contrastive_rows_backward.register_fake
def _(upstream, saved, *arguments):
    return fake_gradients(Sweep(*arguments))


@scale_gradients.register_fake
def _(upstream, gradients, inputs):
    return [torch.empty_like(g) for g in gradients]


def _save(ctx, call: Sweep, tensors: list[Tensor]) -> None:
    """Tensors through save_for_backward, the rest of the call on the context."""
    ctx.set_materialize_grads(False)
    optional = [*call.log_weights, *call.ids, call.positive, call.anchor_id, call.inv_temperature]
    ctx.present = [x is not None for x in optional]
    ctx.plain = call._replace(anchor=None, rows=None, log_weights=None, ids=None, positive=None, anchor_id=None,
                              inv_temperature=None)  # fmt: skip
    ctx.save_for_backward(call.anchor, *call.rows, *[x for x in optional if x is not None], *tensors)


def _restore(ctx) -> tuple[Sweep, list[Tensor]]:
    """What `_save` was given."""
    k, present = len(ctx.plain.needs_grad), sum(ctx.present)
    saved = ctx.saved_tensors
    given = iter(saved[1 + k : 1 + k + present])
    optional = [next(given) if there else None for there in ctx.present]
    call = ctx.plain._replace(
        anchor=saved[0], rows=list(saved[1 : 1 + k]), log_weights=optional[:k], ids=optional[k : 2 * k],
        positive=optional[2 * k], anchor_id=optional[2 * k + 1], inv_temperature=optional[2 * k + 2],
    )  # fmt: skip
    return call, list(saved[1 + k + present :])


def _mean_setup(ctx, inputs, output) -> None:
    call = Sweep(*inputs[:ARGUMENTS])
    _save(ctx, call, output[1 + call.stats :])


def _mean_backward(ctx, grads):
    if grads[0] is None:
        return (None,) * (ARGUMENTS + 2)
    call, gradients = _restore(ctx)
    return (*call.gradients_for(scale_gradients(grads[0], gradients, [call.anchor, *call.rows])), None, None)


def _rows_setup(ctx, inputs, output) -> None:
    *call, _ = inputs
    _save(ctx, Sweep(*call), output[1 : 1 + SAVED])


def _rows_backward(ctx, grads):
    if grads[0] is None:
        return (None,) * (ARGUMENTS + 1)
    call, saved = _restore(ctx)
    return (*call.gradients_for(contrastive_rows_backward(grads[0], saved, *call)), None)


contrastive_mean.register_autograd(_mean_backward, setup_context=_mean_setup)
contrastive_rows.register_autograd(_rows_backward, setup_context=_rows_setup)
contrastive_rows_backward.register_autograd(no_double_backward, setup_context=save_nothing)
scale_gradients.register_autograd(no_double_backward, setup_context=save_nothing)
