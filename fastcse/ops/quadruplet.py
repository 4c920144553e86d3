"""The quadruplet hinge as custom ops, and behind plain autograd functions where nothing traces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from ..operands import Quadruplets, Slope
from .call import mean_gradient_fits, no_double_backward, save_nothing
from .checks import check_index
from .contrastive import scale_gradients
from .dispatch import launchers, record
from .eager import first_derivatives, is_tracing

SCHEMA = (
    "Tensor anchor, Tensor positive, Tensor batch_negative, Tensor corpus_negative, Tensor? index, float[] weights, "
    "float[] margins, bool classic, bool normalize, str backend"
)


class QuadrupletCall(NamedTuple):
    """The arguments of a quadruplet op, in the order of SCHEMA."""

    anchor: Tensor
    positive: Tensor
    batch_negative: Tensor
    corpus_negative: Tensor
    index: Tensor | None
    weights: list[float]
    margins: list[float]
    classic: bool
    normalize: bool
    backend: str

    @property
    def rows(self) -> tuple[Tensor, ...]:
        return self[:4]

    def prepared(self) -> Quadruplets:
        """As the launchers of the backend take it."""
        check_index("batch_negative", self.index, self.batch_negative.shape[0], "candidate", none=True)
        b = launchers(self.backend)
        record(self.backend)
        rows = [b.prepare(x.detach()) for x in self.rows]
        index = None if self.index is None else self.index.contiguous()
        return Quadruplets(*rows, index, tuple(self.weights), tuple(self.margins), self.classic, self.normalize)


ARGUMENTS = len(QuadrupletCall._fields)


def _gradients(call: QuadrupletCall, made: list[Tensor | None]) -> list[Tensor]:
    """One tensor for each of the four rows, in their type; empty where no gradient is wanted."""
    return [x.new_empty(0) if g is None else g.to(x.dtype) for x, g in zip(call.rows, made)]


def mean_forward(*arguments) -> list[Tensor]:
    """weight times the sum or mean of the losses, with its gradients already made: [value, losses, similarity,
    *gradients]."""
    *call, weight, mean, wanted = arguments
    call = QuadrupletCall(*call)
    # Not an argument of the op: as a number it would make the size of a batch a constant of compiled code.
    factor = weight / call.anchor.shape[0] if mean else weight
    loss, similarity, made = launchers(call.backend).quadruplets(call.prepared(), Slope(tuple(wanted), factor))
    return [loss.sum() * factor, loss, similarity, *_gradients(call, made)]


def rows_forward(*arguments) -> list[Tensor]:
    """[(N,) losses, (3, N) similarities]."""
    call = QuadrupletCall(*arguments)
    return list(launchers(call.backend).quadruplets(call.prepared(), None)[:2])


def rows_backward(upstream: Tensor, *arguments) -> list[Tensor]:
    """Gradients for an upstream gradient of every row (N,)."""
    *call, wanted = arguments
    call = QuadrupletCall(*call)
    made = launchers(call.backend).quadruplets(call.prepared(), Slope(tuple(wanted), 1.0, upstream))[2]
    return _gradients(call, made)


def _op(name: str, fn, arguments: str):
    return custom_op(f"fastcse::{name}", fn, mutates_args=(), schema=f"({arguments}) -> Tensor[]")


quadruplet_mean = _op("quadruplet_mean", mean_forward, f"{SCHEMA}, float weight, bool mean, bool[] wanted")
quadruplet_rows = _op("quadruplet_rows", rows_forward, SCHEMA)
quadruplet_rows_backward = _op("quadruplet_rows_backward", rows_backward, f"Tensor upstream, {SCHEMA}, bool[] wanted")


def _fake_gradients(call: QuadrupletCall, wanted: list[bool]) -> list[Tensor]:
    return [x.new_empty(x.shape if w else 0) for x, w in zip(call.rows, wanted)]


def _fake_rows(call: QuadrupletCall) -> list[Tensor]:
    n = call.anchor.shape[0]
    return [call.anchor.new_empty(shape, dtype=torch.float32) for shape in ((n,), (3, n))]


@quadruplet_mean.register_fake
def _(*arguments):
    call = QuadrupletCall(*arguments[:ARGUMENTS])
    value = call.anchor.new_empty((), dtype=torch.float32)
    return [value, *_fake_rows(call), *_fake_gradients(call, arguments[-1])]


@quadruplet_rows.register_fake
def _(*arguments):
    return _fake_rows(QuadrupletCall(*arguments))


@quadruplet_rows_backward.register_fake
def _(upstream, *arguments):
    return _fake_gradients(QuadrupletCall(*arguments[:ARGUMENTS]), arguments[-1])


def _wanted_only(made: list[Tensor], wanted: list[bool]) -> list[Tensor | None]:
    return [g if w else None for g, w in zip(made, wanted)]


def _mean_setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.wanted = inputs[-1]
    ctx.save_for_backward(*inputs[:4], *output[3:])


def _mean_backward(ctx, grads):
    if grads[0] is None:
        return (None,) * (ARGUMENTS + 3)
    rows, made = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    made = scale_gradients(grads[0], list(made), list(rows))
    return (*_wanted_only(made, ctx.wanted), *[None] * (ARGUMENTS - 1))


def _rows_setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    call = QuadrupletCall(*inputs)
    ctx.call = call._replace(**dict.fromkeys(call._fields[:5]))
    index = [] if call.index is None else [call.index]
    ctx.save_for_backward(*call.rows, *index)


def _rows_backward(ctx, grads):
    if grads[0] is None:
        return (None,) * ARGUMENTS
    *rows, index = [*ctx.saved_tensors, None][:5]
    wanted = list(ctx.needs_input_grad[:4])
    made = quadruplet_rows_backward(grads[0], *rows, index, *ctx.call[5:], wanted)
    return (*_wanted_only(made, wanted), *[None] * (ARGUMENTS - 4))


quadruplet_mean.register_autograd(_mean_backward, setup_context=_mean_setup)
quadruplet_rows.register_autograd(_rows_backward, setup_context=_rows_setup)
quadruplet_rows_backward.register_autograd(no_double_backward, setup_context=save_nothing)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: QuadrupletCall, weight: float, mean: bool, wanted: list[bool], *rows):
        value, loss, similarity, *ctx.made = mean_forward(*call, weight, mean, wanted)
        ctx.save_for_backward(*rows, *([] if call.index is None else [call.index]))
        ctx.call, ctx.options = call._replace(**dict.fromkeys(call._fields[:5])), (weight, mean, wanted)
        ctx.mark_non_differentiable(loss, similarity)
        return value, loss, similarity

    @staticmethod
    def backward(ctx, upstream, *_):
        *rows, index = [*ctx.saved_tensors, None][:5]
        made, ctx.made, wanted = ctx.made, None, ctx.options[-1]
        with torch.no_grad():
            if made is None:  # a second time through a graph that was retained: the first took them
                made = mean_forward(*rows, index, *ctx.call[5:], *ctx.options)[3:]
            launchers(ctx.call.backend).scale_gradients([g for g, w in zip(made, wanted) if w], upstream)
        return (None, None, None, None, *first_derivatives(made, tuple(rows), wanted))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: QuadrupletCall, *rows):
        loss, similarity = rows_forward(*call)
        ctx.save_for_backward(*rows, *([] if call.index is None else [call.index]))
        ctx.call = call._replace(**dict.fromkeys(call._fields[:5]))
        ctx.mark_non_differentiable(similarity)
        return loss, similarity

    @staticmethod
    def backward(ctx, upstream, _):
        *rows, index = [*ctx.saved_tensors, None][:5]
        wanted = list(ctx.needs_input_grad[1:])
        with torch.no_grad():
            made = rows_backward(upstream, *rows, index, *ctx.call[5:], wanted)
        return (None, *first_derivatives(made, tuple(rows), wanted))


def total(call: QuadrupletCall, weight: float, mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """weight times the sum or mean of the losses, differentiable, the (N,) losses, and the (3, N) similarities."""
    wanted, inside = [x.requires_grad for x in call.rows], mean and mean_gradient_fits(call.anchor)
    if is_tracing(call.anchor):
        value, loss, similarity, *_ = quadruplet_mean(*call, weight, inside, wanted)
        loss, similarity = loss.detach(), similarity.detach()
    else:
        value, loss, similarity = _Mean.apply(call, weight, inside, wanted, *call.rows)
    return value / call.anchor.shape[0] if mean and not inside else value, loss, similarity


def rows(call: QuadrupletCall) -> tuple[Tensor, Tensor]:
    """(N,) losses, differentiable, and the (3, N) similarities."""
    if is_tracing(call.anchor):
        loss, similarity = quadruplet_rows(*call)
        return loss, similarity.detach()
    return _Rows.apply(call, *call.rows)
