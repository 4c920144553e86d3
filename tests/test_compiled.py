"""The Triton kernels compiled for GPUs that are not here: no spills, tensor cores on Hopper.

A process of its own, because this one interprets kernels.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAIN = {("sweep", "gradients"), ("sweep", "sums"), ("symmetric", "sums"), ("symmetric", "gradients")}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    out = tmp_path_factory.mktemp("compiled") / "compiled.csv"
    command = [sys.executable, "-m", "benchmarks.compiled", "--dtype", "bf16", "--output", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with out.open() as file:
        return list(csv.DictReader(file))


def test_every_architecture_compiles_every_kernel(compiled):
    by_arch = {arch: {(r["kernel"], r["form"]) for r in compiled if r["arch"] == arch} for arch in ("80", "90", "100")}
    assert by_arch["80"] == by_arch["90"] == by_arch["100"]
    assert by_arch["90"] >= MAIN


def test_no_kernel_spills(compiled):
    assert {(r["kernel"], r["form"], r["arch"]) for r in compiled if r["spill_bytes"] != "0"} == set()


def test_hopper_uses_wgmma(compiled):
    pairwise = [r for r in compiled if r["arch"] == "90" and r["tile"] != "row"]
    assert pairwise
    assert all(r["wgmma"] == "True" for r in pairwise)


def test_shared_memory_fits(compiled):
    from benchmarks.compiled import SHARED_LIMIT

    assert all(int(r["shared_bytes"]) <= SHARED_LIMIT[int(r["arch"])] for r in compiled)
