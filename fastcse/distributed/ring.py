"""Candidates that are passed from process to process in a ring, so that no process ever holds them all.

While one rank's blocks are worked with, the next one's are received. There are two laps: one for the sums of the
softmax, one for the gradients, which are returned to their owner with the second. A rank holds the blocks of two ranks
at a time, whatever the number of ranks; the products are those of the two-pass form, 8 N M D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..losses.contrastive import (
    Batch,
    CandidateBlock,
    CandidateSource,
    LossAndStats,
    LossOptions,
    as_blocks,
    check_blocks,
    check_options,
    summary,
)
from ..ops.blockwise import RemoteBlock, blockwise_loss
from ..ops.call import STATS, Sweep
from ..ops.dispatch import choose_backend
from .collectives import RaggedGather


@dataclass
class RingCandidates(CandidateSource):
    """This rank's candidates, and those of all others lap by lap. `exchange` counts candidates first, then each
    block of negatives; `replicated` are blocks that all ranks hold alike."""

    exchange: RaggedGather
    candidate: Tensor
    replicated: list[CandidateBlock]

    def loss(self, batch: Batch, call: LossOptions) -> Tensor | LossAndStats:
        """The mean loss of this rank's anchors over the candidates of all ranks."""
        anchor = batch.anchor
        sent = [CandidateBlock(self.candidate, id=batch.candidate_id), *as_blocks(batch.negatives)]
        check_blocks(anchor, [*sent, *self.replicated], None, batch.anchor_id)
        check_options(call)
        learned = isinstance(call.temperature, Tensor)
        inv = call.temperature.reciprocal().reshape(()) if learned else None
        sweep = Sweep(
            anchor, [self.candidate], [None], [batch.candidate_id], [0.0], None, batch.anchor_id, inv,
            0.0 if learned else float(call.temperature), call.transform.name, float(call.margin), call.normalize,
            [self.candidate.requires_grad], call.return_stats, call.max_workspace_bytes,
            choose_backend(anchor, call.backend),
        )  # fmt: skip
        losses, *made = _Ring.apply(self, sweep, sent, anchor, inv, *[block.rows for block in sent])
        loss = losses.mean()
        if not call.return_stats:
            return loss
        columns = sum(sum(self.exchange.rows(k)) for k in range(len(sent))) + sum(len(b.rows) for b in self.replicated)
        return LossAndStats(loss, summary(dict(zip(STATS, made)), anchor.shape[0] * (columns - 1)))

    def lap(self, blocks: list[CandidateBlock]) -> Iterator[tuple[int, list[RemoteBlock]]]:
        """Every rank's blocks, with the rank, this one's first."""
        exchange = self.exchange
        origin, parcel, needs = exchange.rank, _packed(blocks), [block.rows.requires_grad for block in blocks]
        for step in range(exchange.ranks):
            arriving, work = None, []
            if step + 1 < exchange.ranks:
                source = (origin - 1) % exchange.ranks
                arriving = _room(parcel, [counts[source] for counts in _by_tensor(exchange, blocks)])
                work = _send_and_receive(exchange, parcel, arriving)
            yield origin, self._unpacked(origin, parcel, blocks, needs)
            for one in work:
                one.wait()
            if arriving is not None:
                origin, parcel = source, arriving

    def replicated_blocks(self) -> list[RemoteBlock]:
        """The blocks that are not sent."""
        return [
            RemoteBlock(b.rows, b.log_weight, b.id, b.own_log_weight, False, None, False) for b in self.replicated
        ]  # fmt: skip

    def _unpacked(
        self, origin: int, parcel: list[Tensor], blocks: list[CandidateBlock], needs: list[bool]
    ) -> list[RemoteBlock]:
        own, given, made = origin == self.exchange.rank, iter(parcel), []
        for k, block in enumerate(blocks):
            rows = next(given)
            log_weight = None if block.log_weight is None else next(given)
            id = None if block.id is None else next(given)
            first = sum(self.exchange.rows(0)[:origin]) if k == 0 else None
            weight = block.own_log_weight if own else 0.0
            made.append(RemoteBlock(rows, log_weight, id, weight, own and k == 0, first, needs[k]))
        return made


def _packed(blocks: list[CandidateBlock]) -> list[Tensor]:
    given = [x for block in blocks for x in (block.rows, block.log_weight, block.id) if x is not None]
    return [x.detach().contiguous() for x in given]


def _by_tensor(exchange: RaggedGather, blocks: list[CandidateBlock]) -> list[list[int]]:
    """The counts by rank of every tensor of a parcel."""
    return [
        exchange.rows(k)
        for k, block in enumerate(blocks)
        for x in (block.rows, block.log_weight, block.id)
        if x is not None
    ]


def _room(like: list[Tensor], counts: list[int]) -> list[Tensor]:
    return [x.new_empty(count, *x.shape[1:]) for x, count in zip(like, counts)]


def _send_and_receive(exchange: RaggedGather, sent: list[Tensor], arriving: list[Tensor]) -> list[dist.Work]:
    """Send tensors to the next rank and receive those of the one before. All ranks start these in one order."""
    rank, ranks, group = exchange.rank, exchange.ranks, exchange.group
    after, before = (rank + 1) % ranks, (rank - 1) % ranks
    if group is not None:
        after, before = dist.get_global_rank(group, after), dist.get_global_rank(group, before)
    ops = [dist.P2POp(dist.isend, x, after, group, tag) for tag, x in enumerate(sent)]
    ops += [dist.P2POp(dist.irecv, x, before, group, tag) for tag, x in enumerate(arriving)]
    return dist.batch_isend_irecv(ops)


class _Ring(torch.autograd.Function):
    """(N,) losses and by-products of this rank's anchors."""

    @staticmethod
    def forward(ctx, ring, sweep, blocks, anchor, inv_temperature, *rows):
        loss = blockwise_loss(sweep)
        given = [*blocks, *ring.replicated]
        if loss.needs_max(any(b.log_weight is not None or b.own_log_weight for b in given)):
            for remote in _all(ring, blocks):
                loss.accumulate_max(remote)
            loss.freeze_shift()
        for remote in _all(ring, blocks):
            loss.accumulate(remote)
        closed = loss.finalize()
        made = loss.by_products() if sweep.want_stats else []
        ctx.ring, ctx.blocks = ring, blocks
        ctx.sweep = sweep._replace(want_stats=False)
        ctx.save_for_backward(closed)
        ctx.mark_non_differentiable(*made)
        return (closed[0].clone(), *made)

    @staticmethod
    def backward(ctx, upstream, *_):
        (closed,), blocks, sweep = ctx.saved_tensors, ctx.blocks, ctx.sweep
        loss = blockwise_loss(sweep)
        loss.start_backward(closed, upstream)
        returned = _return_gradients(ctx.ring, blocks, loss)
        own = loss.finish_backward(returned[0])
        made = [None if g is None else g.to(sweep.anchor.dtype) for g in (own.blocks[0], *returned[1:])]
        d_inv = None if sweep.inv_temperature is None else own.inv_temperature.to(sweep.inv_temperature.dtype)
        return None, None, None, own.anchor.to(sweep.anchor.dtype), d_inv, *made


def _all(ring: RingCandidates, blocks: list[CandidateBlock]) -> Iterator[RemoteBlock]:
    for _, remotes in ring.lap(blocks):
        yield from remotes
        del remotes  # before the next one's room is made
    yield from ring.replicated_blocks()


def _return_gradients(ring: RingCandidates, blocks: list[CandidateBlock], loss) -> list[Tensor | None]:
    """A block's gradient is sent on with this rank's part added; the last that is received is of this rank's blocks."""
    exchange, needs = ring.exchange, [block.rows.requires_grad for block in blocks]
    carried, leaving, work = None, [], []
    for origin, remotes in ring.lap(blocks):
        own = [loss.backward_block(remote) for remote in remotes]
        own = [g for g in own if g is not None]
        del remotes  # before the next one's room is made
        for one in work:
            one.wait()
        if carried is not None:
            for g, so_far in zip(own, carried):
                g += so_far
        carried = None
        # The rank before sends the gradient of the next remote block, at last that of this rank's own rows.
        counts = [exchange.rows(k)[(origin - 1) % exchange.ranks] for k, need in enumerate(needs) if need]
        leaving, carried = own, _room(own, counts)
        work = _send_and_receive(exchange, leaving, carried) if own else []
    for remote in ring.replicated_blocks():
        loss.backward_block(remote)
    for one in work:
        one.wait()
    arrived = iter(carried or [])
    return [next(arrived) if need else None for need in needs]
