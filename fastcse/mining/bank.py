"""Rows that are kept and named by ids: looked up, written through, moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .arrays import RowIds, as_rows, check_finite


class Bank:
    """(M, D) rows and their ids; the memory is the caller's."""

    def __init__(
        self,
        rows: Tensor | np.ndarray,
        ids: Tensor | np.ndarray | Sequence[int] | None,
        dtype: torch.dtype | None,
        check: bool,
    ):
        self._rows, self._writable = as_rows("rows", rows, dtype)
        self._ids = RowIds(ids, len(self), self.device)
        self._check = check
        if check:
            check_finite("rows", self._rows, self.ids)

    def rows(self, ids: Tensor | np.ndarray | Sequence[int]) -> Tensor:
        """(n, D) copies of the rows with these ids (n,), in the order of the ids."""
        return self._rows[self._ids.rows(ids)]

    @torch.inference_mode()  # rows that come from a model are often inference tensors, written to nowhere else
    def update(self, ids: Tensor | np.ndarray | Sequence[int], rows: Tensor | np.ndarray) -> None:
        """Write new rows (n, D) in the place of those with these ids (n,), in the type of the index.

        Of an id that comes twice the last row counts. Kind "hnsw" cannot: its graph is built from the rows.

        Raises:
            ValueError: an id is not in the index, shapes disagree, a row is not finite, the rows are read only.
        """
        self._check_replaceable()
        place = self._ids.rows(ids)
        if place.numel() == 0:
            return
        new, _ = as_rows("rows", rows)
        if new.shape != (place.shape[0], self.dim):
            raise ValueError(f"rows must have shape {(place.shape[0], self.dim)} for these ids, got {tuple(new.shape)}")
        new = new.to(self._rows)
        if self._check:
            check_finite("rows", new, self.ids[place])
        order = place.argsort(stable=True)
        last = torch.ones_like(place, dtype=torch.bool)
        last[:-1] = place[order][1:] != place[order][:-1]
        place, new = place[order[last]], new[order[last]]
        self._rows.index_copy_(0, place, new)
        self._replaced(place, new)

    def _check_replaceable(self) -> None:
        if not self._writable:
            raise ValueError(
                "update needs rows that can be written to, got a read-only array: open the map with mode 'r+', or load "
                "the index with mmap=False"
            )

    def _replaced(self, place: Tensor, rows: Tensor) -> None:
        """Called with what was written; for what is kept beside the rows."""

    def to(self, device: torch.device | str) -> Bank:
        """Move rows to a device, for which a memory map is read whole, and return the index; FAISS keeps its own."""
        moved = self._rows.to(device)
        if moved.device != self.device:
            self._rows, self._writable, self._ids = moved, True, self._ids.to(moved.device)
        return self

    @property
    def ids(self) -> Tensor:
        """(M,) int64, the id of each row."""
        return self._ids.values

    @property
    def dim(self) -> int:
        """D, the length of a row."""
        return self._rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the rows."""
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._rows.device

    def __len__(self) -> int:
        return self._rows.shape[0]
