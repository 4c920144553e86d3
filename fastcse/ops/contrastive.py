"""The one-sweep form as custom ops: opaque to torch.compile, with shapes and gradients registered.

Arguments are flat because op schemas are: `rows`, `log_weights`, `ids` and `own_log_weights` hold one entry for each
block of candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from ..engine import one_sweep
from ..engine.problem import Gradients, Problem
from ..pairs import Block, Logits
from .backends import launchers, record

STATS = ("lse", "positive_similarity", "similarity_sum", "count", "hardest_overall", "hardest", "hardest_col")
TWICE = (
    "the gradient of a fastcse loss cannot be differentiated again; "
    "float64 inputs or backend='reference' run in plain torch, where it can"
)


def _problem(
    anchor: Tensor, rows: list[Tensor], log_weights: list[Tensor | None], ids: list[Tensor | None],
    own_log_weights: list[float],
    positive: Tensor | None, anchor_id: Tensor | None, inv_temperature: Tensor | None, temperature: float,
    transform: str, margin: float,
    normalize: bool, needs_grad: list[bool], want_stats: bool, max_workspace_bytes: int | None, backend: str,
) -> Problem:  # fmt: skip
    b = launchers(backend)
    record(backend)
    new = {"dtype": torch.float32, "device": anchor.device}
    anchor, blocks = b.prepare(anchor.detach()), []
    for k, (x, bias, id_) in enumerate(zip(rows, log_weights, ids)):
        x = b.prepare(x.detach())
        scale = b.inverse_norms(x) if normalize else torch.ones(x.shape[0], **new)
        weighted = bias is not None
        bias = bias.detach().to(torch.float32).contiguous() if weighted else torch.zeros(x.shape[0], **new)
        blocks.append(Block(x, scale, bias, weighted, _contiguous(id_), own_log_weights[k], k == 0, needs_grad[k]))
    scale = b.inverse_norms(anchor) if normalize else torch.ones(anchor.shape[0], **new)
    distinct = positive is None
    positive = torch.arange(anchor.shape[0], device=anchor.device) if positive is None else positive.contiguous()
    known = None if inv_temperature is not None else 1.0 / temperature
    inv = (
        torch.full((), known, **new)
        if inv_temperature is None
        else inv_temperature.detach().to(torch.float32).reshape(())
    )
    logits = Logits(transform, margin, inv, known)
    return Problem(
        anchor,
        scale,
        blocks,
        positive,
        distinct,
        _contiguous(anchor_id),
        logits,
        normalize,
        max_workspace_bytes,
        want_stats,
        b,
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _stats(p: Problem) -> list[Tensor]:
    if not p.want_stats:
        return [p.scale.new_empty(0) for _ in STATS[:-1]] + [p.positive.new_empty(0)]
    return [torch.cat([part[name] for part in p.stats]) for name in STATS]


def _gradients(g: Gradients, dtype: torch.dtype) -> list[Tensor]:
    blocks = [g.anchor.new_empty(0, dtype=dtype) if dc is None else dc.to(dtype) for dc in g.blocks]
    return [g.anchor.to(dtype), g.inv_temperature, *blocks]


def mean_forward(
    anchor: Tensor, rows: list[Tensor], log_weights: list[Tensor | None], ids: list[Tensor | None],
    own_log_weights: list[float],
    positive: Tensor | None, anchor_id: Tensor | None, inv_temperature: Tensor | None, temperature: float,
    transform: str,
    margin: float, normalize: bool, needs_grad: list[bool], want_stats: bool, max_workspace_bytes: int | None,
    backend: str,
) -> list[Tensor]:  # fmt: skip
    """Sum of the row losses with its gradients already made: [sum, *stats, danchor, dinv_temperature, *drows]."""
    p = _problem(anchor, rows, log_weights, ids, own_log_weights, positive, anchor_id, inv_temperature, temperature,
    transform, margin,
                 normalize, needs_grad, want_stats, max_workspace_bytes, backend)  # fmt: skip
    losses, g = one_sweep.mean_with_gradient(p)
    return [losses.sum(), *_stats(p), *_gradients(g, anchor.dtype)]


contrastive_mean = custom_op("fastcse::contrastive_mean", mean_forward, mutates_args=())


def _fake_stats(anchor: Tensor, want_stats: bool) -> list[Tensor]:
    n = anchor.shape[0] if want_stats else 0
    return [anchor.new_empty(n, dtype=torch.float32) for _ in STATS[:-1]] + [anchor.new_empty(n, dtype=torch.int64)]


def _fake_gradients(anchor: Tensor, rows: list[Tensor], needs_grad: list[bool]) -> list[Tensor]:
    drows = [x.new_empty(x.shape) if needed else x.new_empty(0) for x, needed in zip(rows, needs_grad)]
    return [anchor.new_empty(anchor.shape), anchor.new_empty((), dtype=torch.float32), *drows]


@contrastive_mean.register_fake
def _(anchor, rows, log_weights, ids, own_log_weights, positive, anchor_id, inv_temperature, temperature, transform,
margin, normalize,
      needs_grad, want_stats, max_workspace_bytes, backend):  # fmt: skip
    total = anchor.new_empty((), dtype=torch.float32)
    return [total, *_fake_stats(anchor, want_stats), *_fake_gradients(anchor, rows, needs_grad)]


def _mean_setup(ctx, inputs, output):
    note_arguments(ctx, inputs)
    # The inputs are saved only so that a second derivative is refused instead of being silently wrong.
    ctx.save_for_backward(inputs[0], *inputs[1], *output[1 + len(STATS) :])


def _mean_backward(ctx, grads):
    saved = ctx.saved_tensors
    inputs, gradients = saved[: 1 + ctx.blocks], saved[1 + ctx.blocks :]
    if grads[0] is None:
        return (None,) * 16
    return _as_arguments(scale_gradients(grads[0], list(gradients), list(inputs)), ctx)


def _as_arguments(gradients: list[Tensor], ctx) -> tuple:
    """[danchor, dinv_temperature, *drows] in the order of the op's arguments."""
    drows = [g if needed else None for g, needed in zip(gradients[2:], ctx.needs_rows)]
    dinv = gradients[1] if ctx.temperature_needed else None
    return gradients[0], drows, *ctx.no_list_gradients, None, None, None, dinv, *[None] * 8


def note_arguments(ctx, inputs) -> None:
    """What `_as_arguments` needs to know of the op's arguments."""
    ctx.set_materialize_grads(False)
    ctx.blocks = len(inputs[1])
    ctx.needs_rows = list(inputs[12])
    ctx.temperature_needed = inputs[7] is not None
    # torch wants a list back for a list that holds tensors, and None for one that holds none.
    ctx.no_list_gradients = [None if all(x is None for x in given) else [None] * ctx.blocks for given in inputs[2:4]]


@custom_op("fastcse::scale_gradients", mutates_args=())
def scale_gradients(upstream: Tensor, gradients: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """gradients times the upstream gradient (0-dim), in their own type."""
    return [(g * upstream).to(g.dtype) for g in gradients]


@scale_gradients.register_fake
def _(upstream, gradients, inputs):
    return [torch.empty_like(g) for g in gradients]


def _refuse_twice(ctx, *grads):
    raise RuntimeError(TWICE)


def _nothing_to_save(ctx, inputs, output):
    pass


scale_gradients.register_autograd(_refuse_twice, setup_context=_nothing_to_save)


contrastive_mean.register_autograd(_mean_backward, setup_context=_mean_setup)
