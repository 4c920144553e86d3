"""Who computes the operations: fastcse, what one writes by hand, and that compiled."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ...losses.quadruplet import quadruplet_loss
from ...ops.dispatch import choose_backend, launchers, record
from ..peers.peer import need
from .plain import MARGIN, SPELLINGS, Outcome, outcome_of, plain
from .problem import RowsProblem

Run = Callable[[], Outcome]
COMPILERS = ("g++", "clang++", "c++")


class Way(NamedTuple):
    """A way to compute the operations.

    `build(problem, inputs)` makes the call that is timed, and raises Unsuitable where it cannot; with `choices` it
    takes one as its third argument. `lacks` says what is not there, or None.
    """

    name: str
    build: Callable[..., Run]
    note: str = ""
    choices: tuple[str, ...] = ()
    lacks: Callable[[], str | None] = lambda: None

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        return self.lacks()


def _by_hand(problem: RowsProblem, inputs: tuple[Tensor, ...], spelling: str) -> Run:
    return functools.partial(outcome_of, problem, plain(problem, spelling), inputs)


def _compiled(problem: RowsProblem, inputs: tuple[Tensor, ...], spelling: str) -> Run:
    fn = torch.compile(plain(problem, spelling), dynamic=False)
    return functools.partial(outcome_of, problem, fn, inputs)


def _no_compiler() -> str | None:
    """What torch.compile builds with; on a GPU too, for what launches its kernels."""
    if any(shutil.which(name) for name in COMPILERS):
        return None
    return f"torch.compile needs a C++ compiler, and none of {', '.join(COMPILERS)} is on the path: apt install g++"


def _fastcse(problem: RowsProblem, inputs: tuple[Tensor, ...]) -> Run:
    if problem.op == "quadruplet":
        loss = functools.partial(quadruplet_loss, margin=MARGIN, backend=problem.backend)
        return functools.partial(outcome_of, problem, loss, inputs)
    make = _normalize if problem.op == "normalize" else _step
    return make(problem, _launchers(problem, inputs[0]), *(x.detach() for x in inputs))


def _launchers(problem: RowsProblem, x: Tensor) -> ModuleType:
    """Those that the losses would take for these rows."""
    name = choose_backend(x, problem.backend)
    need(name != "reference", f"{problem.op} is a step of cpp and triton; the backend here is reference")
    record(name)
    return launchers(name)


def _normalize(problem: RowsProblem, b: ModuleType, x: Tensor, gradient: Tensor) -> Run:
    # The products of the losses leave float32, which the last step changes in place. Here 1 / |x| is in it already and
    # the factor is 1: the work is the same, and so is what each further call writes.
    held = gradient.float() * b.inverse_norms(b.prepare(x))[:, None]
    factor = torch.ones(problem.n, device=x.device)
    into = held if x.dtype == held.dtype else torch.empty_like(x)

    def run() -> Outcome:
        rows = b.prepare(x)
        scale = b.inverse_norms(rows)
        if problem.mode == "forward":
            return Outcome(scale)
        b.finish_rows(held, rows, scale, factor=factor, into=into)
        return Outcome(scale, (into,))

    return run


def _step(problem: RowsProblem, b: ModuleType, x: Tensor, direction: Tensor, radius: Tensor) -> Run:
    return lambda: Outcome(b.step_rows(b.prepare(x), b.prepare(direction), radius.float(), "l2").to(x.dtype))


OF_TWO = "the faster of torch.nn.functional (cosine_similarity, normalize) and of norms and products by hand"
WAYS = {
    way.name: way
    for way in (
        Way("fastcse", _fastcse, "normalize: 1 / |x| for rows, and backward in place, as within the losses"),
        Way("eager", _by_hand, OF_TWO, SPELLINGS),
        Way("torch.compile", _compiled, OF_TWO, SPELLINGS, _no_compiler),
    )
}
