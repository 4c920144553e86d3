"""Quadruplets and steps of rows over the C++ module: one pass over memory each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import SHORTEST_NORM, STEPS, Quadruplets, Slope
from .extension import _C
from .rows import _stride, address, empty


def quadruplets(q: Quadruplets, slope: Slope | None) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """(N,) losses, (3, N) similarities of the anchor with positive, batch and corpus negative, and the gradients."""
    n, d = q.anchor.shape
    loss, similarity = empty(n), empty(3, n)
    wanted = (False,) * 4 if slope is None else slope.wanted
    gathered = q.index is not None and wanted[2]
    out = [empty(n, d) if w and not (r == 2 and gathered) else None for r, w in enumerate(wanted)]
    pull = empty(2, n) if gathered else None
    upstream = None if slope is None or slope.upstream is None else slope.upstream.float().contiguous()
    fields = {
        "rows": [address(x) for x in q.rows], "strides": [_stride(x) for x in q.rows],
        "gradients": [address(g) for g in out], "weights": q.weights, "margins": q.margins, "index": address(q.index),
        "n": n, "d": d, "classic": q.classic, "normalize": q.normalize, "shortest": SHORTEST_NORM,
        "loss": address(loss), "similarity": address(similarity), "differentiate": slope is not None,
        "upstream": address(upstream), "factor": 0.0 if slope is None else slope.factor, "pull": address(pull),
    }  # fmt: skip
    _C.quadruplets(fields, torch.get_num_threads())
    if gathered:
        out[2] = _candidate_gradient(q, pull)
    return loss, similarity, out


def _candidate_gradient(q: Quadruplets, pull: Tensor) -> Tensor:
    """(M, D): each candidate's anchors are added in their order."""
    candidate = q.batch_negative
    m, d = candidate.shape
    # An index of -1 sorts before the first start and is passed over.
    sorted_index, order = q.index.sort(stable=True)
    starts = torch.searchsorted(sorted_index, torch.arange(m + 1, device="cpu"))
    out = empty(m, d)
    fields = {
        "anchor": address(q.anchor), "anchor_stride": _stride(q.anchor), "candidate": address(candidate),
        "candidate_stride": _stride(candidate), "n": q.anchor.shape[0], "m": m, "d": d, "order": address(order),
        "starts": address(starts), "pull": address(pull), "normalize": q.normalize, "shortest": SHORTEST_NORM,
        "gradient": address(out),
    }  # fmt: skip
    _C.candidate_gradient(fields, torch.get_num_threads())
    return out


def step_rows(base: Tensor, direction: Tensor, radius: Tensor | float, kind: str) -> Tensor:
    """(N, D) base_i + radius_i v_i: v the direction ("raw"), or it ("l2") or its signs ("sign") to length 1."""
    out, by_row = empty(*base.shape), isinstance(radius, Tensor)
    fields = {
        "base": address(base), "base_stride": _stride(base), "direction": address(direction),
        "direction_stride": _stride(direction), "n": base.shape[0], "d": base.shape[1],
        "radius": address(radius if by_row else None), "radius_value": 0.0 if by_row else radius,
        "kind": STEPS.index(kind), "out": address(out),
    }  # fmt: skip
    _C.step_rows(fields, torch.get_num_threads())
    return out


def scale_gradients(gradients: list[Tensor | None], factor: Tensor) -> None:
    """gradients <- factor gradients, in place; nothing to do for 1, the upstream gradient of most losses."""
    value = float(factor)
    if value != 1:
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(value)
