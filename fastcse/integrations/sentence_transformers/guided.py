"""InfoNCE whose negatives a guide model filters pair by pair, in chunks of rows.

A mask that differs from pair to pair is nothing that a sweep knows, so this is plain torch: exact, and with memory for
one chunk of rows only, because each chunk's gradients are taken before the next one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...reference import log_ratio_loss, unit_rows

# Logits of a chunk over all blocks: 32 MiB in float32, ten times that with their masks and gradients; and the fewest
# rows of one, whatever that takes, because each chunk visits all columns and their gradients.
LOGITS, FEWEST = 2**23, 64
# Rows of equal texts must stay equal to the guide, however a product rounds them.
ROUNDING = 8


class Guided(NamedTuple):
    """What is filtered, and how: `first` is the row among all positives at which the own ones start."""

    temperature: float
    relative: bool
    margin: float
    contrast_anchors: bool
    contrast_positives: bool
    first: int

    def bar(self, positive: Tensor) -> Tensor:
        """What a negative's similarity to the guide may reach, for the positive's."""
        allowed = positive - (positive.abs() if self.relative else 1.0) * self.margin
        return allowed + ROUNDING * torch.finfo(positive.dtype).eps


def guided_loss(columns: list[Tensor], guides: list[Tensor], options: Guided) -> Tensor:
    """Scalar: the mean over the (N, D) anchors `columns[0]`; the others are (M, D): positives, and negatives."""
    rows, seen = ([unit_rows(x.to(torch.promote_types(x.dtype, torch.float32))) for x in xs]
                  for xs in (columns, guides))  # fmt: skip
    anchors = len(rows[0])
    width = sum(len(x) for x in rows[1:])
    width += options.contrast_anchors * anchors + options.contrast_positives * len(rows[1])

    def losses(leaves: list[Tensor], begin: int, end: int) -> Tensor:
        return _chunk(leaves, seen, begin, end, options)

    total = _SumOverChunks.apply(losses, max(FEWEST, LOGITS // width), torch.is_grad_enabled(), *rows)
    return total / anchors


def _chunk(rows: list[Tensor], seen: list[Tensor], begin: int, end: int, o: Guided) -> Tensor:
    """Sum of the losses of the anchors begin:end."""
    own = slice(o.first + begin, o.first + end)
    sides = [(0, slice(begin, end), k) for k in range(1, len(rows))]  # row and column blocks, as indices of `rows`
    sides += [(0, slice(begin, end), 0)] * o.contrast_anchors + [(1, own, 1)] * o.contrast_positives
    row = torch.arange(end - begin, device=rows[0].device)
    column = row + own.start
    bar, logits, kept = None, [], []
    for left, part, right in sides:
        with torch.no_grad():
            guided = seen[left][part] @ seen[right].T  # (n, M)
            # The first block holds the positives.
            bar = o.bar(guided[row, column])[:, None] if bar is None else bar
            kept.append(~(guided > bar))
        logits.append(rows[left][part] @ rows[right].T / o.temperature)
    positive = logits[0][row, column]
    kept[0][row, column] = False  # it is no negative, whatever the guide says
    return log_ratio_loss(torch.cat(logits, 1), torch.cat(kept, 1), positive).sum()


class _SumOverChunks(torch.autograd.Function):
    """A sum of chunks' losses that holds gradients of the rows instead of chunks' graphs."""

    @staticmethod
    def forward(ctx, losses: Callable, chunk: int, gradients: bool, *rows):
        total = rows[0].new_zeros(())
        made = [torch.zeros_like(x) if gradients and x.requires_grad else None for x in rows]
        wanted = [k for k, g in enumerate(made) if g is not None]
        for begin in range(0, len(rows[0]), chunk):
            leaves = [x.detach().requires_grad_(g is not None) for x, g in zip(rows, made)]
            with torch.set_grad_enabled(bool(wanted)), torch.autocast(rows[0].device.type, enabled=False):
                part = losses(leaves, begin, min(begin + chunk, len(rows[0])))
            if wanted:
                for k, g in zip(wanted, torch.autograd.grad(part, [leaves[k] for k in wanted])):
                    made[k] += g
            total += part.detach()
        ctx.save_for_backward(*made)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return None, None, None, *[None if g is None else g * upstream for g in ctx.saved_tensors]
