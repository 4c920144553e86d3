"""The calls that the lane's scripts time, check and count: one loss in one of the sweep's kinds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastcse
from fastcse.bench.data import make_rows
from fastcse.bench.problem import LossProblem


def rows_of(n: int, d: int, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    """Clustered rows, early in training, that want gradients."""
    return make_rows(LossProblem(n, n, d, dtype=dtype, device=device))


def call(kind: str, anchor: Tensor, candidate: Tensor) -> Callable[[], Tensor]:
    """Forward (and backward, where there is one left to do) through the sweep of `kind`, on the Triton backend."""
    if kind == "sums":

        def run() -> Tensor:
            with torch.no_grad():
                return fastcse.focal_infonce_loss(anchor, candidate, backend="triton")

        return run
    symmetric = kind == "busy"

    def run_with_gradients() -> Tensor:
        anchor.grad = candidate.grad = None
        loss = fastcse.focal_infonce_loss(anchor, candidate, symmetric=symmetric, backend="triton")
        loss.backward()
        return loss.detach()

    return run_with_gradients
