"""fastcse, and the same losses as one writes them by hand."""

from __future__ import annotations

import torch

from ...losses.focal import focal_infonce_loss
from ...losses.infonce import infonce_loss
from ..problem import LossProblem, plain_loss
from .peer import Loss, Peer


def _fastcse(problem: LossProblem) -> Loss:
    options = dict(temperature=problem.temperature, backend=problem.backend)
    if problem.loss == "focal":
        return lambda a, c: focal_infonce_loss(a, c, margin=problem.margin, **options)
    return lambda a, c: infonce_loss(a, c, symmetric=problem.loss == "symmetric", **options)


def _compiled(problem: LossProblem) -> Loss:
    return torch.compile(plain_loss(problem), dynamic=False)


PEERS = (
    Peer("fastcse", _fastcse),
    Peer("eager", plain_loss, note="whole matrix"),
    Peer("torch.compile", _compiled, note="whole matrix"),
)
