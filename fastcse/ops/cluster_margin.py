"""The bidirectional margin over pairs of one cluster, with its gradients: cluster by cluster, so that the work is the
share of pairs that are in one, and no (N, N) mask exists.

It is no by-product of the losses' sweep: a gradient weight there is divided by its row's sum of exponentials, which is
known only when the row is done, and these are not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.library import custom_op

from .contrastive import scale_gradients
from .dispatch import launchers, record

# Anchors of a cluster in one block of similarities, so that even one cluster of all rows needs no (N, N) matrix.
MOST_ROWS = 1024


def _members(index: Tensor) -> dict[int, Tensor]:
    """Which rows each cluster has, in their order."""
    sorted_index, order = index.sort(stable=True)
    known = sorted_index >= 0
    clusters, sizes = torch.unique_consecutive(sorted_index[known], return_counts=True)
    return dict(zip(clusters.tolist(), order[known].split(sizes.tolist())))


def _blocks(index: Tensor, candidate_index: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """(anchors, candidates) of each cluster of two or more candidates: some of the ones, and all of the others."""
    anchors = _members(index)
    candidates = anchors if candidate_index is None else _members(candidate_index)
    for cluster, rows in anchors.items():
        there = candidates.get(cluster, rows[:0])
        if len(there) > 1:
            for some in rows.split(MOST_ROWS):
                yield some, there


def forward(
    anchor: Tensor, candidate: Tensor, positive: Tensor | None, index: Tensor, candidate_index: Tensor | None,
    alpha: float, beta: float, wanted: list[bool], backend: str,
) -> list[Tensor]:  # fmt: skip
    """[sum over pairs (i, j) of one cluster, j != p = positive_i, of max(0, d_ij + alpha) + max(0, -d_ij - beta), how
    many pairs, danchor, dcandidate], with d_ij = cos(a_i, c_j) - cos(a_i, c_p); gradients of the sum, empty where not
    wanted."""
    b = launchers(backend)
    record(backend)
    a, c = b.prepare(anchor.detach()), b.prepare(candidate.detach())
    a_scale, c_scale = b.inverse_norms(a), b.inverse_norms(c)
    place = torch.arange(a.shape[0], device=a.device) if positive is None else positive
    nearest, nearest_scale = c[place].float(), c_scale[place]
    own = torch.einsum("nd,nd->n", a.float(), nearest) * a_scale * nearest_scale
    total, pairs = own.new_zeros((), dtype=torch.float64), own.new_zeros((), dtype=torch.int64)
    pull = torch.zeros_like(own)  # (N,) how often a pair pulls at d_ij, through cos(a_i, c_p)
    da, dc = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) if w else None for x, w in zip((a, c), wanted))
    for rows, members in _blocks(index, candidate_index):
        near, far = a[rows].float() * a_scale[rows, None], c[members].float() * c_scale[members, None]
        d = near @ far.T - own[rows, None]
        other = place[rows, None] != members
        above, below = (d + alpha).relu() * other, (-d - beta).relu() * other
        total += above.sum(dtype=torch.float64) + below.sum(dtype=torch.float64)
        pairs += other.sum()
        slope = (above > 0).float() - (below > 0).float()
        pull[rows] = slope.sum(1)
        if da is not None:
            da[rows] = slope @ far
        if dc is not None:
            dc[members] += slope.T @ near  # members are distinct: nothing is added in parallel
    if da is not None:
        da -= (pull * nearest_scale)[:, None] * nearest
    if dc is not None:
        b.scatter_rows(dc, a, pull * a_scale, place, positive is None)
    for g, x, scale in ((da, a, a_scale), (dc, c, c_scale)):
        if g is not None:
            g *= scale[:, None]
            b.project_gradient(g, x, scale)
    made = [anchor.new_empty(0) if g is None else g.to(anchor.dtype) for g in (da, dc)]
    return [total.float(), pairs, *made]


cluster_margin = custom_op(
    "fastcse::cluster_margin", forward, mutates_args=(),
    schema="(Tensor anchor, Tensor candidate, Tensor? positive, Tensor index, Tensor? candidate_index, float alpha, "
    "float beta, bool[] wanted, str backend) -> Tensor[]",
)  # fmt: skip


@cluster_margin.register_fake
def _(anchor, candidate, positive, index, candidate_index, alpha, beta, wanted, backend):
    made = [x.new_empty(x.shape if w else 0) for x, w in zip((anchor, candidate), wanted)]
    return [anchor.new_empty((), dtype=torch.float32), anchor.new_empty((), dtype=torch.int64), *made]


def _setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.wanted = inputs[7]
    ctx.save_for_backward(*inputs[:2], *output[2:])


def _backward(ctx, grads):
    if grads[0] is None:
        return (None,) * 9
    anchor, candidate, *made = ctx.saved_tensors
    made = scale_gradients(grads[0], made, [anchor, candidate])
    return (*(g if w else None for g, w in zip(made, ctx.wanted)), *[None] * 7)


cluster_margin.register_autograd(_backward, setup_context=_setup)
