"""Which candidates of a query become negatives: the options, the score filters, and the window of ranks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..options import check, option

STRATEGIES = ("top", "random")
PER_NEGATIVE = 10  # candidates searched for a negative where filters may drop some

_which = functools.partial(option, panel="Which candidates become negatives")


@dataclass(frozen=True)
class MiningOptions:
    """The options of `mine_negatives`. A candidate of score s beside a query whose weakest positive has score p is
    dropped

        absolute_margin: where s + absolute_margin > p
        relative_margin: where s > p - |p| relative_margin
        max_score:       where s > max_score
        min_score:       where s < min_score

    in float32; None drops nothing. Ranks range_min <= r < range_max of what is left are the window.

    Raises:
        OptionError: a number outside its range, named with what it disagrees with.
    """

    num_negatives: int = _which(3, "Negatives of an anchor.", least=1)
    range_min: int = _which(0, "Nearest candidates to skip.", least=0)
    range_max: int | None = _which(
        None, "Nearest candidates to consider.", least=1, shown="as many as the filters need"
    )
    max_score: float | None = _which(None, "Highest similarity of a negative.")
    min_score: float | None = _which(None, "Lowest similarity of a negative.")
    absolute_margin: float | None = _which(None, "Least distance of a negative below the positive.")
    relative_margin: float | None = _which(
        None, "The same as a share of the positive's similarity; 0.05 is NV-Retriever's."
    )
    sampling_strategy: str = _which(
        "top", "The nearest that are left, or some of them.", choices=STRATEGIES, flag="--sampling"
    )
    seed: int = _which(0, "Of --sampling random.", least=0)
    include_positives: bool = _which(
        False, "Let positives be found too: a ranking to evaluate rerankers, with --format n-tuple."
    )

    def __post_init__(self):
        check(self)
        if None not in (self.max_score, self.min_score) and self.max_score < self.min_score:
            raise OptionError(
                "max_score", f" is {self.max_score}: expected at least ", "min_score", f", which is {self.min_score}"
            )
        if self.range_max is None:
            return
        if self.range_min >= self.range_max:
            raise OptionError(
                "range_min", f" is {self.range_min}: expected less than ", "range_max", f", which is {self.range_max}"
            )
        if self.enough > self.range_max:
            room = f", which is {self.range_max - self.range_min}"
            text = f" is {self.num_negatives}: expected at most "
            raise OptionError("num_negatives", text, "range_max", " - ", "range_min", room)

    @classmethod
    def among(cls, given: dict[str, Any]) -> MiningOptions:
        """The options among the arguments of a function."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    @property
    def enough(self) -> int:
        """How many candidates of a query must be left for all its negatives."""
        return self.range_min + self.num_negatives

    @property
    def needs_positive_scores(self) -> bool:
        """Whether the scores of positives are compared with."""
        return (self.absolute_margin, self.relative_margin) != (None, None)

    def end(self, most_positives: int, reranked: bool) -> int:
        """The rank before which the window ends when a query has at most `most_positives` positives."""
        if self.range_max is not None:
            return self.range_max
        drops_the_best = reranked or self.needs_positive_scores or self.max_score is not None
        return self.range_min + self.num_negatives * (PER_NEGATIVE if drops_the_best else 1) + most_positives

    def filter(self, scores: Tensor, least_positive: Tensor, counts: dict[str, Tensor]) -> Tensor:
        """(n, K) scores with -inf for what is dropped; `least_positive` (n,) is +inf for a query without one."""
        for name, wrong in self._dropped(scores, least_positive[:, None]):
            there = scores > -torch.inf
            count(counts, name, wrong & there, there)
            scores = scores.masked_fill(wrong, -torch.inf)
        return scores

    def _dropped(self, scores: Tensor, positive: Tensor) -> Iterator[tuple[str, Tensor]]:
        # Of the scores before any filter: what one filter drops, another may drop too.
        if self.absolute_margin is not None:
            yield "absolute_margin", scores + self.absolute_margin > positive
        if self.relative_margin is not None:
            yield "relative_margin", scores > self._relative_bound(positive)
        if self.max_score is not None:
            yield "max_score", scores > self.max_score
        if self.min_score is not None:
            yield "min_score", scores < self.min_score

    def _relative_bound(self, positive: Tensor) -> Tensor:
        # By the magnitude: a share of a negative score would move the threshold up.
        bound = positive - positive.abs() * self.relative_margin
        return torch.where(positive == torch.inf, positive, bound)

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
            high = high.minimum(self._relative_bound(least_positive).double())
        if self.max_score is not None:
            high = high.clamp_max(_rounded(self.max_score))
        if self.min_score is not None:
            low = low.clamp_min(_rounded(self.min_score))
        return low, high

    def select(self, scores: Tensor, ids: Tensor, end: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n, num_negatives) scores, best first, and ids, of ranks range_min to `end` of (n, K) candidates, -inf where
        dropped."""
        n = self.num_negatives
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, self.range_min : end], order[:, self.range_min : end]
        if scores.shape[1] < n:
            room = (0, n - scores.shape[1])
            scores = torch.nn.functional.pad(scores, room, value=-torch.inf)
            order = torch.nn.functional.pad(order, room)
        if self.sampling_strategy == "random":
            # Keys of the CPU's generator, so that a seed gives the same draw on every device.
            keys = torch.rand(scores.shape, generator=generator, dtype=torch.float32, device="cpu").to(scores.device)
            drawn = keys.masked_fill(scores == -torch.inf, -1.0).topk(n, dim=1).indices.sort(dim=1).values
            scores, order = scores.gather(1, drawn), order.gather(1, drawn)
        scores, order = scores[:, :n], order[:, :n]
        return scores, ids.gather(1, order).masked_fill(scores == -torch.inf, -1)


def count(counts: dict[str, Tensor], name: str, dropped: Tensor, there: Tensor) -> None:
    """Add to `counts[name]` (2,) how many a filter dropped and how many reached it; it stays on the device."""
    counts[name] = counts.get(name, 0) + torch.stack([dropped.sum(), there.sum()])


def _rounded(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()
