"""The loss over a stream of candidate blocks on every backend: what a ring of processes works with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import reference
from ..engine.blockwise import BlockwiseLoss
from ..engine.gradients import Gradients
from ..operands import Block
from ..transforms import get
from .call import STATS, Sweep, block_of, problem
from .dispatch import record


@dataclass
class RemoteBlock:
    """A block of candidates of a stream: `first` is the number of its first row among all candidates, None for other
    negatives; with `positives` row i is anchor i's, and with an `own_log_weight` it weighs more for it."""

    rows: Tensor
    log_weight: Tensor | None
    id: Tensor | None
    own_log_weight: float
    positives: bool
    first: int | None
    needs_grad: bool


def blockwise_loss(call: Sweep) -> FusedBlockwise | PlainBlockwise:
    """The passes over remote blocks of the anchors of `call`, whose only rows are those with the positives."""
    return PlainBlockwise(call) if call.backend == "reference" else FusedBlockwise(call)


class FusedBlockwise(BlockwiseLoss):
    """`engine.blockwise` over remote blocks, prepared for the backend."""

    def __init__(self, call: Sweep):
        super().__init__(problem(call))

    def accumulate_max(self, remote: RemoteBlock) -> None:
        super().accumulate_max(self._block(remote))

    def accumulate(self, remote: RemoteBlock) -> None:
        super().accumulate(self._block(remote), remote.first)

    def by_products(self) -> list[Tensor]:
        """In the order of STATS."""
        return [self.p.stats[0][name] for name in STATS]

    def backward_block(self, remote: RemoteBlock) -> Tensor | None:
        """(M, D) float32, the block's gradient."""
        return super().backward_block(self._block(remote))

    def _block(self, r: RemoteBlock) -> Block:
        if r.positives:  # prepared already
            return self.p.blocks[0]
        return block_of(
            self.p.launchers, self.p.normalize, r.rows, r.log_weight, r.id, r.own_log_weight, False, r.needs_grad
        )


class PlainBlockwise:
    """The same in plain torch, gradients by autograd: the specification, and the backend for float64."""

    def __init__(self, call: Sweep):
        record(call.backend)
        self.call, self.transform, n = call, get(call.transform), call.anchor.shape[0]
        dtype, device = torch.promote_types(call.anchor.dtype, torch.float32), call.anchor.device
        inv = 1.0 / call.temperature if call.inv_temperature is None else call.inv_temperature.detach()
        self.inv = torch.as_tensor(inv, dtype=dtype, device=device)
        self.anchor, self.own = call.anchor.detach(), torch.arange(n, device=device)
        self.total = torch.full((n,), -torch.inf, dtype=dtype, device=device)
        self.found = {name: torch.zeros_like(self.total) for name in ("similarity_sum", "count")}
        self.found |= {name: self.total.clone() for name in ("hardest", "hardest_overall")}
        self.found["hardest_col"] = torch.full((n,), -1, device=device)

    def needs_max(self, weighted: bool) -> bool:
        return False

    @torch.no_grad()
    def accumulate(self, remote: RemoteBlock) -> None:
        s, x, keep = self._logits(remote, self.anchor, remote.rows, self.inv)
        self.total = torch.logaddexp(self.total, x.logsumexp(1))
        kept, found = torch.where(keep, s, -torch.inf), self.found
        found["similarity_sum"] += torch.where(keep, s, 0.0).sum(1)
        found["count"] += keep.sum(1)
        best = kept.amax(1)
        found["hardest_overall"] = torch.maximum(found["hardest_overall"], best)
        if remote.first is None:
            return
        column = (kept == best[:, None]).int().argmax(1) + remote.first
        lower = (best == found["hardest"]) & (column < found["hardest_col"])
        better = torch.isfinite(best) & ((best > found["hardest"]) | lower)
        found["hardest_col"] = torch.where(better, column, found["hardest_col"])
        found["hardest"] = torch.where(better, best, found["hardest"])

    @torch.no_grad()
    def finalize(self) -> Tensor:
        s, x = self._positive(self.anchor, self.call.rows[0].detach(), self.inv)
        loss = torch.logaddexp(self.total - x, torch.zeros_like(x))
        self.found |= {"lse": x + loss, "positive_similarity": s}
        return torch.stack([loss, torch.sigmoid(self.total - x), x + loss])

    def by_products(self) -> list[Tensor]:
        return [self.found[name] for name in STATS]

    def start_backward(self, closed: Tensor, upstream: Tensor) -> None:
        self.closed, self.upstream = closed, upstream
        self.d_anchor, self.d_inv = torch.zeros_like(self.anchor), torch.zeros_like(self.inv)

    def backward_block(self, remote: RemoteBlock) -> Tensor | None:
        with torch.enable_grad():
            given = self._leaves(remote.rows)
            _, x, keep = self._logits(remote, *given)
            # The loss's derivative by a logit is the logit's share of the row's sum.
            share = self.upstream[:, None] * torch.exp(x.detach() - self.closed[2][:, None])
            d_rows = self._backward((share * torch.where(keep, x, 0.0)).sum(), given)
        return d_rows if remote.needs_grad else None

    def finish_backward(self, d_own: Tensor | None) -> Gradients:
        with torch.enable_grad():
            given = self._leaves(self.call.rows[0])
            _, x = self._positive(*given)
            d_rows = self._backward(-(self.upstream * self.closed[1] * x).sum(), given)
        return Gradients(self.d_anchor, [None if d_own is None else d_own + d_rows], self.d_inv)

    def _leaves(self, rows: Tensor) -> list[Tensor]:
        return [one.detach().requires_grad_() for one in (self.anchor, rows, self.inv)]

    def _backward(self, value: Tensor, given: list[Tensor]) -> Tensor:
        d_anchor, d_rows, d_inv = torch.autograd.grad(value, given)
        self.d_anchor += d_anchor
        self.d_inv += d_inv
        return d_rows

    def _positive(self, anchor: Tensor, rows: Tensor, inv: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) similarities and logits of the positives."""
        a, c = (x.to(inv.dtype) for x in (anchor, rows[: len(anchor)]))
        if self.call.normalize:
            a, c = reference.unit_rows(a), reference.unit_rows(c)
        s = (a * c).sum(1)
        return s, self.transform.differentiable()[1](s, self.call.margin) * inv

    def _logits(self, r: RemoteBlock, anchor: Tensor, rows: Tensor, inv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, M) similarities, logits with -inf where a pair takes no part, and where it takes part."""
        s = reference.similarity(anchor, rows, self.call.normalize)
        x = self.transform.differentiable()[0](s, self.call.margin).to(s.dtype) * inv
        if r.log_weight is not None:
            x = x + r.log_weight
        own = self.own[:, None] == torch.arange(rows.shape[0], device=rows.device)
        keep = ~own if r.positives else torch.ones_like(own)
        if r.own_log_weight:
            x = torch.where(own, x + r.own_log_weight, x)
        if r.id is not None and self.call.anchor_id is not None:
            keep = keep & (self.call.anchor_id[:, None] != r.id)
        return s, torch.where(keep, x, -torch.inf), keep
