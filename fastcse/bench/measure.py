"""One case, every provider: built, verified against float64, timed interleaved, and its memory measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..ops.dispatch import last_backend
from .case import Case, Measurement, Result
from .memory import SMALLEST, extra_memory
from .provider import Provider, Unsupported
from .timing import Seconds, clock, interleave

Step = Callable[[str], None]


def rounds(case: Case, repeat: int) -> int:
    """Rounds at this size: small cases take more, since a median of few short calls is noise."""
    if case.measure is not None:
        return repeat
    on_cuda = torch.device(case.device).type == "cuda"
    most, at = (50, 16384) if on_cuda else (200, 2048)
    return max(repeat, min(most, repeat * at**2 // (case.n * case.m)))


def measure(
    case: Case, providers: Iterable[Provider], *, repeat: int, memory: bool = True, step: Step = lambda what: None
) -> Result:
    """All of one case. `step` is called with what was just done: once per provider, per timed call, per memory.

    Raises WrongAnswer, before anything is timed, if fastcse itself fails or misses the accuracy rule.
    """
    # Functions compiled for the last case count against a limit, past which torch.compile warns and runs eagerly.
    torch.compiler.reset()
    if case.measure is not None:
        return case.measure(providers, repeat=repeat, step=step)
    inputs = case.inputs()
    exact = case.exact(*inputs)
    known = {provider.name: provider for provider in providers}
    result, runs = Result(case, repeat), {}
    for provider in known.values():
        row = case.row(provider.name, note=provider.note)
        result.rows.append(row)
        if (absent := provider.missing()) is not None:
            row.status, row.reason = "absent", absent
        elif run := attempt(row, lambda p=provider, r=row: _verified(case, p, inputs, exact, r)):
            runs[provider.name] = run
        if provider.name == case.ours:
            result.backend = last_backend()
        step(provider.name)
    result.check()
    _time_all(result, inputs, runs, step)
    # Once more: it may have failed since, beside the memory of the others.
    result.check()
    for row in result.rows:
        if memory and row.status == "measured" and case.n * case.m >= SMALLEST**2:
            _measure_memory(case, known.get(row.provider), row)
        step("memory")
    return result


def _verified(case: Case, provider: Provider, inputs: tuple, exact: Any, row: Measurement) -> Callable:
    """A provider's call with its fastest configuration, which is written into the row beside the outcome's errors."""
    calls = {config: case.call(provider, config, inputs) for config in provider.configs or (None,)}
    row.choice = _fastest(calls, clock(case.device))
    case.score(row, provider, calls[row.choice](), exact)
    return calls[row.choice]


def attempt(row: Measurement, call: Callable) -> Any:
    """What `call` returns; or None, and the row says what went wrong."""
    try:
        return call()
    except Unsupported as why:
        row.status, row.reason = "unsuitable", str(why)
    except Exception as why:  # a peer's own failure is a finding about it, and must not end everybody's run
        row.status, row.reason = "failed", " ".join(f"{type(why).__name__}: {why}".split())[:200]
    return None


def _fastest(calls: dict[int | str | None, Callable], time_one: Callable) -> int | str | None:
    """The configuration whose second call is quickest; the first warms up."""
    if len(calls) == 1:
        return next(iter(calls))
    return min(calls, key=lambda config: (time_one(calls[config]), time_one(calls[config]))[1])


def _time_all(result: Result, inputs: tuple, calls: dict[str, Callable], step: Step) -> None:
    """Fill in times; the lower bound is timed like a provider and becomes the first row."""
    case, bound = result.case, result.case.lower_bound_name

    def guarded(row: Measurement, call: Callable) -> Callable:
        """The call until it fails, then nothing."""
        return lambda: attempt(row, call) if row.status == "measured" else None

    runs = {bound: functools.partial(case.lower_bound(), *inputs)}
    runs |= {name: guarded(result.row(name), call) for name, call in calls.items()}
    runs[bound]()
    if torch.device(case.device).type == "cuda":
        for run in runs.values():  # whether it still runs beside the memory of the others
            run()
    seconds = interleave(runs, clock(case.device), result.repeat, lambda: step("time"))
    result.rows.insert(0, case.row(bound, note=case.lower_bound_note))
    fill_times(result, seconds)


def fill_times(result: Result, seconds: dict[str, list[float]]) -> None:
    """Write medians, quantiles and what follows from them into the measured rows."""
    found = result.measured
    least = found.get(result.case.lower_bound_name)
    for row in found.values():
        row.ms, row.ms_20, row.ms_80 = (1e3 * s for s in Seconds.of(seconds[row.provider]))
    for row in found.values():
        row.to_products = None if least is None else row.ms / least.ms
        row.rate(result.case)


def _measure_memory(case: Case, provider: Provider | None, row: Measurement) -> None:
    """Fill in memory. A failure takes nothing from the times."""
    trial = Measurement(row.provider)
    row.extra_mib = attempt(trial, lambda: extra_memory(case, provider, row.choice))
    if trial.reason:
        row.note = "; ".join(filter(None, (row.note, f"memory not measured: {trial.reason}")))
