"""The similarity matrix as a custom op, norms folded into the product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .. import reference
from . import checks
from .call import no_double_backward, save_nothing
from .dispatch import choose_backend, launchers, record


@custom_op("fastcse::similarity", mutates_args=())
def similarity_op(anchor: Tensor, candidate: Tensor, normalize: bool, backend: str) -> Tensor:
    """(N, M) float32."""
    b = launchers(backend)
    record(backend)
    a, c = b.prepare(anchor.detach()), b.prepare(candidate.detach())
    out = torch.empty(a.shape[0], c.shape[0], dtype=torch.float32, device=a.device)
    scales = (b.inverse_norms(a), b.inverse_norms(c)) if normalize else (None, None)
    b.all_pairs(a, c, *scales, out)
    return out


@similarity_op.register_fake
def _(anchor, candidate, normalize, backend):
    return anchor.new_empty((anchor.shape[0], candidate.shape[0]), dtype=torch.float32)


@custom_op("fastcse::similarity_backward", mutates_args=())
def similarity_backward(
    upstream: Tensor, anchor: Tensor, candidate: Tensor, normalize: bool, backend: str
) -> list[Tensor]:
    """[danchor, dcandidate] for the upstream gradient (N, M)."""
    b = launchers(backend)
    a, c = b.prepare(anchor.detach()), b.prepare(candidate.detach())
    upstream = upstream.to(torch.float32)
    if not normalize:
        return [(upstream @ c.float()).to(anchor.dtype), (upstream.T @ a.float()).to(anchor.dtype)]
    a_scale, c_scale = b.inverse_norms(a), b.inverse_norms(c)
    da = (upstream * c_scale) @ c.float() * a_scale[:, None]
    dc = (upstream * a_scale[:, None]).T @ a.float() * c_scale[:, None]
    b.project_gradient(da, a, a_scale)
    b.project_gradient(dc, c, c_scale)
    return [da.to(anchor.dtype), dc.to(anchor.dtype)]


@similarity_backward.register_fake
def _(upstream, anchor, candidate, normalize, backend):
    return [anchor.new_empty(anchor.shape), candidate.new_empty(candidate.shape)]


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx, upstream):
    danchor, dcandidate = similarity_backward(upstream, *ctx.saved_tensors, *ctx.options)
    return danchor, dcandidate, None, None


similarity_backward.register_autograd(no_double_backward, setup_context=save_nothing)
similarity_op.register_autograd(_backward, setup_context=_setup)


def similarity(anchor: Tensor, candidate: Tensor, *, normalize: bool = True, backend: str | None = None) -> Tensor:
    r"""The (N, M) matrix of cosines, normalisation fused into the product.

        s_ij = <anchor_i, candidate_j> / (|anchor_i| |candidate_j|)

    Args:
        anchor:    (N, D) float16 | bfloat16 | float32 | float64, any strides. Read only.
        candidate: (M, D) same dtype and device.
        normalize: False gives plain dot products.
        backend:   "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        (N, M) float32, float64 for float64 input. Half precision would make ties: among 4096 cosines a bfloat16 row
        holds about 1400 values.

    Raises:
        ValueError: shapes, dtypes or devices disagree, empty input, unknown backend.
        RuntimeError: the backend asked for cannot run here.

    Numerics: rows are not rounded after normalisation. A row shorter than 1e-8 has similarity 0 and gradient 0.

    Example:
        >>> similarity(torch.eye(2), torch.ones(1, 2)).squeeze(1)
        tensor([0.7071, 0.7071])
    """
    checks.check_rows("anchor", anchor)
    checks.check_same_kind("candidate", candidate, "anchor", anchor)
    chosen = choose_backend(anchor, backend)
    if chosen != "reference":
        return similarity_op(anchor, candidate, normalize, chosen)
    record(chosen)
    return reference.similarity(anchor, candidate, normalize)
