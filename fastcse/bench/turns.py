"""Timing in turns: every provider once, then again (ABAB), so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Seconds(NamedTuple):
    """Median, and the 0.2 and 0.8 quantiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: list[float]) -> Seconds:
        if len(times) == 1:
            return cls(times[0], times[0], times[0])
        fifths = statistics.quantiles(times, n=5, method="inclusive")
        return cls(statistics.median(times), fifths[0], fifths[3])


def on_cpu(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def on_cuda(run: Callable[[], object]) -> float:
    """Seconds of one call on the device, by events: the host's launches count only where the device waits for them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def clock(device: str) -> Callable[[Callable[[], object]], float]:
    """The timer for a device."""
    return on_cuda if torch.device(device).type == "cuda" else on_cpu


def take_turns(
    runs: Mapping[str, Callable[[], object]], time_one: Callable, repeat: int, step: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of every provider in `repeat` rounds; whoever went first goes last in the next. Warm them up before."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for round_ in range(repeat):
        for name in names if round_ % 2 == 0 else reversed(names):
            seconds[name].append(time_one(runs[name]))
            step()
    return seconds
