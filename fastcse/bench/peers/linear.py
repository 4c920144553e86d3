"""A linear layer's cross-entropy as a contrastive loss: candidates are the weight, anchor i has the label i."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import LossProblem
from .peer import Loss


def unit(x: Tensor, temperature: float = 1.0) -> Tensor:
    """(R, D) rows of length 1 / temperature, in the dtype of x."""
    # In float32, rounded once: a norm rounded to bfloat16 would move every similarity of its row by up to 0.4%, and
    # the peer would be blamed for it.
    rows = F.normalize(x.float(), dim=-1)
    return (rows if temperature == 1.0 else rows / temperature).to(x.dtype)


def linear_loss(problem: LossProblem, cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """The loss by way of `cross_entropy(input, weight, label)`: the mean over rows of the logits input @ weight.T.

    input (N, D) are the anchors divided by their length and the temperature, weight (M, D) the unit candidates,
    label (N,) int64 is 0 .. N - 1.
    """
    label = torch.arange(problem.n, device=problem.device)
    return lambda anchor, candidate: cross_entropy(unit(anchor, problem.temperature), unit(candidate), label)
