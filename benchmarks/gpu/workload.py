"""The calls that the lane's scripts time, check and count: one loss in one kind of sweep; and their command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastcse
from fastcse.bench.loss import LossCase


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """The options of every script."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{name}", description=about.splitlines()[0])
    found.add_argument("--output", type=Path, required=True)
    found.add_argument("--dry", action="store_true", help="in a size for the interpreter, without a GPU")
    return found


def rows_of(n: int, d: int, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    """Clustered rows, early in training, that want gradients."""
    return LossCase(n, n, d, dtype=dtype, device=device).inputs()


def call(kind: str, anchor: Tensor, candidate: Tensor) -> Callable[[], Tensor]:
    """Forward (and backward, except of sums) through the sweep of `kind`, on the Triton backend."""

    def run() -> Tensor:
        anchor.grad = candidate.grad = None
        with torch.set_grad_enabled(kind != "sums"):
            loss = fastcse.focal_infonce_loss(anchor, candidate, symmetric=kind == "busy", backend="triton")
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    return run
