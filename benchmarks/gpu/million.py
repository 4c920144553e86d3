"""One step with a batch of 1,048,576: time, memory, and gradients of sampled anchors against float64.

python -m benchmarks.gpu.million --output FILE [--dry]
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import fastcse
from fastcse.bench.case import Result
from fastcse.bench.environment import environment
from fastcse.bench.loss import LossCase, LossMeasurement, plain_logits
from fastcse.bench.memory import MIB, peak_memory
from fastcse.bench.output import Document, write_results
from fastcse.bench.timing import clock

from .workload import call, parser, rows_of

SAMPLED = 32
STEPS = 3


def sampled_error(case: LossCase, anchor: Tensor, candidate: Tensor) -> float:
    """Relative error of some anchors' gradients: each needs its own row of similarities only."""
    index = torch.linspace(0, case.n - 1, min(SAMPLED, case.n), device=anchor.device).long()
    raw = anchor.detach()[index].double().requires_grad_()
    unit = F.normalize(candidate.detach().double(), dim=-1)
    logits = plain_logits(case, F.normalize(raw, dim=-1) @ unit.T, index)
    (F.cross_entropy(logits, index, reduction="sum") / case.n).backward()
    return ((anchor.grad[index].double() - raw.grad).norm() / raw.grad.norm()).item()


def measure(n: int, d: int, device: str) -> Result:
    """The focal loss, forward and backward. The frame verifies all of a batch, and this one is too large for that."""
    case = LossCase(n, n, d, loss="focal", dtype="bfloat16", device=device)
    call("gradients", *rows_of(min(n, 8192), d, case.dtype, device))()  # compiles
    anchor, candidate = rows_of(n, d, case.dtype, device)
    run, seconds = call("gradients", anchor, candidate), []
    peak = peak_memory(device)(lambda: seconds.extend(clock(device)(run) for _ in range(STEPS)))
    taken, gradients = statistics.median(seconds), anchor.nbytes + candidate.nbytes
    row = LossMeasurement("fastcse", note=f"error of {SAMPLED} sampled anchors' gradients", ms=1e3 * taken)
    row.rate(case)
    row.ms_20, row.ms_80 = 1e3 * min(seconds), 1e3 * max(seconds)
    row.extra_mib = None if peak is None or device == "cpu" else (peak - gradients) / MIB
    row.gradient_error = sampled_error(case, anchor, candidate)
    return Result(case, STEPS, fastcse.last_backend(), [row])


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser("million", __doc__).parse_args(argv)
    result = measure(32, 16, "cpu") if arguments.dry else measure(1 << 20, 768, "cuda")
    facts = environment(result.case.device)
    write_results(arguments.output, Document("python -m benchmarks.gpu.million", facts, [result]))
    row = result.row("fastcse")
    print(f"{result.case.title}: {row.ms / 1e3:.3g} s, gradient error {row.gradient_error:.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
