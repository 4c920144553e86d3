"""fastcse, the same losses as one writes them by hand, and what torch itself has for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...losses.focal import focal_infonce_loss
from ...losses.infonce import infonce_loss
from ..loss import LossCase, plain_loss
from ..provider import Provider, named, need, need_cuda, need_half, unit

Loss = Callable[[Tensor, Tensor], Tensor]
# Rows of a chunk. The default of F.linear_cross_entropy follows the aspect ratio and was 3 times slower than the whole
# matrix at N = 4096, D = 768 on 2 cores.
CHUNKS = (1024, 4096, 16384)
# The backward kernel of flex_attention keeps whole rows in shared memory and has no configuration beyond this width;
# its product with the values cannot be left out, so it is made as narrow as the kernel allows.
WIDEST, VALUE_WIDTH = 256, 16


def _fastcse(case: LossCase) -> Loss:
    options = {"temperature": case.temperature, "backend": case.backend}
    if case.loss == "focal":
        return lambda a, c: focal_infonce_loss(a, c, margin=case.margin, **options)
    return lambda a, c: infonce_loss(a, c, symmetric=case.loss == "symmetric", **options)


def _compiled(case: LossCase) -> Loss:
    return torch.compile(plain_loss(case), dynamic=False)


def linear_loss(case: LossCase, cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """The loss by way of `cross_entropy(input, weight, label)`, a linear layer's: the mean over rows of the logits
    input @ weight.T.

    input (N, D) are the anchors divided by their length and the temperature, weight (M, D) the unit candidates,
    label (N,) int64 is 0 .. N - 1.
    """
    label = torch.arange(case.n, device=case.device)
    return lambda anchor, candidate: cross_entropy(unit(anchor, case.temperature), unit(candidate), label)


def _linear_cross_entropy(case: LossCase, chunk: int, **policy: str) -> Loss:
    need(hasattr(F, "linear_cross_entropy"), f"needs torch >= 2.13, this is {torch.__version__}")
    # By default it accumulates in float32, by the policy that it found best for the device.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None, **policy)
    return linear_loss(case, lambda a, c, label: F.linear_cross_entropy(a, c, label, options=options))


def _balanced(case: LossCase, chunk: int) -> Loss:
    need_cuda(case)
    need_half(case)
    return _linear_cross_entropy(case, chunk, acc_policy="balanced", acc_dtype=torch.float32)


def _chunked(case: LossCase, chunk: int) -> Loss:
    """The same idea in plain torch, for versions that lack it: rows in chunks, each recomputed in backward."""
    from torch.utils.checkpoint import checkpoint

    def piece(a, c, label):
        return F.cross_entropy((a @ c.T).float(), label, reduction="sum")

    def cross_entropy(a, c, label):
        parts = zip(a.split(chunk), label.split(chunk))
        return sum(checkpoint(piece, x, c, y, use_reentrant=False) for x, y in parts) / case.n

    return linear_loss(case, cross_entropy)


def _flex(case: LossCase) -> Loss:
    need_cuda(case)
    need(case.d <= WIDEST, f"keeps rows in shared memory: width {WIDEST} at most, not {case.d}")
    from torch.nn.attention.flex_attention import flex_attention

    return flex_loss(case, torch.compile(flex_attention, dynamic=False))


def flex_loss(case: LossCase, attention: Callable) -> Loss:
    """The loss by the logsumexp of an attention's scores."""
    from torch.nn.attention.flex_attention import AuxRequest

    # Plain numbers, because the function is traced into the kernel.
    focal, temperature, margin = case.loss == "focal", case.temperature, case.margin

    def logit(s, batch, head, row, column):
        return torch.where(row == column, s * s, s * (s + margin)) / temperature if focal else s / temperature

    def one_way(a: Tensor, c: Tensor) -> Tensor:
        value = c.new_zeros(1, 1, c.shape[0], VALUE_WIDTH)
        request = AuxRequest(lse=True)
        _, aux = attention(a[None, None], c[None, None], value, score_mod=logit, scale=1.0, return_aux=request)
        s = (a.float() * c[: a.shape[0]].float()).sum(-1)  # (N,)
        return (aux.lse.flatten() - (s * s if focal else s) / temperature).mean()

    def loss(anchor: Tensor, candidate: Tensor) -> Tensor:
        a, c = unit(anchor), unit(candidate)
        return (one_way(a, c) + one_way(c, a)) / 2 if case.loss == "symmetric" else one_way(a, c)

    return loss


INFONCE = ("infonce",)
PEERS = named(
    Provider("fastcse", _fastcse),
    Provider("eager", plain_loss, note="whole matrix"),
    Provider("torch.compile", _compiled, note="whole matrix"),
    Provider("F.linear_cross_entropy", _linear_cross_entropy, INFONCE, note="rows in chunks", configs=CHUNKS),
    Provider("F.linear_cross_entropy balanced", _balanced, INFONCE, configs=CHUNKS,
             note="rows in chunks, candidates' gradient summed in float32"),
    Provider("chunked eager", _chunked, INFONCE, note="rows in chunks, recomputed in backward", configs=CHUNKS),
    Provider("flex_attention", _flex, note="logsumexp of an attention with empty values; symmetric is two calls"),
)  # fmt: skip
