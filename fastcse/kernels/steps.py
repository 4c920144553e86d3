"""Rows moved along a direction, and gradients times a factor that the host does not read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..pairs import STEPS
from .rows import launch_options, load_row, norm_of


@triton.jit
def step_rows_kernel(
    BASE, DIRECTION, RADIUS, OUT, D, stride_b, stride_d, by, length, HAS_RADIUS: tl.constexpr, KIND: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """OUT (N, D) <- base + radius v; KIND 0: v the direction, 1: it to length 1, 2: its signs times `length`."""
    row = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    base = load_row(BASE, row, stride_b, D, BLOCK_D)
    v = load_row(DIRECTION, row, stride_d, D, BLOCK_D)
    radius = by
    if HAS_RADIUS:
        radius = tl.load(RADIUS + row)
    if KIND == 1:
        norm = norm_of(v)
        v = v * tl.where(norm == 0, 0.0, 1.0 / tl.where(norm == 0, 1.0, norm))
    if KIND == 2:
        v = tl.where(v > 0, length, tl.where(v < 0, -length, v))
    moved = (base + radius * v).to(OUT.dtype.element_ty)
    tl.store(OUT + row.to(tl.int64) * D + offs_d, moved, mask=offs_d < D)


@triton.jit(do_not_specialize=["SIZE"])
def scale_kernel(X, FACTOR, SIZE, BLOCK: tl.constexpr):
    """X <- FACTOR X; nothing is read or written where the factor is 1."""
    factor = tl.load(FACTOR)
    if factor != 1:
        first, step = tl.program_id(0).to(tl.int64) * BLOCK, tl.num_programs(0).to(tl.int64) * BLOCK
        for start in range(first, SIZE, step):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(X + at, mask=at < SIZE)
            tl.store(X + at, (x.to(tl.float32) * factor).to(X.dtype.element_ty), mask=at < SIZE)


def step_rows(base: Tensor, direction: Tensor, radius: Tensor | float, kind: str) -> Tensor:
    """(N, D) base_i + radius_i v_i: v the direction ("raw"), or it ("l2") or its signs ("sign") to length 1."""
    n, d = base.shape
    out, by_row = torch.empty(n, d, dtype=base.dtype, device=base.device), isinstance(radius, Tensor)
    step_rows_kernel[(n,)](
        base, direction, radius if by_row else base, out, d, base.stride(0), direction.stride(0),
        0.0 if by_row else radius, d**-0.5, HAS_RADIUS=by_row, KIND=STEPS.index(kind), **launch_options(d),
    )  # fmt: skip
    return out


def scale_gradients(gradients: list[Tensor | None], factor: Tensor) -> None:
    """gradients <- factor gradients, in place; for 1, the upstream gradient of most losses, without touching them, and
    without reading it on the host.
    """
    factor = factor.to(torch.float32).reshape(1)
    for gradient in gradients:
        if gradient is not None:
            size = gradient.numel()
            # Few programs: where the factor is 1, as for most losses, starting them is all that this costs.
            scale_kernel[(min(triton.cdiv(size, 1024), 1024),)](gradient, factor, size, BLOCK=1024)
