"""Two-pass loss over candidate blocks that are streamed twice.

The arithmetic is that of `sweep`, with the loops exchanged: there the outer loop is over chunks of anchors, here over
blocks, of which one is held at a time. The first block, with the positives, stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import Block, RowChunk, RowStats
from .gradients import Gradients
from .problem import SHIFT_DITHER, Problem


class BlockwiseLoss:
    """One direction of a loss over a stream of blocks.

    In order: `accumulate_max` of each block and `freeze_shift`, if `needs_max`; `accumulate` each block; `finalize`;
    `start_backward`, `backward_block` of each block, `finish_backward`. Of `p.blocks` only the first is used, the one
    with the positives.
    """

    def __init__(self, p: Problem):
        self.p = p
        self.opened = p.opened()  # (3, N): similarity, logit and static shift of the positives
        self.shift = self.opened[2]
        self.sum, self.f_sum = p.zero_sums().unbind()
        self.largest = self.opened[1]
        self.stats = _BlockwiseStats(p.anchor.shape[0], p.anchor.device) if p.want_stats else None

    def needs_max(self, weighted: bool) -> bool:
        """Whether logits may leave the range of the static shift, so that a first pass for row maxima is needed;
        `weighted`: some block has weights."""
        return weighted or not self.p.always_in_range()

    def accumulate_max(self, block: Block) -> None:
        """The largest logits of a block. 2 N M D operations."""
        chunk, predicate = self._chunk(self.p.everything), torch.ones((), dtype=torch.bool, device=self.sum.device)
        by_row = self.p.launchers.largest_logits(chunk, block, self.p.logits, predicate)[0]
        self.largest = torch.maximum(self.largest, by_row)

    def freeze_shift(self) -> None:
        """The shifts from the maxima of all blocks."""
        self.shift = self.largest + SHIFT_DITHER

    def accumulate(self, block: Block, first: int | None = None) -> None:
        """The sums of a block. `first` is the number of its first column among all candidates, None for others."""
        b = self.p.launchers
        size = b.plan_rows(len(self.sum), [block], False, self.p.max_workspace_bytes)
        workspace = b.Workspace(size, [block], False)
        for rows in self.p.chunks(size):
            chunk = self._chunk(rows)
            if self.stats is not None:
                chunk.stats = RowStats.empty(rows.stop - rows.start, self.sum.device)
            b.sweep(chunk, block, self.p.logits, workspace.weights(rows.stop - rows.start, 0), store=False)
            if self.stats is not None:
                self.stats.add(rows, chunk.stats, first)

    def finalize(self) -> Tensor:
        """(3, N): losses, 1 / Z, and the shifts that it was taken with."""
        loss, _, inverse = self.p.launchers.row_loss(self._chunk(self.p.everything))
        if self.stats is not None:
            self.p.stats.append(self.stats.of(self.opened, loss))
        return torch.stack([loss, inverse, self.shift])

    def start_backward(self, closed: Tensor, upstream: Tensor) -> None:
        """Begins the second pass, for the gradient of sum_i upstream_i loss_i."""
        upstream = upstream.to(torch.float32)
        self.weight, self.one_minus_p = upstream * closed[1], upstream * -torch.expm1(-closed[0])
        self.shift = closed[2]
        self.out = torch.empty(self.p.anchor.shape, dtype=torch.float32, device=self.sum.device)
        self.blocks_done = 0

    def backward_block(self, block: Block) -> Tensor | None:
        """(M, D) the gradient of a block, None where it needs none; the anchors' is added up. 6 N M D operations."""
        b, p = self.p.launchers, self.p
        size = b.plan_rows(len(self.sum), [block], True, p.max_workspace_bytes)
        workspace = b.Workspace(size, [block], True)
        dc = torch.empty(block.rows.shape, dtype=torch.float32, device=self.sum.device) if block.needs_grad else None
        for rows in p.chunks(size):
            chunk = self._chunk(rows, self.weight[rows])
            e = workspace.weights(rows.stop - rows.start, 0)
            b.sweep(chunk, block, p.logits, e, store=True)
            b.times_candidates(e, block, self.out[rows], self.blocks_done > 0)
            if dc is not None:
                factor = b.positive_gradient(chunk, p.blocks[0], p.logits, self.one_minus_p[rows], None)[0]
                b.accumulate_transposed(dc, e, b.scale_rows(chunk.rows, factor), rows.start > 0)
        self.blocks_done += 1
        if dc is not None and p.normalize:
            b.project_gradient(dc, block.rows, block.scale)
        return dc

    def finish_backward(self, dc: Tensor | None) -> Gradients:
        """The gradients of anchors and temperature; the positives' part is added to `dc` (M, D), the gradient of the
        first block that other ranks made."""
        b, p = self.p.launchers, self.p
        chunk = self._chunk(p.everything, self.weight)
        factor, positive_weight, d_inv_temperature = b.positive_gradient(
            chunk, p.blocks[0], p.logits, self.one_minus_p, None
        )
        along = chunk.scale if p.normalize else None
        into = torch.empty_like(self.out, dtype=p.dtype)
        b.project_gradient(
            self.out,
            chunk.rows,
            along,
            factor=factor,
            positive_weight=positive_weight,
            others=p.blocks[0].rows,
            index=chunk.positive,
            into=into,
        )
        g = Gradients(into, [dc], d_inv_temperature.sum(), positive_weights=[positive_weight])
        g.finish(p)
        return g

    def _chunk(self, rows: slice, weight: Tensor | None = None) -> RowChunk:
        p, own = self.p, torch.arange(rows.start, rows.stop, device=self.sum.device)
        return RowChunk(
            p.anchor[rows], p.scale[rows], p.positive[rows], own,
            None if p.anchor_id is None else p.anchor_id[rows], self.opened[0, rows], self.opened[1, rows],
            self.shift[rows], weight, self.sum[rows], self.f_sum[rows],
        )  # fmt: skip


class _BlockwiseStats:
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
        # Blocks have any order: of equals the lowest column counts.
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
