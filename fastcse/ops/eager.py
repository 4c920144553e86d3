"""The same forward and backward functions as the custom ops, behind plain autograd functions.

A custom op with lists of tensors costs several hundred microseconds a call in eager mode, more than the whole loss of a
small batch. Where nothing traces, it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .call import Sweep, mean_gradient_fits, no_double_backward
from .contrastive import (
    SAVED,
    contrastive_mean,
    contrastive_rows,
    mean_forward,
    rows_backward,
    rows_forward,
)
from .dispatch import launchers


class _FirstDerivative(torch.autograd.Function):
    """A first derivative that says clearly that there is no second one."""

    @staticmethod
    def forward(ctx, gradient, *inputs):
        return gradient.view_as(gradient)

    backward = staticmethod(no_double_backward)


def first_derivatives(made: list[Tensor], inputs: tuple[Tensor, ...], needed: list[bool]) -> list[Tensor | None]:
    """The gradients that are needed, as ones that refuse to be differentiated again."""
    kept = [g if wanted else None for g, wanted in zip(made, needed)]
    if not torch.is_grad_enabled():  # only create_graph=True makes a backward pass run with gradients
        return kept
    return [g if g is None else _FirstDerivative.apply(g, *inputs) for g in kept]


def _graph_inputs(call: Sweep, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a gradient is a function of: a second derivative by any of these is refused, by the temperature too."""
    return rows if call.inv_temperature is None else (*rows, call.inv_temperature)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: Sweep, options, anchor, inv_temperature, *rows):
        value, *rest = mean_forward(*call, *options)
        stats, ctx.made = rest[: call.stats], rest[call.stats :]
        # Rows go through save_for_backward, so that a change in place before backward is noticed.
        ctx.save_for_backward(anchor, *rows)
        ctx.call, ctx.options = call._replace(anchor=None, rows=None, want_stats=False), options
        ctx.mark_non_differentiable(*stats)
        return (value, *stats)

    @staticmethod
    def backward(ctx, upstream, *_):
        inputs, made, ctx.made = ctx.saved_tensors, ctx.made, None
        needed = [True, ctx.call.inv_temperature is not None, *ctx.call.needs_grad]
        with torch.no_grad():
            if made is None:  # a second time through a graph that was retained: the first took them
                made = mean_forward(*ctx.call._replace(anchor=inputs[0], rows=list(inputs[1:])), *ctx.options)[1:]
            # In place: copies of both gradients would be the largest memory of all.
            launchers(ctx.call.backend).scale_gradients([g for g, w in zip(made, needed) if w], upstream)
        return (None, None, *first_derivatives(made, _graph_inputs(ctx.call, inputs), needed))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: Sweep, symmetric, anchor, inv_temperature, *rows):
        loss, *rest = rows_forward(*call, symmetric)
        saved, stats = rest[:SAVED], rest[SAVED:]
        # Rows go through save_for_backward, so that a change in place before backward is noticed.
        ctx.save_for_backward(*saved, anchor, *rows)
        ctx.call = call._replace(anchor=None, rows=None)
        ctx.mark_non_differentiable(*stats)
        return (loss, *stats)

    @staticmethod
    def backward(ctx, upstream, *_):
        saved, inputs = ctx.saved_tensors[:SAVED], ctx.saved_tensors[SAVED:]
        call = ctx.call._replace(anchor=inputs[0], rows=list(inputs[1:]))
        with torch.no_grad():
            made = rows_backward(upstream, saved, *call)
        needed = [True, call.inv_temperature is not None, *call.needs_grad]
        return (None, None, *first_derivatives(made, _graph_inputs(call, inputs), needed))


def is_tracing(anchor: Tensor) -> bool:
    """Whether somebody looks on for whom an op must be registered: torch.compile, or a subclass of Tensor."""
    return torch.compiler.is_compiling() or type(anchor) not in (Tensor, torch.nn.Parameter)


def total(call: Sweep, symmetric: bool, mean: bool) -> Sequence[Tensor]:
    """[mean or sum of the row losses, *stats], differentiable."""
    inside = mean and mean_gradient_fits(call.anchor)
    if is_tracing(call.anchor):
        value, *stats = contrastive_mean(*call, symmetric, inside)[: 1 + call.stats]
    else:
        value, *stats = _Mean.apply(call, (symmetric, inside), call.anchor, call.inv_temperature, *call.rows)
    return [value / call.anchor.shape[0] if mean and not inside else value, *stats]


def rows(call: Sweep, symmetric: bool) -> Sequence[Tensor]:
    """[(N,) losses, *stats], differentiable."""
    if is_tracing(call.anchor):
        loss, *rest = contrastive_rows(*call, symmetric)
        return [loss, *rest[SAVED:]]
    return _Rows.apply(call, symmetric, call.anchor, call.inv_temperature, *call.rows)
