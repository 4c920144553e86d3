"""Addressing, apart from the mathematics: which tile a program has, and its dot products."""

from __future__ import annotations

import functools
import types

import torch
import triton
import triton.language as tl
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


@functools.cache
def device_fn(fn):
    """A plain arithmetic function, made callable inside a kernel; the device's root stands for `transforms.root`."""
    interpreted = triton.knobs.runtime.interpret
    if "root" in fn.__code__.co_names:
        # The interpreter puts its own functions into `tl` while a kernel runs: they are looked up then.
        device_root = (lambda x: tl.sqrt(x)) if interpreted else tl.sqrt
        fn = types.FunctionType(fn.__code__, {**fn.__globals__, "root": device_root}, fn.__name__)
    # The interpreter runs plain functions as they are, and refuses jitted ones whose module lacks `tl`.
    return fn if interpreted else triton.jit(fn)


@triton.jit
def tile_of(pid, N, M, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """(tile_n, tile_m) of a program. GROUP row panels are walked together, column by column, so that both operands
    are found in L2.
    """
    tiles_n, tiles_m = tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M)
    first = pid // (GROUP * tiles_m) * GROUP
    size = tl.minimum(tiles_n - first, GROUP)
    within = pid % (GROUP * tiles_m)
    return first + within % size, within // size


@triton.jit
def dot_tile(
    A, C, offs_n, offs_m, N, M, D, stride_a, stride_c,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, RAISE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_M) float32 dot products of rows of A (N, D) and C (M, D).

    Rows past the end repeat the last one: a clamp costs one instruction where a mask would cost one for every load;
                                           the caller masks the result.
    RAISE: operands go to float32 first, for the interpreter, whose bfloat16 dot is wrong.
    """
    rows_a = tl.minimum(offs_n, N - 1).to(tl.int64)[:, None] * stride_a
    rows_c = tl.minimum(offs_m, M - 1).to(tl.int64)[:, None] * stride_c
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for d in range(0, D, BLOCK_D):
        offs_d = (d + tl.arange(0, BLOCK_D))[None, :]
        if EVEN_D:
            a = tl.load(A + rows_a + offs_d)
            c = tl.load(C + rows_c + offs_d)
        else:
            a = tl.load(A + rows_a + offs_d, mask=offs_d < D, other=0.0)
            c = tl.load(C + rows_c + offs_d, mask=offs_d < D, other=0.0)
        if RAISE:
            a, c = a.to(tl.float32), c.to(tl.float32)
        acc = tl.dot(a, tl.trans(c), acc, input_precision=PRECISION)
    return acc


@triton.jit
def rounded(x, RAISE: tl.constexpr):
    """x, to be stored as bfloat16: the interpreter cuts digits off where a GPU rounds to nearest, so it rounds here."""
    if RAISE:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x
