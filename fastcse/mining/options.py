"""What a mining run may be asked for, checked before anything is encoded or searched."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ..ops import checks
from .filters import Filters

STRATEGIES = ("top", "random")
PER_NEGATIVE = 10  # candidates looked at for a negative where filters may drop some


@dataclass(frozen=True)
class MiningOptions:
    """Which candidates become negatives; the meanings are `mine_negatives`'.

    Raises:
        ValueError: a number outside its range, named with what it disagrees with.
    """

    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    num_negatives: int = 3
    sampling_strategy: str = "top"
    seed: int = 0
    include_positives: bool = False

    def __post_init__(self):
        _check_whole("num_negatives", self.num_negatives, 1)
        _check_whole("range_min", self.range_min, 0)
        _check_whole("seed", self.seed, 0)
        checks.check_choice("sampling_strategy", self.sampling_strategy, STRATEGIES)
        _ = self.filters
        if self.range_max is None:
            return
        _check_whole("range_max", self.range_max, 1)
        if self.range_min >= self.range_max:
            raise ValueError(
                f"range_min must be smaller than range_max, got range_min={self.range_min} and "
                f"range_max={self.range_max}"
            )
        if self.num_negatives > self.range_max - self.range_min:
            raise ValueError(
                f"num_negatives must be at most range_max - range_min, got num_negatives={self.num_negatives}, "
                f"range_max={self.range_max} and range_min={self.range_min}"
            )

    @property
    def filters(self) -> Filters:
        """The filters by score."""
        return Filters(self.absolute_margin, self.relative_margin, self.max_score, self.min_score)

    def window(self, most_positives: int, rescored: bool) -> Window:
        """The window of ranks when a query has at most `most_positives` positives."""
        many = rescored or self.filters.drop_the_best
        room = self.num_negatives * (PER_NEGATIVE if many else 1) + most_positives
        end = self.range_min + room if self.range_max is None else self.range_max
        return Window(self.range_min, end, self.num_negatives, self.sampling_strategy, self.range_max is None)


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")


@dataclass(frozen=True)
class Window:
    """Ranks `range_min` up to `range_max`, not included, of what filters leave; `widens` if nobody chose its end."""

    range_min: int
    range_max: int
    num_negatives: int
    sampling_strategy: str
    widens: bool

    @property
    def enough(self) -> int:
        """How many candidates of a query must be left for all its negatives."""
        return self.range_min + self.num_negatives

    @property
    def wanted(self) -> int:
        """How many are fetched for a query that has fewer: sampling wants a choice."""
        return self.range_max if self.sampling_strategy == "random" else self.enough

    def select(self, scores: Tensor, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n, num_negatives) scores, best first, and indices, of (n, K) candidates, -inf where dropped."""
        n = self.num_negatives
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, self.range_min : self.range_max], order[:, self.range_min : self.range_max]
        if scores.shape[1] < n:
            room = (0, n - scores.shape[1])
            scores = torch.nn.functional.pad(scores, room, value=-torch.inf)
            order = torch.nn.functional.pad(order, room)
        if self.sampling_strategy == "random":
            # The keys come from the CPU's generator, so that a seed draws the same on every device.
            keys = torch.rand(scores.shape, generator=generator, dtype=torch.float32, device="cpu").to(scores.device)
            drawn = keys.masked_fill(scores == -torch.inf, -1.0).topk(n, dim=1).indices.sort(dim=1).values
            scores, order = scores.gather(1, drawn), order.gather(1, drawn)
        scores, order = scores[:, :n], order[:, :n]
        return scores, indices.gather(1, order).masked_fill(scores == -torch.inf, -1)
