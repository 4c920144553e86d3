"""Candidates that are too good or too bad to be negatives, by their scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..ops import checks


@dataclass(frozen=True)
class Filters:
    """A candidate of score s beside a query whose weakest positive has score p is dropped

        absolute_margin: where s + absolute_margin > p
        relative_margin: where s > p - |p| relative_margin
        max_score:       where s > max_score
        min_score:       where s < min_score

    in float32, one after the other; None drops nothing.

    Raises:
        ValueError: a number that is not finite, max_score below min_score.
    """

    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                checks.check_finite(field.name, value)
        if None not in (self.max_score, self.min_score) and self.max_score < self.min_score:
            raise ValueError(
                f"max_score must be at least min_score, got max_score={self.max_score} and min_score={self.min_score}"
            )

    @property
    def drop_the_best(self) -> bool:
        """Whether candidates may be dropped from the top of the ranking."""
        return (self.absolute_margin, self.relative_margin, self.max_score) != (None, None, None)

    @property
    def need_positives(self) -> bool:
        """Whether the scores of positives are compared with."""
        return (self.absolute_margin, self.relative_margin) != (None, None)

    def apply(self, scores: Tensor, least_positive: Tensor, tally: Tally | None = None) -> Tensor:
        """(n, K) scores with -inf for what is dropped; `least_positive` (n,) is +inf for a query without one."""
        for name, wrong in self._wrong(scores, least_positive[:, None]):
            if tally is not None:
                there = scores > -torch.inf
                tally.add(name, wrong & there, there)
            scores = scores.masked_fill(wrong, -torch.inf)
        return scores

    def _wrong(self, scores: Tensor, positive: Tensor) -> Iterator[tuple[str, Tensor]]:
        # Of the scores as they came: what one filter drops, another may drop too.
        if self.absolute_margin is not None:
            yield "absolute_margin", scores + self.absolute_margin > positive
        if self.relative_margin is not None:
            yield "relative_margin", scores > self._highest_by_share(positive)
        if self.max_score is not None:
            yield "max_score", scores > self.max_score
        if self.min_score is not None:
            yield "min_score", scores < self.min_score

    def _highest_by_share(self, positive: Tensor) -> Tensor:
        # By the magnitude: a share of a negative score would move the threshold up.
        limit = positive - positive.abs() * self.relative_margin
        return torch.where(positive == torch.inf, positive, limit)

    def bounds(self, least_positive: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) float64 lowest and highest score that may be left; a score between may still be dropped by rounding."""
        low = torch.full_like(least_positive, -torch.inf, dtype=torch.float64)
        high = torch.full_like(low, torch.inf)
        if self.absolute_margin is not None:
            # s + margin is rounded before it is compared, so that a sum half a step above the positive is equal to it.
            step = torch.nextafter(least_positive, torch.full_like(least_positive, torch.inf))
            rounded_down = (least_positive.double() + step.double()) / 2
            high = high.minimum(rounded_down - _rounded(self.absolute_margin))
        if self.relative_margin is not None:
            high = high.minimum(self._highest_by_share(least_positive).double())
        if self.max_score is not None:
            high = high.clamp_max(_rounded(self.max_score))
        if self.min_score is not None:
            low = low.clamp_min(_rounded(self.min_score))
        return low, high


def _rounded(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()


class Tally:
    """How many candidates each filter dropped, of how many that reached it; counted on the device, read once."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, dropped: Tensor, there: Tensor) -> None:
        """Count two masks."""
        new = torch.stack([dropped.sum(), there.sum()])
        self._sums[name] = self._sums[name] + new if name in self._sums else new

    def read(self) -> dict[str, tuple[int, int]]:
        """(dropped, of how many) by filter, in the order in which they were applied."""
        if not self._sums:
            return {}
        return {name: tuple(pair) for name, pair in zip(self._sums, torch.stack([*self._sums.values()]).tolist())}
