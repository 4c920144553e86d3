"""Sums over candidates without a positive among them, and similarities row by row: what losses that are more than one
sweep are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses.contrastive import CandidateBlock
from ..losses.infonce import infonce_loss
from ..reference import unit_rows

# What a sum below this adds cannot be seen, and its logarithm has no gradient worth having.
_SMALLEST = 1e-37


def log_partition(
    anchor: Tensor,
    blocks: Sequence[CandidateBlock],
    *,
    temperature: float,
    anchor_id: Tensor | None = None,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""(N,) log sum_j exp(s_ij / temperature) over the columns of all blocks that no id leaves out; -inf for none.

    InfoNCE with one row of zeros as everybody's positive is log(1 + sum): its similarity is 0, whatever the anchor is.
    """
    nothing = anchor.new_zeros(1, anchor.shape[1])
    column = torch.zeros(len(anchor), dtype=torch.int64, device=anchor.device)
    one_more = infonce_loss(
        anchor, nothing, column, negatives=list(blocks), temperature=temperature, anchor_id=anchor_id,
        normalize=normalize, reduction="none", backend=backend,
    )  # fmt: skip
    empty = one_more <= _SMALLEST  # not its opposite, which would hide a NaN
    one_more = one_more.masked_fill(empty, 1.0)
    return (one_more + torch.log(-torch.expm1(-one_more))).masked_fill(empty, -torch.inf)


def row_similarity(x: Tensor, y: Tensor, *, normalize: bool = True) -> Tensor:
    """(N,) cosines of row i of x with row i of y, or dot products, in at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    return (unit_rows(x) * unit_rows(y)).sum(1) if normalize else (x * y).sum(1)
