"""Scores of a second model, asked for in flat batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PAIRS_AT_ONCE = 16384  # many, so that a cross-encoder can put texts of one length together

Rescore = Callable[[Tensor, Tensor], Any]


class Rescorer:
    """Calls `rescore(query_numbers (n,), corpus_rows (n,)) -> (n,) scores`.

    Raises:
        ValueError: the scores are not (n,) finite numbers.
    """

    def __init__(self, rescore: Rescore, bar: Any):
        self._rescore, self._bar = rescore, bar

    def __call__(self, number: Tensor, ids: Tensor) -> Tensor:
        """(n,) float32 scores of pairs."""
        parts = [torch.zeros(0, device=ids.device)]
        for first in range(0, ids.shape[0], PAIRS_AT_ONCE):
            some = slice(first, first + PAIRS_AT_ONCE)
            parts.append(self._scores(number[some], ids[some]))
            self._bar.update(parts[-1].shape[0])
        return torch.cat(parts)

    def candidates(self, number: Tensor, scores: Tensor, ids: Tensor) -> Tensor:
        """(n, K) new scores of candidates; what is -inf stays so, and is not asked for."""
        there = scores > -torch.inf
        new = self(number[:, None].expand_as(ids)[there], ids[there])
        return torch.full_like(scores, -torch.inf).masked_scatter(there, new)

    def _scores(self, number: Tensor, ids: Tensor) -> Tensor:
        scores = torch.as_tensor(self._rescore(number, ids)).detach().to(ids.device, torch.float32)
        if scores.shape != ids.shape:
            raise ValueError(f"rescore must give {ids.shape[0]} scores, one for each pair, got {tuple(scores.shape)}")
        wrong = (~torch.isfinite(scores)).nonzero()[:, 0]
        if wrong.numel():
            at = int(wrong[0])
            raise ValueError(
                f"rescore must give finite scores, got {scores[at].item()} for query {int(number[at])} and "
                f"corpus row {int(ids[at])}"
            )
        return scores
