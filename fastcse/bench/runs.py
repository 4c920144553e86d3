"""One call of what is measured: a provider's forward and backward, and the bare products that are its limit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .problem import LossProblem
from .truth import Outcome

LIMIT = "bare products"
# Rows of the bare products at a time, where the whole matrix would be larger.
PANEL_BYTES = 4 << 30


def bare_products(problem: LossProblem) -> Callable[[Tensor, Tensor], None]:
    """The matrix products that any such loss needs and nothing else, in preallocated memory: the limit.

    Where the (N, M) matrix would be large, a panel of its rows at a time: it would crowd out what is measured.
    """
    size = {"dtype": problem.torch_dtype, "device": problem.device}
    rows = max(1, min(problem.n, PANEL_BYTES // (problem.m * problem.torch_dtype.itemsize)))
    panel, by_row = torch.empty(rows, problem.m, **size), torch.empty(rows, problem.d, **size)
    by_column = torch.empty(problem.m, problem.d, **size)
    forwards = 2 if problem.loss == "symmetric" and problem.mode == "full" else 1

    @torch.no_grad()
    def run(anchor: Tensor, candidate: Tensor) -> None:
        for start in range(0, problem.n, rows):
            a = anchor[start : start + rows]
            s = panel[: a.shape[0]]
            for _ in range(forwards):
                torch.mm(a, candidate.T, out=s)
            if problem.mode == "full":
                torch.mm(s, candidate, out=by_row[: a.shape[0]])
                torch.addmm(by_column, s.T, a, beta=int(start > 0), out=by_column)

    return run


def outcome_of(problem: LossProblem, loss: Callable, anchor: Tensor, candidate: Tensor) -> Outcome:
    """One forward, and backward unless the mode leaves it out, with fresh gradients."""
    if problem.mode != "full":
        with torch.no_grad():
            return Outcome(loss(anchor, candidate), None, None)
    anchor.grad = candidate.grad = None
    value = loss(anchor, candidate)
    value.backward()
    return Outcome(value.detach(), anchor.grad, candidate.grad)
