"""Exact search of a corpus block by block, and the one place where results are put in order.

A block is what is looked at in one go: moved to the device of the query, or read from a memory map once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..ops.dispatch import choose_backend
from ..ops.topk_search import TopK, topk
from .arrays import RowIds, pieces

BLOCK_BYTES = 1 << 30
# Bytes that the reference backend holds for each entry of a block and for each pair of a query and a row.
REFERENCE_ENTRY, REFERENCE_PAIR = 24, 64
NO_ID = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Search:
    """One search: `query` (N, D), `exclude` (N, E) int64 padded by -1 or None; a bound is None, a number, or (N,)."""

    query: Tensor
    k: int
    metric: str
    exclude: Tensor | None = None
    min_score: float | Tensor | None = None
    max_score: float | Tensor | None = None
    backend: str | None = None

    def part(self, rows: Tensor | slice) -> Search:
        """The search of some of the queries."""

        def of(x):
            return x[rows] if isinstance(x, Tensor) else x

        parts = {name: of(getattr(self, name)) for name in ("query", "exclude", "min_score", "max_score")}
        return replace(self, **parts)

    def to(self, device: torch.device) -> Search:
        """The search with everything on `device`."""
        moved = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def merge_best(values: Tensor, ids: Tensor, k: int, metric: str) -> TopK:
    """The k best of (N, C) values and ids, best first and equal values by ascending id; id -1 means none.

    Where fewer than k are there, the rest is id -1 with the worst value.
    """
    worst = torch.inf if metric == "l2" else -torch.inf
    if values.shape[1] < k:
        room = (0, k - values.shape[1])
        values, ids = torch.nn.functional.pad(values, room), torch.nn.functional.pad(ids, room, value=-1)
    values, ids = values.masked_fill(ids < 0, worst), ids.masked_fill(ids < 0, NO_ID)
    ids, order = ids.sort(dim=1, stable=True)
    values, order = values.gather(1, order).sort(dim=1, descending=metric != "l2", stable=True)
    ids = ids.gather(1, order[:, :k])
    return TopK(values[:, :k].contiguous(), ids.masked_fill(ids == NO_ID, -1))


def is_excluded(ids: Tensor, exclude: Tensor) -> Tensor:
    """(N, C) whether an id is among the (N, E) of its query."""
    ordered = exclude.sort(1).values
    place = torch.searchsorted(ordered, ids.contiguous()).clamp_max(ordered.shape[1] - 1)
    return ordered.gather(1, place) == ids


def search_blocks(rows: Tensor, ids: RowIds, search: Search, block_bytes: int) -> TopK:
    """The k best rows by id, exactly; every block is looked at once, on the device of the query."""
    device = search.query.device
    decides = search.query if search.query.dtype == torch.float64 else rows[:1].to(device)
    slow = choose_backend(decides, search.backend, "corpus") == "reference"
    size = block_bytes * rows.element_size() // REFERENCE_ENTRY if slow else block_bytes
    found = None
    for first, block in pieces(rows, size):
        block_ids = ids.values[first : first + block.shape[0]].to(device)
        step = max(1, block_bytes // (REFERENCE_PAIR * block.shape[0])) if slow else search.query.shape[0]
        parts = (search.part(slice(at, at + step)) for at in range(0, search.query.shape[0], step))
        block = block.to(device)
        best = [_search_part(block, block_ids, ids.ascending, part) for part in parts]
        best = TopK(*map(torch.cat, zip(*best)))
        if found is not None:
            both = torch.cat([found.values, best.values], 1), torch.cat([found.indices, best.indices], 1)
            best = merge_best(*both, search.k, search.metric)
        found = best
    return found


def _search_part(block: Tensor, ids: Tensor, ascending: bool, search: Search) -> TopK:
    """The k best of a block: a query that leaves one id out has it masked, one that leaves out more fetches more."""
    if search.exclude is None or search.exclude.shape[1] < 2:
        return _fetch(block, ids, ascending, search, search.k)
    n = search.query.shape[0]
    values = torch.zeros(n, search.k, dtype=_value_dtype(search.query, block), device=block.device)
    found = torch.zeros(n, search.k, dtype=torch.int64, device=block.device)
    for rows, more in _by_count(search.exclude):
        part = search.part(rows)
        if more == 1:
            best = _fetch(block, ids, ascending, replace(part, exclude=part.exclude.amax(1, keepdim=True)), search.k)
        else:
            best = _fetch(block, ids, ascending, replace(part, exclude=None), search.k + more)
            left = best.indices.masked_fill(is_excluded(best.indices, part.exclude), -1)
            best = merge_best(best.values, left, search.k, search.metric)
        values[rows], found[rows] = best
    return TopK(values, found)


def _value_dtype(query: Tensor, corpus: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == corpus.dtype == torch.float64 else torch.float32


def _by_count(exclude: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Queries that leave out about equally many ids, with the most of them: one query with a thousand positives must
    not make every other one fetch a thousand rows more."""
    count = (exclude >= 0).sum(1)
    most, low, high = int(count.max()), -1, 1
    while low < most:
        rows = ((count > low) & (count <= high)).nonzero()[:, 0]
        if rows.numel():
            yield rows, high
        low, high = high, 2 * high


def _fetch(block: Tensor, ids: Tensor, ascending: bool, search: Search, wanted: int, width: int | None = None) -> TopK:
    """The best `wanted` of a block, or all of it if it has fewer, with ids.

    `topk` breaks ties by row. Where ids do not ascend with the rows, one more is fetched; if it is as good as the last
    that is wanted, rows of lower id may be further down, and more are fetched for those queries.
    """
    m = block.shape[0]
    width = min(wanted if ascending else width or wanted + 1, m)
    options = {"max_score": search.max_score, "min_score": search.min_score, "backend": search.backend}
    if search.exclude is not None and search.exclude.shape[1]:
        options |= {"query_id": search.exclude[:, 0].contiguous(), "corpus_id": ids}
    values, index = topk(search.query, block, width, metric=search.metric, **options)
    found = torch.where(index < 0, -1, ids[index])
    if ascending:
        return merge_best(values, found, wanted, search.metric) if width < wanted else TopK(values, found)
    best = merge_best(values, found, wanted, search.metric)
    if width == m:
        return best
    tied = ((index[:, -1] >= 0) & (values[:, -1] == best.values[:, -1])).nonzero()[:, 0]
    if tied.numel():
        more = _fetch(block, ids, ascending, search.part(tied), wanted, 4 * width)
        best.values[tied], best.indices[tied] = more
    return best
