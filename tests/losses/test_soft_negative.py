"""SNCSE's loss: the formula in Python floats, its gradients in float64, and rows of any arrangement."""

import math

import pytest
import torch
from calls import views

from fastcse import infonce_loss, soft_negative_loss

A = [[1.0, 0.2, -0.5], [0.3, -1.0, 0.8], [-0.7, 0.4, 1.1]]
C = [[0.1, -0.8, 0.3], [-0.2, 0.6, 0.9], [0.9, 0.1, -0.7], [1.2, 0.3, 0.4]]
SOFT = [[0.9, 0.9, -0.4], [0.3, 0.2, 0.5], [-0.7, 0.41, 1.1]]
POSITIVE, TAU = [2, 0, 1], 0.3


def cosine(x, y):
    return sum(p * q for p, q in zip(x, y)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def by_hand(weight, alpha, beta):
    rows, margins = [], []
    for i, a in enumerate(A):
        s = [cosine(a, c) for c in C]
        d = cosine(a, SOFT[i]) - s[POSITIVE[i]]
        margins.append(max(0, d + alpha) + max(0, -d - beta))
        rows.append(math.log(sum(math.exp(x / TAU) for x in s)) - s[POSITIVE[i]] / TAU + weight * margins[-1])
    return rows, margins


def tensors(device, dtype=torch.float64):
    return [torch.tensor(x, dtype=dtype, device=device) for x in (A, C, SOFT)] + [torch.tensor(POSITIVE, device=device)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("weight", "alpha", "beta"), [(1.0, 0.1, 0.3), (1e-3, 0.1, 0.3), (2.0, -0.2, 0.05)])
def test_the_formula(forced, device, reduction, weight, alpha, beta):
    expected, margins = by_hand(weight, alpha, beta)
    assert len({m > 0 for m in margins}) == 2 or weight != 1.0, "one row keeps the margin and one does not"
    options = dict(margin_weight=weight, alpha=alpha, beta=beta, temperature=TAU, reduction=reduction)
    rows = tensors(device, torch.float32)
    loss, stats = forced(soft_negative_loss, *rows, return_stats=True, **options)
    expected = torch.tensor(expected)
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    torch.testing.assert_close(loss.cpu(), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(forced(soft_negative_loss, *rows, **options), loss, rtol=1e-6, atol=1e-7)
    assert stats.margin.item() == pytest.approx(sum(margins) / 3, rel=1e-5)
    assert stats.active_share.item() == pytest.approx(sum(m > 0 for m in margins) / 3)
    assert stats.soft_similarity.item() == pytest.approx(sum(map(cosine, A, SOFT)) / 3, rel=1e-6)
    plain = infonce_loss(*rows[:2], rows[3], temperature=TAU)
    assert stats.infonce.item() == pytest.approx(plain.item(), rel=1e-5)
    assert stats.positive_similarity.item() == pytest.approx(
        sum(cosine(a, C[p]) for a, p in zip(A, POSITIVE)) / 3, rel=1e-6
    )


def test_gradients_are_as_accurate_as_plain_torchs(forced, device):
    def plain(a, c, soft):
        s = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(c, dim=1).T
        d = torch.nn.functional.cosine_similarity(a, soft) - s.diagonal()
        margin = (d + 0.1).relu() + (-d - 0.3).relu()
        return torch.nn.functional.cross_entropy(s / 0.05, torch.arange(len(a), device=a.device)) + margin.mean()

    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(24, 16, generator=g)]
    rows += [rows[0] + 0.5 * torch.randn(24, 16, generator=g) for _ in range(2)]

    def gradients(loss, dtype):
        leaves = [x.to(device, dtype).requires_grad_() for x in rows]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    got = gradients(lambda *x: forced(soft_negative_loss, *x, margin_weight=1.0), torch.float32)
    for one, yard, exact in zip(got, gradients(plain, torch.float32), gradients(plain, torch.float64)):
        allowed = 2 * (yard - exact).abs().max() + 2e-7 * exact.abs().max()
        assert (one - exact).abs().max() <= allowed


def test_no_weight_is_infonce_and_no_soft_negative_is_a_column(forced, device):
    a, c, h = (x.detach() for x in views(device))
    soft = torch.randn(len(a), a.shape[1], device=device)
    options = dict(negatives=h, temperature=0.1)
    want = forced(infonce_loss, a, c, **options)
    torch.testing.assert_close(forced(soft_negative_loss, a, c, soft, margin_weight=0.0, **options), want)
    wide = forced(soft_negative_loss, a, c, soft, margin_weight=1.0, alpha=-5.0, beta=5.0, **options)
    torch.testing.assert_close(wide, want)


def test_ids_mask_as_in_infonce(forced, device):
    a, c, soft = (torch.randn(6, 5, device=device) for _ in range(3))
    ids = dict(anchor_id=torch.arange(6, device=device) % 4, candidate_id=torch.arange(6, device=device) % 4)
    loss, stats = forced(soft_negative_loss, a, c, soft, margin_weight=0.0, return_stats=True, **ids)
    torch.testing.assert_close(loss, forced(infonce_loss, a, c, **ids))
    assert stats.masked_share.item() == pytest.approx(4 / 30)
