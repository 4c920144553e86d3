"""The same forward and backward functions as the custom ops, behind plain autograd functions.

A custom op with lists of tensors costs several hundred microseconds a call in eager mode, more than the whole loss of
a small batch. Where nothing traces, it is left out; `call` decides.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .contrastive import STATS, contrastive_mean, mean_forward
from .contrastive_rows import contrastive_rows, rows_backward, rows_forward

# Where anchor, the blocks' rows and the inverse temperature stand among an op's arguments.
ANCHOR, ROWS, TEMPERATURE = 0, 1, 7


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, arguments, anchor, inv_temperature, *rows):
        total, *rest = mean_forward(*arguments)
        stats, gradients = rest[: len(STATS)], rest[len(STATS) :]
        ctx.needs = (True, inv_temperature is not None, *arguments[12])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*stats)
        return (total, *stats)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        scaled = [g * upstream if needed else None for g, needed in zip(ctx.saved_tensors, ctx.needs)]
        return (
            None,
            *[g if g is None or g.dtype == s.dtype else g.to(s.dtype) for g, s in zip(scaled, ctx.saved_tensors)],
        )


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, arguments, anchor, inv_temperature, *rows):
        loss, row, lse, column, column_lse, *stats = rows_forward(*arguments)
        # The tensors are saved apart from the other arguments, so that a change in place before backward is noticed.
        ctx.save_for_backward(anchor, *rows, row, lse, column, column_lse)
        ctx.inv_temperature, ctx.arguments = inv_temperature, arguments[2:]
        ctx.blocks = len(rows)
        ctx.mark_non_differentiable(*stats)
        return (loss, *stats)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        anchor, *tensors = ctx.saved_tensors
        rows, saved = tensors[: ctx.blocks], tensors[ctx.blocks :]
        rest = ctx.arguments
        # want_stats and symmetric are of the forward pass only.
        gradients = rows_backward(upstream, saved, anchor, rows, *rest[:11], *rest[12:14])
        needs = (True, ctx.inv_temperature is not None, *rest[10])
        return (None, *[g if needed else None for g, needed in zip(gradients, needs)])


def _traced(anchor: Tensor) -> bool:
    return torch.compiler.is_compiling() or type(anchor) not in (Tensor, torch.nn.Parameter)


def mean(arguments: tuple) -> list[Tensor]:
    """[sum of the row losses, *stats], differentiable."""
    if _traced(arguments[ANCHOR]):
        return contrastive_mean(*arguments)[: 1 + len(STATS)]
    return list(_Mean.apply(arguments, arguments[ANCHOR], arguments[TEMPERATURE], *arguments[ROWS]))


def rows(arguments: tuple) -> list[Tensor]:
    """[(N,) losses, *stats], differentiable."""
    if _traced(arguments[ANCHOR]):
        loss, _, _, _, _, *stats = contrastive_rows(*arguments)
        return [loss, *stats]
    return list(_Rows.apply(arguments, arguments[ANCHOR], arguments[TEMPERATURE], *arguments[ROWS]))
