"""What is searched: N queries in a corpus of M rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..problem import DTYPES

METRICS = ("cosine", "ip", "l2")


@dataclass(frozen=True)
class TopkProblem:
    """The k best of M rows for each of N queries of width D; query i has a row of the corpus that belongs to it.

    `data` names an entry of `data.KINDS`. `backend` forces one of fastcse's.
    """

    n: int
    m: int
    d: int
    k: int
    metric: str = "ip"
    dtype: str = "float32"
    device: str = "cpu"
    data: str = "clustered"
    seed: int = 0
    backend: str | None = None

    def __post_init__(self):
        if not 1 <= self.k <= self.m:
            raise ValueError(f"k must lie between 1 and the rows of the corpus, got k = {self.k}, m = {self.m}")

    # What the makers of rows ask of a problem: queries as near to their row as early in training, and no gradients.
    stage = "early"
    mode = "forward"
    operation = "topk"
    counted = "queries"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def flops(self) -> float:
        """Of the one product that everybody needs."""
        return 2.0 * self.n * self.m * self.d

    @property
    def size(self) -> str:
        """All four."""
        return f"N = {self.n}, M = {self.m}, D = {self.d}, k = {self.k}"

    @property
    def setting(self) -> str:
        """All but the sizes."""
        return f"{self.metric}, {self.dtype} on {self.device}, {self.data} rows"

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"topk, {self.size}, {self.setting}"

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files."""
        return {"operation": self.operation, **asdict(self)}
