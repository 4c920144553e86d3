"""The columns of the largest scores of each row, unordered: by bisection, without a sort.

torch.topk of a row takes 16 passes with a whole block of threads, a chunk of rows as long as its scores. Here a row
belongs to one program and stays in its registers while a threshold is bisected bit by bit; what lies above it is
written where a running count says.

Scores are read as integers of BITS bits in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .topk_scores import MOST_GROUPS

# A program holds this many scores at most, and a warp this many: with twice and four times as many it spilled up to
# 632 and 1016 bytes.
MOST_HELD, HELD_BY_WARP = MOST_GROUPS, 512


@triton.jit
def ordered(bits, MASK: tl.constexpr):
    """Bits of a float as an integer of the same order, and back."""
    return tl.where(bits < 0, bits ^ MASK, bits)


@triton.jit
def threshold(key, wanted, BITS: tl.constexpr):
    """The largest t of which at least `wanted` keys are t or more: the wanted-th largest key."""
    low = tl.full((), -(2 ** (BITS - 1)), tl.int64)
    for bit in tl.static_range(BITS):
        middle = low + (1 << (BITS - 1 - bit))
        enough = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), 0) >= wanted
        low = tl.where(enough, middle, low)
    return low.to(tl.int32)


@triton.jit
def places(above, equal):
    """Where what is above the threshold goes, first, and what equals it, after that. Counts stay below 2^15."""
    both = tl.cumsum(above.to(tl.int32) * 32768 + equal.to(tl.int32), 0)
    strict = tl.sum(above.to(tl.int32), 0)
    return tl.where(above, both // 32768 - 1, strict + both % 32768 - 1)


@triton.jit(do_not_specialize=["groups", "wanted"])
def select_groups_kernel(
    MAXIMA, GROUPS, groups, wanted, stride_m, stride_g, BLOCK: tl.constexpr, BITS: tl.constexpr, MASK: tl.constexpr
):
    """GROUPS (N, wanted) <- the groups with the largest MAXIMA (N, groups)."""
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = offs < groups
    key = ordered(tl.load(MAXIMA + row * stride_m + offs, mask=inside, other=0).to(tl.int32), MASK)
    low: tl.constexpr = -(2 ** (BITS - 1))
    least = threshold(tl.where(inside, key, low), wanted, BITS)
    place = places(inside & (key > least), inside & (key == least))
    tl.store(GROUPS + row * stride_g + place, offs, mask=inside & (key >= least) & (place < wanted))


@triton.jit(do_not_specialize=["wanted"])
def select_columns_kernel(
    S, GROUPS, COLUMN, ROUGH, wanted, stride_s, stride_g, BLOCK: tl.constexpr, SPAN: tl.constexpr, BITS: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """COLUMN, ROUGH (N, wanted) <- the columns of the largest scores within the GROUPS (N, wanted) of a row, and those
    scores; the smallest of them last."""
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK * SPAN)
    inside = offs // SPAN < wanted
    group = tl.load(GROUPS + row * stride_g + offs // SPAN, mask=inside, other=0)
    column = group * SPAN + offs % SPAN
    key = ordered(tl.load(S + row * stride_s + column, mask=inside, other=0).to(tl.int32), MASK)
    low: tl.constexpr = -(2 ** (BITS - 1))
    least = threshold(tl.where(inside, key, low), wanted, BITS)
    place = places(inside & (key > least), inside & (key == least))
    keep = inside & (key >= least) & (place < wanted)
    tl.store(COLUMN + row * wanted + place, column.to(tl.int64), mask=keep)
    bits = ordered(key, MASK) << (32 - BITS)
    tl.store(ROUGH + row * wanted + place, bits.to(tl.float32, bitcast=True), mask=keep)


def can_select(groups: int, wanted: int, span: int) -> bool:
    """Whether a program can hold a row's maxima, and the scores of as many groups as are wanted."""
    return wanted <= groups <= MOST_HELD and triton.next_power_of_2(wanted) * span <= MOST_HELD


def select(scores: Tensor, maxima: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """(R, wanted) float32 largest scores of each row, the smallest of them last, and their int64 columns.

    The groups with the largest maxima hold them all; of equal scores some may stay out.
    """
    (n, groups), bits, span = maxima.shape, 8 * scores.element_size(), scores.shape[1] // maxima.shape[1]
    integer = torch.int16 if bits == 16 else torch.int32
    options = {"BITS": bits, "MASK": 2 ** (bits - 1) - 1}
    group = torch.empty(n, wanted, dtype=torch.int32, device=scores.device)
    held = triton.next_power_of_2(groups)
    select_groups_kernel[(n,)](
        maxima.view(integer), group, groups, wanted, maxima.stride(0), wanted, BLOCK=held, num_warps=warps(held),
        **options,
    )  # fmt: skip
    column = torch.empty(n, wanted, dtype=torch.int64, device=scores.device)
    rough = torch.empty(n, wanted, dtype=torch.float32, device=scores.device)
    held = triton.next_power_of_2(wanted)
    select_columns_kernel[(n,)](
        scores.view(integer), group, column, rough, wanted, scores.stride(0), wanted, BLOCK=held, SPAN=span,
        num_warps=warps(held * span), **options,
    )  # fmt: skip
    return rough, column


def warps(held: int) -> int:
    """Of a program that holds so many scores."""
    return max(1, min(16, held // HELD_BY_WARP))
