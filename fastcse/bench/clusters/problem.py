"""What is clustered: N points into K clusters, from a given start."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...ops.kmeans_steps import METRICS
from ..problem import DTYPES

WHATS = ("assignment", "update", "iteration")


@dataclass(frozen=True)
class ClustersProblem:
    """A part of k-means of N points of width D and `m` = K centroids.

    assignment: the nearest centroid of each point. update: the centroids of given labels. iteration: `iterations` times
    both from the start, and the labels of the centroids that come out; all points take part in each.

    `data` names an entry of `data.KINDS`. `backend` forces one of fastcse's.
    """

    n: int
    m: int
    d: int
    what: str = "iteration"
    iterations: int = 3
    metric: str = "euclidean"
    dtype: str = "float32"
    device: str = "cpu"
    data: str = "clustered"
    seed: int = 0
    backend: str | None = None

    def __post_init__(self):
        for name, known in (("what", WHATS), ("metric", METRICS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 1 <= self.m <= self.n:
            raise ValueError(f"m, the clusters, must lie between 1 and the points, got m = {self.m}, n = {self.n}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    # What the makers of rows ask of a problem: they make pairs, of which only the anchors are points.
    stage = "early"
    mode = "forward"
    counted = "points"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def assignments(self) -> int:
        """How often all points meet all centroids: once more than there are iterations, for the labels at the end."""
        return self.iterations + 1 if self.what == "iteration" else 1

    @property
    def flops(self) -> float:
        """Of the products of all points with all centroids; of an update, its additions."""
        if self.what == "update":
            return float(self.n * self.d)
        return 2.0 * self.assignments * self.n * self.m * self.d

    @property
    def operation(self) -> str:
        """The part of k-means."""
        return f"kmeans {self.what}"

    @property
    def size(self) -> str:
        """All three."""
        return f"N = {self.n}, K = {self.m}, D = {self.d}"

    @property
    def setting(self) -> str:
        """All but the sizes."""
        times = [f"{self.iterations} iterations"] if self.what == "iteration" else []
        return ", ".join([*times, self.metric, f"{self.dtype} on {self.device}", f"{self.data} rows"])

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"{self.operation}, {self.size}, {self.setting}"

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files."""
        return {"operation": self.operation, **asdict(self)}
