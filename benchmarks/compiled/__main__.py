"""Compiles every Triton kernel for GPUs that need not be there, and says what the code costs: registers, spills,
shared memory, programs on a multiprocessor, tensor-core and copy-engine instructions; and what a roofline expects.

    python -m benchmarks.compiled [--arch 90] [--output benchmarks/results/compiled.csv]

Facts about code, not about time. Run without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .cases import SWEEPS, TYPES, cases
from .cubin import Compiled, compile_case
from .roofline import Prediction, predictions

ARCHITECTURES = (80, 90, 100)


def report(
    architectures: list[int], types: list[str], forms: list[str] | None = None, kernels: list[str] | None = None
) -> list[Compiled]:
    """Every case, or those of the forms and kernels named, for every architecture."""
    wanted = [dtype for dtype, name in TYPES.items() if name in types]
    work = [
        (case, arch)
        for arch in architectures
        for dtype in wanted
        for case in cases(dtype, arch)
        if (not forms or case.form in forms) and (not kernels or case.kernel in kernels)
    ]
    return [compile_case(*item) for item in track(work, "compiling", console=Console(stderr=True))]


def table(title: str, rows: list[NamedTuple]) -> Table:
    """Any list of alike tuples."""
    out = Table(title=title)
    for name in rows[0]._fields:
        out.add_column(name, justify="left" if isinstance(getattr(rows[0], name), str) else "right")
    for row in rows:
        out.add_row(*(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row))
    return out


def write(path: Path, rows: list[NamedTuple]) -> None:
    """CSV, with the version of the compiler."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0]._fields, "triton"])
        writer.writerows(
            [*(f"{x:.5g}" if isinstance(x, float) else x for x in row), triton.__version__] for row in rows
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="*", default=list(TYPES.values()), choices=list(TYPES.values()))
    parser.add_argument("--form", nargs="*", choices=list(SWEEPS), help="only these forms of the sweep")
    parser.add_argument("--output", type=Path, help="write the table here as CSV, and FILE_roofline.csv beside it")
    kernels = list(dict.fromkeys(case.kernel for case in cases(torch.bfloat16, ARCHITECTURES[0])))
    parser.add_argument("--kernel", nargs="*", choices=kernels, help="only these kernels")
    arguments = parser.parse_args()
    if triton.knobs.runtime.interpret:
        print("benchmarks.compiled: TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it",
              file=sys.stderr)  # fmt: skip
        return 2
    lines = report(arguments.arch, arguments.dtype, arguments.form, arguments.kernel)
    # A pipe has no width: give the table the room it needs.
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(table(f"compiled with Triton {triton.__version__}; nothing was run", lines))
    expected: list[Prediction] = predictions(lines)
    if expected:
        console.print(table("what a roofline expects of the sweeps with gradients, bfloat16 (a model)", expected))
    if arguments.output:
        write(arguments.output, lines)
        if expected:
            write(arguments.output.with_name(f"{arguments.output.stem}_roofline.csv"), expected)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
