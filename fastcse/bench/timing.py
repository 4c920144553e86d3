"""Interleaved timing: every provider once, then again in the opposite order (ABBA), so that a slow moment of the
machine is in the times of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

Call = Callable[[], object]


class Seconds(NamedTuple):
    """Median, and the 0.2 and 0.8 quantiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: list[float]) -> Seconds:
        return cls(*np.quantile(times, (0.5, 0.2, 0.8)).tolist())


def on_cpu(run: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def on_cuda(run: Call) -> float:
    """Seconds of one call on the device, by events: the host's launches count only where the device waits for them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def clock(device: str) -> Callable[[Call], float]:
    """The timer for a device."""
    return on_cuda if torch.device(device).type == "cuda" else on_cpu


def interleave(
    runs: Mapping[str, Call], time_one: Callable[[Call], float], repeat: int, step: Call = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every provider in `repeat` rounds, each in the opposite order of the one before. Warm them up first.

    `step` is called after each timed call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeat):
        for name in runs if round_ % 2 == 0 else reversed(runs):
            seconds[name].append(time_one(runs[name]))
            step()
    return seconds
