"""An outcome with its gradients, how far it is from float64, and how far fastcse's may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Outcome(NamedTuple):
    """A value, scalar or by row, and the gradients of the inputs that have one."""

    value: Tensor
    gradients: tuple[Tensor, ...] = ()


class Errors(NamedTuple):
    """Relative errors |x - exact| / |exact| by norm, of the value and the largest of the gradients'; absolute where the
    exact one is 0, as for one anchor without negatives."""

    value: float
    gradient: float | None


def run_once(
    fn: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor | None = None, backward: bool = True
) -> Outcome:
    """One forward, and backward with fresh gradients unless `backward` is False."""
    if not backward:
        with torch.no_grad():
            return Outcome(fn(*leaves))
    for x in leaves:
        x.grad = None
    value = fn(*leaves)
    value.backward(upstream)
    return Outcome(value.detach(), tuple(x.grad for x in leaves))


class _Distance:
    """|x - exact| / |exact| of an array that is given in pieces."""

    def __init__(self):
        self.missed = self.size = 0.0

    def add(self, x: Tensor, exact: Tensor) -> None:
        self.missed += (x.double() - exact).square().sum()
        self.size += exact.square().sum()

    @property
    def relative(self) -> Tensor:
        return (self.missed / torch.where(self.size == 0, 1.0, self.size)).sqrt()


def errors(outcome: Outcome, exact: Outcome | Iterable[tuple[slice, Outcome]]) -> Errors:
    """How far an outcome is from the exact one, whole or in pieces of rows; NaN where it is not a number.

    The scalar values of pieces add up to the whole value.
    """
    pieces = [(slice(None), exact)] if isinstance(exact, Outcome) else exact
    value, gradients = _Distance(), [_Distance() for _ in outcome.gradients]
    total = torch.zeros((), dtype=torch.float64, device=outcome.value.device)
    for rows, right in pieces:
        if right.value.dim() == 0:
            total += right.value
        else:
            value.add(outcome.value[rows], right.value)
        for distance, got, want in zip(gradients, outcome.gradients, right.gradients, strict=True):
            distance.add(got[rows], want)
    if outcome.value.dim() == 0:
        value.add(outcome.value, total)
    # torch's maximum keeps a NaN, Python's max may drop it.
    worst = torch.stack([g.relative for g in gradients]).amax().item() if gradients else None
    return Errors(value.relative.item(), worst)


def allowed_error(eager: float | None, slack: float) -> float:
    """The accuracy rule: twice what plain torch misses, and a slack for float32's own rounding."""
    return 2 * (eager if eager is not None and math.isfinite(eager) else 0.0) + slack
