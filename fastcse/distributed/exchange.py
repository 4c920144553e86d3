"""Rows of all ranks of a process group, brought together with their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor

from ..ops import checks

# Numbers in the message that says what a rank brings; it must have one length on all ranks before they agree on any.
MESSAGE = 16
# The names that torch 2.13 made of all_gather_tensor and reduce_scatter_tensor.
_all_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_reduce_scatter = getattr(collectives, "reduce_scatter_single", None) or collectives.reduce_scatter_tensor
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)


@dataclass(frozen=True)
class Exchange:
    """What the ranks of a group bring to one call: `counts[r][t]` rows of the t-th tensor on rank r.

    Making one is collective: every rank calls `of` with tensors of the same number, width and type.

    Example:
        >>> Exchange.of([torch.ones(3, 2)]).counts  # without a process group: one rank
        [[3]]
    """

    group: dist.ProcessGroup | None
    rank: int
    counts: list[list[int]]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None, *, empty: bool = False) -> Exchange:
        """Tells all ranks what this one brings, (n_t, D) each; without rows only where `empty` allows it.

        Raises:
            ValueError: on every rank, if they disagree on how many tensors there are, on D or on the type. Without
                this they would wait for one another, or mix up one another's bytes.
        """
        checks.check_count("tensors", len(tensors), 1)
        own = [len(x) for x in tensors]
        if not is_many(group):
            return cls(group, 0, [own])
        if len(own) > MESSAGE - 3:
            raise ValueError(f"at most {MESSAGE - 3} tensors can be gathered together, got {len(own)}")
        first = tensors[0]
        head = [len(own), first.shape[1], TYPES.index(first.dtype)]
        message = torch.tensor([*head, *own, *[0] * (MESSAGE - 3 - len(own))], device=message_device(first, group))
        told = waited(_all_gather(message, 0, _named(group))).view(-1, MESSAGE).tolist()
        _check_alike(told, empty)
        return cls(group, dist.get_rank(group), [each[3 : 3 + len(own)] for each in told])

    @property
    def ranks(self) -> int:
        """W, how many there are."""
        return len(self.counts)

    def rows(self, tensor: int) -> list[int]:
        """How many rows of a tensor each rank has."""
        return [counts[tensor] for counts in self.counts]

    def offset(self, tensor: int) -> int:
        """Where this rank's rows begin among those of all ranks."""
        return sum(self.rows(tensor)[: self.rank])

    def share(self, tensor: int) -> float:
        """What a mean over this rank's rows is to be multiplied with, so that the mean over the ranks is the mean over
        all rows: 1 where all have the same number."""
        counts = self.rows(tensor)
        return counts[self.rank] * self.ranks / sum(counts)

    def gather(self, x: Tensor, tensor: int, *, own_first: bool = False) -> Tensor:
        """All ranks' rows of a tensor, those of rank 0 first, or this rank's first; see `gather_rows`."""
        counts = self.rows(tensor)
        whole = x if self.ranks == 1 else gather_rows(x, counts, self.group)
        if not own_first or self.rank == 0:
            return whole
        first, last = self.offset(tensor), self.offset(tensor) + counts[self.rank]
        return torch.cat([whole[first:last], whole[:first], whole[last:]])

    def scatter_sum(self, x: Tensor, tensor: int) -> Tensor:
        """This rank's rows of the sum over the ranks of what each has for the rows of all, (sum of counts, ...)."""
        return x if self.ranks == 1 else scatter_sum(x, self.rows(tensor), self.group)


def is_many(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is a process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def gather_rows(x: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of all ranks, rank by rank, differentiable: the gradient of a row is the sum of what all ranks have for
    it.

    Args:
        x:      (n, ...) this rank's rows.
        counts: how many each rank has, n of which are this one's. Ranks with fewer send padding, which is cut off.
        group:  a process group, or None for the default one.

    Returns:
        (sum of counts, ...) in the type of x.

    Numerics: gradients of half-precision rows are summed in float32. Every rank has the same bits.

    Example:
        >>> gather_rows(torch.ones(2, 3), [2]).shape  # one rank
        torch.Size([2, 3])
    """
    rank = dist.get_rank(group) if len(counts) > 1 else 0
    if counts[rank] != len(x):
        raise ValueError(f"counts must say how many rows this rank has, got {counts[rank]} and {len(x)}")
    return x if len(counts) == 1 else _Gather.apply(x, list(counts), rank, _named(group))


def shared_value(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The mean over the ranks of a tensor that all of them hold alike, as a learned temperature: its gradient is the
    mean of theirs, so that it stays alike. Data-parallel wrappers do so for a model's parameters; this is for a loss's.
    """
    if not is_many(group):
        return x
    return gather_rows(x.reshape(1, -1), [1] * dist.get_world_size(group), group).mean(0).reshape(x.shape)


def total_over_ranks(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum over the ranks of a tensor of one shape on all of them, without a gradient; the same bits everywhere."""
    return waited(collectives.all_reduce(x, "sum", _named(group))) if is_many(group) else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, rank, group):
        ctx.counts, ctx.rank, ctx.group = counts, rank, group
        whole = waited(_all_gather(_padded(x, max(counts)), 0, group))
        return whole if min(counts) == max(counts) else _without_padding(whole, counts)

    @staticmethod
    def backward(ctx, upstream):
        # A sum over ranks in half precision would round at every addition.
        wide = upstream.to(torch.promote_types(upstream.dtype, torch.float32))
        return _scattered(wide, ctx.counts, ctx.rank, ctx.group).to(upstream.dtype), None, None, None


def scatter_sum(x: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """(n, ...) this rank's rows of the sum over the ranks of x (sum of counts, ...), without a gradient: the way back
    of `gather_rows`."""
    return _scattered(x, counts, dist.get_rank(group), _named(group))


def _scattered(x: Tensor, counts: Sequence[int], rank: int, group: dist.ProcessGroup) -> Tensor:
    longest = max(counts)
    if min(counts) != longest:
        x = torch.cat([_padded(part, longest) for part in x.split(list(counts))])
    return waited(_reduce_scatter(x.contiguous(), "sum", 0, group))[: counts[rank]]


def _padded(x: Tensor, rows: int) -> Tensor:
    if len(x) == rows:
        return x.contiguous()
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def _without_padding(whole: Tensor, counts: Sequence[int]) -> Tensor:
    longest = max(counts)
    return torch.cat([whole[r * longest : r * longest + count] for r, count in enumerate(counts)])


def waited(x: Tensor) -> Tensor:
    """The tensor itself, arrived: until then it is of a class of its own, for which the losses take the slow way."""
    return x.wait() if isinstance(x, collectives.AsyncCollectiveTensor) else x


def message_device(x: Tensor, group: dist.ProcessGroup | None) -> torch.device:
    """Where small messages are: on a GPU only where the group cannot carry others."""
    return x.device if dist.get_backend(group) == "nccl" else torch.device("cpu")


def _named(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    return dist.group.WORLD if group is None else group


def _check_alike(told: list[list[int]], empty: bool) -> None:
    for place, what in enumerate(("the number of tensors", "the length of rows", "the type")):
        found = [each[place] for each in told]
        if len(set(found)) > 1:
            shown = [str(TYPES[k]) for k in found] if place == 2 else found
            raise ValueError(f"{what} must be the same on all ranks, got {', '.join(map(str, shown))}")
    for rank, each in enumerate(told):
        if each[3] == 0 and not empty:
            raise ValueError(f"every rank must have at least one row, got {[other[3] for other in told]}: rank {rank}")
