"""What the focal loss costs here and now, fused and eager: time and memory of forward and backward together.

The fused loss makes its gradients in the forward, so only the sum of the two directions can be compared.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ...losses.focal import focal_infonce_loss
from ...ops.dispatch import last_backend

TEMPERATURE, MARGIN = 0.05, 0.3
IMPLEMENTATIONS = ("fused", "eager")
MIB = 2**20


@dataclass(frozen=True)
class LossCost:
    """Medians over `repeats`, taken in turns. Memory is the peak beyond inputs and gradients; None where the system
    does not tell it."""

    rows: int
    width: int
    device: str
    backend: str | None
    repeats: int
    fused_ms: float
    eager_ms: float
    fused_mib: float | None
    eager_mib: float | None
    loss_difference: float  # |fused - eager|
    gradient_difference: float  # largest, relative to the largest gradient


def measure(rows: int, width: int, *, repeats: int, backend: str | None, device: str, seed: int = 0) -> LossCost:
    """Time both implementations in turns in this process, and the memory of each in a process of its own."""
    anchor, candidate = make_inputs(rows, width, device, seed)
    runs = {name: _run(name, backend) for name in IMPLEMENTATIONS}
    results = {name: run(anchor, candidate) for name, run in runs.items()}  # also the warm-up
    used = results["fused"][2]
    seconds = {name: [] for name in runs}
    with tqdm(total=(repeats + 1) * len(runs), desc="measure the loss", unit=" runs", dynamic_ncols=True) as progress:
        for repeat in range(repeats):
            # Whoever runs second finds warmer caches, so the order alternates.
            for name in IMPLEMENTATIONS if repeat % 2 else reversed(IMPLEMENTATIONS):
                seconds[name].append(_time(runs[name], anchor, candidate))
                progress.update()
        memory = {}
        for name in IMPLEMENTATIONS:
            memory[name] = _memory(name, rows, width, backend, device)
            progress.update()
    (fused_loss, fused_gradient, _), (eager_loss, eager_gradient, _) = results["fused"], results["eager"]
    return LossCost(
        rows=rows, width=width, device=device, backend=used, repeats=repeats,
        fused_ms=round(1000 * statistics.median(seconds["fused"]), 2),
        eager_ms=round(1000 * statistics.median(seconds["eager"]), 2),
        fused_mib=memory["fused"],
        eager_mib=memory["eager"],
        loss_difference=abs(fused_loss - eager_loss),
        gradient_difference=float((fused_gradient - eager_gradient).abs().max() / eager_gradient.abs().max()),
    )  # fmt: skip


def make_inputs(rows: int, width: int, device: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (rows, width) float32 matrices that want gradients; a pair's cosine is about 0.7, so the loss is not 0."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(rows, width, generator=generator)
    candidate = anchor + torch.randn(rows, width, generator=generator)
    return anchor.to(device).requires_grad_(), candidate.to(device).requires_grad_()


def eager_focal_loss(anchor: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """The same loss in plain torch, as one would write it by hand: normalise, one product, cross-entropy."""
    s = F.normalize(anchor, dim=1) @ F.normalize(candidate, dim=1).T  # (N, N)
    weight = s + MARGIN
    weight.diagonal().sub_(MARGIN)
    return F.cross_entropy(s * weight / TEMPERATURE, torch.arange(len(s), device=s.device))


def fused_focal_loss(anchor: torch.Tensor, candidate: torch.Tensor, backend: str | None) -> torch.Tensor:
    return focal_infonce_loss(anchor, candidate, temperature=TEMPERATURE, margin=MARGIN, backend=backend)


def _run(name: str, backend: str | None) -> Callable[[torch.Tensor, torch.Tensor], tuple]:
    """One forward and backward -> (loss, gradient of the anchors, backend)."""

    def run(anchor: torch.Tensor, candidate: torch.Tensor) -> tuple[float, torch.Tensor, str | None]:
        anchor.grad = candidate.grad = None
        loss = fused_focal_loss(anchor, candidate, backend) if name == "fused" else eager_focal_loss(anchor, candidate)
        loss.backward()
        if anchor.is_cuda:
            torch.cuda.synchronize()
        return loss.item(), anchor.grad, last_backend() if name == "fused" else None

    return run


def _time(run: Callable, anchor: torch.Tensor, candidate: torch.Tensor) -> float:
    start = time.perf_counter()
    run(anchor, candidate)
    return time.perf_counter() - start


def _memory(name: str, rows: int, width: int, backend: str | None, device: str) -> float | None:
    """Peak MiB beyond inputs and gradients, from a fresh process: memory that another run has freed would hide it."""
    arguments = [name, rows, width, backend or "", device, torch.get_num_threads()]
    command = [sys.executable, "-m", "fastcse.cli.demo.cost", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(name: str, rows: int, width: int, backend: str | None, device: str) -> float | None:
    """The measurement itself, in the process that makes it."""
    anchor, candidate = make_inputs(rows, width, device, seed=0)
    small = [x[:64].detach().requires_grad_() for x in (anchor, candidate)]
    run = _run(name, backend)
    run(*small)  # what is loaded and allocated once is not the loss's
    gradients = 2 * rows * width * 4
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(anchor, candidate)
        return round((torch.cuda.max_memory_allocated() - before - gradients) / MIB, 1)
    before = _reset_peak()
    if before is None:
        return None
    run(anchor, candidate)
    return round(max(0, _status("VmHWM") - before - gradients) / MIB, 1)


def _reset_peak() -> int | None:
    """Bytes resident now, after setting the peak to them; None where the system cannot (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    name, rows, width, backend, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(peak_memory(name, int(rows), int(width), backend or None, device)))
