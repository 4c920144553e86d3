"""The losses as what is measured: value and gradients against float64, by the accuracy rule of the package."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .data import make_rows
from .peers import PEERS, Peer
from .problem import LossProblem
from .runs import bare_products, outcome_of
from .subject import Entry, Metric, Problem, Result, Subject, WrongAnswer
from .truth import Outcome, errors, exact

# The accuracy rule of the package: at most twice what plain torch misses, and this much of float32's own rounding.
SLACK = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 4e-3}


@dataclass
class Row(Entry):
    """A provider of a loss."""

    loss_error: float | None = None
    gradient_error: float | None = None


class WrongGradient(WrongAnswer):
    """fastcse's gradient is not what it must be."""


def allowed_error(problem: Problem, eager: float | None, slack: Mapping[str, float] = SLACK) -> float:
    """The largest error that fastcse may have where plain torch has `eager`."""
    yardstick = eager if eager is not None and math.isfinite(eager) else 0.0
    return 2 * yardstick + slack[problem.dtype]


def _prepare(peer: Peer, problem: LossProblem, choice: int | None, rows: tuple[Tensor, Tensor]) -> Callable:
    return functools.partial(outcome_of, problem, peer.loss(problem, choice), *rows)


def _judge(row: Row, peer: Peer, outcome: Outcome, truth: Outcome) -> None:
    row.loss_error, row.gradient_error = errors(outcome, truth)


def _check(result: Result) -> None:
    ours, eager = (next((r for r in result.rows if r.provider == name), None) for name in ("fastcse", "eager"))
    if ours is None or ours.gradient_error is None:
        return
    allowed = allowed_error(result.problem, eager and eager.gradient_error)
    if not ours.gradient_error <= allowed:
        raise WrongGradient(
            f"fastcse's gradient error {ours.gradient_error:.2e} is above the {allowed:.2e} that the accuracy rule "
            f"allows at {result.problem.title}: nothing is reported; run the tests"
        )


def _gradient_bytes(problem: LossProblem, rows: tuple[Tensor, Tensor]) -> int:
    return sum(x.nbytes for x in rows) if problem.mode == "full" else 0


LOSS = Subject(
    row=Row, peers=PEERS, inputs=make_rows, exact=exact, prepare=_prepare, judge=_judge, check=_check,
    wrong=WrongGradient, limit=bare_products, limit_note=lambda p: f"{p.products} products, no loss",
    output_bytes=_gradient_bytes,
    metrics=(
        Metric("loss_error", "loss\nerror", "loss error", "relative"),
        Metric("gradient_error", "grad.\nerror", "gradient error", "relative", drawn="relative error of the gradients"),
    ),
    legend="MiB: beyond inputs and gradients; errors: relative, from float64.",
    axes=("n", "d", "data", "stage"),
)  # fmt: skip
