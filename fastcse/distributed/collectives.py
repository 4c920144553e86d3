"""Rows of all ranks of a process group, brought together with their gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor

MOST_TENSORS = 30  # in one exchange: the message that says what a rank brings has one length on all ranks
# The names that torch 2.13 made of all_gather_tensor and reduce_scatter_tensor.
_all_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_reduce_scatter = getattr(collectives, "reduce_scatter_single", None) or collectives.reduce_scatter_tensor


@dataclass(frozen=True)
class RaggedGather:
    """What the ranks of a group bring to one call: `counts[r][t]` rows of the t-th tensor on rank r.

    Making one is collective: every rank calls `of`.

    Example:
        >>> RaggedGather.of([torch.ones(3, 2)]).counts  # without a process group: one rank
        [[3]]
    """

    group: dist.ProcessGroup | None
    rank: int
    counts: list[list[int]]

    @classmethod
    def of(
        cls,
        tensors: Sequence[Tensor],
        group: dist.ProcessGroup | None = None,
        *,
        empty: bool = False,
        alike: Mapping[str, Any] | None = None,
        check: Callable[[], None] | None = None,
    ) -> RaggedGather:
        """Gathers how many rows every rank has of each tensor, (n_t, D_t); without rows only where `empty` allows it.

        Args:
            alike: what else must be the same on all ranks, by name.
            check: raises a ValueError where this rank's own arguments are wrong.

        Raises:
            ValueError: on every rank, what `check` raised on some, or that they disagree on the number of tensors,
                their widths, their types, or on what is in `alike`. Without this they would wait for one another, or
                mix up one another's bytes.
        """
        if not is_many(group):
            _check_own(tensors, empty, check)
            return cls(group, 0, [[len(x) for x in tensors]])
        mistake, fingerprint = None, {}
        try:
            _check_own(tensors, empty, check)
            fingerprint = {
                "the number of tensors": len(tensors), "the lengths of rows": [x.shape[1:].numel() for x in tensors],
                "the types": [str(x.dtype) for x in tensors], **(alike or {}),
            }  # fmt: skip
        except ValueError as error:
            mistake = str(error)
        counts = [] if mistake else [len(x) for x in tensors]
        told = _exchange_counts(mistake, fingerprint, counts, tensors[0], group)
        return cls(group, dist.get_rank(group), [each[: len(counts)] for each in told])

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


def gather_equal_rows(x: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, int]:
    """The rows of all ranks, of which each holds as many, as `gather_rows`, and the number of this rank's first.

    Raises:
        ValueError: on every rank, if they hold different numbers of rows. `gathered_loss` takes such batches.
    """
    exchange = RaggedGather.of([x], group)
    counts = exchange.rows(0)
    if min(counts) != max(counts):
        raise ValueError(f"every rank must hold the same number of rows, got {counts}")
    return exchange.gather(x, 0), exchange.offset(0)


def average_gradient(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The mean over the ranks of a tensor that all of them hold alike, as a learned temperature: its gradient is the
    mean of theirs, so that it stays alike. Data-parallel wrappers do so for a model's parameters; this is for a loss's.
    """
    if not is_many(group):
        return x
    return gather_rows(x.reshape(1, -1), [1] * dist.get_world_size(group), group).mean(0).reshape(x.shape)


def total_over_ranks(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum over the ranks of a tensor of one shape on all of them, without a gradient; the same bits everywhere."""
    return wait(collectives.all_reduce(x, "sum", _named(group))) if is_many(group) else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, rank, group):
        ctx.counts, ctx.rank, ctx.group = counts, rank, group
        whole = wait(_all_gather(_padded(x, max(counts)), 0, group))
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
    return wait(_reduce_scatter(x.contiguous(), "sum", 0, group))[: counts[rank]]


def _padded(x: Tensor, rows: int) -> Tensor:
    if len(x) == rows:
        return x.contiguous()
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def _without_padding(whole: Tensor, counts: Sequence[int]) -> Tensor:
    longest = max(counts)
    return torch.cat([whole[r * longest : r * longest + count] for r, count in enumerate(counts)])


def wait(x: Tensor) -> Tensor:
    """The tensor, when the transfer is done: before, it is of a class of its own, for which the losses are slow."""
    return x.wait() if isinstance(x, collectives.AsyncCollectiveTensor) else x


def message_device(x: Tensor, group: dist.ProcessGroup | None) -> torch.device:
    """Where small messages are: on a GPU only where the group cannot carry others."""
    return x.device if dist.get_backend(group) == "nccl" else torch.device("cpu")


def _named(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    return dist.group.WORLD if group is None else group


def _check_own(tensors: Sequence[Tensor], empty: bool, check: Callable[[], None] | None) -> None:
    """What this rank can know to be wrong."""
    if check is not None:
        check()
    if not 1 <= len(tensors) <= MOST_TENSORS:
        raise ValueError(f"from 1 to {MOST_TENSORS} tensors can be gathered together, got {len(tensors)}")
    for x in tensors:
        if len(x) == 0 and not empty:
            raise ValueError(f"every rank must have at least one row, got shape {tuple(x.shape)}")


def _exchange_counts(
    mistake: str | None, fingerprint: dict[str, Any], counts: list[int], like: Tensor, group: dist.ProcessGroup | None
) -> list[list[int]]:
    """Every rank's counts, if none has made a mistake and all fingerprints are equal; else a ValueError on all of them.

    Both are in one message of a fixed length; texts are gathered only where something is wrong.
    """
    digest = int.from_bytes(hashlib.sha256(repr(fingerprint).encode()).digest()[:7], "little")
    message = [int(mistake is not None), digest, *counts, *[0] * (MOST_TENSORS - len(counts))]
    sent = torch.tensor(message, device=message_device(like, group))
    told = wait(_all_gather(sent, 0, _named(group))).view(-1, len(message)).tolist()
    if any(each[0] for each in told):
        mistakes = [(rank, text) for rank, text in enumerate(_all_gather_object(mistake, group)) if text]
        raise ValueError("; ".join(f"rank {rank}: {text}" for rank, text in mistakes))
    if len({each[1] for each in told}) > 1:
        everyone = _all_gather_object(fingerprint, group)
        for name in fingerprint:
            found = [each.get(name) for each in everyone]
            if any(one != found[0] for one in found):
                raise ValueError(f"{name} must be the same on all ranks, got {', '.join(map(str, found))}")
        raise ValueError(f"all ranks must say the same, got {everyone}")
    return [each[2:] for each in told]


def _all_gather_object(mine: Any, group: dist.ProcessGroup | None) -> list[Any]:
    everyone = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone
