"""Which rows of the corpus answer which query: a sparse matrix in CSR form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..retrieval.arrays import as_ids


class Positives(NamedTuple):
    """Corpus rows by query: those of query i are `indices[indptr[i] : indptr[i + 1]]`, as in scipy's CSR.

    `indptr` is (Q + 1,) int64 and begins with 0, `indices` is (P,) int64. A query may have none.

    Example:
        >>> Positives.from_pairs([1, 0, 1, 1], [7, 5, 3, 7])
        Positives(indptr=tensor([0, 1, 3]), indices=tensor([5, 7, 3]))
    """

    indptr: Tensor
    indices: Tensor

    @classmethod
    def from_pairs(
        cls,
        query: Tensor | np.ndarray | Sequence[int],
        column: Tensor | np.ndarray | Sequence[int],
        queries: int | None = None,
    ) -> Positives:
        """Of pairs (query number, corpus row), (P,) each; a repeated pair counts once.

        Args:
            queries: how many queries there are; None: up to the largest that is named.

        Raises:
            ValueError: the lists differ in length, or a number is below 0 or not below `queries`.
        """
        query = as_ids("query", query, torch.device("cpu") if not isinstance(query, Tensor) else query.device)
        column = as_ids("column", column, query.device)
        if query.dim() != 1 or query.shape != column.shape:
            shapes = f"{tuple(query.shape)} and {tuple(column.shape)}"
            raise ValueError(f"query and column must be two lists of one length, got shapes {shapes}")
        most = int(query.max()) + 1 if query.numel() else 0
        queries = most if queries is None else queries
        low = min(int(query.min()), int(column.min())) if query.numel() else 0
        if low < 0 or most > queries:
            wrong = low if low < 0 else most - 1
            raise ValueError(f"query must be in 0..{queries - 1} and column 0 or more, got {wrong}")
        order = query.argsort(stable=True)
        order = order[_first_of_each(query[order], column[order])]
        counts = torch.bincount(query[order], minlength=queries)
        return cls(torch.nn.functional.pad(counts.cumsum(0), (1, 0)), column[order])

    @property
    def counts(self) -> Tensor:
        """(Q,) how many each query has."""
        return self.indptr.diff()

    @property
    def most(self) -> int:
        """The most that a query has."""
        return int(self.counts.max()) if self.counts.numel() else 0

    @property
    def queries(self) -> Tensor:
        """(P,) the query of each."""
        numbers = torch.arange(self.indptr.shape[0] - 1, device=self.indptr.device)
        return numbers.repeat_interleave(self.counts)

    def to(self, device: torch.device) -> Positives:
        """The same on another device."""
        return Positives(self.indptr.to(device), self.indices.to(device))

    @property
    def offsets(self) -> Tensor:
        """`indptr`, by its name before 0.2."""
        warnings.warn("Positives.offsets is Positives.indptr now", DeprecationWarning, stacklevel=2)
        return self.indptr

    @property
    def columns(self) -> Tensor:
        """`indices`, by their name before 0.2."""
        warnings.warn("Positives.columns is Positives.indices now", DeprecationWarning, stacklevel=2)
        return self.indices


def _first_of_each(query: Tensor, column: Tensor) -> Tensor:
    """The places, ascending, of the first occurrence of each pair."""
    by_column = column.argsort(stable=True)
    order = by_column[query[by_column].argsort(stable=True)]
    again = (query[order].diff() == 0) & (column[order].diff() == 0)
    return order[torch.nn.functional.pad(~again, (1, 0), value=True)[: order.shape[0]]].sort().values


def as_positives(positives: Positives | Tensor | np.ndarray | Sequence[int], queries: int) -> Positives:
    """Checked lists for `queries` queries; of (Q,) numbers, one for each query, -1 for none."""
    if not isinstance(positives, Positives):
        column = as_ids("positives", positives, torch.device("cpu"))
        if column.shape != (queries,):
            raise ValueError(
                f"positives must be Positives, or have shape ({queries},) with one corpus row for each query, "
                f"got {tuple(column.shape)}"
            )
        there = (column >= 0).nonzero()[:, 0]
        return Positives.from_pairs(there, column[there], queries)
    indptr, indices = (as_ids(f"positives.{name}", x, x.device) for name, x in positives._asdict().items())
    if indptr.shape != (queries + 1,):
        raise ValueError(
            f"positives.indptr must have shape ({queries + 1},) for {queries} queries, got {tuple(indptr.shape)}"
        )
    if int(indptr[0]) != 0 or int(indptr[-1]) != indices.shape[0] or bool((indptr.diff() < 0).any()):
        ends = f"{int(indptr[0])} to {int(indptr[-1])}"
        raise ValueError(f"positives.indptr must ascend from 0 to the {indices.shape[0]} indices, got {ends}")
    if indices.numel() and int(indices.min()) < 0:
        raise ValueError(f"positives.indices must be rows of the corpus, 0 or more, got {int(indices.min())}")
    return Positives(indptr, indices)


class PairLookup:
    """Whether (query, corpus row) is among the pairs, for many at once. Rows may be named by any numbers."""

    def __init__(self, pairs: Positives):
        self._names, place = pairs.indices.unique(return_inverse=True)
        self._keys = (pairs.queries * len(self._names) + place).sort().values

    def __call__(self, query: Tensor, column: Tensor) -> Tensor:
        """(n, K) of queries (n,) and columns (n, K)."""
        if not self._keys.numel():
            return torch.zeros_like(column, dtype=torch.bool)
        place = torch.searchsorted(self._names, column.contiguous()).clamp_max(len(self._names) - 1)
        key = query[:, None] * len(self._names) + place
        at = torch.searchsorted(self._keys, key).clamp_max(len(self._keys) - 1)
        return (self._names[place] == column) & (self._keys[at] == key)
