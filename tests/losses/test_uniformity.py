"""Alignment and uniformity: published vectors, gradients, and streaming past one chunk."""

import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from plain import uniformity
from row_oracle import Z1, Z2

import fastcse


def test_the_published_vectors(device):
    z1, z2 = (x.float().to(device) for x in (Z1, Z2))
    assert math.isclose(float(fastcse.alignment(z1, z2)), 0.1866666667, rel_tol=1e-6)
    assert math.isclose(float(fastcse.uniformity(torch.cat([z1, z2]))), -1.3797958212, rel_tol=1e-6)


def test_uniformity_by_hand_over_distinct_pairs(device):
    rows = torch.randn(6, 3)
    u = torch.nn.functional.normalize(rows.double(), dim=1).tolist()
    for t in (2.0, 0.5, 3):
        pairs = [math.exp(-t * sum((p - q) ** 2 for p, q in zip(a, b))) for a, b in combinations(u, 2)]
        expected = math.log(sum(pairs) / len(pairs))
        assert math.isclose(float(fastcse.uniformity(rows.to(device), t)), expected, rel_tol=1e-5, abs_tol=1e-6)
        assert math.isclose(float(fastcse.uniformity(rows.to(device), t=t)), expected, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 17, 1000])
@pytest.mark.parametrize("t", [2.0, 0.7])
def test_uniformity_and_its_gradient(device, count, t):
    rows = torch.randn(count, 5) + 1
    exact, leaf = rows.double().requires_grad_(), rows.to(device).requires_grad_()
    value, truth = fastcse.uniformity(leaf, t), uniformity(exact, t)
    (3 * value).backward()
    (3 * truth).backward()
    assert math.isclose(value.item(), truth.item(), rel_tol=1e-5, abs_tol=1e-6)
    torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_memory_stays_below_one_matrix():
    # 9000 rows: one float32 matrix is 309 MiB, and plain autograd keeps three. The peak is that of its own process.
    code = """
import resource, torch, fastcse
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small, rows = (torch.randn(n, 8, requires_grad=True) for n in (64, 9000))
fastcse.uniformity(small).backward()
before = peak()
fastcse.uniformity(rows).backward()
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        cwd=Path(fastcse.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 309, f"peak grew by {done.stdout} MiB"
