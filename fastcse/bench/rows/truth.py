"""The operations in float64, some rows at a time, and how far an outcome is from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .plain import Outcome, outcome_of, plain
from .problem import RowsProblem

# Of one array of a piece in float64.
PIECE_BYTES = 1 << 25


class Truth(NamedTuple):
    """What the outcomes are compared with: made anew for each, in pieces, because all of it in float64 would take
    several times the memory of what is measured."""

    problem: RowsProblem
    inputs: tuple[Tensor, ...]


class Errors(NamedTuple):
    """Relative errors by norm, over all rows: of the value, and the largest of the gradients' errors."""

    value: float
    gradient: float | None


class _Distance:
    """|x - truth| / |truth| of an array that comes in pieces."""

    def __init__(self):
        self.missed = self.size = 0.0

    def add(self, x: Tensor, truth: Tensor) -> None:
        self.missed += (x.double() - truth).square().sum()
        self.size += truth.square().sum()

    @property
    def relative(self) -> Tensor:
        return (self.missed / torch.where(self.size == 0, 1.0, self.size)).sqrt()


def exact(problem: RowsProblem, *inputs: Tensor) -> Truth:
    """The truth of a problem."""
    return Truth(problem, inputs)


def errors(outcome: Outcome, truth: Truth) -> Errors:
    """How far an outcome is from the truth; NaN where it is not a number."""
    value, gradients = _Distance(), [_Distance() for _ in outcome.gradients]
    total = torch.zeros((), dtype=torch.float64, device=outcome.value.device)
    for rows, right in _pieces(truth):
        if right.value.dim() == 0:
            total += right.value
        else:
            value.add(outcome.value[rows], _alike(right.value, truth, rows, outcome))
        for distance, got, want in zip(gradients, outcome.gradients, right.gradients, strict=True):
            distance.add(got[rows], want)
    if outcome.value.dim() == 0:
        value.add(outcome.value, total)
    # torch's maximum keeps a NaN, Python's max may drop it.
    worst = torch.stack([g.relative for g in gradients]).amax().item() if gradients else None
    return Errors(value.relative.item(), worst)


def _alike(unit: Tensor, truth: Truth, rows: slice, outcome: Outcome) -> Tensor:
    """The truth about what the outcome holds: unit rows, or the factors 1 / |x| that make them."""
    return unit if outcome.value.dim() == 2 else truth.inputs[0].detach()[rows].double().norm(dim=-1).reciprocal()


def _pieces(truth: Truth) -> Iterator[tuple[slice, Outcome]]:
    """Rows, and their part of the right outcome."""
    problem, inputs = truth
    fn = plain(problem, "functional")
    step = max(1, PIECE_BYTES // (8 * problem.d))
    for start in range(0, problem.n, step):
        rows = slice(start, start + step)
        piece = tuple(x.detach()[rows].double().requires_grad_(x.requires_grad) for x in inputs)
        share = len(piece[0]) / problem.n

        def part(*taken: Tensor, share: float = share) -> Tensor:
            value = fn(*taken)
            return value * share if value.dim() == 0 else value  # a mean

        yield rows, outcome_of(problem, part, piece)
