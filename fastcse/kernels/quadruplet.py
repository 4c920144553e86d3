"""Quadruplets, one program a row: forward and gradients in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operands import SHORTEST_NORM, STEPS, Quadruplets, Slope
from .rows import launch_options, load_row, norm_of


@triton.jit
def _unit(x, shortest):
    """x / |x| and 1 / |x|; 0 for a row shorter than `shortest`."""
    norm = norm_of(x)
    # A NaN fails the comparison and stays.
    short = norm < shortest
    scale = tl.where(short, 0.0, 1.0 / tl.where(short, 1.0, norm))
    return x * scale, scale


@triton.jit
def _length(square):
    """The length behind a sum of squares, and whether that is safe: no zero row, no underflow, not infinite."""
    return tl.sqrt(square), (square > 1e-15) & (square < 1e26)


@triton.jit
def _similarities(a, p, b, c, there, shortest, NORMALIZE: tl.constexpr):
    """1 / length of the four rows, and the similarities of the first with the others.

    Products and squares of the rows as they are need one look at them; rows too long or too short for that, and ones
    that are not finite, are brought to length 1 first.
    """
    ap, ab, ac = tl.sum(a * p, 0), tl.sum(a * b, 0), tl.sum(a * c, 0)
    a_scale, p_scale, b_scale, c_scale = 1.0, 1.0, 1.0, 1.0
    if NORMALIZE:
        a_norm, a_fine = _length(tl.sum(a * a, 0))
        p_norm, p_fine = _length(tl.sum(p * p, 0))
        b_norm, b_fine = _length(tl.where(there, tl.sum(b * b, 0), 1.0))
        c_norm, c_fine = _length(tl.sum(c * c, 0))
        a_scale, p_scale, b_scale, c_scale = 1.0 / a_norm, 1.0 / p_norm, 1.0 / b_norm, 1.0 / c_norm
        ap, ab, ac = ap * (a_scale * p_scale), ab * (a_scale * b_scale), ac * (a_scale * c_scale)
        if not (a_fine & p_fine & b_fine & c_fine):
            a, a_scale = _unit(a, shortest)
            p, p_scale = _unit(p, shortest)
            b, b_scale = _unit(b, shortest)
            c, c_scale = _unit(c, shortest)
            ap, ab, ac = tl.sum(a * p, 0), tl.sum(a * b, 0), tl.sum(a * c, 0)
    return (a_scale, p_scale, b_scale, c_scale), (ap, ab, ac)


@triton.jit
def _batch_row(B, INDEX, row, stride, D, HAS_INDEX: tl.constexpr, BLOCK_D: tl.constexpr):
    """A row's batch negative, and whether it has one."""
    number = row.to(tl.int64)
    if HAS_INDEX:
        number = tl.load(INDEX + row)
    there = number >= 0
    # One that is not there is read as zeros: no other row may spoil this one's gradient with a NaN.
    return tl.where(there, load_row(B, tl.where(there, number, 0), stride, D, BLOCK_D), 0.0), there


@triton.jit
def _known(s):
    """s, or NaN if it is infinite: an infinite row is no row, and a hinge would make 0 of it."""
    return tl.where(tl.abs(s) == float("inf"), float("nan"), s)


@triton.jit
def _hinges(positive, batch, corpus, there, w1, w2, m1, m2, CLASSIC: tl.constexpr):
    """The loss and its derivatives by the three similarities, up to the positive's sign. A NaN is kept."""
    if CLASSIC:
        first, second = m1 + batch - positive, m2 + corpus - positive
        on_b, on_c = tl.where(first <= 0, 0.0, 1.0), tl.where(second <= 0, 0.0, 1.0)
        return tl.where(first <= 0, 0.0, first) + tl.where(second <= 0, 0.0, second), on_b + on_c, on_b, on_c
    # A negative that is not there and has no weight is no term, where 0 * -inf would be NaN.
    weighted = tl.where(there, w1 * batch, tl.where(w1 == 0, 0.0, float("-inf")))
    x = weighted + w2 * corpus - positive + m1
    on = tl.where(x <= 0, 0.0, 1.0)
    return tl.where(x <= 0, 0.0, x), on, on * w1, on * w2


@triton.jit
def quadruplet_kernel(
    A, P, B, C, INDEX, UPSTREAM, LOSS, SIMILARITY, DA, DP, DB, DC, PULL, N, D, stride_a, stride_p, stride_b, stride_c,
    shortest, factor, w1, w2, m1, m2, HAS_INDEX: tl.constexpr, CLASSIC: tl.constexpr, NORMALIZE: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr, GRAD_A: tl.constexpr, GRAD_P: tl.constexpr, GRAD_B: tl.constexpr, GRAD_C: tl.constexpr,
    HAS_PULL: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """LOSS (N,), SIMILARITY (3, N), and the gradients (N, D) of sum_i upstream_i factor loss_i; PULL (2, N) is what
    `candidate_gradient_kernel` reads."""
    row = tl.program_id(0)
    b, there = _batch_row(B, INDEX, row, stride_b, D, HAS_INDEX, BLOCK_D)
    a = load_row(A, row, stride_a, D, BLOCK_D)
    p, c = load_row(P, row, stride_p, D, BLOCK_D), load_row(C, row, stride_c, D, BLOCK_D)
    scales, similarities = _similarities(a, p, b, c, there, shortest, NORMALIZE)
    a_scale, p_scale, b_scale, c_scale = scales
    a, p, b, c = a * a_scale, p * p_scale, b * b_scale, c * c_scale
    positive, corpus = _known(similarities[0]), _known(similarities[2])
    hardest = tl.where(there, _known(similarities[1]), float("-inf"))
    tl.store(SIMILARITY + row, positive)
    tl.store(SIMILARITY + N + row, hardest)
    tl.store(SIMILARITY + 2 * N + row, corpus)
    loss, on_p, on_b, on_c = _hinges(positive, hardest, corpus, there, w1, w2, m1, m2, CLASSIC)
    tl.store(LOSS + row, loss)
    up = factor
    if HAS_UPSTREAM:
        up = up * tl.load(UPSTREAM + row).to(tl.float32)
    on_p, on_c, on_b = -on_p * up, on_c * up, tl.where(there, on_b * up, 0.0)
    along_p, along_b, along_c = 0.0, 0.0, 0.0
    if NORMALIZE:
        along_p, along_c = on_p * positive, on_c * corpus
        along_b = on_b * tl.where(there, hardest, 0.0)
    offs_d = tl.arange(0, BLOCK_D)
    at, inside = row.to(tl.int64) * D + offs_d, offs_d < D
    if GRAD_A:
        da = (on_p * p + on_b * b + on_c * c - (along_p + along_b + along_c) * a) * a_scale
        tl.store(DA + at, da.to(DA.dtype.element_ty), mask=inside)
    if GRAD_P:
        tl.store(DP + at, ((on_p * a - along_p * p) * p_scale).to(DP.dtype.element_ty), mask=inside)
    if GRAD_B:
        tl.store(DB + at, ((on_b * a - along_b * b) * b_scale).to(DB.dtype.element_ty), mask=inside)
    if GRAD_C:
        tl.store(DC + at, ((on_c * a - along_c * c) * c_scale).to(DC.dtype.element_ty), mask=inside)
    if HAS_PULL:
        tl.store(PULL + row, on_b)
        tl.store(PULL + N + row, along_b)


@triton.jit
def candidate_gradient_kernel(
    A, C, ORDER, STARTS, PULL, OUT, N, D, stride_a, stride_c, shortest, NORMALIZE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """OUT (M, D) <- gradient of the candidates: each adds its anchors in the order of their numbers."""
    row = tl.program_id(0)
    first, last = tl.load(STARTS + row), tl.load(STARTS + row + 1)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    along = 0.0
    for entry in range(first, last):
        anchor = tl.load(ORDER + entry)
        a = load_row(A, anchor, stride_a, D, BLOCK_D)
        if NORMALIZE:
            a, _ = _unit(a, shortest)
        pull = tl.load(PULL + anchor)
        # An anchor that does not pull may hold anything, a NaN too.
        total += tl.where(pull == 0, 0.0, pull * a)
        along += tl.load(PULL + N + anchor)
    c, scale = load_row(C, row, stride_c, D, BLOCK_D), 1.0
    if NORMALIZE:
        c, scale = _unit(c, shortest)
    gradient = tl.where(first == last, 0.0, (total - along * c) * scale)
    offs_d = tl.arange(0, BLOCK_D)
    tl.store(OUT + row.to(tl.int64) * D + offs_d, gradient.to(OUT.dtype.element_ty), mask=offs_d < D)


def _one_warp(d: int) -> dict:
    """One warp a row of up to 1024 entries: its sums then need no barrier, and loads of many rows are on the way."""
    block = triton.next_power_of_2(d)
    return {"BLOCK_D": block, "num_warps": max(1, min(16, block // 1024))}


def quadruplets(q: Quadruplets, slope: Slope | None) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """(N,) losses, (3, N) similarities of the anchor with positive, batch and corpus negative, and the gradients."""
    n, d = q.anchor.shape
    new = {"dtype": torch.float32, "device": q.anchor.device}
    loss, similarity = torch.empty(n, **new), torch.empty(3, n, **new)
    wanted = (False,) * 4 if slope is None else slope.wanted
    gathered = q.index is not None and wanted[2]
    like = q.anchor
    out = [torch.empty(n, d, dtype=like.dtype, device=like.device) if w and not (r == 2 and gathered) else None
           for r, w in enumerate(wanted)]  # fmt: skip
    pull = torch.empty(2, n, **new) if gathered else None
    upstream = None if slope is None else slope.upstream
    quadruplet_kernel[(n,)](
        *q.rows, loss if q.index is None else q.index, loss if upstream is None else upstream.contiguous(), loss,
        similarity, *[loss if g is None else g for g in out], loss if pull is None else pull, n, d,
        *[x.stride(0) for x in q.rows], SHORTEST_NORM, 0.0 if slope is None else slope.factor, *q.weights, *q.margins,
        HAS_INDEX=q.index is not None, CLASSIC=q.classic, NORMALIZE=q.normalize, HAS_UPSTREAM=upstream is not None,
        GRAD_A=out[0] is not None, GRAD_P=out[1] is not None, GRAD_B=out[2] is not None, GRAD_C=out[3] is not None,
        HAS_PULL=gathered, **_one_warp(d),
    )  # fmt: skip
    if gathered:
        out[2] = _candidate_gradient(q, pull)
    return loss, similarity, out


def _candidate_gradient(q: Quadruplets, pull: Tensor) -> Tensor:
    """(M, D): each candidate's anchors are added in their order."""
    candidate = q.batch_negative
    m, d = candidate.shape
    # An index of -1 sorts before the first start and is passed over.
    sorted_index, order = q.index.sort(stable=True)
    starts = torch.searchsorted(sorted_index, torch.arange(m + 1, device=candidate.device))
    out = torch.empty(m, d, dtype=candidate.dtype, device=candidate.device)
    candidate_gradient_kernel[(m,)](
        q.anchor, candidate, order, starts, pull, out, q.anchor.shape[0], d, q.anchor.stride(0), candidate.stride(0),
        SHORTEST_NORM, NORMALIZE=q.normalize, **launch_options(d),
    )  # fmt: skip
    return out


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
