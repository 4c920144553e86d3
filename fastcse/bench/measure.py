"""One problem, every provider: built, verified against float64, timed in turns, and weighed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..ops.dispatch import last_backend
from .data import make_rows
from .memory import SMALLEST_WEIGHED, extra_memory
from .peers import PEERS, Peer, Unsuitable
from .problem import LossProblem
from .runs import LIMIT, bare_products, outcome_of
from .truth import Outcome, errors, exact
from .turns import Seconds, clock, take_turns

# The accuracy rule of the package: at most twice what plain torch misses, and this much of float32's own rounding.
SLACK = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 4e-3}


@dataclass
class Row:
    """What one provider did with one problem. `status` is measured, absent, unsuitable or failed; then `reason` says
    why."""

    provider: str
    status: str = "measured"
    reason: str = ""
    note: str = ""
    choice: int | None = None
    ms: float | None = None
    ms_20: float | None = None
    ms_80: float | None = None
    tflops: float | None = None
    to_products: float | None = None
    extra_mib: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None


@dataclass
class Result:
    """One problem and its rows."""

    problem: LossProblem
    repeat: int
    backend: str | None = None
    rows: list[Row] = field(default_factory=list)

    def row(self, provider: str) -> Row:
        return next(row for row in self.rows if row.provider == provider)

    def labels(self) -> dict[str, Any]:
        """As a plain object for JSON."""
        rows = [asdict(row) for row in self.rows]
        return {**self.problem.labels(), "repeat": self.repeat, "backend": self.backend, "rows": rows}


def rounds(problem: LossProblem, repeat: int) -> int:
    """Rounds at this size: small problems take more, since a median of few short calls is noise."""
    if torch.device(problem.device).type == "cuda":
        return max(repeat, min(50, repeat * 16384**2 // (problem.n * problem.m)))
    return max(repeat, min(200, repeat * 2048**2 // (problem.n * problem.m)))


class WrongGradient(Exception):
    """fastcse missed the accuracy rule: no number of this run may be reported."""


def measure(
    problem: LossProblem,
    names: Iterable[str],
    *,
    repeat: int,
    memory: bool = True,
    step: Callable[[str], None] = lambda what: None,
) -> Result:
    """All of one problem. `step` is told what was just done: once per provider, once per timed call, once per weighing.

    Raises WrongGradient, before anything is timed, if fastcse itself misses the accuracy rule.
    """
    # Functions compiled for the last problem count against a limit, past which torch.compile warns and runs eagerly.
    torch.compiler.reset()
    rows = make_rows(problem)
    truth = exact(problem, *rows)
    result, runs = Result(problem, repeat), {}
    time_one = clock(problem.device)
    for name in names:
        row, run = _prepare(problem, PEERS[name], rows, truth, time_one)
        result.rows.append(row)
        if run is not None:
            runs[name] = run
        if name == "fastcse":
            result.backend = last_backend()
        step(name)
    _check_ourselves(result)
    _time_all(problem, result, rows, runs, step)
    # Once more: it may have failed since, beside the memory of the others.
    _check_ourselves(result)
    for row in result.rows:
        if memory and row.status == "measured" and min(problem.n, problem.m) >= SMALLEST_WEIGHED:
            _weigh(problem, row)
        step("memory")
    return result


def _prepare(
    problem: LossProblem, peer: Peer, rows: tuple[Tensor, Tensor], truth: Outcome, time_one: Callable
) -> tuple[Row, Callable | None]:
    """A provider's row with its errors, and its run where it has one."""
    row = Row(peer.name, note=peer.note)
    if (absent := peer.missing()) is not None:
        row.status, row.reason = "absent", absent
        return row, None
    run = _attempt(row, lambda: _verified(problem, peer, rows, truth, time_one, row))
    return row, run


def _verified(
    problem: LossProblem, peer: Peer, rows: tuple[Tensor, Tensor], truth: Outcome, time_one: Callable, row: Row
) -> Callable:
    """A peer's run with its fastest choice; the choice and the errors go into the row."""
    losses = {choice: peer.loss(problem, choice) for choice in peer.choices or (None,)}
    runs = {c: functools.partial(outcome_of, problem, loss, *rows) for c, loss in losses.items()}
    row.choice = _fastest(runs, time_one)
    row.loss_error, row.gradient_error = errors(runs[row.choice](), truth)
    return runs[row.choice]


def _attempt(row: Row, call: Callable) -> Any:
    """What `call` returns; or None, with the row saying what went wrong."""
    try:
        return call()
    except Unsuitable as why:
        row.status, row.reason = "unsuitable", str(why)
    except Exception as why:  # a peer's own failure is a finding about it, and must not end everybody's run
        row.status, row.reason = "failed", " ".join(f"{type(why).__name__}: {why}".split())[:200]
    return None


def _guarded(row: Row, run: Callable) -> Callable[[], object]:
    """The run until it fails, then nothing."""
    return lambda: _attempt(row, run) if row.status == "measured" else None


def _weigh(problem: LossProblem, row: Row) -> None:
    """Fill in memory. A failure to weigh takes nothing from the times."""
    weighing = Row(row.provider)
    row.extra_mib = _attempt(weighing, lambda: extra_memory(problem, row.provider, row.choice))
    if weighing.reason:
        row.note = "; ".join(filter(None, (row.note, f"not weighed: {weighing.reason}")))


def _fastest(runs: dict[int | None, Callable], time_one: Callable) -> int | None:
    """The choice whose second call is quickest; the first warms up."""
    if len(runs) == 1:
        return next(iter(runs))
    return min(runs, key=lambda choice: (time_one(runs[choice]), time_one(runs[choice]))[1])


def allowed_error(problem: LossProblem, eager: float | None) -> float:
    """The largest gradient error that fastcse may have where plain torch has `eager`."""
    yardstick = eager if eager is not None and math.isfinite(eager) else 0.0
    return 2 * yardstick + SLACK[problem.dtype]


def _check_ourselves(result: Result) -> None:
    ours, eager = (next((r for r in result.rows if r.provider == name), None) for name in ("fastcse", "eager"))
    if ours is not None and ours.status == "failed":
        raise WrongGradient(f"fastcse failed at {result.problem.title}: {ours.reason}")
    if ours is None or ours.gradient_error is None:
        return
    allowed = allowed_error(result.problem, eager and eager.gradient_error)
    if not ours.gradient_error <= allowed:
        raise WrongGradient(
            f"fastcse's gradient error {ours.gradient_error:.2e} is above the {allowed:.2e} that the accuracy rule "
            f"allows at {result.problem.title}: nothing is reported; run the tests"
        )


def _time_all(
    problem: LossProblem, result: Result, rows: tuple[Tensor, Tensor], runs: dict[str, Callable], step: Callable
) -> None:
    """Fill in times; the limit takes its turn like everybody and becomes the first row."""
    everyone = {LIMIT: functools.partial(bare_products(problem), *rows)}
    everyone |= {name: _guarded(result.row(name), run) for name, run in runs.items()}
    everyone[LIMIT]()
    if torch.device(problem.device).type == "cuda":
        for run in everyone.values():  # whether it still runs beside the memory of the others
            run()
    seconds = take_turns(everyone, clock(problem.device), result.repeat, lambda: step("time"))
    limit = Seconds.of(seconds[LIMIT])
    result.rows.insert(0, Row(LIMIT, note=f"{problem.products} products, no loss"))
    for row in result.rows:
        if row.status == "measured":
            taken = Seconds.of(seconds[row.provider])
            row.ms, row.ms_20, row.ms_80 = (1e3 * s for s in taken)
            row.tflops, row.to_products = problem.flops / taken.median / 1e12, taken.median / limit.median
