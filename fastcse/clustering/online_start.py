"""Where ClusterNS's centroids begin, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import unit_rows

STARTS = ("chain", "max-min")


@dataclass
class Arriving:
    """A number (0-dim) on its way from the device: whoever asks late for it does not wait."""

    host: Tensor
    event: torch.cuda.Event | None = None

    @classmethod
    def of(cls, number: Tensor) -> Arriving:
        if not number.is_cuda:
            return cls(number)
        host = torch.empty((), dtype=number.dtype, device="cpu", pin_memory=True)
        host.copy_(number, non_blocking=True)
        return cls(host, torch.cuda.current_stream(number.device).record_event())

    def value(self) -> float:
        """The number, when it is there."""
        if self.event is not None:
            self.event.synchronize()
        return float(self.host)


def mean_similarity(anchor: Tensor, candidate: Tensor, total: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """0-dim mean cosine of all anchors with all candidates: the product of the means of their unit rows. `total` sums
    over the ranks."""
    sums = torch.stack([unit_rows(x.double()).sum(0) for x in (anchor, candidate)])
    sums = total(torch.cat([sums, torch.full_like(sums[:1], anchor.shape[0])]))
    mean = sums[:2] / sums[2]
    return mean[0] @ mean[1]


def first_centroids(anchor: Tensor, candidate: Tensor, clusters: int, first: int, how: str) -> Tensor:
    """(K, D) anchors, `first` among them, each the least similar that is left: to the one before ("chain", by the
    cosines of anchors with candidates, as released), or to the most similar of all before ("max-min", of anchors)."""
    dtype = torch.promote_types(anchor.dtype, torch.float32)
    u = unit_rows(anchor.to(dtype))
    other = unit_rows(candidate.to(dtype)) if how == "chain" else u
    nearest = torch.full((anchor.shape[0],), -torch.inf, dtype=dtype, device=anchor.device)
    used = torch.zeros_like(nearest, dtype=torch.bool)
    place = torch.tensor([first], device=anchor.device)
    chosen = []
    for _ in range(clusters):
        chosen.append(place)
        used = used.index_fill(0, place, True)
        similar = other[: len(u)] @ u[place[0]] if how == "chain" else u @ u[place[0]]
        nearest = similar if how == "chain" else torch.maximum(nearest, similar)
        place = nearest.masked_fill(used, torch.inf).argmin(keepdim=True)  # stays on the device
    return anchor[torch.cat(chosen)].to(dtype)
