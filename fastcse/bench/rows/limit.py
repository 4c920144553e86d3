"""The limit: what must be read is read once, what must be written is written once, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .problem import RowsProblem

NAME = "copy"


def one_copy(problem: RowsProblem) -> Callable[..., object]:
    """A function of the inputs that moves `problem.bytes` bytes by the plainest means torch has."""
    if problem.op == "adversarial":
        run = _written_from_two
    elif problem.mode == "forward":
        run = _read
    elif problem.op == "quadruplet":
        run = _clones
    else:
        run = _in_place(problem)
    return torch.no_grad()(run)


def note(problem: RowsProblem) -> str:
    """What the limit is, to read."""
    if problem.op == "adversarial":
        what = "rows and direction added up in fresh memory"
    elif problem.mode == "forward":
        what = "the sum of all entries"
    elif problem.op == "quadruplet":
        what = "the four inputs cloned into fresh memory"
    else:
        what = "the sum of all entries, then the rows added to the gradient in place"
    return f"{problem.op}: {what}"


def _clones(*rows: Tensor) -> None:
    # Kept where gradients are, so that whoever comes next gives the memory back, as with everybody.
    for x in rows:
        x.grad = None
    for x in rows:
        x.grad = x.detach().clone()


def _written_from_two(x: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    return x + direction


def _read(*rows: Tensor) -> None:
    for x in rows:
        x.sum()


def _in_place(problem: RowsProblem) -> Callable[[Tensor, Tensor], None]:
    held = torch.zeros(problem.n, problem.d, dtype=problem.torch_dtype, device=problem.device)

    def run(x: Tensor, gradient: Tensor) -> None:
        x.sum()
        held.add_(x)

    return run
