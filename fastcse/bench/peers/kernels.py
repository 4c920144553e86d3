"""Losses of kernel libraries: Liger, Cut Cross-Entropy, Inf-CL, QuACK."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F

from ..loss import LossCase
from ..provider import Provider, named, need, need_cuda, need_half, need_hopper, unit
from .pytorch import INFONCE, Loss, linear_loss

INF_CL_TILE, QUACK_TILE = 64, 128
# Inf-CL's kernels pad a head to a power of two, but step through the row by the width asked for.
HEADS = (256, 128, 64, 32, 16)


def _liger(case: LossCase, budget: int) -> Loss:
    """`budget`: the logits of one chunk take up to so many times the memory of the anchors."""
    need_cuda(case)
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    # bias, class weight, ignored label, z-loss, smoothing, reduction, softcap, return z-loss, dtype of the candidates'
    # gradient while it is summed, token scaling, return accuracy, return predictions, implementation, its mode.
    def cross_entropy(a, c, label):
        after_label = (None, None, -100, 0.0, 0.0, "mean", None, False, torch.float32, False, False, False, None, None)
        return LigerFusedLinearCrossEntropyFunction.apply(a, c, label, *after_label, budget)[0]

    return linear_loss(case, cross_entropy)


def _liger_hopper(case: LossCase) -> Loss:
    # Elsewhere it falls back to chunks of plain torch without a word.
    need_hopper(case)
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    label = torch.arange(case.n, device=case.device)

    def loss(anchor, candidate):
        rows = unit(anchor), unit(candidate)
        return LigerFusedLinearScaledCrossEntropyFunction.apply(*rows, label, case.temperature).mean()

    return loss


def _cut(case: LossCase, **options) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    return linear_loss(case, lambda a, c, label: linear_cross_entropy(a, c, label, **options))


def _cut_filtered(case: LossCase) -> Loss:
    need_cuda(case)
    need_half(case)
    return _cut(case, impl="cce")


def _cut_exact(case: LossCase) -> Loss:
    need_cuda(case)
    need_half(case)
    from cut_cross_entropy import linear_cross_entropy

    # The release on PyPI (25.1.1) knows only the filter's threshold; later ones have a preset with float32 sums.
    preset = "accum_e_fp32" in inspect.signature(linear_cross_entropy).parameters
    return _cut(case, **({"impl": "cce_exact"} if preset else {"impl": "cce", "filter_eps": None}))


def _cut_compiled(case: LossCase) -> Loss:
    return _cut(case, impl="torch_compile")


def _inf_cl(case: LossCase) -> Loss:
    need_cuda(case)
    # Its last tile of rows reads past the end of the normalisers.
    need(case.n % INF_CL_TILE == 0, f"needs a multiple of {INF_CL_TILE} anchors, not {case.n}")
    need(case.d % HEADS[-1] == 0, f"needs a width that is a multiple of {HEADS[-1]}, not {case.d}")
    from inf_cl import cal_inf_loss

    options = {
        # A scale that requires grad would be summed over processes in backward, even where there is only one.
        "scale": torch.tensor(1 / case.temperature, device=case.device),
        "labels": torch.arange(case.n, device=case.device),
        "head_dim": next(width for width in HEADS if case.d % width == 0),
    }

    def loss(anchor, candidate):
        # It computes in float32 whatever comes, so there is nothing to be gained by rounding the rows.
        a, c = (F.normalize(x.float(), dim=-1) for x in (anchor, candidate))
        if case.loss == "infonce":
            return cal_inf_loss(a, c, **options)
        return (cal_inf_loss(a, c, **options) + cal_inf_loss(c, a, **options)) * 0.5

    return loss


def _quack(case: LossCase, chunk: int) -> Loss:
    """The chunked linear cross-entropy through its Hopper pipeline of scaled exponentials."""
    need_hopper(case)
    need(case.m % QUACK_TILE == 0, f"needs a multiple of {QUACK_TILE} candidates, not {case.m}")
    need(case.d % 8 == 0, f"needs a width that is a multiple of 8, not {case.d}")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    # Explicitly, because by default it takes the other pipeline where this one does not fit.
    options = {"chunk_size": chunk, "use_scaled_exp": True}
    return linear_loss(case, lambda a, c, label: chunked_linear_cross_entropy(a, c, label, **options))


# The release on PyPI, 25.1.1, works too, but is old and sums gradients in the input's dtype.
CUT = (INFONCE, ("cut_cross_entropy", "triton"), "pip install git+https://github.com/apple/ml-cross-entropy")
PEERS = named(
    Provider("Liger Triton", _liger, INFONCE, ("liger_kernel", "triton"), "pip install 'liger-kernel>=0.8.5'",
             "logits, and input / tau, rounded to the input's dtype", (1, 4, 16)),
    Provider("Liger SM90", _liger_hopper, INFONCE, ("liger_kernel", "cutlass"),
             "pip install 'liger-kernel[cutedsl]>=0.8.5'", "float16 logits, bf16 sums of the candidates' gradient"),
    Provider("Cut Cross-Entropy exact", _cut_exact, *CUT, "input / tau rounded to the input's dtype"),
    Provider("Cut Cross-Entropy", _cut_filtered, *CUT, "filters small gradients"),
    Provider("Cut Cross-Entropy compiled", _cut_compiled, *CUT, "whole matrix"),
    Provider("Inf-CL", _inf_cl, ("infonce", "symmetric"), ("inf_cl", "triton"), "pip install inf-cl",
             "TF32 products of float32 copies; symmetric is two calls"),
    # The default of 4096 rows leaves half of the multiprocessors without a tile of the gradient at D = 384.
    Provider("QuACK", _quack, INFONCE, ("quack", "cutlass"), "pip install quack-kernels", "input / tau rounded to bf16",
             (2048, 4096, 8192)),
)  # fmt: skip
