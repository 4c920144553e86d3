"""The Triton kernels compiled for GPUs that are not here: no spills, tensor cores on Hopper, two programs at once.

Processes of their own, because this one interprets kernels. The main sweep on Hopper is compiled in every run of the
tests, every kernel for every architecture in the whole ones.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compiled.cubin import SHARED_LIMIT, Compiled, occupancy
from benchmarks.compiled.roofline import predict

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "90", "100")
MAIN = ("gradients", "sums", "both directions", "both directions: sums")
ROWS = ("quadruplet", "candidate gradient", "step_rows", "scale")
CLUSTERS = ("assign", "assign values", "cluster_sums")
SEARCH = ("top-k scores", "top-k groups", "top-k columns", "top-k rescore")
EVERY = (
    ("--arch", "90"),
    ("--arch", "80", "100", "--form", *MAIN),
    ("--arch", *ARCHITECTURES, "--dtype", "bf16", "fp32", "--kernel", *ROWS, *CLUSTERS, *SEARCH),
)
# kernel -> its forms, in every architecture and type
FORMS = {
    "quadruplet": {"forward", "four gradients", "index", "classic, by row"},
    "assign": {"nearest", "nearest two"},
    "cluster_sums": {"", "unit rows"},
    "top-k scores": {"", "ids", "bounds", "wide"},
    "top-k groups": {"2048", "8192"},
    "top-k columns": {"32", "128"},
}


def compiled(folder, *options):
    """Lines of the report, and of its roofline where there is one."""
    out = folder / "compiled.csv"
    command = [sys.executable, "-m", "benchmarks.compiled", "--dtype", "bf16", "--output", str(out), *options]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    files = (out, folder / "compiled_roofline.csv")
    return [list(csv.DictReader(path.open())) if path.exists() else [] for path in files]


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.whole)], ids=["main", "every"])
def found(request, tmp_path_factory):
    """Lines of the kernels and of the roofline; the latter of Hopper alone."""
    commands = EVERY if request.param else (("--arch", "90", "--form", "gradients"),)
    parts = [compiled(tmp_path_factory.mktemp("compiled"), *options) for options in commands]
    return [line for lines, _ in parts for line in lines], parts[0][1]


@pytest.fixture
def hopper(found):
    """Tiled kernels on Hopper."""
    return [x for x in found[0] if x["arch"] == "90" and x["tile"] != "row"]


def test_no_kernel_spills_and_shared_memory_fits(found):
    assert {(x["kernel"], x["form"], x["arch"]) for x in found[0] if x["spill_bytes"] != "0"} == set()
    assert all(int(x["shared_bytes"]) <= SHARED_LIMIT[int(x["arch"])] for x in found[0])


def test_hopper_uses_tensor_cores_and_the_persistent_form_its_copy_engine(hopper):
    assert {(x["kernel"], x["wgmma"]) for x in hopper} >= {("sweep", "True"), ("persistent sweep", "True")}
    assert all(x["wgmma"] == "True" for x in hopper if x["dtype"] == "bf16")
    sweeps = [x for x in hopper if x["form"] in ("gradients", "sums")]
    assert {(x["kernel"], x["tma"]) for x in sweeps} == {("persistent sweep", "True"), ("sweep", "False")}


def test_two_programs_share_a_multiprocessor_on_hopper(hopper):
    # At D = 384 a search on a device chose one program with a tile twice as wide (fastcse/kernels/tuned.json).
    narrow = [x for x in hopper if x["tile"] == "128x128x64" and x["form"] in ("gradients", "sums", "scaled")]
    assert len(narrow) >= 2
    assert all(int(x["programs_per_sm"]) >= 2 for x in narrow)


def test_the_roofline_lets_every_hopper_sweep_reach_its_target(found):
    assert {(x["n"], x["d"]) for x in found[1]} >= {("16384", "384"), ("65536", "768"), ("1048576", "768")}
    assert all(x["reachable"] == "True" for x in found[1])


@pytest.mark.whole
@pytest.mark.parametrize("found", [True], indirect=True)
def test_every_architecture_compiles_every_form(found):
    lines = {(x["kernel"], x["form"], x["arch"], x["dtype"]) for x in found[0]}
    for arch in ARCHITECTURES:
        assert {form for _, form, on, dtype in lines if (on, dtype) == (arch, "bf16")} >= set(MAIN)
        for kernel in (*ROWS, *CLUSTERS, *SEARCH):
            for dtype in ("bf16", "fp32"):
                forms = {form for name, form, *where in lines if (name, *where) == (kernel, arch, dtype)}
                # float32 centroids in parts, for half-precision points alone
                split = {"nearest, split", "nearest two, split"} if (kernel, dtype) == ("assign", "bf16") else set()
                assert forms == FORMS.get(kernel, {""}) | split, (kernel, arch, dtype)
    assert {x["warps"] for x in found[0] if x["kernel"] == "cluster_sums"} == {"1"}


@pytest.mark.whole
@pytest.mark.parametrize("found", [True], indirect=True)
def test_search_and_assignment_keep_two_programs_on_hopper_and_use_the_copy_engine(hopper):
    lines = [x for x in hopper if x["kernel"] in (*CLUSTERS, *SEARCH)]
    assert all(x["wgmma"] == "True" for x in lines)
    half = {(x["kernel"], x["form"]) for x in lines if x["dtype"] == "bf16"}
    described = [x for x in lines if x["tma"] == "True" and x["dtype"] == "bf16"]
    assert {(x["kernel"], x["form"]) for x in described} == half
    assert all(int(x["programs_per_sm"]) >= 2 for x in described)


def test_a_roofline_that_cannot_be_reached_says_so():
    line = Compiled("sweep", "gradients", "bf16", 90, "128x128x64", 8, 8, 3, 128, 0, 98304, 2, True, False)
    hidden, alone = predict(line, 16384, 384, 1.1), predict(line._replace(programs_per_sm=1), 16384, 384, 1.1)
    assert hidden.reachable
    assert not alone.reachable
    assert alone.total_ms > hidden.total_ms


def test_occupancy_is_what_the_programming_guide_says():
    assert occupancy(128, 98304, 256, 90) == 2  # 65536 registers, 2 x 97 KiB of 228
    assert occupancy(129, 98304, 256, 90) == 1  # handed out by eight
    assert occupancy(64, 120 << 10, 128, 90) == 1
    assert occupancy(32, 0, 1024, 90) == 2
