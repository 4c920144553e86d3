"""What the caller may have got wrong, said once, with both values. Shapes, types and devices; and the values of indices
that are on the CPU, where reading one stalls nothing.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_rows(name: str, x: Tensor) -> None:
    """A matrix of float rows, at least one of each."""
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a matrix with one row an embedding, got {got}")
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} must be one of float16, bfloat16, float32, float64, got {x.dtype}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name} must have at least one row and one column, got shape {tuple(x.shape)}")


def check_same_kind(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Same width, type and device."""
    check_rows(name, x)
    if x.shape[1] != other.shape[1]:
        shapes = f"{tuple(x.shape)} and {tuple(other.shape)}"
        raise ValueError(f"{name} and {other_name} must have rows of one length, got {shapes}")
    if x.dtype != other.dtype:
        raise ValueError(f"{name} and {other_name} must have one dtype, got {x.dtype} and {other.dtype}")
    if x.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on one device, got {x.device} and {other.device}")


def check_vector(
    name: str, x: Tensor, length: int, of: str, like: Tensor, dtype: torch.dtype | None = torch.int64
) -> None:
    """A vector with one entry for each of `length` rows of `of`."""
    if not isinstance(x, Tensor) or x.shape != (length,):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must have shape ({length},), one entry for each row of {of}, got {got}")
    if dtype is not None and x.dtype != dtype:
        raise ValueError(f"{name} must be of {dtype}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} and {of} must be on one device, got {x.device} and {like.device}")


def check_index(name: str, index: Tensor | None, size: int, of: str, *, none: bool = False) -> None:
    """Every entry numbers one of `size` rows of `of`; with `none` -1 is allowed too. CPU tensors only: a GPU would
    stall.

    Ops call it with real tensors, so that compiled code is checked too; while something traces it does nothing.
    """
    if not isinstance(index, Tensor) or not index.is_cpu or type(index) is not Tensor or torch.compiler.is_compiling():
        return
    low, high = (x.item() for x in index.aminmax())
    least = -1 if none else 0
    if low < least or high >= size:
        got = low if low < least else high
        raise IndexError(f"{name} must number rows of {of}, from {least} to {size - 1}, got {got}")


def check_positive(positive: Tensor | None, anchor: Tensor, candidate: Tensor) -> None:
    """(N,) columns; absent, every anchor needs a candidate of its own number."""
    n, m = anchor.shape[0], candidate.shape[0]
    if positive is None:
        if n > m:
            raise ValueError(f"without positive, candidate must have a row for each of the {n} anchors, got {m} rows")
        return
    check_vector("positive", positive, n, "anchor", anchor)


def check_both(name: str, value: object, other_name: str, other: object) -> None:
    """Two arguments of which one is meaningless without the other."""
    if (value is None) != (other is None):
        given, absent = (other_name, name) if value is None else (name, other_name)
        raise ValueError(f"{given} needs {absent}, got {absent}=None")


def check_temperature(temperature: float | Tensor) -> None:
    """A number above 0, or a tensor of one element."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(f"temperature must be one number, got a tensor of shape {tuple(temperature.shape)}")
        if temperature.is_cpu and not torch.compiler.is_compiling() and not temperature.item() > 0:
            raise ValueError(f"temperature must be above 0, got {temperature.item()}")
        return
    check_above_zero("temperature", temperature)


def check_above_zero(name: str, value: float) -> None:
    """A finite number above 0."""
    if not isinstance(value, Real) or not value > 0 or math.isinf(value):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def check_finite(name: str, value: float) -> None:
    """A finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """A whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")
