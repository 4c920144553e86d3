"""A queue of past embeddings as negatives (MoCo)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from .contrastive import CandidateBlock


class NegativeQueue(nn.Module):
    """The last `size` rows that were pushed, first in, first out, as a block of negatives.

    Rows are constants. How many there are is known on the host: nothing is read from a GPU. The rows and their number
    are in the state_dict. In several processes each must push the rows of all, in one order.

    Args:
        size: rows that the queue holds at most.
        dim:  width of a row.
        ids:  keep an id with each row, for `anchor_id` of the loss: a row of an anchor's own sentence is no negative.
        dtype, device: of the rows.

    Raises:
        ValueError: size or dim below 1.

    Source: He et al. (MoCo), arXiv:1911.05722.

    Example:
        >>> queue, z = NegativeQueue(100, 8), torch.randn(4, 8)
        >>> queue.block() is None
        True
        >>> queue.push(z)
        >>> infonce_loss(z, z + 0.1, negatives=queue.block()).item() > infonce_loss(z, z + 0.1).item()
        True
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        ids: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        checks.check_count("size", size)
        checks.check_count("dim", dim)
        self.size, self.dim = size, dim
        self.register_buffer("rows", torch.zeros(size, dim, dtype=dtype, device=device))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64, device=device) if ids else None)
        self._next, self._filled = 0, 0

    def __len__(self) -> int:
        """Rows that are there."""
        return self._filled

    @torch.no_grad()
    def push(self, rows: Tensor, id: Tensor | None = None) -> None:
        """Put (B, dim) rows in, and the oldest out; of more rows than the queue holds the last ones stay.

        Args:
            rows: any float dtype, on the queue's device; copied.
            id:   (B,) int64, where the queue keeps ids, and only there.

        Raises:
            ValueError: another width or device, or an id where the queue keeps none, or none where it does.
        """
        self._check(rows, id)
        count = rows.shape[0]
        skipped = max(count - self.size, 0)
        start = (self._next + skipped) % self.size
        first = min(count - skipped, self.size - start)  # rows up to the end of the buffer; the rest goes to its begin
        for kept, given in ((self.rows, rows), (self.ids, id)):
            if kept is not None:
                given = given.detach()[skipped:]
                kept[start : start + first] = given[:first].to(kept.dtype)
                kept[: count - skipped - first] = given[first:].to(kept.dtype)
        self._next = (self._next + count) % self.size
        self._filled = min(self._filled + count, self.size)

    def block(self, dtype: torch.dtype | None = None) -> CandidateBlock | None:
        """What is there, for `negatives` of a loss; None when that is nothing, which a loss takes too.

        A copy in `dtype`, by default the queue's own: a push before the backward pass changes nothing in it.
        """
        if not self._filled:
            return None
        rows = self.rows[: self._filled].to(dtype or self.rows.dtype, copy=True)
        return CandidateBlock(rows, id=None if self.ids is None else self.ids[: self._filled].clone())

    def get_extra_state(self) -> dict[str, int]:
        return {"next": self._next, "filled": self._filled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._next, self._filled = int(state["next"]), int(state["filled"])

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, filled={self._filled}"

    def _check(self, rows: Tensor, id: Tensor | None) -> None:
        if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.shape[1] != self.dim:
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"rows must be (B, {self.dim}), got {got}")
        if rows.device != self.rows.device:
            raise ValueError(f"rows and the queue must be on one device, got {rows.device} and {self.rows.device}")
        if (id is None) != (self.ids is None):
            keeps, got = ("no ids", "some") if self.ids is None else ("ids", "id=None")
            raise ValueError(f"the queue keeps {keeps}, got {got}")
        if id is not None:
            checks.check_vector("id", id, rows.shape[0], "rows", rows)
