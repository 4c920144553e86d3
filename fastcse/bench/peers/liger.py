"""Liger's linear cross-entropies: Triton in row chunks, and the Hopper kernel that takes a temperature."""

from __future__ import annotations

import torch

from ..problem import LossProblem
from .limits import need_cuda, need_hopper
from .linear import linear_loss, unit
from .peer import Loss, Peer


def _triton(problem: LossProblem, budget: int) -> Loss:
    """`budget`: the logits of one chunk take up to so many times the memory of the anchors."""
    need_cuda(problem)
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    # bias, class weight, ignored label, z-loss, smoothing, reduction, softcap, return z-loss, dtype of the candidates'
    # gradient while it is summed, token scaling, return accuracy, return predictions, implementation, its mode.
    def cross_entropy(a, c, label):
        after_label = (None, None, -100, 0.0, 0.0, "mean", None, False, torch.float32, False, False, False, None, None)
        return LigerFusedLinearCrossEntropyFunction.apply(a, c, label, *after_label, budget)[0]

    return linear_loss(problem, cross_entropy)


def _scaled(problem: LossProblem) -> Loss:
    # Elsewhere it falls back to chunks of plain torch without a word.
    need_hopper(problem)
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    label = torch.arange(problem.n, device=problem.device)

    def loss(anchor, candidate):
        rows = unit(anchor), unit(candidate)
        return LigerFusedLinearScaledCrossEntropyFunction.apply(*rows, label, problem.temperature).mean()

    return loss


PEERS = (
    Peer(
        "Liger Triton",
        _triton,
        ("infonce",),
        ("liger_kernel", "triton"),
        "pip install 'liger-kernel>=0.8.5'",
        "logits, and input / tau, rounded to the input's dtype",
        choices=(1, 4, 16),
    ),
    Peer(
        "Liger SM90",
        _scaled,
        ("infonce",),
        ("liger_kernel", "cutlass"),
        "pip install 'liger-kernel[cutedsl]>=0.8.5'",
        "float16 logits, bf16 sums of the candidates' gradient",
    ),
)
