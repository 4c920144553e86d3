"""Peak memory of one call, as the device or the system counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

MIB, GIB = 1 << 20, 1 << 30


def weigher(device: str) -> Callable[[Callable[[], object]], int | None]:
    """A function that makes one call and says by how many bytes it grew at its peak; None where nobody tells."""
    return peak_of_device if torch.device(device).type == "cuda" else peak_of_process


def peak_of_device(run: Callable[[], object]) -> int:
    """Bytes that torch allocated on the GPU beyond those before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_of_process(run: Callable[[], object]) -> int | None:
    """Bytes of this process in memory beyond those before; None where the system does not tell."""
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None  # only Linux tells
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def give_back_freed_memory() -> None:
    """What earlier calls have freed goes back to the system: kept by the allocator, it would hide what a run takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def free_bytes(device: str) -> int | None:
    """What could be allocated now; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    listing = Path("/proc/meminfo")
    lines = listing.read_text(encoding="ascii").splitlines() if listing.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
