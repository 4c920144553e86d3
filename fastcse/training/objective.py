"""What an objective is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """A public loss `loss(anchor, positive, negatives=..., **options)` of fastcse, and the options a user may set.

    With `bank` it is called with one corpus negative for each anchor, as `loss(anchor, positive, rows, ...)`; with
    `clusters`, once they have started, as `loss(anchor, positive, index, centroids, counts, ...)`. Of the columns
    behind the positive the first `columns` are arguments of the loss, before its negatives. With `layers` a row holds
    as many embeddings as its option `parts` says, of layers from the last down.
    """

    loss: Callable
    options: dict[str, float | str]  # name -> default
    source: str  # a reference, as BibTeX
    bank: bool = False
    clusters: bool = False
    columns: int = 0
    layers: bool = False
