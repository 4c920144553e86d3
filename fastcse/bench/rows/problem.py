"""What is computed: one row-wise operation on N rows of width D."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..problem import DTYPES

OPS = ("quadruplet", "normalize", "adversarial")
MODES = ("full", "forward")
# (N, D) arrays that must be read or written, once in each pass: a backward pass comes after others have used the
# memory, so that what it needs of the forward pass is read again. Vectors (N,) are not counted.
PASSES = {
    ("quadruplet", "full"): 8,  # four rows; their gradients, which can be made while the rows are read
    ("quadruplet", "forward"): 4,
    ("normalize", "full"): 4,  # the row; and backward it, the gradient above, and what that becomes
    ("normalize", "forward"): 1,
    ("adversarial", "forward"): 3,  # base, direction; the moved row
}


@dataclass(frozen=True)
class RowsProblem:
    """A row-wise operation.

    quadruplet: the mean hinge of anchors, positives, batch and corpus negatives. normalize: 1 / |x|, or x / |x|, and
    backward the gradient by x of what is given by x / |x|. adversarial: x + radius g / |g|, which has no backward, with
    the radius of each row known.

    `data` names an entry of `data.KINDS`. `backend` forces one of fastcse's.
    """

    n: int
    d: int
    op: str = "quadruplet"
    dtype: str = "float32"
    device: str = "cpu"
    data: str = "clustered"
    mode: str = "full"
    seed: int = 0
    backend: str | None = None

    def __post_init__(self):
        if (self.op, self.mode) not in PASSES:
            known = ", ".join(f"{op} {mode}" for op, mode in PASSES)
            raise ValueError(f"expected one of {known}, got {self.op} {self.mode}")

    # What the makers of rows ask of a problem: positives as near to their anchor as early in training.
    stage = "early"
    counted = "rows"
    # The limit is memory, not arithmetic.
    flops = None

    @property
    def m(self) -> int:
        """As many of everything."""
        return self.n

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def bytes(self) -> int:
        """What must be read and written, in the type of the rows; counted alike for everybody."""
        return PASSES[self.op, self.mode] * self.n * self.d * self.torch_dtype.itemsize

    @property
    def operation(self) -> str:
        """The operation."""
        return self.op

    @property
    def size(self) -> str:
        """Rows and width."""
        return f"N = {self.n}, D = {self.d}"

    @property
    def setting(self) -> str:
        """All but the sizes."""
        what = "forward + backward" if self.mode == "full" else "forward alone"
        return f"{what}, {self.dtype} on {self.device}, {self.data} rows"

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"{self.op}, {self.size}, {self.setting}"

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files."""
        return {"operation": self.operation, "m": self.m, **asdict(self)}
