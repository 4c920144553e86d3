"""Candidates of some queries: found, told apart from positives, filtered, and more of them where too few are left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..retrieval.exact import is_excluded
from .filters import Filters, Tally
from .options import Window
from .positives import PairLookup, Positives
from .rescoring import Rescorer
from .source import Source

MOST_WIDENED = 8  # times the first window, where every further candidate costs a pass of the second model


class Candidates(NamedTuple):
    """Of the queries `rows` (n,): `scores` and `ids` (n, K) of what is left, -inf and -1 where nothing is."""

    rows: Tensor
    scores: Tensor
    ids: Tensor


@dataclass
class Finder:
    """The candidates of a run. `exclude` is (Q, E), rows to leave out padded by -1; `least_positive` is (Q,)."""

    query: Tensor
    source: Source
    positives: Positives
    exclude: Tensor
    filters: Filters
    window: Window
    least_positive: Tensor
    positive_scores: Tensor
    rescore: Rescorer | None
    include_positives: bool

    def __post_init__(self):
        self.tally = Tally()
        self.widened = 0
        self._is_positive = PairLookup(self.positives)
        counts = self.positives.counts
        self._most = int(counts.max()) if counts.numel() else 0

    @property
    def depth(self) -> int:
        """How many candidates of a query are looked at first, those that are left out not counted."""
        return self.window.range_max + self._most

    def find(self, rows: Tensor) -> Iterator[Candidates]:
        """The candidates of queries `rows` (n,); then those of queries that had too few, again and wider."""
        scores, ids = self.source.search(self.query[rows], self.depth + self.exclude.shape[1])
        last, full = scores[:, -1], ids[:, -1] >= 0
        scores, ids = self._without_excluded(rows, scores, ids, self.tally)
        # The rows that are left out must not shorten the window of one query and lengthen that of another.
        beyond = (ids >= 0).cumsum(1) > self.depth
        scores, ids = scores.masked_fill(beyond, -torch.inf), ids.masked_fill(beyond, -1)
        scores = self._without_positives(rows, scores, ids, self.tally)
        scores = self._filtered(rows, scores, ids, self.tally)
        yield Candidates(rows, scores, ids)
        low, high = self.filters.bounds(self.least_positive[rows])
        short = full & ((scores > -torch.inf).sum(1) < self.window.enough)
        if self.rescore is None:
            short &= last >= low  # else what comes after is too far away
        short = short.nonzero()[:, 0]
        if not self.window.widens or ids.shape[1] >= len(self.source) or not short.numel():
            return
        self.widened += short.shape[0]
        if self.source.bounded and self.rescore is None:
            yield from self._between(rows[short], low[short], high[short])
        else:
            yield from self._further(Candidates(rows[short], scores[short], ids[short]))

    def _without_excluded(
        self, rows: Tensor, scores: Tensor, ids: Tensor, tally: Tally | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores, and ids: -1 for what is left out, so that it is no candidate at all."""
        if not self.exclude.shape[1]:
            return scores, ids
        out = is_excluded(ids, self.exclude[rows]) & (ids >= 0)
        if self.include_positives:
            out &= ~self._is_positive(rows, ids)
        if tally is not None:
            tally.add("exclude", out, ids >= 0)
        return scores.masked_fill(out, -torch.inf), ids.masked_fill(out, -1)

    def _without_positives(self, rows: Tensor, scores: Tensor, ids: Tensor, tally: Tally | None = None) -> Tensor:
        if self.include_positives:
            return scores
        positive = self._is_positive(rows, ids)
        if tally is not None:
            tally.add("positive", positive, ids >= 0)
        return scores.masked_fill(positive, -torch.inf)

    def _filtered(self, rows: Tensor, scores: Tensor, ids: Tensor, tally: Tally | None = None) -> Tensor:
        if self.rescore is not None:
            scores = self.rescore.candidates(rows, scores, ids)
        return self.filters.apply(scores, self.least_positive[rows], tally)

    def _between(self, rows: Tensor, low: Tensor, high: Tensor) -> Iterator[Candidates]:
        """The best between the bounds: one search, unless rounding at a bound takes some away."""
        k = self.window.wanted + self.exclude.shape[1] + self._positives_between(rows, low, high)
        while rows.numel():
            scores, ids = self.source.search(self.query[rows], k, low, high)
            full = ids[:, -1] >= 0
            scores, ids = self._remaining(rows, scores, ids)
            yield Candidates(rows, scores, ids)
            more = full & ((scores > -torch.inf).sum(1) < self.window.enough) & (k < len(self.source))
            rows, low, high, k = rows[more], low[more], high[more], 2 * k

    def _remaining(self, rows: Tensor, scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        scores, ids = self._without_excluded(rows, scores, ids)
        return self._filtered(rows, self._without_positives(rows, scores, ids), ids), ids

    def _positives_between(self, rows: Tensor, low: Tensor, high: Tensor) -> int:
        """The most positives that a search of one of the queries may find."""
        if self.include_positives:
            return 0
        n = self.query.shape[0]
        lowest, highest = (x.new_full((n,), torch.nan).index_copy(0, rows, x) for x in (low, high))
        number, score = self.positives.queries, self.positive_scores.double()
        between = (score >= lowest[number] - 1e-4) & (score <= highest[number] + 1e-4)
        return int(torch.bincount(number[between], minlength=1).max())

    def _further(self, found: Candidates) -> Iterator[Candidates]:
        """Twice as many candidates each time, the earlier ones kept as they were scored."""
        width = found.ids.shape[1]
        most = len(self.source) if self.rescore is None else MOST_WIDENED * width
        while width < min(most, len(self.source)):
            rows, width = found.rows, min(2 * width, most)
            scores, ids = self.source.search(self.query[rows], width)
            full = ids[:, -1] >= 0
            # By id and not by rank: an approximate index may rank otherwise when asked for more.
            ids = ids.masked_fill(is_excluded(ids, found.ids), -1)
            scores, ids = self._remaining(rows, scores.masked_fill(ids < 0, -torch.inf), ids)
            found = Candidates(rows, torch.cat([found.scores, scores], 1), torch.cat([found.ids, ids], 1))
            yield found
            short = full & ((found.scores > -torch.inf).sum(1) < self.window.enough)
            found = Candidates(*(x[short] for x in found))
            if not found.rows.numel():
                return
