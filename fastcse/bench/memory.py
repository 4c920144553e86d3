"""Peak memory: of one call as the device or the system counts it, and of a provider beyond its inputs and outputs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .case import Case
from .provider import Provider
from .timing import Call

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

MIB, GIB = 1 << 20, 1 << 30
# Below this many rows by this many the process's own noise is larger than the matrix.
SMALLEST = 2048


def peak_memory(device: str) -> Callable[[Call], int | None]:
    """A function that makes one call and returns by how many bytes memory grew at its peak."""
    return peak_of_device if torch.device(device).type == "cuda" else peak_of_process


def peak_of_device(run: Call) -> int:
    """Bytes that torch allocated on the GPU beyond those before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_of_process(run: Call) -> int | None:
    """Bytes of this process in memory beyond those before; None if the system does not report them (only Linux)."""
    trim_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    before = _listed("/proc/self/status", "VmRSS")
    run()
    return _listed("/proc/self/status", "VmHWM") - before


def trim_heap() -> None:
    """Return freed memory to the system: kept by the allocator, it would hide what a run takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def free_bytes(device: str) -> int | None:
    """What could be allocated now; None if the system does not report it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _listed("/proc/meminfo", "MemAvailable")


def _listed(file: str, field: str) -> int | None:
    """Bytes of a field that the system lists in KiB; None where it does not."""
    lines = Path(file).read_text(encoding="ascii").splitlines() if Path(file).exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def extra_memory(case: Case, provider: Provider | None, config: int | str | None = None) -> float | None:
    """MiB of a provider, or of the lower bound where it is None, beyond inputs and outputs; None if not reported. On
    the CPU in a process of its own: memory that another run has freed would hide it."""
    if torch.device(case.device).type == "cuda":
        return _extra_memory(case, provider, config)
    with one_process() as process:
        return process.submit(_extra_memory, case, provider, config).result()


def one_process() -> ProcessPoolExecutor:
    """A fresh process with as many threads as this one. An executor notices a process that was killed for its memory; a
    pool would wait for it for ever."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    threads = (torch.get_num_threads(),)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, threads)


def _extra_memory(case: Case, provider: Provider | None, config: int | str | None) -> float | None:
    inputs, outputs = case.inputs(), 0
    if provider is None:

        def run() -> None:
            case.lower_bound()(*inputs)  # its buffers are what is measured
    else:
        call, outputs = case.call(provider, config, inputs), case.output_bytes(inputs)

        def run() -> None:
            call()

        run()  # what is compiled, loaded and allocated once is not the operation's
    for x in inputs:
        if isinstance(x, torch.Tensor):
            x.grad = None
    taken = peak_memory(case.device)(run)
    return None if taken is None else max(0.0, (taken - outputs) / MIB)
