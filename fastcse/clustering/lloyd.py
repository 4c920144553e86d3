"""Lloyd's iteration over blocks of points: nearest centroids, new centroids, new places for empty clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.kmeans_steps import assign, cluster_sums
from ..reference import unit_rows


@dataclass
class Lloyd:
    """One run over `points` (N, D), which are read a block at a time."""

    points: Tensor
    metric: str
    backend: str | None
    blocks: list[slice]

    @property
    def cosine(self) -> bool:
        return self.metric == "cosine"

    def nearest(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) labels, and how far each point is from its centroid: squared distance, or 1 - cos."""
        labels, far = zip(*(self._block(b, centroids) for b in self.blocks))
        return torch.cat(labels), torch.cat(far)

    def step(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(labels, distances) of these centroids, and the centroids that follow."""
        k = centroids.shape[0]
        sums = torch.zeros(centroids.shape, dtype=torch.float64, device=centroids.device)
        counts = torch.zeros(k, dtype=torch.int64, device=centroids.device)
        found = []
        for b in self.blocks:
            labels, far = self._block(b, centroids)
            part = cluster_sums(self.points[b], labels, k, normalize=self.cosine, backend=self.backend)
            sums += part.sums
            counts += part.counts
            found.append((labels, far))
        labels, far = (torch.cat(x) for x in zip(*found))
        # Reading whether any is empty would stall a GPU: there the step is always taken, and changes nothing if not.
        if sums.is_cuda or bool((counts == 0).any()):
            sums, counts = self._relocate_empty_clusters(sums, counts, labels, far)
        return labels, far, self._means(sums, counts, centroids)

    def _block(self, b: slice, centroids: Tensor) -> tuple[Tensor, Tensor]:
        found = assign(self.points[b], centroids, metric=self.metric, backend=self.backend)
        # A cosine may be rounded to a little more than 1.
        return found.index, (1 - found.value).clamp_min(0) if self.cosine else found.value

    def _relocate_empty_clusters(
        self, sums: Tensor, counts: Tensor, labels: Tensor, far: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The farthest points, one for each empty cluster, leave their cluster and begin that one."""
        k, empty = counts.shape[0], counts == 0
        source = far.topk(k).indices[(empty.cumsum(0) - 1).clamp_min(0)]  # (K,)
        rows = self.points[source].double()
        rows = unit_rows(rows) if self.cosine else rows
        old = labels[source]
        # index_put_ adds in a fixed order on a GPU, index_add_ on the CPU.
        leaving, one = torch.where(empty[:, None], -rows, 0.0), empty.long()
        if sums.is_cuda:
            sums = sums.index_put((old,), leaving, accumulate=True)
            counts = counts.index_put((old,), -one, accumulate=True)
        else:
            sums, counts = sums.index_add(0, old, leaving), counts.index_add(0, old, -one)
        return torch.where(empty[:, None], rows, sums), torch.where(empty, 1, counts)

    def _means(self, sums: Tensor, counts: Tensor, old: Tensor) -> Tensor:
        """Means, or their directions; a cluster without points, or whose points cancel out, stays where it is."""
        length = torch.linalg.vector_norm(sums, dim=1) if self.cosine else counts.double()
        known = (counts > 0) & (length > 0)
        mean = sums / torch.where(known, length, 1.0)[:, None]
        return torch.where(known[:, None], mean, old.double()).to(old.dtype)

    def mean_variance(self) -> float:
        """Mean over the columns of their variance, of unit rows for cosines."""
        n, total, square = self.points.shape[0], 0.0, 0.0
        for b in self.blocks:
            x = self.points[b].double()
            x = unit_rows(x) if self.cosine else x
            total, square = total + x.sum(0), square + x.square().sum(0)
        return float((square / n - (total / n).square()).clamp_min(0).mean())
