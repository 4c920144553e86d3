"""Alignment and uniformity: published vectors, gradients, and streaming past one chunk."""

import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import fastcse

Z1 = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0]])
Z2 = torch.tensor([[4.0, 3, 0], [0, 4, 3], [4, 0, -3]])


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def uniformity_oracle(rows, t=2.0):
    """Value and gradient in numpy float64, from the full matrix."""
    u = unit(rows)
    n, length = len(u), np.linalg.norm(rows, axis=1, keepdims=True)
    e = np.exp(-t * ((u[:, None] - u[None]) ** 2).sum(2))
    np.fill_diagonal(e, 0)
    du = 2 * 2 * t * (e @ u) / e.sum()  # d/du of -t |u_a - u_b|^2 is 2 t u_b up to the part along u_a
    return math.log(e.sum() / (n * (n - 1))), (du - (du * u).sum(1, keepdims=True) * u) / length


def test_the_published_vectors(device):
    assert math.isclose(float(fastcse.alignment(Z1.to(device), Z2.to(device))), 0.1866666667, rel_tol=1e-6)
    both = torch.cat([Z1, Z2]).to(device)
    assert math.isclose(float(fastcse.uniformity(both)), -1.3797958212, rel_tol=1e-6)


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
    rows = (torch.randn(count, 5) + 1).to(device).requires_grad_()
    value = fastcse.uniformity(rows, t)
    (3 * value).backward()
    expected, gradient = uniformity_oracle(rows.detach().cpu().double().numpy(), t)
    assert math.isclose(float(value), expected, rel_tol=1e-5, abs_tol=1e-6)
    np.testing.assert_allclose(rows.grad.cpu().numpy(), 3 * gradient, rtol=1e-4, atol=1e-6)


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
