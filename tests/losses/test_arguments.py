"""Indices out of range and backends that are not there: errors that name argument and values, compiled or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcse

N, M, D = 4, 6, 8
A, C, E = torch.randn(N, D), torch.randn(M, D), torch.randn(N, D)
LEAF = torch.randn(N, D, requires_grad=True)
ONES = torch.ones(3, dtype=torch.int64)
ZEROS = torch.zeros(M, dtype=torch.int64)
# name: (argument, lowest and highest value allowed, call with an index)
CALLS = {
    "infonce": ("positive", 0, M - 1, lambda i, **o: fastcse.infonce_loss(A, C, i, **o)),
    "infonce, rows": ("positive", 0, M - 1, lambda i, **o: fastcse.infonce_loss(
        A, C, i, reduction="none", symmetric=True, **o)),
    "focal, learned": ("positive", 0, M - 1, lambda i, **o: fastcse.focal_infonce_loss(LEAF, C, i, **o)),
    "angular": ("positive", 0, M - 1, lambda i, **o: fastcse.angular_infonce_loss(A, C, i, **o)),
    "soft negative": ("positive", 0, M - 1, lambda i, **o: fastcse.soft_negative_loss(A, C, E, i, **o)),
    "sscl": ("positive", 0, M - 1, lambda i, **o: fastcse.sscl_loss(A, C, i, parts=2, **o)),
    "hsimcse": ("positive", 0, M - 1, lambda i, **o: fastcse.hsimcse_loss(A, C, E, i, **o)),
    "hsimcse, part": ("anchor_index", 0, M - 1, lambda i, **o: fastcse.hsimcse_loss(
        A, C, E, all_anchor=C, anchor_index=i, **o)),
    "adversarial": ("anchor_index", 0, M - 1, lambda i, **o: fastcse.adversarial_positive(C, A, anchor_index=i, **o)),
    "quadruplet": ("batch_negative", -1, M - 1, lambda i, **o: fastcse.quadruplet_loss(A, E, i, E, candidate=C, **o)),
    "hardest": ("positive", 0, M - 1, lambda i, **o: fastcse.hardest_negative(A, C, i, **o)),
    "clusterns": ("index", -1, 2, lambda i, **o: fastcse.clusterns_loss(A, E, i, C[:3], ONES, **o)),
    "clusterns, positive": ("positive", 0, M - 1, lambda i, **o: fastcse.clusterns_loss(
        A, C, ZEROS[:N], positive=i, candidate_index=ZEROS, **o)),
    "cluster sums": ("index", -1, 4, lambda i, **o: fastcse.cluster_sums(A, i, 5, **o)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_index_out_of_range_is_named(backend, name):
    argument, least, most, call = CALLS[name]
    inside = torch.tensor([0, most, max(least, 0), 1])
    if name != "hardest":
        call(inside, backend=backend)
    for wrong in (most + 1, least - 1, -100, 10**9):
        index = inside.clone()
        index[2] = wrong
        with pytest.raises(IndexError, match=rf"{argument} .*{least} to {most}, got {wrong}$"):
            call(index, backend=backend)
    call(torch.full((N,), least), backend=backend)


@pytest.mark.parametrize("name", ["focal, learned", "quadruplet", "adversarial", "cluster sums"])
def test_compiled_code_checks_too(name):
    argument, least, most, call = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda i: call(i, backend="cpp"), fullgraph=True, backend="aot_eager")
    compiled(torch.tensor([0, most, max(least, 0), 1]))
    with pytest.raises(IndexError, match=rf"{argument} .*got -100$"):
        compiled(torch.tensor([0, -100, 1, 1]))


# ---------------------------------------------------------------- backends that are not there

HEARD = """
import logging, sys, warnings
heard = []
class Ear(logging.Handler):
    def emit(self, record): heard.append(record.getMessage())
logging.getLogger().addHandler(Ear())
"""
WITHOUT_CPP = """
sys.modules["fastcse._C"] = None
import torch, fastcse
rows = torch.eye(3)
assert not fastcse.backends()["cpp"].available, fastcse.backends()
try: fastcse.infonce_loss(rows, rows, backend="cpp")
except RuntimeError as error: print(error)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3): fastcse.focal_infonce_loss(rows, rows)
said = heard + [str(w.message) for w in caught]
print(fastcse.last_backend(), len([s for s in said if "reference" in s]))
"""
WITHOUT_INTERPRETER = """
import torch, fastcse
rows = torch.eye(3)
try: fastcse.infonce_loss(rows, rows, backend="triton")
except RuntimeError as error: print(error)
assert "reference" in fastcse.backends() and fastcse.backends()["reference"].available
"""


def python(code):
    """Runs `code` in a fresh interpreter without Triton's; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True, text=True, cwd=Path(fastcse.__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_cpp_module_its_use_says_how_to_build_it_and_the_fallback_is_announced_once():
    out = python(HEARD + WITHOUT_CPP)
    assert "cpp" in out
    assert "pip install" in out or "make " in out, out
    assert out.split()[-2:] == ["reference", "1"], out


def test_forced_triton_on_cpu_tensors_without_the_interpreter():
    out = python(WITHOUT_INTERPRETER)
    assert "triton" in out
    assert "TRITON_INTERPRET=1" in out or "pip install" in out or "cuda" in out.lower(), out
