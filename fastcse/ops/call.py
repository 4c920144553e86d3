"""What the contrastive ops share: their arguments, and the way from those to a problem of the engine and back.

Arguments are flat because op schemas are: `rows`, `log_weights`, `ids` and `own_log_weights` hold one entry for each
block of candidates.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.gradients import Gradients
from ..engine.problem import Problem
from ..operands import Block, Logits
from .checks import check_index
from .dispatch import launchers, record

SCHEMA = (
    "Tensor anchor, Tensor[] rows, Tensor?[] log_weights, Tensor?[] ids, float[] own_log_weights, Tensor? positive, "
    "Tensor? anchor_id, Tensor? inv_temperature, float temperature, str transform, float margin, bool normalize, "
    "bool[] needs_grad, bool want_stats, int? max_workspace_bytes, str backend"
)
STATS = ("lse", "positive_similarity", "similarity_sum", "count", "hardest_overall", "hardest", "hardest_col")
TWICE = (
    "the gradient of a fastcse loss cannot be differentiated again; "
    "float64 inputs or backend='reference' run in plain torch, where it can"
)


class Sweep(NamedTuple):
    """The arguments of a contrastive op, in the order of SCHEMA. `temperature` is for `inv_temperature` None."""

    anchor: Tensor
    rows: list[Tensor]
    log_weights: list[Tensor | None]
    ids: list[Tensor | None]
    own_log_weights: list[float]
    positive: Tensor | None
    anchor_id: Tensor | None
    inv_temperature: Tensor | None
    temperature: float
    transform: str
    margin: float
    normalize: bool
    needs_grad: list[bool]
    want_stats: bool
    max_workspace_bytes: int | None
    backend: str

    @property
    def stats(self) -> int:
        """How many by-products the op returns."""
        return len(STATS) if self.want_stats else 0

    def gradients_for(self, made: list[Tensor]) -> tuple:
        """[danchor, dinv_temperature, *drows] in the order of the arguments, None where no gradient is wanted."""
        drows = [g if needed else None for g, needed in zip(made[2:], self.needs_grad)]
        # torch wants a list back for a list of tensors, and None for a list with an absent one.
        no_lists = [None if any(x is None for x in xs) else [None] * len(xs) for xs in (self.log_weights, self.ids)]
        dinv = None if self.inv_temperature is None else made[1]
        return made[0], drows, *no_lists, None, None, None, dinv, *[None] * 8


def mean_gradient_fits(rows: Tensor) -> bool:
    """Whether gradients may be made of a mean. Of a large batch float16 cannot hold them, and a loss scale, which comes
    with the upstream gradient, is too late: they are made of the sum then, and divided with it."""
    return rows.dtype != torch.float16


def problem(call: Sweep) -> Problem:
    """Prepares the operands for the backend."""
    b = launchers(call.backend)
    record(call.backend)
    new = {"dtype": torch.float32, "device": call.anchor.device}
    anchor = b.prepare(call.anchor.detach())
    scale = b.inverse_norms(anchor) if call.normalize else torch.ones(anchor.shape[0], **new)
    positive = call.positive
    check_index("positive", positive, call.rows[0].shape[0], "candidate")
    if positive is None:
        positive = torch.arange(anchor.shape[0], device=anchor.device)
    known = None if call.inv_temperature is not None else 1.0 / call.temperature
    inv = torch.full((), known, **new) if known is not None else call.inv_temperature.detach().to(torch.float32)
    return Problem(
        anchor, call.anchor.dtype, scale, [_block(call, k, b) for k in range(len(call.rows))], positive.contiguous(),
        call.positive is None, _contiguous(call.anchor_id), Logits(call.transform, call.margin, inv, known),
        call.normalize, call.max_workspace_bytes, call.want_stats, b,
    )  # fmt: skip


def _block(call: Sweep, k: int, b: ModuleType) -> Block:
    return block_of(
        b, call.normalize, call.rows[k], call.log_weights[k], call.ids[k], call.own_log_weights[k], k == 0,
        call.needs_grad[k],
    )  # fmt: skip


def block_of(
    b: ModuleType, normalize: bool, rows: Tensor, bias: Tensor | None, id: Tensor | None, own_log_weight: float,
    holds_positives: bool, needs_grad: bool,
) -> Block:  # fmt: skip
    """A block of candidates as the launchers `b` take it."""
    rows, new = b.prepare(rows.detach()), {"dtype": torch.float32, "device": rows.device}
    scale = b.inverse_norms(rows) if normalize else torch.ones(rows.shape[0], **new)
    weighted = bias is not None
    bias = bias.detach().to(torch.float32).contiguous() if weighted else torch.zeros(rows.shape[0], **new)
    return Block(rows, scale, bias, weighted, _contiguous(id), own_log_weight, holds_positives, needs_grad)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def stats_of(p: Problem) -> list[Tensor]:
    """By-products in the order of STATS; none where they were not asked for."""
    return [torch.cat([part[name] for part in p.stats]) for name in STATS] if p.want_stats else []


def gradients_of(g: Gradients) -> list[Tensor]:
    """[danchor, dinv_temperature, *drows]; empty for a block without gradient, and for a temperature that is given."""
    return [g.anchor, g.inv_temperature, *[g.anchor.new_empty(0) if dc is None else dc for dc in g.blocks]]


def fake_stats(call: Sweep) -> list[Tensor]:
    """Shapes of `stats_of`."""
    if not call.want_stats:
        return []
    n, new = call.anchor.shape[0], call.anchor.new_empty
    return [*[new(n, dtype=torch.float32) for _ in STATS[:-1]], new(n, dtype=torch.int64)]


def fake_gradients(call: Sweep) -> list[Tensor]:
    """Shapes of `gradients_of`."""
    drows = [x.new_empty(x.shape if needed else 0) for x, needed in zip(call.rows, call.needs_grad)]
    dinv = call.anchor.new_empty(0 if call.inv_temperature is None else (), dtype=torch.float32)
    return [call.anchor.new_empty(call.anchor.shape), dinv, *drows]


def no_double_backward(ctx, *grads):
    """The backward of every backward op."""
    raise RuntimeError(TWICE)


def save_nothing(ctx, inputs, output) -> None:
    """The setup_context of an op whose gradient is refused."""
