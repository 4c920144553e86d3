"""Rows like those of training. Speed and accuracy depend on them: filters drop small gradients, rounding cancels where
the loss is small, and a GPU's clock falls on random bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .case import Case

# Weights of a common direction, of one of 64 centres, and of each row's own part.
KINDS = {"random": (0.0, 0.0, 1.0), "clustered": (0.3, 0.8, 1.0), "anisotropic": (1.4, 0.0, 1.0)}
CENTRES = 64
# Length of what separates a positive from its anchor, in lengths of the anchor's own part: a cosine of own parts of
# 0.45 early in training, 0.95 late.
STAGES = {"early": 2.0, "late": 0.33}


def make_rows(case: Case) -> tuple[Tensor, Tensor]:
    """(N, D) anchors and (M, D) candidates, not normalised, that require gradients where the mode is "full"; the same
    for the same seed."""
    # Made on their device: a million rows made on the CPU would take longer than the measurement.
    g = torch.Generator(case.device).manual_seed(case.seed)
    common, centre, own = KINDS[case.data]
    n, m, d = case.n, case.m, case.d

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=case.device)

    def background(rows: int) -> Tensor:
        return common * direction + centre * centres[torch.randint(CENTRES, (rows,), generator=g, device=g.device)]

    direction, centres = normal(1, d), normal(CENTRES, d)
    base, part = background(n), own * normal(n, d)
    anchor = base + part
    candidate = base + part + STAGES[case.stage] * normal(n, d)
    if m > n:
        candidate = torch.cat([candidate, background(m - n) + own * normal(m - n, d)])
    wants_grad = case.mode == "full"
    return tuple(x.to(case.torch_dtype).requires_grad_(wants_grad) for x in (anchor, candidate[:m]))
