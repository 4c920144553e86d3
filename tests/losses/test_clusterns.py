"""ClusterNS's loss: the vectors, the equal forms, the false negatives, on every backend."""

import pytest
import torch

from fastcse import clusterns_loss, infonce_loss
from fastcse.ops import cluster_margin

Z1 = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0]])
Z2 = torch.tensor([[4.0, 3, 0], [0, 4, 3], [4, 0, -3]])
INDEX, COUNTS = torch.tensor([0, 0, 1]), torch.tensor([1, 2])
SUM, MEAN = torch.tensor([[3.0, 4.3, 0.4], [5, 0, 0]]), torch.tensor([[2.85, 3.95, 0.2], [5, 0, 0]])


def problem(device, n=40, d=12, k=5, dtype=torch.float32, seed=1):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, d, generator=g, dtype=torch.float64)
    index = torch.randint(-1, k, (n,), generator=g)
    anchor = centres[index.clamp_min(0)] + 0.7 * torch.randn(n, d, generator=g, dtype=torch.float64)
    candidate = anchor + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64)
    rows = [x.to(device, dtype).requires_grad_() for x in (anchor, candidate)]
    return *rows, index.to(device), centres.to(device, dtype)


def margin_by_hand(anchor, candidate, index, alpha, beta):
    """Pair after pair, in plain torch that autograd follows: (sum over pairs of one cluster, their number)."""
    s = torch.nn.functional.cosine_similarity(anchor[:, None], candidate[None], dim=2)
    total, pairs = s.sum() * 0, 0
    for i in range(len(index)):
        for j in range(len(index)):
            if i != j and index[i] == index[j] and index[i] >= 0:
                d = s[i, j] - s[i, i]
                total, pairs = total + (d + alpha).relu() + (-d - beta).relu(), pairs + 1
    return total, pairs


@pytest.mark.parametrize(
    ("centroids", "temperature", "loss"),
    [(SUM, 1.0, 1.4901009302), (SUM, 0.05, 1.9454182013), (MEAN, 1.0, 1.4887291863), (MEAN, 0.05, 1.9565857237)],
)
def test_the_losses_of_the_specification(forced, device, centroids, temperature, loss):
    rows = [x.to(device) for x in (Z1, Z2, INDEX, centroids, COUNTS)]
    got = forced(clusterns_loss, *rows, temperature=temperature, margin_weight=0.0)
    assert got.item() == pytest.approx(loss, rel=2e-6)


@pytest.mark.parametrize(("reduction", "margin"), [("ref", 0.0888888889), ("active", 0.05)])
def test_the_margin_of_the_specification(forced, device, reduction, margin):
    rows = [x.to(device) for x in (Z1, Z2, INDEX, SUM, COUNTS)]
    options = dict(alpha=0.1, beta=0.5, margin_weight=2.0, margin_reduction=reduction, return_stats=True)
    loss, stats = forced(clusterns_loss, *rows, **options)
    assert stats.margin.item() == pytest.approx(margin, rel=1e-5)
    assert stats.false_share.item() == pytest.approx(1 / 3)
    assert loss.item() == pytest.approx(stats.infonce.item() + 2 * margin, rel=1e-5)


def test_columns_by_centroid_equal_columns_by_anchor(forced, device):
    anchor, candidate, _, centroids = problem(device)
    second = torch.arange(len(anchor), device=device) * 7 % 4  # centroid 4 is nobody's second
    counts = torch.bincount(second, minlength=5)
    by_centroid = forced(clusterns_loss, anchor, candidate, None, centroids, counts)
    grads = torch.autograd.grad(by_centroid, (anchor, candidate))
    by_anchor = infonce_loss(anchor, candidate, negatives=centroids[second], backend="reference")
    torch.testing.assert_close(by_centroid, by_anchor, atol=1e-5, rtol=1e-5)
    for got, want in zip(grads, torch.autograd.grad(by_anchor, (anchor, candidate))):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize("reduction", ["ref", "active"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.3), (0.25, 0.3), (-0.1, -0.2)])
def test_the_margin_and_its_gradients_are_those_of_single_pairs(forced, device, monkeypatch, reduction, alpha, beta):
    monkeypatch.setattr(cluster_margin, "MOST_ROWS", 3)
    anchor, candidate, index, _ = problem(device)
    options = dict(alpha=alpha, beta=beta, margin_reduction=reduction, margin_weight=3.0)
    got = forced(clusterns_loss, anchor, candidate, index, **options) - forced(infonce_loss, anchor, candidate)
    exact = [x.detach().double().requires_grad_() for x in (anchor, candidate)]
    total, pairs = margin_by_hand(*exact, index, alpha, beta)
    n = len(anchor)
    rest = (n * n - pairs) * (max(alpha, 0) + max(-beta, 0))
    want = 3 * (total / pairs if reduction == "active" else (total + rest) / n**2)
    assert got.item() == pytest.approx(want.item(), abs=3e-6)
    want.backward()
    got.backward()
    plain = [x.detach().clone().requires_grad_() for x in (anchor, candidate)]
    forced(infonce_loss, *plain).backward()
    for x, e in zip((anchor, candidate), exact):
        torch.testing.assert_close(x.grad.double(), e.grad, atol=2e-6, rtol=1e-4)


def test_relabelling_changes_nothing(forced, device):
    anchor, candidate, index, centroids = problem(device)
    counts, swap = torch.tensor([5, 0, 9, 20, 6], device=device), torch.tensor([3, 1, 4, 0, 2], device=device)
    renamed = torch.where(index >= 0, swap[index.clamp_min(0)], -1)
    back = swap.argsort()
    one = forced(clusterns_loss, anchor, candidate, index, centroids, counts, margin_weight=1.0)
    other = forced(clusterns_loss, anchor, candidate, renamed, centroids[back], counts[back], margin_weight=1.0)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_before_the_start_it_is_infonce_to_the_bit(forced, device):
    anchor, candidate, *_ = problem(device)
    assert torch.equal(forced(clusterns_loss, anchor, candidate), forced(infonce_loss, anchor, candidate))


def test_similarities_between_the_margins_have_no_gradient(forced, device):
    anchor, candidate, index, _ = problem(device)
    loss = forced(clusterns_loss, anchor, candidate, index, alpha=-9.0, beta=9.0, margin_weight=1e3)
    plain = forced(infonce_loss, anchor, candidate)
    assert torch.equal(loss, plain)
    for got, want in zip(*(torch.autograd.grad(x, (anchor, candidate)) for x in (loss, plain))):
        assert torch.equal(got, want)


@pytest.mark.parametrize("index", [[0, 0, 0], [-1, -1, -1], [0, 1, 2]])
def test_one_cluster_of_all_none_and_each_its_own(forced, device, index):
    index = torch.tensor(index, device=device)
    rows = [x.to(device) for x in (Z1, Z2)]
    stats = forced(clusterns_loss, *rows, index, alpha=0.1, beta=0.5, return_stats=True).stats
    total, pairs = margin_by_hand(*[x.double() for x in rows], index, 0.1, 0.5)
    assert stats.false_share.item() == pytest.approx(pairs / 6)
    assert stats.margin.item() == pytest.approx((float(total) + 0.1 * (9 - pairs)) / 9, rel=1e-5)
