"""One call of a loss: the arrays of its chunks, the range of its exponentials, and the products of its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from ..operands import Block, Logits, RowChunk, RowStats
from ..transforms import LogitTransform, get

# Added to every shift. Without it Z of a confident row is 1.00x, and a / Z rounds back to a in every component of a
# half-precision row: a bias of up to 2^-9 in dc. With it the rounding errors differ by component and average out.
SHIFT_DITHER = 0.3148
# A shift this far below the largest possible logit keeps e below e^64, so that sums over 2^18 columns stay finite;
# 66 nats below 0 complete the range of a float32.
HEADROOM = 64.0
SAFE_RANGE = HEADROOM + 66.0


@dataclass
class Problem:
    """Anchors (N, D) and their blocks, prepared by the backend.

    `positive` (N,) is the column of blocks[0]; `positive_is_arange` says that it is 0, 1, 2, ... `dtype` is that of
    the inputs and of the gradients.
    """

    anchor: Tensor
    dtype: torch.dtype
    scale: Tensor
    blocks: list[Block]
    positive: Tensor
    positive_is_arange: bool
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

    @property
    def paired(self) -> bool:
        """Whether anchor i's positive is column i and there are no other columns: rows and columns are one then."""
        return self.positive_is_arange and self.anchor.shape[0] == self.blocks[0].rows.shape[0]

    def of_positives(self, by_column: Tensor) -> Tensor:
        """(N,) what stands at each anchor's positive in (M,)."""
        return by_column if self.paired else by_column[self.positive]

    def at_positives(self, by_row: Tensor) -> Tensor:
        """(M,) sums over the anchors whose positive is j of (N,)."""
        if self.paired:
            return by_row
        zeros = by_row.new_zeros(self.blocks[0].rows.shape[0])
        return self.launchers.add_at(zeros, self.positive, by_row)

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of anchor rows."""
        n = self.anchor.shape[0]
        return (slice(first, min(first + size, n)) for first in range(0, n, size))

    def opened(self) -> Tensor:
        """(3, N): the positives' similarity and logit, and the static shift c_i = max(logit, x_max - 64) + 0.3148."""
        ceiling = self.largest_possible() - HEADROOM
        return self.launchers.positive_logits(
            self.anchor, self.scale, self.blocks[0], self.positive, self.logits, ceiling, SHIFT_DITHER
        )

    def zero_sums(self) -> Tensor:
        """(2, N): where the rows' sums of e and of e f start, once for all chunks."""
        return torch.zeros(2, self.anchor.shape[0], dtype=torch.float32, device=self.anchor.device)

    def chunk(
        self, rows: slice, opened: Tensor, sums: Tensor, shift: Tensor | None = None, weight: Tensor | None = None
    ) -> RowChunk:
        """The rows' part of arrays that hold all rows: `opened` (3, N), `sums` (2, N), `shift` and `weight` (N,)."""
        a, r = self.anchor[rows], rows.stop - rows.start
        needs_own = any(block.own_log_weight for block in self.blocks)
        own = torch.arange(rows.start, rows.stop, device=a.device) if needs_own else None
        stats = RowStats.empty(r, a.device) if self.want_stats else None
        row_id = None if self.anchor_id is None else self.anchor_id[rows]
        return RowChunk(
            a, self.scale[rows], self.positive[rows], own, row_id, opened[0, rows], opened[1, rows],
            opened[2, rows] if shift is None else shift[rows], None if weight is None else weight[rows],
            sums[0, rows], sums[1, rows], stats,
        )  # fmt: skip

    def largest_possible(self) -> Tensor | float:
        """The largest logit that the rows can have: a float where the host knows it, else 0-dim or (N,)."""
        high = self.transform.bounds(self._longest(), self.logits.margin)[1]
        value = self.logits.inv_temperature_value
        x_max = high * (self.logits.inv_temperature if value is None else value)
        for block in self.blocks[1:]:
            x_max = x_max + max(block.own_log_weight, 0.0)
            if block.weighted:
                x_max = x_max + block.bias.amax().clamp_min(0.0)
        return x_max

    def _longest(self) -> Tensor | float:
        """The largest |s| that the rows can have: |a_i| max_j |c_j|, or 1."""
        if self.normalize:
            return 1.0
        longest = [torch.linalg.vector_norm(b.rows, dim=1, dtype=torch.float32).amax() for b in self.blocks]
        return torch.linalg.vector_norm(self.anchor, dim=1, dtype=torch.float32) * torch.stack(longest).amax()

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
        low, _ = self.transform.bounds(self._longest(), self.logits.margin)
        spread = self.largest_possible() - low * self.logits.inv_temperature
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
