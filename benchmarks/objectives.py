"""What whole objectives cost beside InfoNCE, forward and backward, taken in turns in one run.

    python -m benchmarks.objectives hsimcse [--n 512 4096] [--d 768] [--bank 50000] [--repeat 7] [--output FILE]
    python -m benchmarks.objectives clusterns [--n 4096] [--d 768] [--clusters 128] [--repeat 15] [--output FILE]

Of hsimcse, "hinge alone" has its positive given; "whole" makes it, by the adversarial step; "search" is what the corpus
costs. Of clusterns, each loss stands beside its own error against float64, and no number is written where one is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastcse
from fastcse.bench.machine import machine
from fastcse.bench.output import write_json
from fastcse.bench.truth import Outcome, errors
from fastcse.bench.turns import Seconds, on_cpu, take_turns

# Relative; float32's own rounding of such a sum is a few times 1e-7.
MOST_ERROR = 1e-5
RESULTS = Path(__file__).parent / "results"


class WrongLoss(Exception):
    """A loss or its gradient is not what float64 says: nothing of this run may be written."""


class Parts(NamedTuple):
    """Name -> one call; and of those that are held against float64, name -> (errors of loss and of gradients)."""

    runs: dict[str, Callable[[], object]]
    errors: dict[str, tuple[float, float]]


def hsimcse(n: int, d: int, bank: int) -> Parts:
    """Every hinge is above 0: a hinge at rest costs less."""
    torch.manual_seed(0)
    anchor = torch.randn(n, d, requires_grad=True)
    candidate = (anchor.detach() + torch.randn(n, d)).requires_grad_()
    from_corpus, harder = torch.randn(n, d), candidate.detach() + torch.randn(n, d)
    negatives = fastcse.CorpusNegatives(fastcse.CorpusIndex(torch.randn(bank, d)))

    def hinge_alone(anchor: Tensor, candidate: Tensor) -> Tensor:
        infonce, stats = fastcse.infonce_loss(anchor, candidate, return_stats=True)
        rows = (anchor, harder, stats.hardest_index, from_corpus)
        return infonce + 0.22 * fastcse.quadruplet_loss(*rows, candidate=candidate, margin=2.0)

    losses = {
        "infonce": fastcse.infonce_loss,
        "infonce with statistics": lambda a, c: fastcse.infonce_loss(a, c, return_stats=True).loss,
        "hinge alone": hinge_alone,
        "whole": lambda a, c: fastcse.hsimcse_loss(a, c, from_corpus, margin=2.0),
    }
    runs = {name: _step(loss, anchor, candidate) for name, loss in losses.items()}
    runs |= {"adversarial step": lambda: fastcse.adversarial_positive(anchor, candidate),
             "search": lambda: negatives.rows(anchor)}  # fmt: skip
    return Parts(runs, {})


def clusterns(n: int, d: int, clusters: int) -> Parts:
    """Rows around K centres; with alpha = beta no similarity lies between them, so every pair of a cluster has a
    gradient."""
    torch.manual_seed(0)
    centres, index = torch.randn(clusters, d), torch.randint(clusters, (n,))
    anchor = (centres[index] + torch.randn(n, d)).requires_grad_()
    candidate = (anchor.detach() + 2 * torch.randn(n, d)).requires_grad_()
    second = fastcse.assign(anchor.detach(), centres, metric="cosine", second=True).index[:, 1]
    counts = second.bincount(minlength=clusters)

    def with_options(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda a, c: fastcse.clusterns_loss(a, c, index, centres.to(a.dtype), counts, alpha=0.0, beta=0.0,
                                                   **options)  # fmt: skip

    losses = {
        "infonce": fastcse.infonce_loss,
        "centroids alone": with_options(margin_weight=0.0),
        "whole": with_options(margin_weight=1e-3),
        "margin over active pairs": with_options(margin_weight=1.0, margin_reduction="active"),
    }
    found = {name: against_float64(name, loss, anchor, candidate) for name, loss in losses.items()}
    return Parts({name: _step(loss, anchor, candidate) for name, loss in losses.items()}, found)


OBJECTIVES = {"hsimcse": hsimcse, "clusterns": clusterns}


def _step(loss: Callable[[Tensor, Tensor], Tensor], anchor: Tensor, candidate: Tensor) -> Callable[[], Outcome]:
    def run() -> Outcome:
        anchor.grad = candidate.grad = None
        value = loss(anchor, candidate)
        value.backward()
        return Outcome(value.detach(), anchor.grad, candidate.grad)

    return run


def against_float64(name: str, loss: Callable[[Tensor, Tensor], Tensor], *rows: Tensor) -> tuple[float, float]:
    """Relative errors of loss and gradients beside the same function of float64 rows, which plain torch computes."""
    exact = _step(loss, *(x.detach().double().requires_grad_() for x in rows))()
    found = errors(_step(loss, *rows)(), exact)
    if not max(found) <= MOST_ERROR:
        raise WrongLoss(f"{name} misses float64 by {found.loss:.1e} (loss) and {found.gradient:.1e} (gradients): "
                        f"expected at most {MOST_ERROR:g}; nothing is written")  # fmt: skip
    return found


def measure(objective: str, n: int, d: int, third: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of every part, and their ratio to InfoNCE; `third` is the bank or the number of clusters."""
    parts = OBJECTIVES[objective](n, d, third)
    for run in parts.runs.values():
        run()
    found = {name: Seconds.of(times) for name, times in take_turns(parts.runs, on_cpu, repeat, lambda: None).items()}
    base = found["infonce"].median
    rows = [{"part": name, "ms": 1e3 * s.median, "ms_20": 1e3 * s.low, "ms_80": 1e3 * s.high,
             "to_infonce": s.median / base} for name, s in found.items()]  # fmt: skip
    for row in rows:
        if row["part"] in parts.errors:
            row["loss_error"], row["gradient_error"] = parts.errors[row["part"]]
    size = "bank" if objective == "hsimcse" else "clusters"
    return {"n": n, "d": d, size: third, "repeat": repeat, "rows": rows}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__.splitlines()[0])
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("--n", type=int, nargs="*")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--clusters", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--output", type=Path, help="by default in benchmarks/results")
    return parser.parse_args()


def main() -> None:
    a = _parse()
    third, counted = (a.bank, "in the bank") if a.objective == "hsimcse" else (a.clusters, "clusters")
    results = []
    for n in a.n or ([64, 512, 4096] if a.objective == "hsimcse" else [4096]):
        results.append(measure(a.objective, n, a.d, third, a.repeat))
        print(f"{a.objective}, N = {n}, D = {a.d}, {third:,} {counted}")
        for row in results[-1]["rows"]:
            missed = f"  gradient error {row['gradient_error']:.1e}" if "gradient_error" in row else ""
            print(f"  {row['part']:<24} {row['ms']:9.2f} ms  {row['to_infonce']:6.2f} x infonce{missed}")
    write_json(a.output or RESULTS / f"{a.objective}_cpu.json",
               {"command": " ".join(["python -m benchmarks.objectives", *sys.argv[1:]]), "machine": machine("cpu"),
                "results": results})  # fmt: skip


if __name__ == "__main__":
    main()
