"""Rows of all processes, with their gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from ..distributed import gather_rows, is_many, total_over_ranks


def several_processes() -> bool:
    """Whether a process group of more than one rank is initialised."""
    return is_many()


def gathered(x: Tensor) -> Tensor:
    """(W N, D): the (N, D) rows of every rank, in the order of the ranks; x itself without a process group.

    The gradient of a row is the sum over the ranks of what they ask of it, and arrives at the rank that owns the row.

    Raises:
        ValueError: on every rank, if they hold different numbers of rows. `fastcse.distributed` takes such batches.
    """
    if not several_processes():
        return x
    ranks = dist.get_world_size()
    own = torch.zeros(ranks, dtype=torch.int64, device=x.device)
    own[dist.get_rank()] = len(x)
    counts = total_over_ranks(own).tolist()
    if min(counts) != max(counts):
        raise ValueError(f"every rank must hold the same number of rows, got {counts}")
    return gather_rows(x, counts)


def first_row(x: Tensor) -> int:
    """The row of `gathered(x)` at which this rank's own rows start."""
    return dist.get_rank() * len(x) if several_processes() else 0
