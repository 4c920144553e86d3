"""The loss and its gradients in float64, in pieces: what every provider is compared with, in the same run."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import LossProblem, plain_logits

PIECE_BYTES = 1 << 28


class Outcome(NamedTuple):
    """A loss and its gradients; gradients are None where none were asked for."""

    loss: Tensor
    anchor_grad: Tensor | None
    candidate_grad: Tensor | None


class Errors(NamedTuple):
    """Relative errors: |loss - truth| / truth, and the larger of both gradients' |g - truth| / |truth| by norm.

    Absolute where the truth is 0, as for one anchor without negatives.
    """

    loss: float
    gradient: float | None


def exact(problem: LossProblem, anchor: Tensor, candidate: Tensor) -> Outcome:
    """The plain formula in float64, a few anchors at a time, so that the (N, M) matrix is never whole."""
    raw = [x.detach().to(torch.float64).requires_grad_() for x in (anchor, candidate)]
    unit = [F.normalize(x, dim=-1) for x in raw]
    # Gradients of the pieces gather in these leaves and go through the normalisation once.
    a, c = (x.detach().requires_grad_() for x in unit)
    loss = _one_way(problem, a, c)
    if problem.loss == "symmetric":
        loss = (loss + _one_way(problem, c, a)) / 2
        a.grad, c.grad = a.grad / 2, c.grad / 2
    torch.autograd.backward(unit, [a.grad, c.grad])
    return Outcome(loss, raw[0].grad, raw[1].grad)


def _one_way(problem: LossProblem, a: Tensor, c: Tensor) -> Tensor:
    """Mean over rows of a; adds to the gradients of a and c."""
    n, total = a.shape[0], a.new_zeros(())
    rows = max(1, PIECE_BYTES // (8 * c.shape[0]))
    for start in range(0, n, rows):
        piece = a[start : start + rows]
        positive = torch.arange(start, start + piece.shape[0], device=a.device)
        loss = F.cross_entropy(plain_logits(problem, piece @ c.T, positive), positive, reduction="sum") / n
        loss.backward()
        total += loss.detach()
    return total


def errors(outcome: Outcome, truth: Outcome) -> Errors:
    """How far an outcome is from the truth; NaN where it is not a number."""
    loss = _relative(outcome.loss, truth.loss).item()
    if outcome.anchor_grad is None:
        return Errors(loss, None)
    pairs = ((outcome.anchor_grad, truth.anchor_grad), (outcome.candidate_grad, truth.candidate_grad))
    # torch's maximum keeps a NaN, Python's max may drop it.
    return Errors(loss, torch.stack([_relative(g, t) for g, t in pairs]).amax().item())


def _relative(x: Tensor, truth: Tensor) -> Tensor:
    size = truth.norm()
    return (x.double() - truth).norm() / torch.where(size == 0, 1.0, size)
