"""Who computes row-wise operations: fastcse, what one writes by hand, and that compiled."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from ..losses.quadruplet import quadruplet_loss
from ..ops.dispatch import choose_backend, launchers, record
from .accuracy import Outcome
from .provider import Provider, named, need
from .rowwise import MARGIN, PLAIN, RowwiseCase

Run = Callable[[], Outcome]
COMPILERS = ("g++", "clang++", "c++")
VARIANTS = ("functional", "by hand")


def _by_hand(case: RowwiseCase, *inputs) -> Run:
    *rows, variant = inputs
    return functools.partial(case.run_once, PLAIN[case.op][variant], tuple(rows))


def _compiled(case: RowwiseCase, *inputs) -> Run:
    *rows, variant = inputs
    return functools.partial(case.run_once, torch.compile(PLAIN[case.op][variant], dynamic=False), tuple(rows))


def _no_compiler() -> str | None:
    """What torch.compile builds with; on a GPU too, for what launches its kernels."""
    if any(shutil.which(name) for name in COMPILERS):
        return None
    return f"torch.compile needs a C++ compiler, and none of {', '.join(COMPILERS)} is on the path: apt install g++"


def _fastcse(case: RowwiseCase, *inputs: Tensor) -> Run:
    if case.op == "quadruplet":
        loss = functools.partial(quadruplet_loss, margin=MARGIN, backend=case.backend)
        return functools.partial(case.run_once, loss, inputs)
    make = _normalize if case.op == "normalize" else _step
    return make(case, _launchers(case, inputs[0]), *(x.detach() for x in inputs))


def _launchers(case: RowwiseCase, x: Tensor) -> ModuleType:
    """Those that the losses would take for these rows."""
    name = choose_backend(x, case.backend)
    need(name != "reference", f"{case.op} is a step of cpp and triton; the backend here is reference")
    record(name)
    return launchers(name)


def _normalize(case: RowwiseCase, b: ModuleType, x: Tensor, gradient: Tensor) -> Run:
    # The products of the losses leave float32, which the last step changes in place. Here 1 / |x| is in it already and
    # the factor is 1: the work is the same, and so is what each further call writes.
    held = gradient.float() * b.inverse_norms(b.prepare(x))[:, None]
    factor = torch.ones(case.n, device=x.device)
    into = held if x.dtype == held.dtype else torch.empty_like(x)

    def run() -> Outcome:
        rows = b.prepare(x)
        scale = b.inverse_norms(rows)
        if case.mode == "forward":
            return Outcome(scale)
        b.project_gradient(held, rows, scale, factor=factor, into=into)
        return Outcome(scale, (into,))

    return run


def _step(case: RowwiseCase, b: ModuleType, x: Tensor, direction: Tensor, radius: Tensor) -> Run:
    return lambda: Outcome(b.step_rows(b.prepare(x), b.prepare(direction), radius.float(), "l2").to(x.dtype))


OF_TWO = "the faster of torch.nn.functional (cosine_similarity, normalize) and of norms and products by hand"
PROVIDERS = named(
    Provider("fastcse", _fastcse, note="normalize: 1 / |x| for rows, and backward in place, as within the losses"),
    Provider("eager", _by_hand, note=OF_TWO, configs=VARIANTS),
    Provider("torch.compile", _compiled, note=OF_TWO, configs=VARIANTS, lacks=_no_compiler),
)
