"""What whole objectives cost beside InfoNCE, forward and backward, timed in turns in one run.

    python -m benchmarks.studies.objectives hsimcse [--n 512 4096] [--d 768] [--bank 50000] [--repeat 7]
    python -m benchmarks.studies.objectives clusterns [--n 4096] [--d 768] [--clusters 128] [--repeat 15]

Of hsimcse, "hinge alone" has its positive given; "whole" makes it, by the adversarial step; "search" is the cost of the
corpus. Of clusterns, each loss stands beside its error against float64, and nothing is written where one is wrong.
Writes benchmarks/results/<objective>_cpu.json, or the file of `--output`.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastcse
from fastcse.bench.accuracy import Outcome, errors, run_once
from fastcse.bench.case import WrongAnswer
from fastcse.bench.environment import environment
from fastcse.bench.timing import Seconds, interleave, on_cpu
from fastcse.files import write_json

# Relative; float32's own rounding of such a sum is a few times 1e-7.
MOST_ERROR = 1e-5
RESULTS = Path(__file__).resolve().parents[1] / "results"
Loss = Callable[[Tensor, Tensor], Tensor]
# Part -> its call and, where it is held against float64, the errors of its loss and gradients.
Parts = dict[str, tuple[Callable[[], object], tuple[float, float] | None]]


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

    losses: dict[str, Loss] = {
        "infonce": fastcse.infonce_loss,
        "infonce with statistics": lambda a, c: fastcse.infonce_loss(a, c, return_stats=True).loss,
        "hinge alone": hinge_alone,
        "whole": lambda a, c: fastcse.hsimcse_loss(a, c, from_corpus, margin=2.0),
    }
    parts: Parts = {name: (step(loss, anchor, candidate), None) for name, loss in losses.items()}
    parts["adversarial step"] = (lambda: fastcse.adversarial_positive(anchor, candidate), None)
    parts["search"] = (lambda: negatives.rows(anchor), None)
    return parts


def clusterns(n: int, d: int, clusters: int) -> Parts:
    """Rows around K centres; with alpha = beta no similarity lies between them, so every pair of a cluster has a
    gradient."""
    torch.manual_seed(0)
    centres, index = torch.randn(clusters, d), torch.randint(clusters, (n,))
    anchor = (centres[index] + torch.randn(n, d)).requires_grad_()
    candidate = (anchor.detach() + 2 * torch.randn(n, d)).requires_grad_()
    second = fastcse.assign(anchor.detach(), centres, metric="cosine", second=True).index[:, 1]
    counts = second.bincount(minlength=clusters)

    def with_options(**options: Any) -> Loss:
        options |= {"alpha": 0.0, "beta": 0.0}
        return lambda a, c: fastcse.clusterns_loss(a, c, index, centres.to(a.dtype), counts, **options)

    losses: dict[str, Loss] = {
        "infonce": fastcse.infonce_loss,
        "centroids alone": with_options(margin_weight=0.0),
        "whole": with_options(margin_weight=1e-3),
        "margin over active pairs": with_options(margin_weight=1.0, margin_reduction="active"),
    }
    return {
        name: (step(loss, anchor, candidate), against_float64(name, loss, anchor, candidate))
        for name, loss in losses.items()
    }


def step(loss: Loss, anchor: Tensor, candidate: Tensor) -> Callable[[], Outcome]:
    """One forward and backward, with fresh gradients."""
    return functools.partial(run_once, loss, (anchor, candidate))


def against_float64(name: str, loss: Loss, *rows: Tensor) -> tuple[float, float]:
    """Relative errors of loss and gradients beside the same function of float64 rows, which plain torch computes."""
    exact = step(loss, *(x.detach().double().requires_grad_() for x in rows))()
    found = errors(step(loss, *rows)(), exact)
    if not max(found) <= MOST_ERROR:
        raise WrongAnswer(
            f"{name} misses float64 by {found[0]:.1e} (loss) and {found[1]:.1e} (gradients): "
            f"expected at most {MOST_ERROR:g}; nothing is written"
        )
    return found


def measure(objective: str, n: int, d: int, size: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of every part, and their ratio to InfoNCE; `size` is that of the bank, or the number of clusters."""
    make, counted = OBJECTIVES[objective]
    parts = make(n, d, size)
    runs = {name: run for name, (run, _) in parts.items()}
    for run in runs.values():
        run()
    found = {name: Seconds.of(times) for name, times in interleave(runs, on_cpu, repeat).items()}
    rows = []
    for name, (median, low, high) in found.items():
        row = {"part": name, "ms": 1e3 * median, "ms_20": 1e3 * low, "ms_80": 1e3 * high}
        row["to_infonce"] = median / found["infonce"].median
        if (missed := parts[name][1]) is not None:
            row["loss_error"], row["gradient_error"] = missed
        rows.append(row)
    return {"n": n, "d": d, counted: size, "repeat": repeat, "rows": rows}


OBJECTIVES = {"hsimcse": (hsimcse, "bank"), "clusterns": (clusterns, "clusters")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.objectives")
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("--n", type=int, nargs="*")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--clusters", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--output", type=Path, help="by default in benchmarks/results")
    a = parser.parse_args()
    size, counted = (a.bank, "in the bank") if a.objective == "hsimcse" else (a.clusters, "clusters")
    results = []
    for n in a.n or ([64, 512, 4096] if a.objective == "hsimcse" else [4096]):
        results.append(measure(a.objective, n, a.d, size, a.repeat))
        print(f"{a.objective}, N = {n}, D = {a.d}, {size:,} {counted}")
        for row in results[-1]["rows"]:
            missed = f"  gradient error {row['gradient_error']:.1e}" if "gradient_error" in row else ""
            print(f"  {row['part']:<24} {row['ms']:9.2f} ms  {row['to_infonce']:6.2f} x infonce{missed}")
    command = " ".join(["python -m benchmarks.studies.objectives", *sys.argv[1:]])
    report = {"command": command, "machine": environment("cpu"), "results": results}
    write_json(a.output or RESULTS / f"{a.objective}_cpu.json", report)


if __name__ == "__main__":
    main()
