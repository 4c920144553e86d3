"""One command for a machine with a GPU, under 9 minutes: correctness first, then tables, search and counters.

    python -m benchmarks.gpu [--stage tests loss] [--again] [--dry] [--wheels DIR] [--minutes 9]

Needs torch, triton and pytest, and no network. Files go to benchmarks/results/gpu/<architecture>, to be committed; a
step that passed for these sources is not run again. --dry runs all of it in a size for the interpreter, without a GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastcse.bench.environment import commit, environment

from .runner import ROOT, Lane, Step, digest
from .stages import STAGES, steps


def main() -> int:
    arguments = _parse()
    import torch

    if not arguments.dry and not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no GPU here; `make gpu DRY=1` runs the lane in the interpreter",
              file=sys.stderr)  # fmt: skip
        return 2
    if arguments.wheels:
        _install(arguments.wheels)
    device = "cpu" if arguments.dry else "cuda"
    facts = environment(device) | {"commit": arguments.commit}
    name = "dry" if arguments.dry else facts["capability"]
    usual = ROOT / "build" / "gpu-dry" if arguments.dry else ROOT / "benchmarks" / "results" / "gpu" / name
    output = (arguments.output or usual).resolve()
    lane = Lane(output, digest(), 60 * arguments.minutes)
    console = Console(width=None if sys.stdout.isatty() else 140)
    chosen = [step for step in steps(output, device, arguments.dry) if step.stage in arguments.stage]
    table = Table(title=str(output), title_justify="left")
    for column in ("stage", "step", "ended", "seconds", "last line, or why"):
        table.add_column(column, overflow="fold")
    ended = []
    try:
        for step in chosen:
            outcome = _run(lane, step, arguments.again, console)
            ended.append(outcome["status"])
            table.add_row(step.stage, step.name, outcome["status"], f"{outcome['seconds']:.0f}", outcome["why"])
    except KeyboardInterrupt:
        print(f"Stopped before {len(chosen) - len(ended)} of {len(chosen)} steps.", file=sys.stderr)
    lane.gather(facts, arguments.dry)
    console.print(table)
    if len(ended) < len(chosen):
        return 130
    return 1 if {"failed", "cut off"} & set(ended) else 0


def _run(lane: Lane, step: Step, again: bool, console: Console) -> dict:
    if lane.is_done(step) and not again:
        return {"status": "done before", "seconds": 0.0, "why": "--again runs it once more"}
    with console.status(f"{step.stage}: {step.name} (at most {step.limit_s:.0f} s)"):
        outcome = lane.run(step)
    console.print(f"{step.stage} {step.name}: {outcome['status']}, {outcome['seconds']} s")
    return outcome


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="only these stages")
    parser.add_argument("--again", action="store_true", help="also what passed before for these sources")
    parser.add_argument("--commit", default=commit(), help="label of the results where the sources lack their history")
    parser.add_argument("--dry", action="store_true", help="in the interpreter, without a GPU, in small sizes")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels (peers) to install for this run")
    parser.add_argument("--output", type=Path, help="where files go")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    return parser.parse_args()


def _install(wheels: Path) -> None:
    """Installs wheels into a folder that every step's Python finds first; the machine's own packages stay."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise SystemExit(f"benchmarks.gpu: --wheels {wheels} holds no .whl file")
    site = ROOT / "build" / "gpu-site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade", "--target"]
    subprocess.run([*command, str(site), *map(str, found)], check=True)
    # Packages that extend the path by a .pth file (cutlass) are not found in a target folder: do what site would.
    extra = [str(site / line.strip()) for pth in site.glob("*.pth") for line in pth.read_text().splitlines()
             if line.strip() and not line.startswith(("import ", "#"))]  # fmt: skip
    paths = [str(site), *extra, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.path[1:1] = [str(site), *extra]


if __name__ == "__main__":
    raise SystemExit(main())
