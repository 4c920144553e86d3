"""Losses over the batch of all processes: each rank's anchors against everybody's candidates, with the gradient that
one process would have."""

from .exchange import Exchange, gather_equal_rows, gather_rows, is_many, shared_value, total_over_ranks
from .losses import gathered_loss

__all__ = [
    "Exchange",
    "gather_equal_rows",
    "gather_rows",
    "gathered_loss",
    "is_many",
    "shared_value",
    "total_over_ranks",
]
