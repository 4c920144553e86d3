"""Hardware counters of the sweep by Nsight Compute: how busy tensor cores, exponentials and memory are.

python -m benchmarks.gpu.counters --output FILE [--dry]
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

METRICS = {
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessors, % of peak",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor pipe, % of peak",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": "exponentials' pipe, % of peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active, %",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "lts__t_sector_hit_rate.pct": "L2 hits, %",
    "launch__registers_per_thread": "registers",
    "launch__occupancy_limit_registers": "programs by registers",
    "launch__occupancy_limit_shared_mem": "programs by shared memory",
}
SIZES = ((16384, 384), (16384, 768))


def child(dry: bool) -> None:
    """What is counted."""
    from .work import call, rows_of

    for n, d in ((64, 48),) if dry else SIZES:
        call("gradients", *rows_of(n, d, "bfloat16", "cpu" if dry else "cuda"))()


def parse(text: str) -> list[dict[str, str]]:
    """Nsight Compute's raw page: one object for each kernel, with our names."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    units, kernels = (rows[0], rows[1:]) if rows else ({}, [])
    return [
        {"kernel": row.get("Kernel Name", "?"),
         **{label: f"{row[name]} {units.get(name, '')}".strip() for name, label in METRICS.items()
            if row.get(name)}}
        for row in kernels
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.counters", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child or arguments.dry:
        child(arguments.dry)
        if arguments.dry and arguments.output:
            arguments.output.write_text("[]\n", encoding="utf-8")
        print("ran what would be counted")
        return 0
    command = ["ncu", "--csv", "--page", "raw", "--clock-control", "none", "--kernel-name", "regex:sweep",
               "--launch-count", "4", "--metrics", ",".join(METRICS), sys.executable, "-m", "benchmarks.gpu.counters",
               "--child"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    kernels = parse(done.stdout)
    if not kernels:
        print(f"ncu counted nothing: {(done.stderr or done.stdout)[-600:]}")
        return 1
    arguments.output.write_text(json.dumps(kernels, indent=1) + "\n", encoding="utf-8")
    for kernel in kernels:
        print(kernel)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
