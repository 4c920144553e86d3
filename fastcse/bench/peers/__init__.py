"""Everyone who computes a contrastive loss, one adapter each. Nothing of a peer is imported before it runs."""

from __future__ import annotations

from . import (
    cut_cross_entropy,
    flex_attention,
    grad_cache,
    inf_cl,
    liger,
    metric_learning,
    open_clip,
    own,
    quack,
    sentence_transformers,
    torch_losses,
)
from .peer import Peer, Unsuitable

_MODULES = (
    own,
    torch_losses,
    sentence_transformers,
    open_clip,
    metric_learning,
    grad_cache,
    liger,
    cut_cross_entropy,
    inf_cl,
    quack,
    flex_attention,
)
PEERS: dict[str, Peer] = {peer.name: peer for module in _MODULES for peer in module.PEERS}

__all__ = ["PEERS", "Peer", "Unsuitable"]
