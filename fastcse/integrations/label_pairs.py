"""Pairs of rows of one label, and sums over pairs of one anchor, without the matrix of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .partition import row_similarity

# Pairs whose two rows are copied at once.
AT_ONCE = 2**15


class Pairs(NamedTuple):
    """(P,) rows of anchors and (P,) rows of the other side, by anchor, then by the other."""

    anchor: Tensor
    other: Tensor


def positive_pairs(labels: Tensor, ref_labels: Tensor) -> Pairs:
    """All pairs of equal labels, in O(N + M + P); without (i, i) where `ref_labels` is `labels` itself."""
    order = ref_labels.argsort(stable=True)
    ranked = ref_labels[order].contiguous()
    begin = torch.searchsorted(ranked, labels.contiguous())
    count = torch.searchsorted(ranked, labels.contiguous(), right=True) - begin
    anchor = torch.arange(len(labels), device=labels.device).repeat_interleave(count)
    within = torch.arange(len(anchor), device=labels.device) - (count.cumsum(0) - count)[anchor]
    other = order[begin[anchor] + within]
    if ref_labels is labels:
        apart = anchor != other
        anchor, other = anchor[apart], other[apart]
    return Pairs(anchor, other)


def pair_similarity(x: Tensor, y: Tensor, pairs: Pairs, *, normalize: bool = True) -> Tensor:
    """(P,) similarities of x_anchor and y_other; with many pairs their rows are copied again in the backward pass, so
    that memory stays O(P + D)."""

    def some(x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return row_similarity(x.index_select(0, left), y.index_select(0, right), normalize=normalize)

    if len(pairs.anchor) <= AT_ONCE:
        return some(x, y, *pairs)
    parts = zip(pairs.anchor.split(AT_ONCE), pairs.other.split(AT_ONCE))
    return torch.cat([checkpoint(some, x, y, *part, use_reentrant=False) for part in parts])


def log_sum_by_anchor(values: Tensor, anchor: Tensor, count: int) -> Tensor:
    """(count,) log sum exp of the values of each anchor; -inf for an anchor without any."""
    top = values.new_full((count,), -torch.inf).scatter_reduce(0, anchor, values.detach(), "amax")
    total = values.new_zeros(count).index_add(0, anchor, (values - top[anchor]).exp())
    empty = total == 0
    return (total.masked_fill(empty, 1.0).log() + top).masked_fill(empty, -torch.inf)


def least_by_anchor(values: Tensor, pairs: Pairs, count: int) -> tuple[Tensor, Tensor]:
    """(count,) least value of each anchor and the other side's row, ties to the lowest; inf and -1 for none."""
    least = values.new_full((count,), torch.inf).scatter_reduce(0, pairs.anchor, values, "amin")
    last = torch.iinfo(torch.int64).max
    row = torch.where(values == least[pairs.anchor], pairs.other, last)
    row = torch.full((count,), last, device=values.device).scatter_reduce(0, pairs.anchor, row, "amin")
    return least, row.masked_fill(row == last, -1)
