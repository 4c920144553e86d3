"""First centroids of k-means: given, drawn at random, or by k-means++."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..reference import unit_rows
from .steps import steps

INITS = ("k-means++", "random")


def given_centroids(init: Tensor | np.ndarray, clusters: int, points: Tensor) -> Tensor:
    """(K, D) float centroids as the caller gave them."""
    rows = torch.as_tensor(init, device=points.device).detach()
    if rows.shape != (clusters, points.shape[1]):
        expected = (clusters, points.shape[1])
        raise ValueError(
            f"init must have shape {expected}, one row of the points' length for each cluster, got {tuple(rows.shape)}"
        )
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows).all(1)).nonzero()[0])
        raise ValueError(f"init must be finite, got NaN or infinity in row {bad}")
    return rows.to(working_dtype(points))


def working_dtype(points: Tensor) -> torch.dtype:
    """float64 for float64 points, else float32."""
    return torch.promote_types(points.dtype, torch.float32)


def draw_centroids(
    points: Tensor, clusters: int, how: str, cosine: bool, generator: torch.Generator, blocks: list[slice], show: bool
) -> Tensor:
    """(K, D) rows of the points: distinct ones at random, or by k-means++, each with a probability that grows with
    the squared distance (of cosines: 1 - cos) from those before."""
    if how == "random":
        chosen = torch.randperm(points.shape[0], generator=generator, device="cpu")[:clusters]
        return points[chosen.to(points.device)].to(working_dtype(points))
    return _plus_plus(points, clusters, cosine, generator, blocks, show)


def _plus_plus(
    points: Tensor, clusters: int, cosine: bool, generator: torch.Generator, blocks: list[slice], show: bool
) -> Tensor:
    n, dtype = points.shape[0], working_dtype(points)
    centroids = torch.empty(clusters, points.shape[1], dtype=dtype, device=points.device)
    nearest = torch.full((n,), torch.inf, dtype=dtype, device=points.device)
    # Distances do not change when all points move; far from 0 their squares would swallow them.
    middle = sum(_rows(points[b], dtype, cosine).sum(0, dtype=torch.float64) for b in blocks) / n
    middle = middle.to(dtype)
    square = torch.cat([(_rows(points[b], dtype, cosine) - middle).square().sum(1) for b in blocks])
    place = torch.randint(n, (1,), generator=generator, device="cpu")
    rounding = 4000 * torch.finfo(dtype).eps
    for k in steps(range(clusters), "k-means++", "centroids", show):
        centroids[k] = _rows(points[place.to(points.device)], dtype, cosine)[0]
        apart_from_middle = centroids[k] - middle
        own = apart_from_middle.square().sum()
        for b in blocks:
            apart = square[b] + own - 2 * ((_rows(points[b], dtype, cosine) - middle) @ apart_from_middle)
            # Where rounding may be a thousandth of it, from the rows: a twin is at distance 0, and is not drawn.
            close = (apart <= rounding * (square[b] + own)).nonzero()[:, 0]
            near = _rows(points[b][close], dtype, cosine) - centroids[k]
            apart[close] = near.square().sum(1)
            nearest[b] = torch.minimum(nearest[b], apart)
        total = nearest.double().cumsum(0)
        lot = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu").to(points.device) * total[-1]
        place = torch.searchsorted(total, lot, right=True).clamp_max(n - 1)
    return centroids


def _rows(x: Tensor, dtype: torch.dtype, unit: bool) -> Tensor:
    return unit_rows(x.to(dtype)) if unit else x.to(dtype)
