"""Tensor-descriptor (TMA) alignment rules, and for how many programs a persistent kernel works."""

from __future__ import annotations

import torch
from torch import Tensor

INTERPRETED_PROGRAMS = 3  # of a few tiles: each walks over several


def fits_descriptor(x: Tensor) -> bool:
    """Whether tensor descriptors can describe these rows: 16-byte steps and start, no row within another."""
    step = x.stride(0) * x.itemsize
    return x.data_ptr() % 16 == 0 and step % 16 == 0 and x.stride(0) >= x.shape[1] and x.shape[0] > 0


def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count
