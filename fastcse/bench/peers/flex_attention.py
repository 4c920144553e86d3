"""torch's flex_attention, of which only the logsumexp of the scores is wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import LossProblem
from .limits import need_cuda
from .linear import unit
from .peer import Loss, Peer, need

# The backward kernel keeps whole rows in shared memory and has no configuration beyond.
WIDEST = 256
# The product with the values cannot be left out, so it is made as narrow as the kernel allows.
VALUE_WIDTH = 16


def _flex(problem: LossProblem) -> Loss:
    need_cuda(problem)
    need(problem.d <= WIDEST, f"keeps rows in shared memory: width {WIDEST} at most, not {problem.d}")
    return _loss(problem, _compiled_attention())


def _compiled_attention():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _loss(problem: LossProblem, attention) -> Loss:
    from torch.nn.attention.flex_attention import AuxRequest

    # Plain numbers, because the function is traced into the kernel.
    focal, temperature, margin = problem.loss == "focal", problem.temperature, problem.margin

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
        return (one_way(a, c) + one_way(c, a)) / 2 if problem.loss == "symmetric" else one_way(a, c)

    return loss


PEERS = (Peer("flex_attention", _flex, note="logsumexp of an attention with empty values; symmetric is two calls"),)
