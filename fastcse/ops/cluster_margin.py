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


def _blocks(index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(anchors, members) of each cluster of two or more: some of its rows, and all of them, in their order."""
    sorted_index, order = index.sort(stable=True)
    known = sorted_index >= 0
    sizes = torch.unique_consecutive(sorted_index[known], return_counts=True)[1]
    for members in order[known].split(sizes.tolist()):
        if len(members) > 1:
            for anchors in members.split(MOST_ROWS):
                yield anchors, members


def forward(
    anchor: Tensor, candidate: Tensor, index: Tensor, alpha: float, beta: float, wanted: list[bool], backend: str
) -> list[Tensor]:
    """[sum over pairs (i, j) of one cluster, i != j, of max(0, d_ij + alpha) + max(0, -d_ij - beta), how many pairs,
    danchor, dcandidate], with d_ij = cos(a_i, c_j) - cos(a_i, c_i); gradients of the sum, empty where not wanted."""
    b = launchers(backend)
    record(backend)
    a, c = b.prepare(anchor.detach()), b.prepare(candidate.detach())
    a_scale, c_scale = b.inverse_norms(a), b.inverse_norms(c)
    own = torch.einsum("nd,nd->n", a.float(), c.float()) * a_scale * c_scale
    total, pairs = own.new_zeros((), dtype=torch.float64), 0
    pull = torch.zeros_like(own)  # (N,) how often a pair pulls at d_ij, through cos(a_i, c_i)
    da, dc = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) if w else None for x, w in zip((a, c), wanted))
    for rows, members in _blocks(index):
        near, far = a[rows].float() * a_scale[rows, None], c[members].float() * c_scale[members, None]
        d = near @ far.T - own[rows, None]
        other = rows[:, None] != members
        above, below = (d + alpha).relu() * other, (-d - beta).relu() * other
        total += above.sum(dtype=torch.float64) + below.sum(dtype=torch.float64)
        pairs += rows.numel() * (members.numel() - 1)
        slope = (above > 0).float() - (below > 0).float()
        pull[rows] = slope.sum(1)
        if da is not None:
            da[rows] = slope @ far
        if dc is not None:
            dc[members] += slope.T @ near  # members are distinct: nothing is added in parallel
    for g, x, scale, y, y_scale in ((da, a, a_scale, c, c_scale), (dc, c, c_scale, a, a_scale)):
        if g is not None:
            g -= (pull * y_scale)[:, None] * y.float()
            g *= scale[:, None]
            b.finish_rows(g, x, scale)
    made = [anchor.new_empty(0) if g is None else g.to(anchor.dtype) for g in (da, dc)]
    return [total.float(), torch.tensor(pairs, device=anchor.device), *made]


cluster_margin = custom_op(
    "fastcse::cluster_margin", forward, mutates_args=(),
    schema="(Tensor anchor, Tensor candidate, Tensor index, float alpha, float beta, bool[] wanted, str backend) "
    "-> Tensor[]",
)  # fmt: skip


@cluster_margin.register_fake
def _(anchor, candidate, index, alpha, beta, wanted, backend):
    made = [x.new_empty(x.shape if w else 0) for x, w in zip((anchor, candidate), wanted)]
    return [anchor.new_empty((), dtype=torch.float32), anchor.new_empty((), dtype=torch.int64), *made]


def _setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.wanted = inputs[5]
    ctx.save_for_backward(*inputs[:2], *output[2:])


def _backward(ctx, grads):
    if grads[0] is None:
        return (None,) * 7
    anchor, candidate, *made = ctx.saved_tensors
    made = scale_gradients(grads[0], made, [anchor, candidate])
    return (*(g if w else None for g, w in zip(made, ctx.wanted)), *[None] * 5)


cluster_margin.register_autograd(_backward, setup_context=_setup)
