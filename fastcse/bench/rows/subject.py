"""The row-wise operations as what is measured: value and gradients against float64, one copy as the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..loss import allowed_error
from ..subject import Entry, Metric, Result, Subject, WrongAnswer
from . import limit
from .plain import Outcome, make_inputs
from .problem import RowsProblem
from .truth import Truth, errors, exact
from .ways import WAYS, Way

# Beyond twice what plain torch misses: rounding of a few sums along a row.
SLACK = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 1e-3}


@dataclass
class RowsEntry(Entry):
    """A provider of a row-wise operation. `gb_s` counts the bytes of the limit for everybody."""

    gb_s: float | None = None
    of_copy: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None

    def rate(self, problem: RowsProblem) -> None:
        self.gb_s, self.of_copy = problem.bytes / self.ms / 1e6, 1 / self.to_products


class WrongRows(WrongAnswer):
    """fastcse's value or gradient is not what it must be."""


def _prepare(way: Way, problem: RowsProblem, choice: str | None, inputs: tuple[Tensor, ...]) -> Callable[[], Outcome]:
    return way.build(problem, inputs, *(() if choice is None else (choice,)))


def _judge(row: RowsEntry, way: Way, outcome: Outcome, truth: Truth) -> None:
    row.value_error, row.gradient_error = errors(outcome, truth)


def _check(result: Result) -> None:
    ours, eager = (next((r for r in result.rows if r.provider == name), None) for name in ("fastcse", "eager"))
    for part in ("value", "gradient"):
        field = f"{part}_error"
        error = getattr(ours, field, None)
        if error is None:
            continue
        allowed = allowed_error(result.problem, getattr(eager, field, None), SLACK)
        if not error <= allowed:
            raise WrongRows(
                f"fastcse's {part} error {error:.2e} is above the {allowed:.2e} that the accuracy rule allows at "
                f"{result.problem.title}: nothing is reported; run the tests"
            )


def _result_bytes(problem: RowsProblem, inputs: tuple[Tensor, ...]) -> int:
    """Moved rows, or gradients; values by row are small, or a provider's own way."""
    count = {"quadruplet": 4, "normalize": 1}.get(problem.op, 0) if problem.mode == "full" else 0
    return (1 if problem.op == "adversarial" else count) * inputs[0].nbytes


ROWS = Subject(
    row=RowsEntry, peers=WAYS, inputs=make_inputs, exact=exact, prepare=_prepare, judge=_judge, check=_check,
    wrong=WrongRows, limit=limit.one_copy, limit_note=limit.note, limit_name=limit.NAME, output_bytes=_result_bytes,
    metrics=(
        Metric("gb_s", "GB/s", "bandwidth", "GB/s", ".1f"),
        Metric("of_copy", "of\ncopy", "share of the copy's bandwidth", "share", ".0%"),
        Metric("value_error", "value\nerror", "value error", "relative", drawn="relative error of the value"),
        Metric("gradient_error", "grad.\nerror", "gradient error", "relative", drawn="relative error of the gradients"),
    ),
    legend="MiB: beyond inputs and gradients or moved rows; GB/s: what the copy reads and writes, by each one's time; "
    "of copy: share of the copy's bandwidth; errors: relative, from float64, over all rows.",
    axes=("op", "n", "d", "data"),
)  # fmt: skip
