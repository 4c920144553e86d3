"""Time, memory and accuracy of the focal loss beside eager, torch.compile and three bare matrix products.

    python -m benchmarks.loss [--n 8192 --d 768] [--repeat 7] [--output benchmarks/results/loss_cpu.json]

Providers take turns (ABAB), so that a slow moment of the machine hits all of them; medians are compared, never times
of different runs. Accuracy is taken in the same run, against the formula in float64.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastcse

from .providers import focal_formula, make_inputs, providers

MIB = 1 << 20


def take_turns(n: int, d: int, repeat: int, show: Progress | None = None) -> dict[str, list[float]]:
    """Seconds of every provider in `repeat` rounds, after one warm-up round."""
    anchor, candidate = make_inputs(n, d)
    everyone = providers()
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    task = show.add_task(f"N = {n}, D = {d}", total=(repeat + 1) * len(everyone)) if show else None
    for round_ in range(repeat + 1):
        for name, run in everyone.items():
            start = time.perf_counter()
            run(anchor, candidate)
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
            if show:
                show.advance(task)
    return seconds


def accuracy(n: int, d: int) -> dict[str, tuple[float, float]]:
    """Relative error of the loss, and of the gradients (largest of both, by norm), of each provider in float32."""
    anchor, candidate = make_inputs(n, d)
    exact = [x.detach().double().requires_grad_() for x in (anchor, candidate)]
    truth = focal_formula(*exact)
    truth.backward()
    errors = {}
    for name, run in providers().items():
        if name == "three products":
            continue
        value = run(anchor, candidate).double()
        pairs = ((anchor, exact[0]), (candidate, exact[1]))
        gradient = max(((x.grad.double() - y.grad).norm() / y.grad.norm()).item() for x, y in pairs)
        errors[name] = (abs((value - truth.detach()) / truth.detach()).item(), gradient)
    return errors


def extra_memory(name: str, n: int, d: int) -> float | None:
    """Peak MiB beyond inputs and gradients, in a process of its own: what another run has freed would hide it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, n, d))


def _peak(name: str, n: int, d: int) -> float | None:
    run = providers()[name]
    anchor, candidate = make_inputs(n, d)
    small = make_inputs(256, d)
    run(*small)  # what is loaded and allocated once is not the loss's
    if name == "torch.compile":
        run(anchor, candidate)  # compiles for this shape; the peak is reset below
    anchor.grad = candidate.grad = None
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None  # only Linux tells
    before = _status("VmRSS")
    run(anchor, candidate)
    return (_status("VmHWM") - before - 2 * n * d * 4) / MIB


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def machine() -> dict[str, str]:
    """Where the numbers come from."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "threads": str(torch.get_num_threads()),
        "isa": fastcse.backends()["cpp"].reason,
        "torch": torch.__version__,
        "fastcse": fastcse.__version__,
        "commit": commit.stdout.strip(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def measure(n: int, d: int, repeat: int, show: Progress | None, memory: bool) -> dict:
    """Everything about one size."""
    seconds = take_turns(n, d, repeat, show)
    limit = statistics.median(seconds["three products"])
    errors = accuracy(n, d)
    rows = {}
    for name, times in seconds.items():
        quantiles = statistics.quantiles(times, n=5, method="inclusive")
        median = statistics.median(times)
        rows[name] = {
            "ms": 1e3 * median, "ms_20": 1e3 * quantiles[0], "ms_80": 1e3 * quantiles[3], "to_products": median / limit,
            "gflops": 6 * n * n * d / median / 1e9, "loss_error": errors.get(name, (None, None))[0],
            "gradient_error": errors.get(name, (None, None))[1],
            "extra_mib": extra_memory(name, n, d) if memory else None,
        }  # fmt: skip
    if rows["fastcse"]["gradient_error"] > 2 * rows["eager"]["gradient_error"] + 1e-6:
        raise SystemExit(f"fastcse's gradients are wrong at N = {n}, D = {d}: nothing is reported; run the tests")
    return {"n": n, "d": d, "repeat": repeat, "backend": fastcse.last_backend(), "providers": rows}


def table(result: dict) -> Table:
    """One size as a table."""
    out = Table(title=f"focal InfoNCE, forward + backward, float32, N = {result['n']}, D = {result['d']}")
    for name in ("provider", "ms", "20% - 80%", "x products", "GFLOP/s at 6 N^2 D", "loss error", "gradient error",
                 "MiB extra"):  # fmt: skip
        out.add_column(name, justify="left" if name == "provider" else "right")
    for name, row in result["providers"].items():
        shown = [f"{row[key]:.1e}" if row[key] is not None else "-" for key in ("loss_error", "gradient_error")]
        memory = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
        spread = f"{row['ms_20']:.4g} - {row['ms_80']:.4g}"
        out.add_row(
            name, f"{row['ms']:.4g}", spread, f"{row['to_products']:.2f}", f"{row['gflops']:.0f}", *shown, memory
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="*", default=[64, 512, 2048, 8192])
    parser.add_argument("--d", type=int, nargs="*", default=[384, 768, 768, 768])
    parser.add_argument("--repeat", type=int, default=7, help="rounds at the largest size; smaller ones take more")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # A pipe has no width: give the table the room it needs.
    console, results = Console(width=None if sys.stdout.isatty() else 130), []
    with Progress(console=Console(stderr=True)) as show:
        for n, d in zip(arguments.n, arguments.d):
            repeat = max(arguments.repeat, min(200, int(arguments.repeat * (4096 / n) ** 2)))
            results.append(measure(n, d, repeat, show, memory=n >= 2048))
    for result in results:
        console.print(table(result))
    if arguments.output:
        report = {
            "machine": machine(),
            "command": " ".join(["python -m benchmarks.loss", *sys.argv[1:]]),
            "results": results,
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
