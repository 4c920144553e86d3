"""Negatives for (query, positive) pairs: drawn from the whole corpus, or mined from its nearest rows."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from fastcse.mining.negatives import mine_negatives
from fastcse.mining.positives import Positives


class Filters(NamedTuple):
    """Which of the nearest documents may be negatives: options of `mine_negatives`."""

    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None

    @property
    def text(self) -> str:
        """What is set, to read."""
        chosen = [f"{name} {value:g}" for name, value in self._asdict().items()
                  if value is not None and (name, value) != ("range_min", 0)]  # fmt: skip
        return ", ".join(chosen) or "none"


def mined(query: Tensor, corpus: Tensor, pairs: Tensor, known: list[list[int]], filters: Filters, count: int) -> Tensor:
    """(P, count) the best documents that pass, of each pair (query row, positive row); -1 where there are fewer.

    `known` holds every query's known positives: none of them is a negative.
    """
    numbers = [(q, document) for q, documents in enumerate(known) for document in documents]
    positives = Positives.from_pairs(*zip(*numbers), queries=len(query))
    found = mine_negatives(query, corpus, positives, num_negatives=count, **filters._asdict())
    return found.indices[pairs[:, 0]]


def drawn(documents: int, pairs: Tensor, known: list[list[int]], count: int, seed: int) -> Tensor:
    """(P, count) documents drawn without replacement, the query's known positives left out."""
    draw = random.Random(seed)
    rows = [draw.sample(range(documents), count + len(known[q])) for q in pairs[:, 0].tolist()]
    return torch.tensor([[x for x in row if x not in known[q]][:count] for row, q in zip(rows, pairs[:, 0].tolist())])
