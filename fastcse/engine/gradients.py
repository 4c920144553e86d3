"""The gradients of a call: what each chunk adds, and the last steps when all have."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..operands import RowChunk
from .problem import Problem


@dataclass
class Gradients:
    """`anchor` (N, D) in the type of the inputs, one (M, D) or None for each block, `inv_temperature` 0-dim, or empty
    where none is learned.

    A block's gradient is summed in float32 and is in the inputs' type when finished. `factor` multiplies all of them.
    `positive_weights` holds k_i of each chunk's rows, the weight of an anchor and its positive in each other's
    gradient. `scratch` (R, D) is where a chunk's float32 products lie if the inputs have another type.
    """

    anchor: Tensor
    blocks: list[Tensor | None]
    inv_temperature: Tensor
    factor: float = 1.0
    positive_weights: list[Tensor] = field(default_factory=list)
    scratch: Tensor | None = None

    @classmethod
    def like(cls, p: Problem, chunk_rows: int, factor: float = 1.0) -> Gradients:
        """Room for the gradients of `p`, whose chunks have so many rows at most."""
        new = {"dtype": torch.float32, "device": p.anchor.device}
        blocks = [torch.empty(b.rows.shape, **new) if b.needs_grad else None for b in p.blocks]
        anchor = torch.empty(p.anchor.shape, dtype=p.dtype, device=p.anchor.device)
        scratch = None if p.dtype == torch.float32 else torch.empty(chunk_rows, anchor.shape[1], **new)
        learned = p.logits.inv_temperature_value is None
        return cls(anchor, blocks, torch.zeros(() if learned else 0, **new), factor, [], scratch)

    def add_chunk(
        self,
        p: Problem,
        rows: slice,
        chunk: RowChunk,
        weights: list[Tensor],
        one_minus_p: Tensor,
        inverse: Tensor | None,
    ) -> None:
        """The products of one chunk. `inverse` (R,) multiplies rows of weights; `one_minus_p` (R,): of the positive."""
        b, positives = p.launchers, p.blocks[0]
        factor, positive_weight, d_inv_temperature = b.positive_gradient(
            chunk, positives, p.logits, one_minus_p, inverse, self.factor
        )
        if p.logits.inv_temperature_value is None:
            self.inv_temperature += d_inv_temperature.sum() * self.factor
        self.positive_weights.append(positive_weight)
        into = self.anchor[rows]
        out = into if self.scratch is None else self.scratch[: into.shape[0]]
        for k, (block, e) in enumerate(zip(p.blocks, weights)):
            b.times_candidates(e, block, out, k > 0)
        along = chunk.scale if p.normalize else None
        b.project_gradient(
            out,
            chunk.rows,
            along,
            factor=factor,
            positive_weight=positive_weight,
            others=positives.rows,
            index=chunk.positive,
            into=into,
        )
        if not any(block.needs_grad for block in p.blocks):
            return
        scaled = b.scale_rows(chunk.rows, factor)
        for e, dc in zip(weights, self.blocks):
            if dc is not None:
                b.accumulate_transposed(dc, e, scaled, rows.start > 0)

    def finish(self, p: Problem) -> None:
        """The positives' share of dc, then its part along each candidate off."""
        positive_weight = (
            torch.cat(self.positive_weights) if len(self.positive_weights) > 1 else self.positive_weights[0]
        )
        for k, (block, dc) in enumerate(zip(p.blocks, self.blocks)):
            if dc is None:
                continue
            own = {}
            if k == 0 and p.positive_is_arange:
                own = {"positive_weight": positive_weight, "others": p.anchor, "index": p.positive}
            elif k == 0:
                p.launchers.scatter_rows(dc, p.anchor, positive_weight, p.positive, False)
            if not (own or p.normalize or p.dtype != dc.dtype):
                continue
            self.blocks[k] = into = dc if p.dtype == dc.dtype else torch.empty_like(dc, dtype=p.dtype)
            p.launchers.project_gradient(dc, block.rows, block.scale if p.normalize else None, **own, into=into)
