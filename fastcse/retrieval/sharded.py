"""A corpus spread over the ranks of torch.distributed: each searches its part, and results are merged exactly."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import RaggedGather
from ..ops.topk_search import TopK
from ..reference import unit_rows
from .arguments import make_search
from .exact import merge_best
from .index import CorpusIndex

IDS_PER_MESSAGE = 1 << 20


class ShardedIndex:
    """The corpus whose parts the ranks of a group hold, searched and written through as one index would be.

    All but `refresh` is collective: every rank of the group calls it, each with rows of its own, and a mistake on one
    rank is an error on all of them.

    Args:
        local_index: this rank's part, its ids being those of the whole corpus; None where a rank has no rows.
        group:       a process group, or None for the default one.

    Raises:
        ValueError: parts differ in metric or length of rows, an id is on two ranks, or no rank has rows.

    Example:
        A process group of one rank, where the whole corpus is the part:

        >>> import tempfile, torch.distributed as dist
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> index = ShardedIndex(CorpusIndex(torch.eye(3)))
        >>> index.search(torch.tensor([[2.0, 1.0, 0.0]]), 2).indices
        tensor([[0, 1]])
        >>> dist.destroy_process_group()
    """

    def __init__(self, local_index: CorpusIndex | None, group: dist.ProcessGroup | None = None):
        self.local_index, self.group = local_index, group
        strange = not isinstance(local_index, CorpusIndex | None)
        mistake = f"local_index must be a CorpusIndex or None, got {type(local_index).__name__}" if strange else None
        _raise_together(ValueError, self._exchange(mistake))
        mine = None if local_index is None else (local_index.metric, local_index.dim)
        dtype = None if local_index is None else (local_index.dtype, local_index.kind == "exact")
        parts = self._exchange((mine, 0 if local_index is None else len(local_index), dtype))
        kinds = {kind for kind, _, _ in parts if kind is not None}
        if len(kinds) != 1:
            found = ", ".join(f"rank {rank}: {kind}" for rank, (kind, _, _) in enumerate(parts))
            raise ValueError(f"all parts must have one metric and length of rows, got {found}")
        ((self.metric, self.dim),) = kinds
        self._lengths = [length for _, length, _ in parts]
        dtypes = {dtype for _, _, dtype in parts if dtype is not None}
        self._double = dtypes == {(torch.float64, True)}
        self._sum_dtype = functools.reduce(torch.promote_types, (dtype for dtype, _ in dtypes), torch.float32)
        self._check_ids()

    def __len__(self) -> int:
        """Rows of the whole corpus."""
        return sum(self._lengths)

    @torch.no_grad()
    def search(
        self,
        query: Tensor,
        k: int,
        *,
        exclude_id: Tensor | None = None,
        max_score: float | Tensor | None = None,
        min_score: float | Tensor | None = None,
    ) -> TopK:
        """The k best rows of the whole corpus for each query of this rank, named by id, as `CorpusIndex.search`.

        Args:
            query: (N, D); N may differ between ranks, and may be 0.
            k:     the same on all ranks, at most the rows of all parts.

        Returns:
            TopK(values, indices), (N, k) each: what one index over all parts gives.
        """
        mine, mistake = [torch.zeros(1, self.dim, device=self._device(None))], None
        try:
            mine = self._own(query, k, exclude_id, max_score, min_score)
        except ValueError as error:
            mistake = error

        def check() -> None:
            if mistake is not None:
                raise mistake

        exchange = RaggedGather.of(mine, self.group, empty=True, alike={"k": k}, check=check)
        whole = [exchange.gather(x, tensor) for tensor, x in enumerate(mine)]
        found, error, counts = (), None, exchange.rows(0)
        try:
            found = self._search_part(*whole, k, exchange)
        except (RuntimeError, ValueError, MemoryError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        _raise_together(RuntimeError, self._exchange(error))
        # Row block r of what this rank found belongs to rank r's queries.
        own, received = counts[self._rank()], []
        for part in found:
            out = part.new_zeros(own * len(counts), k)
            dist.all_to_all_single(out, part.contiguous(), [own] * len(counts), counts, group=self.group)
            received.append(out.view(len(counts), own, k).transpose(0, 1).reshape(own, len(counts) * k))
        double = self._double and whole[0].dtype == torch.float64
        values = received[0].to(torch.float64 if double else torch.float32)
        best, home = merge_best(values, received[1], k, self.metric), getattr(query, "device", "cpu")
        return TopK(best.values.to(home), best.indices.to(home))

    def unit_sums(self, ids: Tensor) -> Tensor:
        """(N, D) sums of the rows of these ids (N, k), each to length 1, in float32 at least; -1 adds nothing.

        Each rank adds up its own rows for the queries of every rank: N D numbers are exchanged, whatever k is.
        """
        exchange = RaggedGather.of([ids], self.group, empty=True)
        whole = exchange.gather(ids, 0)
        sums = torch.zeros(len(whole), self.dim, dtype=self._sum_dtype, device=ids.device)
        mine = self._is_mine(whole)
        if mine.any():
            owner = torch.arange(len(whole), device=ids.device)[:, None].expand_as(whole)[mine]
            rows = self.local_index.rows(whole[mine].to(self.local_index.device))
            rows = unit_rows(rows.to(self._sum_dtype)).to(sums)
            # One sum after another, in a fixed order: a position is the row's place among the k.
            for place in range(ids.shape[1]):
                here = mine.nonzero()[:, 1] == place
                sums.index_add_(0, owner[here], rows[here])
        return exchange.scatter_sum(sums, 0)

    def update(self, ids: Tensor, rows: Tensor) -> None:
        """Write new rows (n, D) in the place of those with these ids (n,), on the ranks that hold them; of a
        repeated id the last row of the last rank counts."""
        exchange = RaggedGather.of([rows], self.group, empty=True)
        ids, rows = exchange.gather(ids, 0), exchange.gather(rows, 0)
        mine = self._is_mine(ids)
        if mine.any():
            self.local_index.update(ids[mine], rows[mine])

    def _is_mine(self, ids: Tensor) -> Tensor:
        if self.local_index is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        return torch.isin(ids, self.local_index.ids.to(ids.device))

    def refresh(self, model: Any, *, progress: bool = True) -> None:
        """Encode this rank's texts anew."""
        if self.local_index is not None:
            self.local_index.refresh(model, progress=progress and self._rank() == 0)

    def __repr__(self) -> str:
        return f"ShardedIndex({len(self)} rows, here {self.local_index!r})"

    def _own(self, query: Tensor, k: int, exclude_id: Any, max_score: Any, min_score: Any) -> list[Tensor]:
        """This rank's queries (N, D), bounds (N, 2), and ids to leave out, (N E, 1) since E may differ between ranks;
        checked."""
        empty = isinstance(query, Tensor) and query.dim() == 2 and query.shape[0] == 0
        if empty:  # as a search of one row, so that its type and length are checked alike
            query, exclude_id, max_score, min_score = query.new_zeros(1, query.shape[1]), None, None, None
        search = make_search(query, k, exclude_id, min_score, max_score, self.dim, len(self), (self.metric, None))
        n, device = 0 if empty else search.query.shape[0], self._device(search.query)
        exclude = torch.zeros(0, dtype=torch.int64, device=device) if search.exclude is None else search.exclude
        bounds = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64, device=device).repeat(n, 1)
        for column, bound in enumerate((search.min_score, search.max_score)):
            if bound is not None:
                bounds[:, column] = bound
        return [search.query[:n].to(device), bounds, exclude.reshape(-1, 1).to(device)]

    def _search_part(
        self, query: Tensor, bounds: Tensor, excluded: Tensor, k: int, exchange: RaggedGather
    ) -> tuple[Tensor, Tensor]:
        """(all queries, k) values in float64 and ids of this rank's rows, filled up with -1."""
        n = query.shape[0]
        if self.local_index is None or n == 0:
            none = torch.full((n, k), -1, device=query.device)
            return none.double(), none
        parts = zip(excluded.split(exchange.rows(2)), exchange.rows(0))
        parts = [part.view(count, len(part) // count) for part, count in parts if count]
        width = max(1, *(part.shape[1] for part in parts))
        parts = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-1) for part in parts]
        found = self.local_index.search(
            query,
            min(k, len(self.local_index)),
            exclude_id=torch.cat(parts),
            min_score=bounds[:, 0].contiguous(),
            max_score=bounds[:, 1].contiguous(),
        )
        return tuple(merge_best(found.values.double(), found.indices, k, self.metric))

    def _check_ids(self) -> None:
        """An id that two ranks hold would be found twice. Each rank's ids are broadcast, some at a time."""
        device = self._device(None if self.local_index is None else self.local_index.ids)
        mine, twice = torch.zeros(0, dtype=torch.int64, device=device), None
        if self.local_index is not None:
            mine = self.local_index.ids.sort().values.to(device)
        for rank, length in enumerate(self._lengths):
            for first in range(0, length, IDS_PER_MESSAGE):
                count = min(IDS_PER_MESSAGE, length - first)
                own = rank == self._rank()
                some = mine[first : first + count].clone() if own else mine.new_zeros(count)
                dist.broadcast(some, group_src=rank, group=self.group)
                if not own and mine.numel():
                    place = torch.searchsorted(mine, some).clamp_max(mine.shape[0] - 1)
                    same = some[mine[place] == some]
                    twice = int(same[0]) if twice is None and same.numel() else twice
        found = [(rank, x) for rank, x in enumerate(self._exchange(twice)) if x is not None]
        if found:
            raise ValueError(f"ids must be unique over all ranks, got {found[0][1]} on rank {found[0][0]} and another")

    def _exchange(self, mine: Any) -> list:
        """The object of every rank, by rank."""
        everyone = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def _rank(self) -> int:
        return dist.get_rank(self.group)

    def _device(self, x: Tensor | None) -> torch.device:
        """Where the group's messages are: on a GPU only where it must be so."""
        if dist.get_backend(self.group) == "nccl":
            return x.device if x is not None and x.is_cuda else torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def _raise_together(kind: type[Exception], errors: list[str | None]) -> None:
    """Raise the errors of some ranks on all of them: a rank that continued alone would wait for the others."""
    wrong = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
    if wrong:
        raise kind("; ".join(wrong))
