"""Hard negatives of each training batch from the whole corpus, and the updates of the index that holds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..retrieval.index import CorpusIndex
from ..retrieval.sharded import ShardedIndex

REFRESH = ("never", "write-through")


class CorpusNegatives:
    r"""For each anchor one negative made of the rows of a corpus that are nearest to it.

        negative_i = mean of the `k` rows nearest to anchor_i behind the first `skip`, each to length 1

    Args:
        index:     what to search: a `CorpusIndex` of metric "cosine" or "ip", or a `ShardedIndex` of such.
        k:         how many rows are averaged. Where fewer take part, those there are; where none does, the negative is
                   a zero row, whose similarity is 0.
        skip:      how many of the nearest are skipped, since they may be paraphrases of the anchor.
        sample:    draw the k at random from this many nearest behind `skip`; None: the first k.
        max_score: rows more similar than this are no negatives: near-duplicates.
        refresh:   "never"; or a number n: `step` encodes the corpus anew every n steps; or "write-through": `write`
                   replaces the rows of a batch.
        generator: of `sample`, on the device of the query; None draws from torch's own.

    Raises:
        ValueError: an index that is too small for k and skip or of another metric, or an option out of range.

    Source: HSimCSE's released code (github.com/xubodhu/HSimCSE) has k = 3 and a bank that is never refreshed; its
    exclusion of the anchor's own sentence fails, which an id here does. Writing through as in CARDS.

    Example:
        >>> bank = CorpusIndex(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]]))
        >>> CorpusNegatives(bank, k=1).rows(torch.tensor([[1.0, 0.5]]), exclude_id=torch.tensor([0]))
        tensor([[0., 1.]])
    """

    def __init__(
        self,
        index: CorpusIndex | ShardedIndex,
        *,
        k: int = 3,
        skip: int = 0,
        sample: int | None = None,
        max_score: float | None = None,
        refresh: str | int = "never",
        generator: torch.Generator | None = None,
    ):
        checks.check_count("k", k)
        checks.check_count("skip", skip, 0)
        if sample is not None:
            checks.check_count("sample", sample, k)
        if index.metric not in ("cosine", "ip"):
            raise ValueError(f"index must be of metric 'cosine' or 'ip', of similarities, got {index.metric!r}")
        if refresh not in REFRESH and (isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1):
            raise ValueError(f"refresh must be one of {REFRESH} or a whole number from 1, got {refresh!r}")
        if skip + (sample or k) > len(index):
            raise ValueError(
                f"index must have at least the {skip + (sample or k)} rows that k, skip and sample ask for, "
                f"got {len(index)}"
            )
        self.index, self.k, self.skip, self.sample = index, k, skip, sample
        self.max_score, self.refresh, self.generator = max_score, refresh, generator

    @torch.no_grad()
    def rows(self, query: Tensor, exclude_id: Tensor | None = None) -> Tensor:
        """(N, D) negatives in the dtype and on the device of the query, constants.

        Args:
            query:      (N, D), as a rule the anchors themselves.
            exclude_id: (N,) int64, the id of each anchor's own row in the bank, or (N, E), several; -1 is none.
        """
        query = query.detach()
        count = self.skip + (self.sample or self.k)
        found = self.index.search(query, count, exclude_id=exclude_id, max_score=self.max_score)
        ids = self._drawn(found.indices[:, self.skip :])
        found = (ids >= 0).sum(1, keepdim=True).clamp_min(1)
        sums = self.index.unit_sums(ids)
        return (sums / found.to(sums.device)).to(query)

    def _drawn(self, ids: Tensor) -> Tensor:
        """(N, k) of these ids (N, sample), those that are there before -1."""
        if self.sample is None:
            return ids
        lot = torch.rand(ids.shape, generator=self.generator, device=ids.device).masked_fill(ids < 0, -1.0)
        return ids.gather(1, lot.topk(self.k, dim=1).indices)

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """With refresh "write-through", the new rows (n, D) of these ids (n,) into the bank; else nothing. An id of -1
        is passed over. Over a `ShardedIndex` collective, as `rows` is."""
        if self.refresh == "write-through":
            known = ids >= 0
            self.index.update(ids[known], rows.detach()[known])

    def step(self, number: int, model: Any, *, progress: bool = True) -> bool:
        """After step `number`, from 1: encode the corpus anew if that is due, and return whether it was.

        Args:
            model: as in `CorpusIndex.refresh`.
        """
        due = self.refresh not in REFRESH and number % self.refresh == 0
        if due:
            self.index.refresh(model, progress=progress)
        return due

    def __repr__(self) -> str:
        options = ("k", "skip", "sample", "max_score", "refresh")
        return f"CorpusNegatives({self.index!r}, {', '.join(f'{name}={getattr(self, name)!r}' for name in options)})"
