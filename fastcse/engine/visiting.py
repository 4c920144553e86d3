"""Candidates that come block by block and go again: sums over all of them first, gradients when they come once more.

The arithmetic is that of `two_pass`, with the loops turned about: there every chunk of anchors meets all blocks, here
every block meets all chunks, and no two blocks are there together. The first block holds the positives and stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import Block, RowChunk, RowStats
from .gradients import Gradients
from .problem import OFF_POWERS_OF_TWO, Problem


class Visits:
    """One direction of a loss over blocks that come one after another.

    In order: `see` each block and `settle`, if `needs_largest`; `add` each block; `close`; `begin`, `give` each block
    its gradient, `finish`. Of `p.blocks` only the first is used, the one with the positives.
    """

    def __init__(self, p: Problem):
        self.p = p
        self.opened = p.opened()  # (3, N): similarity, logit and static shift of the positives
        self.shift = self.opened[2]
        self.sum, self.f_sum = p.zero_sums().unbind()
        self.largest = self.opened[1]
        self.stats = _VisitStats(p.anchor.shape[0], p.anchor.device) if p.want_stats else None

    @property
    def needs_largest(self) -> bool:
        """Whether logits may leave the range of the static shift, so that their maxima must be known first."""
        return not self.p.always_in_range()

    def see(self, block: Block) -> None:
        """The largest logits of a block. 2 N M D operations."""
        chunk, gate = self._chunk(self.p.everything), torch.ones((), dtype=torch.bool, device=self.sum.device)
        by_row = self.p.launchers.largest_logits(chunk, block, self.p.logits, gate)[0]
        self.largest = torch.maximum(self.largest, by_row)

    def settle(self) -> None:
        """The shifts from the maxima of all blocks."""
        self.shift = self.largest + OFF_POWERS_OF_TWO

    def add(self, block: Block, first: int | None = None) -> None:
        """The sums of a block. `first` is the number of its first column among all candidates, None for others."""
        b = self.p.launchers
        size = b.plan_rows(len(self.sum), [block], False, self.p.max_workspace_bytes)
        space = b.Workspace(size, [block], False)
        for rows in self.p.chunks(size):
            chunk = self._chunk(rows)
            if self.stats is not None:
                chunk.stats = RowStats.empty(rows.stop - rows.start, self.sum.device)
            b.sweep(chunk, block, self.p.logits, space.weights(rows.stop - rows.start, 0), store=False)
            if self.stats is not None:
                self.stats.add(rows, chunk.stats, first)

    def close(self) -> Tensor:
        """(3, N): losses, 1 / Z, and the shifts that it was taken with."""
        loss, _, inverse = self.p.launchers.close_rows(self._chunk(self.p.everything))
        if self.stats is not None:
            self.p.stats.append(self.stats.of(self.opened, loss))
        return torch.stack([loss, inverse, self.shift])

    def begin(self, closed: Tensor, upstream: Tensor) -> None:
        """The gradient of sum_i upstream_i loss_i comes."""
        upstream = upstream.to(torch.float32)
        self.weight, self.share = upstream * closed[1], upstream * -torch.expm1(-closed[0])
        self.shift = closed[2]
        self.f_sum.zero_()
        self.out = torch.empty(self.p.anchor.shape, dtype=torch.float32, device=self.sum.device)
        self.given = 0

    def give(self, block: Block) -> Tensor | None:
        """(M, D) the gradient of a block, None where it needs none; the anchors' is added up. 6 N M D operations."""
        b, p = self.p.launchers, self.p
        size = b.plan_rows(len(self.sum), [block], True, p.max_workspace_bytes)
        space = b.Workspace(size, [block], True)
        dc = torch.empty(block.rows.shape, dtype=torch.float32, device=self.sum.device) if block.needs_grad else None
        for rows in p.chunks(size):
            chunk = self._chunk(rows, self.weight[rows])
            e = space.weights(rows.stop - rows.start, 0)
            b.sweep(chunk, block, p.logits, e, store=True)
            b.times_candidates(e, block, self.out[rows], self.given > 0)
            if dc is not None:
                factor = b.pull_rows(chunk, p.blocks[0], p.logits, self.share[rows], None)[0]
                b.accumulate_transposed(dc, e, b.scale_rows(chunk.rows, factor), rows.start > 0)
        self.given += 1
        if dc is not None and p.normalize:
            b.finish_rows(dc, block.rows, block.scale)
        return dc

    def finish(self, dc: Tensor | None) -> Gradients:
        """The gradients of anchors and temperature, and into `dc` (M, D), what came home for the first block, the
        positives' part."""
        b, p = self.p.launchers, self.p
        chunk = self._chunk(p.everything, self.weight)
        factor, pull, d_inv_temperature = b.pull_rows(chunk, p.blocks[0], p.logits, self.share, None)
        along = chunk.scale if p.normalize else None
        into = torch.empty_like(self.out, dtype=p.dtype)
        b.finish_rows(
            self.out, chunk.rows, along, factor=factor, pull=pull, others=p.blocks[0].rows, index=chunk.positive,
            into=into,
        )  # fmt: skip
        g = Gradients(into, [dc], d_inv_temperature.sum(), pulls=[pull])
        g.finish(p)
        return g

    def _chunk(self, rows: slice, weight: Tensor | None = None) -> RowChunk:
        p, own = self.p, torch.arange(rows.start, rows.stop, device=self.sum.device)
        return RowChunk(
            p.anchor[rows], p.scale[rows], p.positive[rows], own,
            None if p.anchor_id is None else p.anchor_id[rows], self.opened[0, rows], self.opened[1, rows],
            self.shift[rows], weight, self.sum[rows], self.f_sum[rows],
        )  # fmt: skip


class _VisitStats:
    """By-products over all blocks, with the hardest candidate by its number among all candidates."""

    def __init__(self, n: int, device: torch.device):
        self.whole = RowStats.empty(n, device)
        self.overall = self.whole.hardest.clone()

    def add(self, rows: slice, found: RowStats, first: int | None) -> None:
        whole = self.whole
        whole.similarity_sum[rows] += found.similarity_sum
        whole.count[rows] += found.count
        self.overall[rows] = torch.maximum(self.overall[rows], found.hardest)
        if first is None:
            return
        column, hardest = found.hardest_col + first, whole.hardest[rows]
        # Blocks come in any order: of equals the lowest column counts.
        lower = (found.hardest == hardest) & (column < whole.hardest_col[rows])
        better = (found.hardest_col >= 0) & ((found.hardest > hardest) | lower)
        whole.hardest_col[rows] = torch.where(better, column, whole.hardest_col[rows])
        whole.hardest[rows] = torch.where(better, found.hardest, hardest)

    def of(self, opened: Tensor, loss: Tensor) -> dict[str, Tensor]:
        return {
            "lse": opened[1] + loss, "positive_similarity": opened[0], "count": self.whole.count,
            "similarity_sum": self.whole.similarity_sum, "hardest_overall": self.overall,
            "hardest": self.whole.hardest, "hardest_col": self.whole.hardest_col,
        }  # fmt: skip
