"""open_clip's ClipLoss."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from ..problem import LossProblem
from .linear import unit
from .peer import Loss, Peer


def _loss_module() -> ModuleType:
    """open_clip/loss.py alone: it needs only torch, while importing the package needs torchvision."""
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(folder) / "loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _clip(problem: LossProblem) -> Loss:
    clip = _loss_module().ClipLoss(cache_labels=True)
    return lambda a, c: clip(unit(a), unit(c), 1 / problem.temperature)


PEERS = (
    Peer(
        "open_clip",
        _clip,
        ("symmetric",),
        ("open_clip",),
        "pip install open_clip_torch",
        "both whole matrices, each its own product",
    ),
)
