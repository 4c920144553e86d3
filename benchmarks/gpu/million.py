"""One step with a batch of 1,048,576: time, memory, and gradients of sampled anchors against float64.

python -m benchmarks.gpu.million --output FILE [--dry]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastcse
from fastcse.bench.loss import Row
from fastcse.bench.machine import machine
from fastcse.bench.memory import MIB
from fastcse.bench.output import Files
from fastcse.bench.problem import LossProblem, plain_logits
from fastcse.bench.subject import Result
from fastcse.bench.turns import clock

from .work import call, rows_of

SAMPLED = 32
STEPS = 3


def sampled_error(problem: LossProblem, anchor: Tensor, candidate: Tensor) -> float:
    """Relative error of some anchors' gradients: each needs its own row of similarities only."""
    index = torch.linspace(0, problem.n - 1, min(SAMPLED, problem.n), device=anchor.device).long()
    raw = anchor.detach()[index].double().requires_grad_()
    unit = F.normalize(candidate.detach().double(), dim=-1)
    logits = plain_logits(problem, F.normalize(raw, dim=-1) @ unit.T, index)
    (F.cross_entropy(logits, index, reduction="sum") / problem.n).backward()
    return ((anchor.grad[index].double() - raw.grad).norm() / raw.grad.norm()).item()


def measure(n: int, d: int, device: str) -> Result:
    """The focal loss, forward and backward."""
    dtype = "bfloat16"
    call("gradients", *rows_of(min(n, 8192), d, dtype, device))()  # compiles
    anchor, candidate = rows_of(n, d, dtype, device)
    problem = LossProblem(n, n, d, loss="focal", dtype=dtype, device=device)
    run, on_device = call("gradients", anchor, candidate), device != "cpu"
    if on_device:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = [clock(device)(run) for _ in range(STEPS)]
    peak = torch.cuda.max_memory_allocated() - before if on_device else None
    taken, gradients = statistics.median(seconds), anchor.nbytes + candidate.nbytes
    row = Row(
        "fastcse", ms=1e3 * taken, ms_20=1e3 * min(seconds), ms_80=1e3 * max(seconds),
        tflops=problem.flops / taken / 1e12, extra_mib=None if peak is None else (peak - gradients) / MIB,
        gradient_error=sampled_error(problem, anchor, candidate), note=f"error of {SAMPLED} sampled anchors' gradients",
    )  # fmt: skip
    return Result(problem, len(seconds), fastcse.last_backend(), [row])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.million", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    result = measure(96, 48, "cpu") if arguments.dry else measure(1 << 20, 768, "cuda")
    facts = machine(result.problem.device)
    Files(arguments.output, None, facts, "python -m benchmarks.gpu.million").write([result])
    row = result.row("fastcse")
    print(f"{result.problem.title}: {row.ms / 1e3:.3g} s, gradient error {row.gradient_error:.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
