"""Where candidates come from: an index, or anything that can be searched; scores, of which larger is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.nearest import TopK
from ..pairs import SHORTEST_NORM
from ..retrieval.arrays import as_rows, check_finite, is_mapped
from ..retrieval.index import CorpusIndex

PAIRS_AT_ONCE = 8192
HALF_STEP = 2.0**-24
SLACK = 1e-6  # of a squared distance, which is rounded before its root is taken


class Source:
    """What is searched for candidates.

    Args:
        corpus: (M, D) rows, a CorpusIndex, or an object with `search(query, k)` -> (scores, ids) and a length; where
                scores of positives are needed, also `rows(ids)`. Its scores are taken for `metric`'s.
        metric: of rows and of foreign objects.
    """

    def __init__(self, corpus: Any, metric: str, backend: str | None, query: Tensor):
        self._index, self.device = corpus, query.device
        if isinstance(corpus, Tensor | np.ndarray):
            rows, _ = as_rows("corpus", corpus)
            check_finite("corpus", rows, torch.arange(rows.shape[0], device=rows.device))
            self._index = CorpusIndex(rows, metric=metric, backend=backend, check=False)
        elif not callable(getattr(corpus, "search", None)) or not hasattr(corpus, "__len__"):
            raise ValueError(f"corpus must be rows or an index with search and len, got {type(corpus).__name__}")
        elif backend is not None:
            raise ValueError(f"backend is for a corpus of rows, got backend={backend!r} and {type(corpus).__name__}")
        self.bounded = isinstance(self._index, CorpusIndex)
        self.metric = self._index.metric if self.bounded else metric
        if self.bounded and self._index.dim != query.shape[1]:
            raise ValueError(
                f"query and corpus must have rows of one length, got {query.shape[1]} and {self._index.dim}"
            )
        # A memory map is read once for each search: it gets as many queries at once as their results leave room for.
        self.resident = isinstance(corpus, Tensor) or (isinstance(corpus, np.ndarray) and not is_mapped(corpus))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def has_rows(self) -> bool:
        """Whether rows can be looked up."""
        return callable(getattr(self._index, "rows", None))

    @property
    def name(self) -> str:
        """What the caller gave, for a message."""
        return type(self._index).__name__

    def check_ids(self, name: str, ids: Tensor) -> None:
        """A ValueError if an id is known not to be in the corpus."""
        if not self.bounded:
            return
        known = self._index.ids.to(ids.device)
        numbered = torch.equal(known, torch.arange(len(self), device=ids.device))
        unknown = ids[ids >= len(self)] if numbered else ids[~torch.isin(ids, known)]
        if unknown.numel():
            raise ValueError(f"{name} must be rows of the {len(self)} of the corpus, got {int(unknown[0])}")

    def search(self, query: Tensor, k: int, low: Tensor | None = None, high: Tensor | None = None) -> TopK:
        """(n, K) float32 scores, best first, and ids, -1 where there is none, K = min(k, M).

        `low` and `high` (n,) float64 are bounds of the score, for an index that knows bounds; a little more is found.
        """
        k = min(k, len(self))
        if not self.bounded:
            values, ids = (torch.as_tensor(x, device=self.device) for x in self._index.search(query, k))
            return TopK(values.float().masked_fill(ids < 0, -torch.inf), ids.long())
        if low is not None and query.dtype == torch.float64:  # compared before they are rounded to float32
            low, high = low - low.abs() * HALF_STEP, high + high.abs() * HALF_STEP
        bounds = {"min_score": low, "max_score": high}
        if self.metric != "l2":
            found = self._index.search(query, k, **bounds)
            return TopK(found.values.float(), found.indices)
        if low is not None:
            bounds = {"min_score": _square(high, 1 - SLACK), "max_score": _square(low, 1 + SLACK)}
        found = self._index.search(query, k, **bounds)
        return TopK(-found.values.sqrt().float(), found.indices)

    def pair_scores(self, query: Tensor, number: Tensor, ids: Tensor) -> Tensor:
        """(P,) float32 scores of queries `number` (P,) of `query` and rows `ids` (P,), as exact as those of `topk`."""
        parts = [ids.new_zeros(0, dtype=torch.float32)]
        for first in range(0, ids.shape[0], PAIRS_AT_ONCE):
            some = slice(first, first + PAIRS_AT_ONCE)
            rows = torch.as_tensor(self._index.rows(ids[some])).to(self.device)
            if rows.shape != (ids[some].shape[0], query.shape[1]):
                expected = (ids[some].shape[0], query.shape[1])
                raise ValueError(f"corpus.rows must give rows of shape {expected}, got {tuple(rows.shape)}")
            parts.append(_pair_scores(query[number[some]].double(), rows.double(), self.metric).float())
        return torch.cat(parts)


def _square(bound: Tensor, slack: float) -> Tensor:
    """The squared distance at which the score, minus the distance, is `bound`."""
    return bound.clamp_max(0).square() * slack


def _pair_scores(a: Tensor, c: Tensor, metric: str) -> Tensor:
    if metric == "l2":
        return -torch.linalg.vector_norm(a - c, dim=1)
    score = (a * c).sum(1)
    if metric == "ip":
        return score
    length = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(c, dim=1)
    zero = (length[0] < SHORTEST_NORM) | (length[1] < SHORTEST_NORM)
    return torch.where(zero, 0.0, score / (length[0] * length[1]))
