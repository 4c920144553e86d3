"""Adapters to other training libraries; each is imported by its own name, so none is a hard requirement. Here is what
they share: sums over candidates without a positive among them, for losses of more than one sweep, and a warning."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses.contrastive import CandidateBlock
from ..losses.infonce import infonce_loss

# A sum below this is lost beside any other term, and its logarithm has no usable gradient.
_SMALLEST = 1e-37


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the first time that it is given."""
    logging.getLogger(__name__).warning(message)


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
    options = {"temperature": temperature, "normalize": normalize, "reduction": "none", "backend": backend}
    one_more = infonce_loss(anchor, nothing, column, negatives=list(blocks), anchor_id=anchor_id, **options)
    empty = one_more <= _SMALLEST  # not its opposite, which would hide a NaN
    one_more = one_more.masked_fill(empty, 1.0)
    return (one_more + torch.log(-torch.expm1(-one_more))).masked_fill(empty, -torch.inf)
