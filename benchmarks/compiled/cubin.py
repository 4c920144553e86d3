"""Compiles a case for a GPU that need not be there, and reads the binary."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .cases import TYPES, Case

# Shared memory a program can have, and a multiprocessor has; its registers and threads (CUDA programming guide,
# compute capabilities).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
SHARED_TOTAL = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
REGISTERS, THREADS = 65536, 2048


class Compiled(NamedTuple):
    """One kernel for one architecture."""

    kernel: str
    form: str
    dtype: str
    arch: int
    tile: str
    parts: int
    warps: int
    stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    programs_per_sm: int
    wgmma: bool
    tma: bool


def compile_case(case: Case, arch: int) -> Compiled:
    """Compiles for `arch`. Raises what Triton raises where it cannot."""
    signature = case.signature()
    # Pointers and the sizes of embeddings are multiples of 16 in practice; the launcher's own specialisation finds
    # the same.
    loose = {p.name for p in case.function.params if p.do_not_specialize_on_alignment}
    aligned = [name for name, t in signature.items()
               if name not in loose and (t.startswith("*") or name.startswith("stride") or name == "D")]  # fmt: skip
    attributes = {(case.function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    config = case.config
    warps, stages = (config.num_warps, config.num_stages) if config else (case.warps, 1)
    source = ASTSource(case.function, signature, case.constants, attributes)
    options = {"num_warps": warps, "num_stages": stages}
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = _resources(binary.asm["cubin"])
    shared, ptx = binary.metadata.shared, binary.asm["ptx"]
    tile = f"{config.block_n}x{config.block_m}x{config.block_d}" if config else "row"
    return Compiled(
        case.kernel, case.form, TYPES[case.dtype], arch, tile, config.parts if config else 1, warps, stages, registers,
        spills, shared, occupancy(registers, shared, 32 * warps, arch), "wgmma.mma_async" in ptx,
        "cp.async.bulk" in ptx,
    )  # fmt: skip


def occupancy(registers: int, shared: int, threads: int, arch: int) -> int:
    """Programs that fit on a multiprocessor: registers are handed out by 8 a thread, each program keeps 1 KiB of shared
    memory for the system."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    return min(by_registers, SHARED_TOTAL[arch] // (shared + 1024), THREADS // threads)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, spilled bytes) of a thread, from cuobjdump: the stack of a kernel without local arrays is what was
    spilled.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing.stdout + listing.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no registers: {listing.stdout[:300]!r}")
    return int(found[1]), int(found[2])
