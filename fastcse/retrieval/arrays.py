"""What the caller passes as rows and ids, as tensors that share its memory, checked once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..ops import checks

# Rows are looked through in pieces of this size: large enough to be fast, small enough to be nothing beside a corpus.
PIECE_BYTES = 64 << 20


def as_rows(name: str, rows: Tensor | np.ndarray, dtype: torch.dtype | None = None) -> tuple[Tensor, bool]:
    """(M, D) rows, and whether they may be written to. An array is not copied: a memory map stays on the disk."""
    writable = True
    if isinstance(rows, np.ndarray):
        if dtype is not None and is_mapped(rows) and shared(name, rows[:0]).dtype != dtype:
            raise ValueError(f"dtype {dtype} would copy the memory map {name}, which is {rows.dtype}: leave dtype out")
        rows, writable = shared(name, rows), rows.flags.writeable
    checks.check_rows(name, rows)
    rows = rows.detach()
    if 0 in rows.stride():
        rows, writable = rows.contiguous(), True  # an expanded row cannot be written to
    if dtype is not None and rows.dtype != dtype:
        rows, writable = rows.to(dtype), True
    return rows, writable


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a part of a memory map."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def shared(name: str, array: np.ndarray) -> Tensor:
    """An array's memory as a tensor."""
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        raise ValueError(
            f"{name} must be an array in the machine's byte order without negative strides, "
            f"got {array.dtype} with strides {array.strides}"
        )
    with warnings.catch_warnings():
        # torch warns of read-only arrays; nothing is written before `writable` is checked.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            return torch.from_numpy(array)
        except TypeError:
            raise ValueError(f"{name} must hold floats, got an array of {array.dtype}") from None


def as_ids(name: str, ids: Tensor | np.ndarray | list[int], device: torch.device) -> Tensor:
    """Whole numbers as an int64 tensor of any shape."""
    try:
        ids = torch.as_tensor(np.array(ids) if isinstance(ids, np.ndarray) else ids, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be whole numbers (int64), got {type(ids).__name__}") from None
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise ValueError(f"{name} must be whole numbers (int64), got {ids.dtype}")
    return ids.to(torch.int64)


def pieces(rows: Tensor, piece_bytes: int) -> Iterator[tuple[int, Tensor]]:
    """The rows in order, some at a time, each with the number of its first row."""
    count = max(1, piece_bytes // (rows.shape[1] * rows.element_size()))
    for first in range(0, rows.shape[0], count):
        yield first, rows[first : first + count]


def check_finite(name: str, rows: Tensor, ids: Tensor) -> None:
    """A ValueError with the number of rows that hold NaN or infinity, and the first of them."""
    bad, first_bad = 0, -1
    for first, piece in pieces(rows, PIECE_BYTES):
        # A sum is finite only if every entry is; it may overflow of finite ones, so what it suspects is looked at.
        suspect = (~torch.isfinite(piece.sum(1, dtype=torch.promote_types(piece.dtype, torch.float32)))).nonzero()[:, 0]
        wrong = suspect[~torch.isfinite(piece[suspect]).all(1)]
        if wrong.numel() and not bad:
            first_bad = first + int(wrong[0])
        bad += wrong.numel()
    if bad:
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {bad} of {rows.shape[0]} rows, "
            f"first in row {first_bad} (id {int(ids[first_bad])})"
        )


class RowIds:
    """The ids of an index's rows, and the way back from an id to its row.

    Args:
        ids:    (M,) unique whole numbers from 0, or None for 0..M-1.
    """

    def __init__(self, ids: Tensor | np.ndarray | list[int] | None, count: int, device: torch.device):
        # A copy: what the caller does to the ids afterwards must not rename rows.
        self.values = torch.arange(count, device=device) if ids is None else as_ids("ids", ids, device).clone()
        if self.values.shape != (count,):
            raise ValueError(f"ids must have shape ({count},), one for each row, got {tuple(self.values.shape)}")
        self.ascending = ids is None or bool((self.values[1:] > self.values[:-1]).all())
        self._sorted, self._order = (self.values, None) if self.ascending else self.values.sort()
        if int(self._sorted[0]) < 0:
            raise ValueError(f"ids must be 0 or more, because -1 means none, got {int(self._sorted[0])}")
        twice = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
        if twice.numel():
            raise ValueError(f"ids must be unique, got {int(twice[0])} more than once")

    def rows(self, ids: Tensor | np.ndarray | list[int]) -> Tensor:
        """(n,) the row of each id.

        Raises:
            ValueError: an id is not in the index.
        """
        wanted = as_ids("ids", ids, self.values.device)
        if wanted.dim() != 1:
            raise ValueError(f"ids must be one list of whole numbers, got shape {tuple(wanted.shape)}")
        place = torch.searchsorted(self._sorted, wanted).clamp_max(self._sorted.shape[0] - 1)
        unknown = wanted[self._sorted[place] != wanted]
        if unknown.numel():
            raise ValueError(f"ids must be in the index, got {unknown.numel()} that are not, first {int(unknown[0])}")
        return place if self._order is None else self._order[place]

    def to(self, device: torch.device) -> RowIds:
        """These ids on another device."""
        return RowIds(self.values.to(device), self.values.shape[0], device)
