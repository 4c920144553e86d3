"""Hardware counters of the sweep by Nsight Compute: how busy tensor cores, exponentials and memory are.

python -m benchmarks.gpu.counters --output FILE [--dry]
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence

from fastcse.files import write_json

from .workload import call, parser, rows_of

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
NCU = "ncu --csv --page raw --clock-control none --kernel-name regex:sweep --launch-count 4"


def counted(dry: bool) -> None:
    """The calls whose kernels are counted."""
    for n, d in ((64, 48),) if dry else SIZES:
        call("gradients", *rows_of(n, d, "bfloat16", "cpu" if dry else "cuda"))()


def parse(text: str) -> list[dict[str, str]]:
    """Nsight Compute's raw page: one object for each kernel, with our names."""
    units, *kernels = list(csv.DictReader(line for line in text.splitlines() if line.startswith('"'))) or [{}]
    found = []
    for row in kernels:
        numbers = {
            label: f"{row[name]} {units.get(name, '')}".strip() for name, label in METRICS.items() if row.get(name)
        }
        found.append({"kernel": row.get("Kernel Name", "?"), **numbers})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    options = parser("counters", __doc__)
    options.add_argument("--child", action="store_true", help="run what is counted, under ncu")
    arguments = options.parse_args(argv)
    if arguments.child or arguments.dry:
        counted(arguments.dry)
        if arguments.dry:
            write_json(arguments.output, [])
        print("ran what would be counted")
        return 0
    child = [sys.executable, "-m", "benchmarks.gpu.counters", "--child", "--output", str(arguments.output)]
    command = [*NCU.split(), "--metrics", ",".join(METRICS), *child]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    kernels = parse(done.stdout)
    if not kernels:
        print(f"ncu counted nothing: {(done.stderr or done.stdout)[-600:]}")
        return 1
    write_json(arguments.output, kernels)
    for kernel in kernels:
        print(kernel)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
