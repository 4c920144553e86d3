"""What HSimCSE's parts cost beside InfoNCE, forward and backward, taken in turns in one run.

    python -m benchmarks.hsimcse [--n 512 4096] [--d 768] [--bank 50000] [--repeat 7] [--output FILE]

"hinge alone" has its positive given; "whole" makes it, by the adversarial step; "search" is what the corpus costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastcse
from fastcse.bench.machine import machine
from fastcse.bench.turns import Seconds, on_cpu, take_turns


def parts(n: int, d: int, bank: int) -> dict[str, Callable[[], object]]:
    """Name -> one call. Every hinge is above 0: a hinge at rest costs less."""
    torch.manual_seed(0)
    anchor = torch.randn(n, d, requires_grad=True)
    candidate = (anchor.detach() + torch.randn(n, d)).requires_grad_()
    from_corpus, harder = torch.randn(n, d), candidate.detach() + torch.randn(n, d)
    negatives = fastcse.CorpusNegatives(fastcse.CorpusIndex(torch.randn(bank, d)))

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            anchor.grad = candidate.grad = None
            loss().backward()

        return run

    def hinge_alone() -> Tensor:
        infonce, stats = fastcse.infonce_loss(anchor, candidate, return_stats=True)
        rows = (anchor, harder, stats.hardest_index, from_corpus)
        return infonce + 0.22 * fastcse.quadruplet_loss(*rows, candidate=candidate, margin=2.0)

    return {
        "infonce": step(lambda: fastcse.infonce_loss(anchor, candidate)),
        "infonce with statistics": step(lambda: fastcse.infonce_loss(anchor, candidate, return_stats=True).loss),
        "hinge alone": step(hinge_alone),
        "whole": step(lambda: fastcse.hsimcse_loss(anchor, candidate, from_corpus, margin=2.0)),
        "adversarial step": lambda: fastcse.adversarial_positive(anchor, candidate),
        "search": lambda: negatives.rows(anchor),
    }


def measure(n: int, d: int, bank: int, repeat: int) -> dict:
    """Milliseconds of every part, and their ratio to InfoNCE."""
    runs = parts(n, d, bank)
    for run in runs.values():
        run()
    found = {name: Seconds.of(times) for name, times in take_turns(runs, on_cpu, repeat, lambda: None).items()}
    base = found["infonce"].median
    rows = [{"part": name, "ms": 1e3 * s.median, "ms_20": 1e3 * s.low, "ms_80": 1e3 * s.high,
             "to_infonce": s.median / base} for name, s in found.items()]  # fmt: skip
    return {"n": n, "d": d, "bank": bank, "repeat": repeat, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hsimcse", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="*", default=[64, 512, 4096])
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "hsimcse_cpu.json")
    a = parser.parse_args()
    results = []
    for n in a.n:
        results.append(measure(n, a.d, a.bank, a.repeat))
        print(f"N = {n}, D = {a.d}, bank of {a.bank:,}")
        for row in results[-1]["rows"]:
            print(f"  {row['part']:<24} {row['ms']:9.2f} ms  {row['to_infonce']:6.2f} x infonce")
    document = {"command": "python -m benchmarks.hsimcse", "machine": machine("cpu"), "results": results}
    a.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
