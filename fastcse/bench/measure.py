"""One problem, every provider: built, verified against float64, timed in turns, and weighed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..ops.dispatch import last_backend
from .memory import SMALLEST_WEIGHED, extra_memory
from .peers import Unsuitable
from .subject import Entry, Problem, Result, Subject
from .subjects import subject_of
from .turns import Seconds, clock, take_turns


def rounds(problem: Problem, repeat: int) -> int:
    """Rounds at this size: small problems take more, since a median of few short calls is noise."""
    if subject_of(problem).measure is not None:
        return repeat
    if torch.device(problem.device).type == "cuda":
        return max(repeat, min(50, repeat * 16384**2 // (problem.n * problem.m)))
    return max(repeat, min(200, repeat * 2048**2 // (problem.n * problem.m)))


def measure(
    problem: Problem,
    names: Iterable[str],
    *,
    repeat: int,
    memory: bool = True,
    step: Callable[[str], None] = lambda what: None,
) -> Result:
    """All of one problem. `step` is told what was just done: once per provider, once per timed call, once per weighing.

    Raises WrongAnswer, before anything is timed, if fastcse itself fails or misses the accuracy rule.
    """
    # Functions compiled for the last problem count against a limit, past which torch.compile warns and runs eagerly.
    torch.compiler.reset()
    subject = subject_of(problem)
    if subject.measure is not None:
        return subject.measure(problem, names, repeat=repeat, step=step)
    inputs = subject.inputs(problem)
    truth = subject.exact(problem, *inputs)
    result, runs = Result(problem, repeat), {}
    for name in names:
        row, run = _prepare(subject, problem, name, inputs, truth)
        result.rows.append(row)
        if run is not None:
            runs[name] = run
        if name == "fastcse":
            result.backend = last_backend()
        step(name)
    _check_ourselves(subject, result)
    _time_all(subject, result, inputs, runs, step)
    # Once more: it may have failed since, beside the memory of the others.
    _check_ourselves(subject, result)
    for row in result.rows:
        if memory and row.status == "measured" and problem.n * problem.m >= SMALLEST_WEIGHED**2:
            _weigh(problem, row)
        step("memory")
    return result


def _prepare(subject: Subject, problem: Problem, name: str, inputs: tuple, truth: Any) -> tuple[Entry, Callable | None]:
    """A provider's row with what its answer misses, and its run where it has one."""
    peer = subject.peers[name]
    row = subject.row(peer.name, note=peer.note)
    if (absent := peer.missing()) is not None:
        row.status, row.reason = "absent", absent
        return row, None
    return row, _attempt(row, lambda: _verified(subject, problem, peer, inputs, truth, row))


def _verified(subject: Subject, problem: Problem, peer: Any, inputs: tuple, truth: Any, row: Entry) -> Callable:
    """A peer's run with its fastest choice; the choice and what its answer misses go into the row."""
    runs = {choice: subject.prepare(peer, problem, choice, inputs) for choice in peer.choices or (None,)}
    row.choice = _fastest(runs, clock(problem.device))
    subject.judge(row, peer, runs[row.choice](), truth)
    return runs[row.choice]


def _attempt(row: Entry, call: Callable) -> Any:
    """What `call` returns; or None, with the row saying what went wrong."""
    try:
        return call()
    except Unsuitable as why:
        row.status, row.reason = "unsuitable", str(why)
    except Exception as why:  # a peer's own failure is a finding about it, and must not end everybody's run
        row.status, row.reason = "failed", " ".join(f"{type(why).__name__}: {why}".split())[:200]
    return None


def _guarded(row: Entry, run: Callable) -> Callable[[], object]:
    """The run until it fails, then nothing."""
    return lambda: _attempt(row, run) if row.status == "measured" else None


def _weigh(problem: Problem, row: Entry) -> None:
    """Fill in memory. A failure to weigh takes nothing from the times."""
    weighing = Entry(row.provider)
    row.extra_mib = _attempt(weighing, lambda: extra_memory(problem, row.provider, row.choice))
    if weighing.reason:
        row.note = "; ".join(filter(None, (row.note, f"not weighed: {weighing.reason}")))


def _fastest(runs: dict[int | str | None, Callable], time_one: Callable) -> int | str | None:
    """The choice whose second call is quickest; the first warms up."""
    if len(runs) == 1:
        return next(iter(runs))
    return min(runs, key=lambda choice: (time_one(runs[choice]), time_one(runs[choice]))[1])


def _check_ourselves(subject: Subject, result: Result) -> None:
    ours = next((row for row in result.rows if row.provider == "fastcse"), None)
    if ours is not None and ours.status == "failed":
        raise subject.wrong(f"fastcse failed at {result.problem.title}: {ours.reason}")
    subject.check(result)


def _time_all(subject: Subject, result: Result, inputs: tuple, runs: dict[str, Callable], step: Callable) -> None:
    """Fill in times; the limit takes its turn like everybody and becomes the first row."""
    problem, least = result.problem, subject.limit_name
    everyone = {least: functools.partial(subject.limit(problem), *inputs)}
    everyone |= {name: _guarded(result.row(name), run) for name, run in runs.items()}
    everyone[least]()
    if torch.device(problem.device).type == "cuda":
        for run in everyone.values():  # whether it still runs beside the memory of the others
            run()
    seconds = take_turns(everyone, clock(problem.device), result.repeat, lambda: step("time"))
    limit = Seconds.of(seconds[least])
    result.rows.insert(0, subject.row(least, note=subject.limit_note(problem)))
    for row in result.rows:
        if row.status == "measured":
            taken = Seconds.of(seconds[row.provider])
            row.ms, row.ms_20, row.ms_80 = (1e3 * s for s in taken)
            row.to_products = taken.median / limit.median
            row.rate(problem)
