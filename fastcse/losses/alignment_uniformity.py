"""Alignment and uniformity of embeddings: how close positives are, and how evenly all rows cover the sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..ops import checks
from ..reference import unit_rows

# Rows of one slice of the pairs: 1024 x N similarities at a time, made again in the backward pass instead of being
# kept.
SLICE = 1024


def alignment(anchor: Tensor, positive: Tensor) -> Tensor:
    r"""Mean squared distance of positive pairs on the unit sphere; lower is better.

        alignment = mean_i |u(anchor_i) - u(positive_i)|^2 = mean_i (2 - 2 cos_i)

    Args:
        anchor, positive: (N, D) float, row i with row i, same dtype and device. Normalised here.

    Returns:
        float32 scalar (float64 for float64 input), in [0, 4]. Differentiable.

    Raises:
        ValueError: shapes, dtypes or devices disagree.

    Source: Wang and Isola, arXiv:2005.10242; on STS pairs with gold above 4, as in SimCSE.

    Example:
        >>> alignment(torch.eye(2), torch.eye(2)).item()
        0.0
    """
    checks.check_rows("anchor", anchor)
    checks.check_same_kind("positive", positive, "anchor", anchor)
    if positive.shape != anchor.shape:
        raise ValueError(f"anchor and positive must have as many rows, got {anchor.shape[0]} and {positive.shape[0]}")
    dtype = torch.promote_types(anchor.dtype, torch.float32)
    difference = unit_rows(anchor.to(dtype)) - unit_rows(positive.to(dtype))
    return difference.square().sum(1).mean()


def uniformity(rows: Tensor, t: float = 2.0) -> Tensor:
    r"""Logarithm of the mean Gaussian potential over all distinct pairs on the unit sphere; lower is better.

        uniformity = log mean_{a < b} exp(-t |u_a - u_b|^2)

    Args:
        rows: (N, D) float, N >= 2. Normalised here.
        t:    width of the potential, > 0.

    Returns:
        float32 scalar (float64 for float64 input), in [-4 t, 0]. Differentiable; memory is O(1024 N), not O(N^2).

    Raises:
        ValueError: fewer than two rows, t <= 0.

    Numerics: sums in float64. Source: Wang and Isola, arXiv:2005.10242; t = 2 as in SimCSE.

    Example:
        >>> round(uniformity(torch.eye(2)).item(), 4)
        -4.0
    """
    checks.check_rows("rows", rows)
    checks.check_above_zero("t", t)
    n = rows.shape[0]
    if n < 2:
        raise ValueError(f"rows must be at least 2 to make a pair, got {n}")
    dtype = torch.promote_types(rows.dtype, torch.float32)
    unit = unit_rows(rows.to(dtype))
    total = unit.new_zeros((), dtype=torch.float64)
    for first in range(0, n, SLICE):
        total = total + checkpoint(_potential, unit, first, t, use_reentrant=False)
    return (total / (n * (n - 1) / 2)).log().to(dtype)


def _potential(unit: Tensor, first: int, t: float) -> Tensor:
    """Sum over pairs (a, b), a in the slice and b behind it, of exp(-t |u_a - u_b|^2)."""
    part = unit[first : first + SLICE]
    with torch.autocast(unit.device.type, enabled=False):
        square = 2 - 2 * part @ unit[first:].T
    later = torch.ones_like(square, dtype=torch.bool).triu(1)
    return torch.where(later, torch.exp(-t * square), 0.0).sum(dtype=torch.float64)
