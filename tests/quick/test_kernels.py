"""One launch of every Triton kernel, in the interpreter without a GPU, beside the reference."""

import pytest
import torch
from launches import every_kernel, recorded

import fastcse


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def losses(device, backend):
    """Losses and gradients of calls that between them reach all kernels of the losses."""
    a, c, b = (rows(n, 8, n).to(device).requires_grad_() for n in (6, 7, 5))
    narrow = [x[:, :7].contiguous() for x in (a, c, b)]  # no tensor descriptor describes these
    index = torch.arange(6, device=device) % 4 - 1
    ids = torch.arange(7, device=device) % 5
    t = torch.tensor(0.2, device=device, requires_grad=True)
    masked = dict(anchor_id=ids[:6], candidate_id=ids)
    calls = [
        fastcse.focal_infonce_loss(a, c, temperature=t, symmetric=True, backend=backend),
        fastcse.infonce_loss(a, c, temperature=0.005, reduction="none", backend=backend, **masked).mean(),
        fastcse.infonce_loss(*narrow[:2], negatives=narrow[2], return_stats=True, backend=backend).loss,
        fastcse.similarity(a, c, backend=backend).square().mean(),
        fastcse.quadruplet_loss(a, c[:6], index, c[1:], candidate=c, margin=2.0, backend=backend),
        fastcse.clusterns_loss(a, c[:6], index, margin_weight=1.0, backend=backend),
        fastcse.adversarial_positive(a, c[:6], noise=0.0, mode="l2", backend=backend).mean() + 0 * a.sum(),
    ]
    for call in calls:
        yield call.detach()
        yield from torch.autograd.grad(3 * call, [a, c], allow_unused=True, materialize_grads=True)


def searches(device, backend):
    a, c = rows(3, 8).to(device), rows(20, 8, 1).to(device)
    for x, y in ((a, c), (a[:, :7].contiguous(), c[:, :7].contiguous())):
        found = fastcse.topk(x, y, 3, backend=backend)
        yield from (found.values, found.indices)
        twice = x.repeat(2, 1)  # of equal centroids the lower one is the nearest
        nearest = fastcse.assign(y, twice, second=x is a, backend=backend)
        yield from (nearest.index, nearest.value)
    found = fastcse.topk(a[:1], rows(1160, 8, 2).to(device), 1, backend=backend)
    yield from (found.values, found.indices)
    yield fastcse.cluster_sums(c, torch.arange(20, device=device) % 5, 5, normalize=True, backend=backend).sums


SEARCHES = {
    "assign_kernel", "persistent_assign_kernel", "settle_kernel", "scores_kernel", "persistent_scores_kernel",
    "select_groups_kernel", "select_columns_kernel", "rescore_kernel", "cluster_sums_kernel",
}  # fmt: skip


@pytest.mark.parametrize("calls", [losses, searches])
def test_every_kernel_runs_and_is_right(calls, device):
    with recorded() as seen:
        got = [*calls(device, "triton")]
    for one, two in zip(got, calls(device, "reference"), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-6 + 2e-5 * float(two.abs().max()))
    if device.type == "cpu":  # a GPU chooses the form of a kernel by its architecture
        wanted = SEARCHES if calls is searches else set(every_kernel()) - SEARCHES
        assert wanted <= {name for name, _ in seen}
