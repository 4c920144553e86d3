"""Row-wise kernels, one program a row and one pass over memory: their limit is bandwidth."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operands import SHORTEST_NORM, Block, Logits, RowChunk
from ..transforms import get
from .tile import device_fn
from .workspace import weight_type


@triton.jit
def load_row(X, row, stride, D, BLOCK_D: tl.constexpr):
    offs_d = tl.arange(0, BLOCK_D)
    return tl.load(X + row.to(tl.int64) * stride + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)


@triton.jit
def norm_of(x):
    """|x|; 0 for zeros only."""
    # Entries are measured against the largest one, so that their squares stay in range.
    top = tl.max(tl.abs(x), 0)
    safe = tl.where(top > 0, top, 1.0)
    return tl.where(top == 0, 0.0, safe * tl.sqrt(tl.sum((x / safe) * (x / safe), 0)))


@triton.jit
def inverse_norms_kernel(X, SCALE, D, stride, shortest, BLOCK_D: tl.constexpr):
    """SCALE (N,) <- 1 / |x_i|; 0 for a row shorter than `shortest`."""
    row = tl.program_id(0)
    norm = norm_of(load_row(X, row, stride, D, BLOCK_D))
    tl.store(SCALE + row, tl.where(norm < shortest, 0.0, 1.0 / norm))


@triton.jit(do_not_specialize=["N"])
def positive_logits_kernel(
    A, C, A_SCALE, C_SCALE, INDEX, SCALARS, CEILING, OUT, N, D, stride_a, stride_c, margin, offset,
    F_POSITIVE: tl.constexpr, BY_ROW: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """OUT (3, N) <- the positive's similarity, its logit, and max(logit, ceiling) + offset. CEILING is a number, or
    (N,) BY_ROW."""
    row = tl.program_id(0)
    own = tl.load(INDEX + row)
    product = load_row(A, row, stride_a, D, BLOCK_D) * load_row(C, own, stride_c, D, BLOCK_D)
    s = tl.sum(product, 0) * tl.load(A_SCALE + row) * tl.load(C_SCALE + own)
    x = F_POSITIVE(s, margin) * tl.load(SCALARS)
    ceiling = tl.load(CEILING + row) if BY_ROW else CEILING
    tl.store(OUT + row, s)
    tl.store(OUT + N + row, x)
    tl.store(OUT + 2 * N + row, tl.where(x < ceiling, ceiling, x) + offset)


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["SUM", "SHIFT", "LOGIT"])
def row_loss_kernel(SUM, SHIFT, LOGIT, OUT, N, BLOCK: tl.constexpr):
    """OUT (3, N) <- loss log(1 + e^t), 1 - p = 1 / (1 + e^-t) and 1 / Z, with t = log(Zneg) + shift - logit."""
    offs_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offs_n < N
    total = tl.load(SUM + offs_n, mask=inside, other=1.0)
    shift = tl.load(SHIFT + offs_n, mask=inside, other=0.0)
    logit = tl.load(LOGIT + offs_n, mask=inside, other=0.0)
    t = tl.log(total) + (shift - logit)
    small = tl.exp(-tl.abs(t))
    # log1p, which the interpreter lacks: log(u) small / (u - 1) with u = 1 + small takes back what rounding u lost.
    u = 1.0 + small
    log1p = tl.where(u == 1.0, small, tl.log(u) * (small / tl.where(u == 1.0, 1.0, u - 1.0)))
    tl.store(OUT + offs_n, tl.where(t < 0, 0.0, t) + log1p, mask=inside)
    tl.store(OUT + N + offs_n, tl.where(t > 0, 1.0, small) / (1.0 + small), mask=inside)
    tl.store(OUT + 2 * N + offs_n, 1.0 / (total + tl.exp(logit - shift)), mask=inside)


@triton.jit(
    do_not_specialize=["N", "by"],
    do_not_specialize_on_alignment=["ONE_MINUS_P", "INVERSE", "SIMILARITY", "F_SUM", "A_SCALE", "INDEX"],
)
def positive_gradient_kernel(
    ONE_MINUS_P, INVERSE, SIMILARITY, F_SUM, A_SCALE, C_SCALE, INDEX, SCALARS, OUT, N, margin, by,
    F_POSITIVE: tl.constexpr, DF_POSITIVE: tl.constexpr, HAS_INVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OUT (3, N) <- factor of the weights' rows, weight of the positive, both times `by`, and part of the gradient of
    1 / temperature."""
    offs_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offs_n < N
    s = tl.load(SIMILARITY + offs_n, mask=inside, other=0.0)
    one_minus_p = tl.load(ONE_MINUS_P + offs_n, mask=inside, other=0.0)
    f_sum = tl.load(F_SUM + offs_n, mask=inside, other=0.0)
    factor = tl.load(A_SCALE + offs_n, mask=inside, other=0.0) * (tl.load(SCALARS) * by)
    column_scale = tl.load(C_SCALE + tl.load(INDEX + offs_n, mask=inside, other=0), mask=inside, other=0.0)
    tl.store(OUT + N + offs_n, one_minus_p * DF_POSITIVE(s, margin) * factor * column_scale, mask=inside)
    if HAS_INVERSE:
        inverse = tl.load(INVERSE + offs_n, mask=inside, other=0.0)
        factor = factor * inverse
        f_sum = f_sum * inverse
    tl.store(OUT + offs_n, factor, mask=inside)
    tl.store(OUT + 2 * N + offs_n, f_sum - one_minus_p * F_POSITIVE(s, margin), mask=inside)


@triton.jit(do_not_specialize=["weighted_rows"], do_not_specialize_on_alignment=["SCALE", "FACTOR", "WEIGHT", "INDEX"])
def project_gradient_kernel(
    G, X, C, SCALE, FACTOR, WEIGHT, INDEX, OUT, D, weighted_rows, stride_x, stride_c, HAS_FACTOR: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_SCALE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """OUT (N, D) <- factor g - weight c_index, less its part along x; G (N, D) float32, OUT the same or another. Rows
    from `weighted_rows` on have no weight."""
    row = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    g = load_row(G, row, D, D, BLOCK_D)
    if HAS_FACTOR:
        g = g * tl.load(FACTOR + row)
    if HAS_WEIGHT:  # noqa: SIM102 - only this one is decided when compiling
        if row < weighted_rows:
            g -= tl.load(WEIGHT + row) * load_row(C, tl.load(INDEX + row), stride_c, D, BLOCK_D)
    if HAS_SCALE:
        x = load_row(X, row, stride_x, D, BLOCK_D)
        scale = tl.load(SCALE + row)
        g = g - tl.sum(g * x * scale, 0) * scale * x
    tl.store(OUT + row.to(tl.int64) * D + offs_d, g.to(OUT.dtype.element_ty), mask=offs_d < D)


@triton.jit(do_not_specialize_on_alignment=["FACTOR"])
def scale_rows_kernel(X, FACTOR, OUT, D, stride, BLOCK_D: tl.constexpr):
    """OUT (N, D) <- factor x."""
    row = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    x = load_row(X, row, stride, D, BLOCK_D) * tl.load(FACTOR + row)
    tl.store(OUT + row.to(tl.int64) * D + offs_d, x.to(OUT.dtype.element_ty), mask=offs_d < D)


def launch_options(d: int) -> dict:
    block = triton.next_power_of_2(d)
    return {"BLOCK_D": block, "num_warps": max(1, min(16, block // 256))}


def inverse_norms(x: Tensor) -> Tensor:
    """(N,) 1 / |x_i|; 0 for a zero row."""
    n, d = x.shape
    scale = torch.empty(n, dtype=torch.float32, device=x.device)
    inverse_norms_kernel[(n,)](x, scale, d, x.stride(0), SHORTEST_NORM, **launch_options(d))
    return scale


def positive_logits(
    rows: Tensor, scale: Tensor, block: Block, index: Tensor, logits: Logits, ceiling: Tensor | float, offset: float
) -> Tensor:
    """(3, R): similarity and logit of each row's positive, and shift = max(logit, ceiling) + offset."""
    n, d = rows.shape
    out = torch.empty(3, n, dtype=torch.float32, device=rows.device)
    by_row = isinstance(ceiling, Tensor)
    ceiling = ceiling.expand(n).contiguous() if by_row else ceiling
    c = block.rows
    positive_logits_kernel[(n,)](
        rows, c, scale, block.scale, index, logits.inv_temperature, ceiling, out, n, d, rows.stride(0), c.stride(0),
        logits.margin, offset, F_POSITIVE=device_fn(get(logits.transform).f_positive), BY_ROW=by_row,
        **launch_options(d),
    )  # fmt: skip
    return out


def row_loss(chunk: RowChunk) -> Tensor:
    """(3, R): loss, 1 - p of the positive, and 1 / Z."""
    n = chunk.rows.shape[0]
    out = torch.empty(3, n, dtype=torch.float32, device=chunk.rows.device)
    row_loss_kernel[(triton.cdiv(n, 256),)](chunk.sum, chunk.shift, chunk.logit, out, n, BLOCK=256)
    return out


def positive_gradient(
    chunk: RowChunk, block: Block, logits: Logits, one_minus_p: Tensor, inverse: Tensor | None, by: float = 1.0
) -> Tensor:
    """(3, R): factor of the weights' rows, weight of the positive, both times `by`, and part of the gradient of 1 /
    temperature."""
    n, transform = chunk.rows.shape[0], get(logits.transform)
    out = torch.empty(3, n, dtype=torch.float32, device=chunk.rows.device)
    positive_gradient_kernel[(triton.cdiv(n, 256),)](
        one_minus_p, one_minus_p if inverse is None else inverse, chunk.similarity, chunk.f_sum, chunk.scale,
        block.scale, chunk.positive, logits.inv_temperature, out, n, logits.margin, by,
        F_POSITIVE=device_fn(transform.f_positive), DF_POSITIVE=device_fn(transform.df_positive),
        HAS_INVERSE=inverse is not None, BLOCK=256,
    )  # fmt: skip
    return out


def project_gradient(
    out: Tensor,
    rows: Tensor,
    scale: Tensor | None,
    *,
    factor: Tensor | None = None,
    positive_weight: Tensor | None = None,
    others: Tensor | None = None,
    index: Tensor | None = None,
    into: Tensor | None = None,
) -> None:
    """into_i <- factor_i out_i - weight_i others_{index_i}, less its part along rows_i where `scale` is given.

    `out` is float32; `into` is it, if None, or of the type wanted. Rows past the end of `positive_weight` have none.
    """
    n, d = out.shape
    absent, others = out, rows if others is None else others
    project_gradient_kernel[(n,)](
        out, rows, others, absent if scale is None else scale, absent if factor is None else factor,
        absent if positive_weight is None else positive_weight, absent if index is None else index,
        out if into is None else into, d, 0 if positive_weight is None else positive_weight.shape[0], rows.stride(0),
        others.stride(0), HAS_FACTOR=factor is not None, HAS_WEIGHT=positive_weight is not None,
        HAS_SCALE=scale is not None, **launch_options(d),
    )  # fmt: skip


def scale_rows(rows: Tensor, factor: Tensor) -> Tensor:
    """rows_i factor_i, in the type that `accumulate_transposed` multiplies with."""
    n, d = rows.shape
    out = torch.empty(n, d, dtype=weight_type(rows), device=rows.device)
    scale_rows_kernel[(n,)](rows, factor, out, d, rows.stride(0), **launch_options(d))
    return out


def scatter_rows(out: Tensor, rows: Tensor, positive_weight: Tensor, index: Tensor, index_is_arange: bool) -> None:
    """out_{index_i} -= weight_i rows_i, in a fixed order. `index_is_arange` says that index_i = i."""
    if index_is_arange:
        project_gradient(out[: rows.shape[0]], rows, None, positive_weight=positive_weight, index=index)
    else:
        add_at(out, index, rows.to(torch.float32) * -positive_weight[:, None])


def add_at(out: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """out_{index_i} += values_i for vectors or rows, in an order that does not change."""
    # On a GPU index_put_ sorts before it adds and index_add_ uses atomics; on the CPU it is index_add_ that keeps the
    # order.
    return out.index_put_((index,), values, accumulate=True) if out.is_cuda else out.index_add_(0, index, values)
