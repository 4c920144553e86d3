"""Compiles every Triton kernel for GPUs that need not be there, and says what the code costs: registers, spills,
shared memory, tensor-core instructions.

    python -m benchmarks.compiled [--arch 90] [--output benchmarks/results/compiled.csv]

Facts about code, not about time. Run without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcse.kernels import configs, pairwise, rows
from fastcse.kernels.tile import device_fn
from fastcse.losses.focal import DETACHED, FOCAL
from fastcse.losses.infonce import SCALED
from fastcse.transforms import LogitTransform

ARCHITECTURES = (80, 90, 100)
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Shared memory a program can have, and registers of one multiprocessor (CUDA programming guide, compute capabilities).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
SHARED_TOTAL = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
REGISTERS = 65536


class Compiled(NamedTuple):
    """One kernel for one architecture."""

    kernel: str
    form: str
    dtype: str
    arch: int
    tile: str
    warps: int
    stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    programs_per_sm: int
    wgmma: bool
    tma: bool


class Case(NamedTuple):
    """A kernel with one choice of its constants."""

    name: str
    form: str
    dtype: torch.dtype
    kernel: triton.JITFunction
    constants: dict
    pointers: dict
    config: configs.TileConfig | None = None


def _pointer(dtype: torch.dtype) -> str:
    return "*" + TYPES[dtype]


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """Every kernel in the forms that the launchers ask for."""
    yield from _pair_cases(dtype)
    yield from _row_cases(dtype)


def _tile(config: configs.TileConfig) -> dict:
    sides = {"BLOCK_N": config.block_n, "BLOCK_M": config.block_m, "BLOCK_D": config.block_d, "GROUP": config.group}
    return {**sides, "EVEN_D": True, "RAISE": False, "PRECISION": "tf32"}


def _functions(transform: LogitTransform) -> dict:
    return {"F": device_fn(transform.f), "DF": device_fn(transform.df)}


def _pair_cases(dtype: torch.dtype) -> Iterator[Case]:
    integers = {"OWN": "*i64", "ROW_ID": "*i64", "COL_ID": "*i64", "STATS_I": "*i32"}
    weight = "*fp32" if dtype == torch.float32 else "*bf16"
    pointers = {"A": _pointer(dtype), "C": _pointer(dtype), "E": weight, **integers}
    single = dtype == torch.float32
    plain, busy = (configs.SINGLE, configs.SINGLE_BUSY) if single else (configs.HALF, configs.HALF_BUSY)
    outputs = {"STORE": True, "F_SUM": False, "STATS": False, "IDS": False}
    whole = {"LEAVE_OWN_OUT": True, "OWN_WEIGHT": False}
    sweeps = [
        ("gradients", FOCAL, plain, {}), ("sums", FOCAL, plain, {"STORE": False}), ("scaled", SCALED, plain, {}),
        ("detached", DETACHED, plain, {}), ("statistics", FOCAL, busy, {"STATS": True}),
        ("ids", FOCAL, busy, {"IDS": True}), ("learned temperature", FOCAL, busy, {"F_SUM": True}),
        ("weighted block", FOCAL, plain, {"LEAVE_OWN_OUT": False, "OWN_WEIGHT": True}),
    ]  # fmt: skip
    for form, transform, config, flags in sweeps:
        constants = {**_tile(config), **_functions(transform), **whole, **outputs, "GATED": False, **flags}
        yield Case("sweep", form, dtype, pairwise.sweep_kernel, constants, pointers, config)
    for form, config, store in (("sums", plain, False), ("gradients", busy, True)):
        constants = {**_tile(config), **_functions(FOCAL), **outputs, "STORE": store}
        yield Case("symmetric", form, dtype, pairwise.symmetric_kernel, constants, pointers, config)
    constants = {**_tile(plain), "F": device_fn(FOCAL.f), "IDS": False, **whole}
    yield Case("largest", "", dtype, pairwise.largest_kernel, constants, pointers, plain)
    yield Case("similarity", "", dtype, pairwise.similarity_kernel, _tile(plain), pointers, plain)


def _row_cases(dtype: torch.dtype) -> Iterator[Case]:
    pointers = {"X": _pointer(dtype), "A": _pointer(dtype), "C": _pointer(dtype), "INDEX": "*i64"}
    positive = {"F_POSITIVE": device_fn(FOCAL.f_positive)}
    pull = {"BLOCK": 256, "HAS_INVERSE": True, "DF_POSITIVE": device_fn(FOCAL.df_positive), **positive}
    finish = {"BLOCK_D": 1024, "HAS_FACTOR": True, "HAS_PULL": True, "HAS_SCALE": True}
    for name, kernel, constants in (
        ("inverse_norms", rows.inverse_norms_kernel, {"BLOCK_D": 1024}),
        ("open_rows", rows.open_rows_kernel, {"BLOCK_D": 1024, **positive}),
        ("close_rows", rows.close_rows_kernel, {"BLOCK": 256}),
        ("pull_rows", rows.pull_rows_kernel, pull),
        ("finish_rows", rows.finish_rows_kernel, finish),
    ):
        yield Case(name, "", dtype, kernel, constants, pointers)


INTEGERS = {
    "N": "i32",
    "M": "i32",
    "D": "i32",
    "margin": "fp32",
    "own_log_weight": "fp32",
    "shortest": "fp32",
    "offset": "fp32",
}


def compile_case(case: Case, arch: int) -> Compiled:
    """Compiles for `arch` and reads the binary."""
    signature = {}
    for name in case.kernel.arg_names:
        if name in case.constants:
            signature[name] = "constexpr"
        elif name.startswith("stride"):
            signature[name] = "i32"
        else:
            signature[name] = INTEGERS.get(name) or case.pointers.get(name, "*fp32")
    # Pointers and the sizes of embeddings are multiples of 16 in practice; the launcher's own specialisation finds
    # the same.
    aligned = [
        name for name in signature if signature[name].startswith("*") or name.startswith("stride") or name == "D"
    ]
    attributes = {(case.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    config, options = case.config, {"num_warps": 4, "num_stages": 1}
    if config:
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "maxnreg": config.max_registers}
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = _resources(binary.asm["cubin"])
    shared, threads = binary.metadata.shared, 32 * options["num_warps"]
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = SHARED_TOTAL[arch] // (shared + 1024)
    tile = f"{config.block_n}x{config.block_m}x{config.block_d}" if config else "row"
    ptx = binary.asm["ptx"]
    return Compiled(
        case.name, case.form, TYPES[case.dtype], arch, tile, options["num_warps"], options["num_stages"], registers,
        spills, shared,
        min(by_registers, by_shared, 2048 // threads), "wgmma.mma_async" in ptx, "cp.async.bulk" in ptx,
    )  # fmt: skip


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


def report(
    architectures: tuple[int, ...], types: tuple[torch.dtype, ...], show_progress: bool = True
) -> list[Compiled]:
    """Every case for every architecture."""
    work = [(case, arch) for dtype in types for case in cases(dtype) for arch in architectures]
    return [
        compile_case(*item)
        for item in track(work, "compiling", console=Console(stderr=True), disable=not show_progress)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="*", default=list(TYPES.values()), choices=list(TYPES.values()))
    parser.add_argument("--output", type=Path, help="write the table here as CSV")
    arguments = parser.parse_args()
    if triton.knobs.runtime.interpret:
        print(
            "benchmarks.compiled: TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it",
            file=sys.stderr,
        )
        return 2
    types = tuple(dtype for dtype, name in TYPES.items() if name in arguments.dtype)
    lines = report(tuple(arguments.arch), types)
    table = Table(title=f"compiled with Triton {triton.__version__}; nothing was run")
    for name in Compiled._fields:
        table.add_column(name)
    for line in lines:
        table.add_row(*map(str, line))
    # A pipe has no width: give the table the room it needs.
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    if arguments.output:
        with arguments.output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*Compiled._fields, "triton"])
            writer.writerows([*line, triton.__version__] for line in lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
