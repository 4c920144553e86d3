"""GradCache's own loss: what its loss stage runs on the cached embeddings."""

from __future__ import annotations

from ..problem import LossProblem
from .linear import linear_loss
from .peer import Loss, Peer


def _simple(problem: LossProblem) -> Loss:
    from gradcache.loss import SimpleContrastiveLoss

    contrastive = SimpleContrastiveLoss()
    # It takes anchor i's positive from row i (M / N) unless told where it is.
    return linear_loss(problem, lambda a, c, label: contrastive(a, c, target=label))


PEERS = (Peer("GradCache", _simple, ("infonce",), ("gradcache",), "pip install gradcache", "whole matrix"),)
