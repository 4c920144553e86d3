"""The operations as one writes them by hand, each in the two usual ways, and one call of any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...losses.quadruplet import WEIGHTS
from ..data import make_rows
from .problem import RowsProblem

# Opens every hinge: a row at rest costs fastcse less, and a benchmark may not live on that.
MARGIN = 1.0
# Length of an adversarial move, relative to the row's.
STEP = 0.1
SPELLINGS = ("functional", "by hand")


class Outcome(NamedTuple):
    """A value, scalar or by row, and the gradients of those inputs that have one."""

    value: Tensor
    gradients: tuple[Tensor, ...] = ()


def make_inputs(problem: RowsProblem) -> tuple[Tensor, ...]:
    """Fresh rows, those that want gradients first: anchor, positive, batch and corpus negative; or rows and the
    gradient above x / |x|; or rows, direction and (N,) radius."""
    x, other = make_rows(problem)
    if problem.op == "normalize":
        return x, other.detach()
    if problem.op == "adversarial":
        return x, other, STEP * torch.linalg.vector_norm(x, dim=-1)
    corpus_negative = make_rows(replace(problem, seed=problem.seed + 1))[1]
    # Another anchor's positive.
    batch_negative = other.detach().roll(1, 0).requires_grad_(other.requires_grad)
    return x, other, batch_negative, corpus_negative


def _hinge(positive: Tensor, batch: Tensor, corpus: Tensor) -> Tensor:
    return F.relu(WEIGHTS[0] * batch + WEIGHTS[1] * corpus - positive + MARGIN).mean()


def _cosines(a: Tensor, p: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _hinge(*(F.cosine_similarity(a, x, dim=-1) for x in (p, b, c)))


def _unit_products(*rows: Tensor) -> Tensor:
    a, *others = (F.normalize(x, dim=-1) for x in rows)
    return _hinge(*((a * x).sum(-1) for x in others))


def _normalize(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def _over_norm(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _step(x: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    return x + radius[:, None] * F.normalize(direction, dim=-1)


def _step_over_norm(x: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    return x + (radius / direction.norm(dim=-1))[:, None] * direction


# operation -> its spellings, in their order
PLAIN = {
    "quadruplet": (_cosines, _unit_products),
    "normalize": (_normalize, _over_norm),
    "adversarial": (_step, _step_over_norm),
}


def plain(problem: RowsProblem, spelling: str) -> Callable[..., Tensor]:
    """The operation's value from its arguments."""
    return PLAIN[problem.op][SPELLINGS.index(spelling)]


def arguments(problem: RowsProblem, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """What the operation is called with, and the gradient above its value where that is no scalar."""
    return (inputs[:1], inputs[1]) if problem.op == "normalize" else (inputs, None)


def outcome_of(problem: RowsProblem, fn: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Outcome:
    """One forward, and backward unless the mode leaves it out, with fresh gradients."""
    taken, upstream = arguments(problem, inputs)
    if problem.mode != "full":
        with torch.no_grad():
            return Outcome(fn(*taken))
    for x in taken:
        x.grad = None
    value = fn(*taken)
    value.backward(upstream)
    return Outcome(value.detach(), tuple(x.grad for x in taken))
