"""The bank of a training run spread over its processes: each holds a part, and every one finds negatives in all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import Exchange
from ..reference import unit_rows
from .index import CorpusIndex
from .shards import ShardedIndex


class ShardedBank:
    """What `CorpusNegatives` needs of an index, over the parts of all ranks.

    Everything but `refresh` is collective: each rank calls it with rows of its own, as many times as the others.

    Args:
        local_index: this rank's part, its ids being those of the whole corpus.
        group:       a process group, or None for the default one.

    Raises:
        ValueError: what `ShardedIndex` refuses.
    """

    def __init__(self, local_index: CorpusIndex, group: dist.ProcessGroup | None = None):
        self.local_index, self.group = local_index, group
        self.shards = ShardedIndex(local_index, group)
        self.metric, self.dtype = self.shards.metric, local_index.dtype

    def __len__(self) -> int:
        """Rows of the whole corpus."""
        return len(self.shards)

    def search(self, query: Tensor, k: int, **options: Any) -> Any:
        """As `CorpusIndex.search`, of all parts."""
        return self.shards.search(query, k, **options)

    def unit_sums(self, ids: Tensor) -> Tensor:
        """(N, D) sums of the rows of these ids (N, k), each to length 1, in float32 at least; -1 adds nothing.

        Each rank adds up what it has for the queries of every rank, and the sums come home: N D numbers from each rank,
        whatever k is.
        """
        exchange = Exchange.of([ids], self.group)
        whole = exchange.gather(ids, 0)
        mine = torch.isin(whole, self.local_index.ids.to(whole.device))
        wide = torch.promote_types(self.dtype, torch.float32)
        sums = torch.zeros(len(whole), self.shards.dim, dtype=wide, device=ids.device)
        owner = torch.arange(len(whole), device=ids.device)[:, None].expand_as(whole)[mine]
        rows = unit_rows(self.local_index.rows(whole[mine].to(self.local_index.device)).to(wide))
        # One sum after another, in a fixed order: a position is the row's place among the k.
        for place in range(ids.shape[1]):
            here = mine.nonzero()[:, 1] == place
            sums.index_add_(0, owner[here], rows[here].to(sums))
        return exchange.scatter_sum(sums, 0)

    def update(self, ids: Tensor, rows: Tensor) -> None:
        """Each part takes the new rows that are its own, those of a later rank after those of an earlier."""
        exchange = Exchange.of([rows], self.group, empty=True)
        ids, rows = exchange.gather(ids, 0), exchange.gather(rows, 0)
        mine = torch.isin(ids, self.local_index.ids.to(ids.device))
        self.local_index.update(ids[mine], rows[mine])

    def refresh(self, model: Any, *, progress: bool = True) -> None:
        """Encode this rank's texts anew."""
        first = dist.get_rank(self.group) == 0
        self.local_index.refresh(model, progress=progress and first)

    def __repr__(self) -> str:
        return f"ShardedBank({len(self)} rows, here {self.local_index!r})"
