"""One step with a batch of 1,048,576: time, memory, and gradients of sampled anchors against float64.

python -m benchmarks.gpu.million --output FILE [--dry]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastcse
from fastcse.bench.problem import LossProblem, plain_logits
from fastcse.bench.turns import clock

from .work import call, rows_of

GIB = 1 << 30
SAMPLED = 32


def sampled_error(problem: LossProblem, anchor: Tensor, candidate: Tensor) -> float:
    """Relative error of some anchors' gradients: each needs its own row of similarities only."""
    index = torch.linspace(0, problem.n - 1, min(SAMPLED, problem.n), device=anchor.device).long()
    raw = anchor.detach()[index].double().requires_grad_()
    unit = F.normalize(candidate.detach().double(), dim=-1)
    logits = plain_logits(problem, F.normalize(raw, dim=-1) @ unit.T, index)
    (F.cross_entropy(logits, index, reduction="sum") / problem.n).backward()
    return ((anchor.grad[index].double() - raw.grad).norm() / raw.grad.norm()).item()


def measure(n: int, d: int, device: str) -> dict:
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
    seconds = [clock(device)(run) for _ in range(2)]
    peak = torch.cuda.max_memory_allocated() - before if on_device else None
    return {
        "n": n, "d": d, "dtype": dtype, "backend": fastcse.last_backend(), "seconds": min(seconds),
        "tflops": problem.flops / min(seconds) / 1e12,
        "peak_gib_beyond_inputs": None if peak is None else peak / GIB,
        "sampled_gradient_error": sampled_error(problem, anchor, candidate),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.million", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    result = measure(96, 48, "cpu") if arguments.dry else measure(1 << 20, 768, "cuda")
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
