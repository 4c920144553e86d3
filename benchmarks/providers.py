"""What is measured beside what: every provider computes the focal loss of the same rows, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastcse

TEMPERATURE, MARGIN = 0.05, 0.3


def make_inputs(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(N, D) float32 anchors and candidates that want gradients.

    Clustered and anisotropic like sentence embeddings half-way through training: 64 centres, a common direction, and
    positives at a cosine of about 0.8.
    """
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(64, d, generator=g)[torch.randint(64, (n,), generator=g)]
    anchor = 0.5 * torch.randn(1, d, generator=g) + 0.5 * centre + torch.randn(n, d, generator=g)
    candidate = anchor + 0.6 * torch.randn(n, d, generator=g)
    return anchor.requires_grad_(), candidate.requires_grad_()


def focal_formula(anchor: Tensor, candidate: Tensor) -> Tensor:
    """Normalise, one product, the modulation, cross-entropy: what one writes by hand."""
    s = F.normalize(anchor, dim=-1) @ F.normalize(candidate, dim=-1).T
    positive = torch.eye(s.shape[0], dtype=torch.bool, device=s.device)
    x = torch.where(positive, s * s, s * (s + MARGIN)) / TEMPERATURE
    return F.cross_entropy(x, torch.arange(s.shape[0], device=s.device))


def _differentiated(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(anchor: Tensor, candidate: Tensor) -> Tensor:
        anchor.grad = candidate.grad = None
        value = loss(anchor, candidate)
        value.backward()
        return value.detach()

    return run


def _fastcse(anchor: Tensor, candidate: Tensor) -> Tensor:
    return fastcse.focal_infonce_loss(anchor, candidate, temperature=TEMPERATURE, margin=MARGIN)


class Products:
    """The three matrix products that any such loss needs, and nothing else: the limit."""

    def __init__(self):
        self.s = self.out = None

    def __call__(self, anchor: Tensor, candidate: Tensor) -> None:
        with torch.no_grad():
            if self.s is None or self.s.shape[0] != anchor.shape[0]:
                self.s = anchor.new_empty(anchor.shape[0], candidate.shape[0])
                self.out = torch.empty_like(anchor)
            torch.mm(anchor, candidate.T, out=self.s)
            torch.mm(self.s, candidate, out=self.out)
            torch.mm(self.s.T, anchor, out=self.out)


def providers() -> dict[str, Callable]:
    """Name -> forward and backward of one batch."""
    return {
        "three products": Products(),
        "fastcse": _differentiated(_fastcse),
        "eager": _differentiated(focal_formula),
        "torch.compile": _differentiated(torch.compile(focal_formula, dynamic=False)),
    }
