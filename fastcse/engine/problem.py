"""One call of a loss: the arrays of its chunks, the range of its exponentials, and the products of its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from ..pairs import Block, Logits, RowChunk, RowStats
from ..transforms import LogitTransform, get

# Added to every shift. Without it Z of a confident row is 1.00x, and a / Z rounds back to a in every component of a
# half-precision row: a bias of up to 2^-9 in dc. With it the rounding errors differ by component and average out.
OFF_POWERS_OF_TWO = 0.3148
# A shift this far below the largest possible logit keeps e below e^64, so that sums over 2^18 columns stay finite;
# 66 nats below 0 complete the range of a float32.
HEADROOM = 64.0
SAFE_RANGE = HEADROOM + 66.0


@dataclass
class Problem:
    """Anchors (N, D) and their blocks, prepared by the backend.

    `positive` (N,) is the column of blocks[0]; `distinct` says that it is 0, 1, 2, ...
    """

    anchor: Tensor
    scale: Tensor
    blocks: list[Block]
    positive: Tensor
    distinct: bool
    anchor_id: Tensor | None
    logits: Logits
    normalize: bool
    max_workspace_bytes: int | None
    want_stats: bool
    launchers: ModuleType
    stats: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def transform(self) -> LogitTransform:
        return get(self.logits.transform)

    @property
    def everything(self) -> slice:
        return slice(0, self.anchor.shape[0])

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of anchor rows."""
        n = self.anchor.shape[0]
        return (slice(first, min(first + size, n)) for first in range(0, n, size))

    def opened(self, rows: slice) -> Tensor:
        """(3, R): the positives' similarity and logit, and the static shift c_i = max(logit, x_max - 64) + 0.3148."""
        ceiling = self.largest_possible(rows) - HEADROOM
        return self.launchers.open_rows(
            self.anchor[rows], self.scale[rows], self.blocks[0], self.positive[rows], self.logits, ceiling,
            OFF_POWERS_OF_TWO,
        )  # fmt: skip

    def chunk(self, rows: slice, opened: Tensor, shift: Tensor | None = None, weight: Tensor | None = None) -> RowChunk:
        """The arrays of the chunk, sums at zero."""
        a, r = self.anchor[rows], rows.stop - rows.start
        sums = torch.zeros(2, r, dtype=torch.float32, device=a.device)
        needs_own = any(block.own_log_weight for block in self.blocks)
        own = torch.arange(rows.start, rows.stop, device=a.device) if needs_own else None
        stats = RowStats.empty(r, a.device) if self.want_stats else None
        row_id = None if self.anchor_id is None else self.anchor_id[rows]
        return RowChunk(
            a, self.scale[rows], self.positive[rows], own, row_id, opened[0], opened[1],
            opened[2] if shift is None else shift, weight, sums[0], sums[1], stats,
        )  # fmt: skip

    def largest_possible(self, rows: slice) -> Tensor | float:
        """The largest logit that the rows can have: a float where the host knows it, else 0-dim or (R,)."""
        high = self.transform.bounds(self._longest(rows), self.logits.margin)[1]
        value = self.logits.inv_temperature_value
        x_max = high * (self.logits.inv_temperature if value is None else value)
        for block in self.blocks[1:]:
            x_max = x_max + max(block.own_log_weight, 0.0)
            if block.weighted:
                x_max = x_max + block.bias.amax().clamp_min(0.0)
        return x_max

    def _longest(self, rows: slice) -> Tensor | float:
        """The largest |s| that the rows can have: |a_i| max_j |c_j|, or 1."""
        if self.normalize:
            return 1.0
        longest = [torch.linalg.vector_norm(b.rows, dim=1, dtype=torch.float32).amax() for b in self.blocks]
        return torch.linalg.vector_norm(self.anchor[rows], dim=1, dtype=torch.float32) * torch.stack(longest).amax()

    def always_in_range(self) -> bool:
        """Whether the static shift is known on the host to be enough."""
        value = self.logits.inv_temperature_value
        if not self.normalize or value is None or any(block.weighted for block in self.blocks):
            return False
        low, high = self.transform.bounds(1.0, self.logits.margin)
        own = sum(abs(block.own_log_weight) for block in self.blocks)
        return (high - low) * value + own < SAFE_RANGE

    def out_of_range(self) -> Tensor:
        """0-dim bool on the device: whether logits may spread wider than the static shift allows."""
        low, _ = self.transform.bounds(self._longest(self.everything), self.logits.margin)
        spread = self.largest_possible(self.everything) - low * self.logits.inv_temperature
        return (~(spread < SAFE_RANGE)).any()

    def finish_stats(self, chunk: RowChunk, loss: Tensor) -> None:
        """Adds the chunk's by-products, block 0's hardest negative being there already."""
        if chunk.stats is None:
            return
        stats = chunk.stats
        self.stats[-1] |= {
            "lse": chunk.logit + loss, "positive_similarity": chunk.similarity, "count": stats.count,
            "similarity_sum": stats.similarity_sum, "hardest_overall": stats.hardest,
        }  # fmt: skip


@dataclass
class Gradients:
    """Accumulators in float32: `anchor` (N, D), one (M, D) or None for each block, `inv_temperature` 0-dim.

    `pull` (N,) is k_i, what draws an anchor and its positive together.
    """

    anchor: Tensor
    blocks: list[Tensor | None]
    inv_temperature: Tensor
    pull: Tensor

    @classmethod
    def like(cls, p: Problem) -> Gradients:
        new = {"dtype": torch.float32, "device": p.anchor.device}
        blocks = [torch.empty(b.rows.shape, **new) if b.needs_grad else None for b in p.blocks]
        pull = torch.empty(p.anchor.shape[0], **new)
        return cls(torch.empty(p.anchor.shape, **new), blocks, torch.zeros((), **new), pull)

    def add_chunk(
        self, p: Problem, rows: slice, chunk: RowChunk, weights: list[Tensor], share: Tensor, inverse: Tensor | None
    ) -> None:
        """The products of one chunk. `inverse` (R,) multiplies rows of the weights; `share` (R,) is the positive's."""
        b, positives = p.launchers, p.blocks[0]
        factor, pull, d_inv_temperature = b.pull_rows(chunk, positives, p.logits, share, inverse)
        if p.logits.inv_temperature_value is None:
            self.inv_temperature += d_inv_temperature.sum()
        self.pull[rows] = pull
        out = self.anchor[rows]
        for k, (block, e) in enumerate(zip(p.blocks, weights)):
            b.times_candidates(e, block, out, k > 0)
        along = chunk.scale if p.normalize else None
        b.finish_rows(out, chunk.rows, along, factor=factor, pull=pull, block=positives, index=chunk.positive)
        if not any(block.needs_grad for block in p.blocks):
            return
        scaled = b.scale_rows(chunk.rows, factor)
        for e, dc in zip(weights, self.blocks):
            if dc is not None:
                b.accumulate_transposed(dc, e, scaled, rows.start > 0)

    def finish(self, p: Problem) -> None:
        """The positives' share of dc, then its part along each candidate off."""
        b = p.launchers
        if self.blocks[0] is not None:
            b.scatter_rows(self.blocks[0], p.anchor, self.pull, p.positive, p.distinct)
        for block, dc in zip(p.blocks, self.blocks):
            if dc is not None and p.normalize:
                b.finish_rows(dc, block.rows, block.scale)
