"""One problem, every provider in a process of its own: foretold, compared, weighed, and timed in turns."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

import torch

from ...errors import InputError
from ...ops.dispatch import choose_backend
from ..peak import GIB, MIB
from ..subject import Metric, Result, Subject, WrongAnswer
from ..turns import Seconds, take_turns
from .losses import OURS, PROVIDERS
from .problem import StepProblem, StepRow
from .stepper import ask

# Of the loss, absolute; and of the gradient's norm, relative: dropout off, weights the same, float32 throughout.
SAME_LOSS, SAME_NORM = 1e-4, 1e-3


class WrongStep(WrongAnswer):
    """The providers do not compute the same loss, so their times say nothing about one another."""


class Worker(contextlib.AbstractContextManager):
    """A process with one provider. What goes wrong in it is written into its row, and from then on it is not asked."""

    def __init__(self, problem: StepProblem, row: StepRow):
        self.problem, self.row = problem, row
        # An executor notices a process that was killed for its memory; a pool would wait for it for ever.
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __exit__(self, *failure) -> None:
        self.pool.shutdown()

    def ask(self, what: str) -> float | None:
        """The answer of a method of `Stepper`."""
        if self.row.status != "measured":
            return None
        future = self.pool.submit(ask, self.problem, self.row.provider, what, torch.get_num_threads())
        why = future.exception()
        if isinstance(why, InputError):
            raise why
        if why is None:
            return future.result()
        self.row.status, self.row.reason = "failed", " ".join(f"{type(why).__name__}: {why}".split())[:200]
        return None


def measure_steps(
    problem: StepProblem, names: Iterable[str], *, repeat: int, step: Callable[[str], None] = lambda what: None
) -> Result:
    """All of one problem. `step` is told what was just done: twice per provider, and once per timed step.

    Raises WrongStep, before anything is timed, where a loss or a gradient is not that of the others.
    """
    result = Result(problem, repeat, choose_backend(torch.empty(0, device=problem.device), None))
    with contextlib.ExitStack() as stack:
        workers = []
        for name in names:
            row = StepRow(name, note=PROVIDERS[name].note)
            result.rows.append(row)
            if (missing := PROVIDERS[name].missing()) is not None:
                row.status, row.reason = "absent", missing
                continue
            workers.append(stack.enter_context(Worker(problem, row)))
            _prepare(workers[-1])
            step(name)
        check_same(result)
        for worker in workers:
            worker.row.extra_mib = worker.ask("peak_mib")
            step("memory")
        _time(result, workers, step)
    return result


def _prepare(worker: Worker) -> None:
    """Norm of the gradient and loss; or the row says that the memory would not do."""
    row, problem = worker.row, worker.problem
    row.gradient_norm = worker.ask("warm_up")
    if not PROVIDERS[row.provider].cached and problem.n > 2 * problem.mini_batch and row.status == "measured":
        foretold = worker.ask("foretold_mib")
        if row.status == "measured" and (foretold is None or foretold * MIB > problem.memory_limit):
            expected = "unknown" if foretold is None else f"about {foretold * MIB / GIB:.1f} GiB"
            row.status = "unsuitable"
            row.reason = f"N = {problem.n}: memory {expected}, limit {problem.memory_limit / GIB:.1f} GiB"
    row.loss = worker.ask("check")


def check_same(result: Result) -> None:
    """WrongStep unless fastcse ran and everybody's loss and gradient are its own."""
    ours = next((row for row in result.rows if row.provider == OURS), None)
    if ours is None or ours.status == "absent":
        return
    if ours.status == "failed":
        raise WrongStep(f"{OURS} failed at {result.problem.title}: {ours.reason}")
    for row in result.rows:
        if row.status != "measured":
            continue
        if not abs(row.loss - ours.loss) <= SAME_LOSS:
            raise WrongStep(f"the loss of {row.provider} is {row.loss:.6f} and that of {OURS} {ours.loss:.6f} at "
                            f"{result.problem.title}: expected a difference of at most {SAME_LOSS:g}; nothing is "
                            "reported")  # fmt: skip
        if not math.isclose(row.gradient_norm, ours.gradient_norm, rel_tol=SAME_NORM):
            raise WrongStep(f"the gradient of {row.provider} has norm {row.gradient_norm:.6g} and that of {OURS} "
                            f"{ours.gradient_norm:.6g} at {result.problem.title}: expected the same to {SAME_NORM:g}; "
                            "nothing is reported")  # fmt: skip


def _time(result: Result, workers: list[Worker], step: Callable[[str], None]) -> None:
    """Fill in times and ratios; a worker that fails meanwhile loses its number."""
    runs = {worker.row.provider: functools.partial(worker.ask, "seconds") for worker in workers}
    taken = take_turns(runs, lambda run: run(), result.repeat, lambda: step("time"))
    check_same(result)  # it may have failed since
    measured = {row.provider: row for row in result.rows if row.status == "measured"}
    for name, row in measured.items():
        row.ms, row.ms_20, row.ms_80 = (1e3 * s for s in Seconds.of(taken[name]))
        row.rate(result.problem)
    for row in measured.values():
        row.to_products = row.ms / measured[OURS].ms if OURS in measured else math.nan


STEPS = Subject(
    row=StepRow, peers=PROVIDERS, check=check_same, wrong=WrongStep, measure=measure_steps, limit_name=OURS, ours=OURS,
    metrics=(
        Metric("sentences_s", "sent.\n/ s", "sentences", "1/s", ".1f"),
        Metric("loss", "loss", "loss without dropout", "nats", ".6f"),
        Metric("gradient_norm", "grad.\nnorm", "norm of the gradient", "1", ".5g"),
    ),
    panels=(("sentences_s", "sentences a second"), ("extra_mib", "MiB of a step at its peak")),
    legend="MiB: peak of a step beyond model, optimiser and texts; loss: of the whole batch, grad. norm: over "
    "the first few pairs, both without dropout.",
    axes=("n", "mini_batch", "model"),
)  # fmt: skip
