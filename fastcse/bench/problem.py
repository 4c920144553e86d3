"""What is computed: one loss at one size on one kind of data, and the plain formula that everybody must agree with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSSES = ("infonce", "focal", "symmetric")
MODES = ("full", "no-grad-forward")


@dataclass(frozen=True)
class LossProblem:
    """A contrastive loss of N anchors and M candidates of width D; candidate i is the positive of anchor i.

    `data` and `stage` name an entry of `data.KINDS` and `data.STAGES`. `mode` "full" is forward and backward,
    "no-grad-forward" the value alone. `backend` forces one of fastcse's.
    """

    n: int
    m: int
    d: int
    loss: str = "infonce"
    dtype: str = "float32"
    device: str = "cpu"
    data: str = "clustered"
    stage: str = "early"
    mode: str = "full"
    temperature: float = 0.05
    margin: float = 0.3
    seed: int = 0
    backend: str | None = None

    def __post_init__(self):
        if self.m < self.n or (self.loss == "symmetric" and self.m != self.n):
            wanted = "exactly" if self.loss == "symmetric" else "at least"
            raise ValueError(
                f"{self.loss} needs {wanted} as many candidates as anchors, got m = {self.m}, n = {self.n}"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def products(self) -> int:
        """Matrix products of N x M x D that the operation needs without keeping the matrix; every provider is counted
        by them."""
        if self.mode == "no-grad-forward":
            return 1
        # Both directions need the similarities before either normaliser is known, and again afterwards. Who keeps the
        # whole matrix does with 3, and may come out below the bare products.
        return 4 if self.loss == "symmetric" else 3

    @property
    def flops(self) -> float:
        """Floating-point operations counted alike for everybody: 2 for one product, 6 forward and backward, 8 for both
        directions, times N M D."""
        return 2.0 * self.products * self.n * self.m * self.d

    @property
    def size(self) -> str:
        """N and D, and M where it is not N."""
        return ", ".join(f"{k} = {v}" for k, v in (("N", self.n), ("M", self.m), ("D", self.d))
                         if k != "M" or v != self.n)  # fmt: skip

    @property
    def operation(self) -> str:
        """The loss."""
        return self.loss

    @property
    def counted(self) -> str:
        """What N counts."""
        return "anchors"

    @property
    def setting(self) -> str:
        """All but the sizes."""
        what = "forward + backward" if self.mode == "full" else "forward alone"
        rows = f"{self.data} rows, {self.stage}"
        return f"{what}, {self.dtype} on {self.device}, {rows}, temperature {self.temperature:g}"

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"{self.loss}, {self.size}, {self.setting}"

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files."""
        return asdict(self)


def plain_logits(problem: LossProblem, similarity: Tensor, positive: Tensor) -> Tensor:
    """(R, M) logits of a block of similarities; `positive` (R,) is each row's positive column."""
    if problem.loss != "focal":
        return similarity / problem.temperature
    own = F.one_hot(positive, similarity.shape[1]).to(torch.bool)
    return torch.where(own, similarity * similarity, similarity * (similarity + problem.margin)) / problem.temperature


def plain_loss(problem: LossProblem) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as one writes it by hand: normalise, one product, cross-entropy."""

    def loss(anchor: Tensor, candidate: Tensor) -> Tensor:
        s = F.normalize(anchor, dim=-1) @ F.normalize(candidate, dim=-1).T
        label = torch.arange(s.shape[0], device=s.device)
        x = plain_logits(problem, s, label)
        if problem.loss != "symmetric":
            return F.cross_entropy(x, label)
        return (F.cross_entropy(x, label) + F.cross_entropy(x.T, label)) / 2

    return loss
