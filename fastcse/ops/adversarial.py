"""Positives moved uphill on the contrastive loss: one sweep for the gradient, one pass over the rows for each move."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.library import custom_op

from ..engine.sweep import one_pass
from .call import Sweep, problem
from .checks import check_index
from .dispatch import launchers


@custom_op("fastcse::adversarial", mutates_args=())
def adversarial_op(
    anchor: Tensor, positive: Tensor, offset: Tensor | None, noise: float, inv_temperature: Tensor | None,
    temperature: float, transform: str, step: float, mode: str, index: Tensor | None, backend: str,
) -> Tensor:  # fmt: skip
    """(N, D): positive + noise offset / |offset|, and from there a step along the gradient of the mean loss that it has
    as an anchor with the anchors as its candidates, its own being that of `index`."""
    check_index("anchor_index", index, anchor.shape[0], "anchor")
    b = launchers(backend)
    start = b.prepare(positive.detach())
    x = start if offset is None else b.step_rows(start, b.prepare(offset), noise, "l2")
    call = Sweep(
        x, [anchor], [None], [None], [0.0], index, None, inv_temperature, temperature, transform, 0.0, True, [False],
        False, None, backend,
    )  # fmt: skip
    # A direction rounded to half precision would be rounded twice in what is moved.
    _, gradients = one_pass(replace(problem(call), dtype=torch.float32), 1.0)
    # The direction of the mean's gradient is that of the sum's.
    radius = step / anchor.shape[0] if mode == "raw" else step * _lengths(b.inverse_norms(start))
    out = b.step_rows(x, gradients.anchor, radius, mode).to(positive.dtype)
    return out


@adversarial_op.register_fake
def _(anchor, positive, offset, noise, inv_temperature, temperature, transform, step, mode, index, backend):
    return positive.new_empty(positive.shape)


def _lengths(inverse: Tensor) -> Tensor:
    return torch.where(inverse == 0, 0.0, inverse.reciprocal())
