"""Inf-CL: flash-style loss of CLIP in Triton."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..problem import LossProblem
from .limits import need_cuda
from .peer import Loss, Peer, need

TILE = 64
# Its kernels pad a head to a power of two, but step through the row by the width asked for.
HEADS = (256, 128, 64, 32, 16)


def _inf_cl(problem: LossProblem) -> Loss:
    need_cuda(problem)
    # Its last tile of rows reads past the end of the normalisers.
    need(problem.n % TILE == 0, f"needs a multiple of {TILE} anchors, not {problem.n}")
    need(problem.d % HEADS[-1] == 0, f"needs a width that is a multiple of {HEADS[-1]}, not {problem.d}")
    from inf_cl import cal_inf_loss

    options = dict(
        # A scale that requires grad would be summed over processes in backward, even where there is only one.
        scale=torch.tensor(1 / problem.temperature, device=problem.device),
        labels=torch.arange(problem.n, device=problem.device),
        head_dim=next(width for width in HEADS if problem.d % width == 0),
    )

    def loss(anchor, candidate):
        # It computes in float32 whatever comes, so there is nothing to be gained by rounding the rows.
        a, c = (F.normalize(x.float(), dim=-1) for x in (anchor, candidate))
        if problem.loss == "infonce":
            return cal_inf_loss(a, c, **options)
        return (cal_inf_loss(a, c, **options) + cal_inf_loss(c, a, **options)) * 0.5

    return loss


PEERS = (
    Peer(
        "Inf-CL",
        _inf_cl,
        ("infonce", "symmetric"),
        ("inf_cl", "triton"),
        "pip install inf-cl",
        "TF32 products of float32 copies; symmetric is two calls",
    ),
)
