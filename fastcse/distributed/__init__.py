"""Losses over the batch of all processes: each rank's anchors against everybody's candidates, with the gradient that
one process would have."""

import warnings

from .collectives import RaggedGather, average_gradient, gather_equal_rows, gather_rows, is_many, total_over_ranks
from .losses import gathered_loss

__all__ = [
    "RaggedGather",
    "average_gradient",
    "gather_equal_rows",
    "gather_rows",
    "gathered_loss",
    "is_many",
    "total_over_ranks",
]
OLD_NAMES = {"Exchange": RaggedGather, "shared_value": average_gradient}


def __getattr__(name: str):
    if name not in OLD_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} of fastcse.distributed is called {OLD_NAMES[name].__name__}", DeprecationWarning, 2)
    return OLD_NAMES[name]
