"""The Triton kernels compiled for GPUs that are not here: no spills, tensor cores on Hopper, two programs at once.

Processes of their own, because this one interprets kernels.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN = ("gradients", "sums", "both directions", "both directions: sums")


ROW_KERNELS = ("quadruplet", "candidate gradient", "step_rows", "scale")
CLUSTER_KERNELS = ("assign", "assign values", "cluster_sums")
SEARCH_KERNELS = ("top-k scores", "top-k groups", "top-k columns", "top-k rescore")


def compiled(folder, *options):
    """Lines of the report, and of its roofline where there is one."""
    out = folder / "compiled.csv"
    command = [sys.executable, "-m", "benchmarks.compiled", "--dtype", "bf16", "--output", str(out), *options]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    files = (out, folder / "compiled_roofline.csv")
    return [list(csv.DictReader(path.open())) if path.exists() else [] for path in files]


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("hopper"), "--arch", "90")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("others"), "--arch", "80", "100", "--form", *MAIN)


@pytest.fixture(scope="module")
def row_kernels(tmp_path_factory):
    arch = ("--arch", "80", "90", "100")
    return compiled(tmp_path_factory.mktemp("rows"), *arch, "--dtype", "bf16", "fp32", "--kernel", *ROW_KERNELS)


@pytest.fixture(scope="module")
def cluster_kernels(tmp_path_factory):
    arch = ("--arch", "80", "90", "100")
    return compiled(tmp_path_factory.mktemp("clusters"), *arch, "--dtype", "bf16", "fp32", "--kernel", *CLUSTER_KERNELS)


@pytest.fixture(scope="module")
def search_kernels(tmp_path_factory):
    arch = ("--arch", "80", "90", "100")
    return compiled(tmp_path_factory.mktemp("search"), *arch, "--dtype", "bf16", "fp32", "--kernel", *SEARCH_KERNELS)


def test_every_architecture_compiles_the_main_forms(hopper, others):
    for lines, arch in ((hopper[0], "90"), (others[0], "80"), (others[0], "100")):
        assert {x["form"] for x in lines if x["arch"] == arch} >= set(MAIN)


def test_every_architecture_compiles_the_quadruplets_and_the_steps(row_kernels):
    lines, roofline = row_kernels
    whole = {
        (kernel, arch, dtype) for kernel in ROW_KERNELS for arch in ("80", "90", "100") for dtype in ("bf16", "fp32")
    }
    assert {(x["kernel"], x["arch"], x["dtype"]) for x in lines} == whole
    forms = {x["form"] for x in lines if x["kernel"] == "quadruplet"}
    assert forms == {"forward", "four gradients", "index", "classic, by row"}
    assert not roofline  # a model of products has nothing to say of them


def test_every_architecture_compiles_the_clusters(cluster_kernels):
    lines, roofline = cluster_kernels
    forms = {("assign", "nearest"), ("assign", "nearest two"), ("assign values", ""), ("cluster_sums", ""),
             ("cluster_sums", "unit rows")}  # fmt: skip
    whole = {(*form, arch, dtype) for form in forms for arch in ("80", "90", "100") for dtype in ("bf16", "fp32")}
    # float32 centroids in parts, for half-precision points alone.
    split = {("assign", f"{form}, split", arch, "bf16") for form in ("nearest", "nearest two")
             for arch in ("80", "90", "100")}  # fmt: skip
    assert {(x["kernel"], x["form"], x["arch"], x["dtype"]) for x in lines} == whole | split
    assert all(x["wgmma"] == "True" for x in lines if (x["kernel"], x["arch"]) == ("assign", "90"))
    assert {x["warps"] for x in lines if x["kernel"] == "cluster_sums"} == {"1"}
    assert not roofline


def test_every_architecture_compiles_the_search(search_kernels):
    lines, roofline = search_kernels
    forms = {("top-k scores", form) for form in ("", "ids", "bounds", "wide")} | {("top-k rescore", "")}
    forms |= {("top-k groups", "2048"), ("top-k groups", "8192"), ("top-k columns", "32"), ("top-k columns", "128")}
    whole = {(*form, arch, dtype) for form in forms for arch in ("80", "90", "100") for dtype in ("bf16", "fp32")}
    assert {(x["kernel"], x["form"], x["arch"], x["dtype"]) for x in lines} == whole
    assert not roofline


def test_search_and_assignment_keep_two_programs_on_hopper_and_use_the_copy_engine(cluster_kernels, search_kernels):
    lines = [x for x in (*cluster_kernels[0], *search_kernels[0]) if x["arch"] == "90" and x["tile"] != "row"]
    assert all(x["wgmma"] == "True" for x in lines)
    described = [x for x in lines if x["tma"] == "True" and x["dtype"] == "bf16"]
    assert {(x["kernel"], x["form"]) for x in described} == {(x["kernel"], x["form"]) for x in lines
                                                             if x["dtype"] == "bf16"}  # fmt: skip
    assert all(int(x["programs_per_sm"]) >= 2 for x in described)


def test_no_kernel_spills(hopper, others, row_kernels, cluster_kernels, search_kernels):
    lines = [*hopper[0], *others[0], *row_kernels[0], *cluster_kernels[0], *search_kernels[0]]
    assert {(x["kernel"], x["form"], x["arch"]) for x in lines if x["spill_bytes"] != "0"} == set()


def test_hopper_uses_wgmma(hopper):
    pairwise = [x for x in hopper[0] if x["tile"] != "row"]
    assert pairwise
    assert all(x["wgmma"] == "True" for x in pairwise)


def test_the_persistent_form_uses_the_copy_engine_and_the_plain_form_does_not(hopper):
    sweeps = [x for x in hopper[0] if x["form"] in ("gradients", "sums")]
    assert {(x["kernel"], x["tma"]) for x in sweeps} == {("persistent sweep", "True"), ("sweep", "False")}


def test_two_programs_share_a_multiprocessor_on_hopper(hopper):
    # At D = 384 a search on a device chose one program with a tile twice as wide (fastcse/kernels/tuned.json).
    narrow = [x for x in hopper[0] if x["tile"] == "128x128x64" and x["form"] in ("gradients", "sums", "scaled")]
    assert len(narrow) >= 6
    assert all(int(x["programs_per_sm"]) >= 2 for x in narrow)


def test_the_roofline_lets_every_hopper_sweep_reach_its_target(hopper):
    lines = hopper[1]
    assert {(x["n"], x["d"]) for x in lines} >= {("16384", "384"), ("65536", "768"), ("1048576", "768")}
    assert all(x["reachable"] == "True" for x in lines)


def test_shared_memory_fits(hopper, others, row_kernels, cluster_kernels, search_kernels):
    from benchmarks.compiled.binary import SHARED_LIMIT

    lines = [*hopper[0], *others[0], *row_kernels[0], *cluster_kernels[0], *search_kernels[0]]
    assert all(int(x["shared_bytes"]) <= SHARED_LIMIT[int(x["arch"])] for x in lines)


def test_a_roofline_that_cannot_be_reached_says_so():
    from benchmarks.compiled.binary import Compiled
    from benchmarks.compiled.roofline import predict

    line = Compiled("sweep", "gradients", "bf16", 90, "128x128x64", 8, 8, 3, 128, 0, 98304, 2, True, False)
    hidden, alone = predict(line, 16384, 384, 1.1), predict(line._replace(programs_per_sm=1), 16384, 384, 1.1)
    assert hidden.reachable
    assert not alone.reachable
    assert alone.total_ms > hidden.total_ms


def test_occupancy_is_what_the_programming_guide_says():
    from benchmarks.compiled.binary import occupancy

    assert occupancy(128, 98304, 256, 90) == 2  # 65536 registers, 2 x 97 KiB of 228
    assert occupancy(129, 98304, 256, 90) == 1  # handed out by eight
    assert occupancy(64, 120 << 10, 128, 90) == 1
    assert occupancy(32, 0, 1024, 90) == 2
