"""ClusterNS's clustering: centroids that follow the embeddings of a training run, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..distributed import RaggedGather, is_many, total_over_ranks
from ..ops import checks
from ..ops.kmeans_steps import assign, cluster_sums
from ..reference import unit_rows

STARTS = ("chain", "max-min")


@dataclass
class AsyncScalar:
    """A number (0-dim) on its way from the device: whoever asks late for it does not wait."""

    host: Tensor
    event: torch.cuda.Event | None = None

    @classmethod
    def of(cls, number: Tensor) -> AsyncScalar:
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


MODES = ("momentum", "kmeans", "adamw")
REDUCES = ("sum", "mean")
# Of AdamW, torch's defaults.
BETA1, BETA2, EPSILON, DECAY = 0.9, 0.999, 1e-8, 0.01


class OnlineAssignment(NamedTuple):
    """`index` (N,) int64 nearest and `second` (N,) second-nearest centroid of each anchor, after the update, and
    `counts` (K,) int64, how often each centroid is somebody's second."""

    index: Tensor
    second: Tensor
    counts: Tensor


class OnlineKMeans(nn.Module):
    r"""Spherical k-means over a stream of batches. Nearest is by cosine; with c the anchors nearest to centroid mu_c:

        momentum: mu_c <- (1 - rate) mu_c + rate sum_{i in c} anchor_i      (or their mean)
        kmeans:   mu_c <- sum_{i in c} anchor_i                             (or their mean)
        adamw:    one step of AdamW, learning rate `rate`, on the mean of (anchor_i - mu_c)^2 over all entries

    A centroid without anchors in the batch stays where it is. The clustering starts at the first batch whose mean
    cosine, of all anchors with all candidates, is at most `threshold`; before, `forward` returns None.

    Args:
        n_clusters:      K, at least 2 and at most a batch's anchors when it starts.
        dim:             D, the length of an anchor.
        mode:            "momentum" | "kmeans" | "adamw".
        rate:            gamma, in (0, 1].
        centroid_reduce: "sum", as in ClusterNS's released code: large clusters move faster; or "mean".
        start:           "chain": a random anchor, then again and again the unused one that is least similar to the one
                         before, as released; "max-min": the one whose largest similarity to all those chosen is least.
        threshold:       of the mean cosine.
        seed:            of the first anchor; None draws it from torch.
        across_ranks:    of a process group: the batch is what all ranks bring. Each assigns its own anchors, and sums
                         go over the ranks, so that all hold the same centroids; every rank makes every call.
        backend:         "triton" | "cpp" | "reference"; None chooses by device and dtype.

    The state_dict holds everything, so that a resumed run goes on alike: centroids, whether it has started, and the
    moments of AdamW. With `across_ranks` the centroids of rank 0 are everybody's at the start.

    Raises:
        ValueError: an option out of range, rows of another length, fewer anchors than clusters at the start.

    Numerics: centroids and moments are float32 whatever the anchors are: in half precision steps of 1e-3 would be
    rounded away. On a GPU the mean cosine is looked at `LAG` steps after it was made, which stalls nothing: the
    clustering starts so much later.

    Source: arXiv:2305.09892 and github.com/djz233/ClusterNS; its released code starts by the chain and sums.

    Example:
        >>> clusters = OnlineKMeans(2, 3, threshold=1.0, seed=0)
        >>> clusters(torch.eye(3), torch.eye(3)) is None, bool(clusters.started)
        (True, True)
        >>> clusters(torch.eye(3), torch.eye(3)).counts.sum()
        tensor(3)
    """

    LAG = 8

    def __init__(
        self,
        n_clusters: int,
        dim: int,
        *,
        mode: str = "momentum",
        rate: float = 1e-3,
        centroid_reduce: str = "sum",
        start: str = "chain",
        threshold: float = 0.4,
        seed: int | None = None,
        across_ranks: bool = False,
        backend: str | None = None,
    ):
        super().__init__()
        checks.check_count("n_clusters", n_clusters, 2)
        checks.check_count("dim", dim)
        checks.check_choice("mode", mode, MODES)
        checks.check_choice("centroid_reduce", centroid_reduce, REDUCES)
        checks.check_choice("start", start, STARTS)
        checks.check_finite("threshold", threshold)
        if not isinstance(rate, Real) or not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {rate!r}")
        self.n_clusters, self.mode, self.rate, self.centroid_reduce = n_clusters, mode, float(rate), centroid_reduce
        self.start, self.threshold, self.seed, self.backend = start, float(threshold), seed, backend
        self.across_ranks = across_ranks
        self.register_buffer("centroids", torch.zeros(n_clusters, dim, dtype=torch.float32))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        moments = (n_clusters, dim) if mode == "adamw" else (0,)
        self.register_buffer("moment1", torch.zeros(moments, dtype=torch.float32))
        self.register_buffer("moment2", torch.zeros(moments, dtype=torch.float32))
        self._running: bool | None = None  # `started` as the host knows it; None: not read since it was loaded
        self._waiting: list[AsyncScalar] = []  # mean cosines, the oldest first

    @torch.no_grad()
    def forward(self, anchor: Tensor, candidate: Tensor) -> OnlineAssignment | None:
        """One step with a batch's anchors and candidates, (N, D) each; None before and at the start.

        The centroids move by their nearest anchors, and then the anchors are assigned anew. In evaluation mode nothing
        moves.
        """
        checks.check_rows("anchor", anchor)
        checks.check_same_kind("candidate", candidate, "anchor", anchor)
        if anchor.shape[1] != self.centroids.shape[1]:
            raise ValueError(f"anchor must have rows of length {self.centroids.shape[1]}, got {tuple(anchor.shape)}")
        anchor, candidate = anchor.detach(), candidate.detach()
        if self._running is None:
            self._running = bool(self.started)
        if not self._running:
            if self.training and self._is_time(anchor, candidate):
                self._begin(anchor, candidate)
            return None
        if self.training:
            self._move(anchor, self._assign(anchor, False))
        found = self._assign(anchor, True)
        counts = torch.zeros_like(self.centroids[:, 0], dtype=torch.int64)
        counts.scatter_add_(0, found[:, 1].clamp_min(0), (found[:, 1] >= 0).long())
        return OnlineAssignment(found[:, 0], found[:, 1], self._total(counts))

    def _total(self, x: Tensor) -> Tensor:
        """The sum over the ranks."""
        return total_over_ranks(x) if self.across_ranks else x

    def _assign(self, anchor: Tensor, second: bool) -> Tensor:
        centroids = self.centroids.to(torch.promote_types(anchor.dtype, torch.float32))
        return assign(anchor, centroids, second=second, metric="cosine", backend=self.backend).index

    def _is_time(self, anchor: Tensor, candidate: Tensor) -> bool:
        """Whether a mean cosine has fallen to the threshold: this batch's, on a GPU that of `LAG` batches ago."""
        self._waiting.append(AsyncScalar.of(mean_similarity(anchor, candidate, self._total)))
        # Every rank has the same sums, and so starts at the same step.
        lag = self.LAG if anchor.is_cuda else 0
        return len(self._waiting) > lag and self._waiting.pop(0).value() <= self.threshold

    def _begin(self, anchor: Tensor, candidate: Tensor) -> None:
        if self.across_ranks:
            exchange = RaggedGather.of([anchor])
            anchor, candidate = exchange.gather(anchor, 0), exchange.gather(candidate, 0)
        if anchor.shape[0] < self.n_clusters:
            raise ValueError(
                f"n_clusters must be at most the anchors of a batch, got {self.n_clusters} and {anchor.shape[0]}"
            )
        generator = None if self.seed is None else torch.Generator("cpu").manual_seed(self.seed)
        first = int(torch.randint(anchor.shape[0], (1,), generator=generator, device="cpu"))
        self.centroids.copy_(first_centroids(anchor, candidate, self.n_clusters, first, self.start))
        if self.across_ranks and is_many():
            dist.broadcast(self.centroids, 0)
        self.started.fill_(True)
        self._running, self._waiting = True, []

    def _move(self, anchor: Tensor, index: Tensor) -> None:
        found = cluster_sums(anchor, index, self.n_clusters, backend=self.backend)
        # Sums, and how many: of each cluster, and of all.
        numbers = torch.cat([found.counts, found.counts.new_tensor([anchor.shape[0]])])
        sums, numbers = self._total(found.sums.to(self.centroids)), self._total(numbers)
        counts = numbers[:-1, None]
        there = counts > 0
        if self.mode == "adamw":
            return self._adamw(sums, counts.to(self.centroids), numbers[-1] * anchor.shape[1])
        new = sums / counts.clamp_min(1).to(self.centroids) if self.centroid_reduce == "mean" else sums
        if self.mode == "momentum":
            new = torch.lerp(self.centroids, new, self.rate)
        self.centroids.copy_(torch.where(there, new, self.centroids))

    def _adamw(self, sums: Tensor, counts: Tensor, entries: Tensor) -> None:
        """The loss is the mean over `entries` of (anchor - centroid)^2. A centroid without anchors rests, moments and
        decay included."""
        self.steps += 1
        gradient = 2 * (counts * self.centroids - sums) / entries
        step, there = self.steps.float(), counts > 0
        moment1 = torch.lerp(self.moment1, gradient, 1 - BETA1)
        moment2 = torch.lerp(self.moment2, gradient.square(), 1 - BETA2)
        by = moment1 / (1 - BETA1**step) / ((moment2 / (1 - BETA2**step)).sqrt() + EPSILON)
        moved = self.centroids * (1 - self.rate * DECAY) - self.rate * by
        for buffer, new in ((self.moment1, moment1), (self.moment2, moment2), (self.centroids, moved)):
            buffer.copy_(torch.where(there, new, buffer))

    def get_extra_state(self) -> list[float]:
        """The mean cosines that were not looked at yet, for the state_dict."""
        return [mean.value() for mean in self._waiting]

    def set_extra_state(self, state: list[float]) -> None:
        """Goes on from a state_dict."""
        self._running, self._waiting = (
            None,
            [AsyncScalar(torch.tensor(value, dtype=torch.float64, device="cpu")) for value in state],
        )

    def extra_repr(self) -> str:
        shape = f"{self.n_clusters} x {self.centroids.shape[1]}"
        return f"{shape}, mode={self.mode!r}, rate={self.rate:g}, centroid_reduce={self.centroid_reduce!r}"
