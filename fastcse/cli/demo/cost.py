"""What the focal loss costs here and now, fused and eager: time and memory of forward and backward together.

The fused loss makes its gradients in the forward, so only the sum of the two directions can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from tqdm.auto import tqdm

from ...bench.data import make_rows
from ...bench.loss import Row
from ...bench.measure import measure
from ...bench.peers import PEERS
from ...bench.problem import LossProblem
from ...bench.runs import outcome_of

# fused, eager, and the bare products that everyone is measured beside.
PROVIDERS, TIMED = ("fastcse", "eager"), 3


@dataclass(frozen=True)
class LossCost:
    """Medians over `repeats`, taken in turns. Memory is the peak beyond inputs and gradients; None where the system
    does not tell it, or the rows are too few for it to be told from the process's own."""

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


def loss_cost(rows: int, width: int, *, repeats: int, backend: str | None, device: str, seed: int = 0) -> LossCost:
    """Time both in turns in this process, and the memory of each in a process of its own."""
    problem = LossProblem(rows, rows, width, "focal", device=device, seed=seed, backend=backend)
    steps = len(PROVIDERS) + TIMED * (repeats + 1)
    with tqdm(total=steps, desc="measure the loss", unit=" runs", dynamic_ncols=True) as progress:
        result = measure(problem, PROVIDERS, repeat=repeats, step=lambda what: progress.update())
    fused, eager = (result.row(name) for name in PROVIDERS)
    loss_difference, gradient_difference = _differences(problem)
    return LossCost(
        rows=rows, width=width, device=device, backend=result.backend, repeats=repeats,
        fused_ms=round(fused.ms, 2), eager_ms=round(eager.ms, 2), fused_mib=_mib(fused), eager_mib=_mib(eager),
        loss_difference=loss_difference, gradient_difference=gradient_difference,
    )  # fmt: skip


def _mib(row: Row) -> float | None:
    return None if row.extra_mib is None else round(row.extra_mib, 1)


def _differences(problem: LossProblem) -> tuple[float, float]:
    anchor, candidate = make_rows(problem)
    fused, eager = (outcome_of(problem, PEERS[name].loss(problem), anchor, candidate) for name in PROVIDERS)
    gradient = (fused.anchor_grad - eager.anchor_grad).abs().max() / eager.anchor_grad.abs().max()
    return abs(fused.loss.item() - eager.loss.item()), gradient.item()
