"""ClusterNS's loss: the vectors, the equal forms, the false negatives, on every backend."""

import pytest
import torch
from calls import views

import fastcse
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


def test_removed_pairs_are_no_negatives(forced, device):
    anchor, candidate, index, _ = problem(device)
    got = forced(clusterns_loss, anchor, candidate, index, false_negatives="remove")
    ids = torch.where(index >= 0, index, 100 + torch.arange(len(index), device=device))
    want = infonce_loss(anchor, candidate, anchor_id=ids, candidate_id=ids, backend="reference")
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert got < forced(clusterns_loss, anchor, candidate, index, margin_weight=0.0)


def test_positives_of_the_cluster_take_the_place_of_the_own(forced, device):
    anchor, candidate, index, _ = problem(device)
    got = forced(clusterns_loss, anchor, candidate, index, false_negatives="positive", temperature=0.1)
    a, c = [x.detach().double().requires_grad_() for x in (anchor, candidate)]
    x = torch.nn.functional.cosine_similarity(a[:, None], c[None], dim=2) / 0.1
    rows = []
    for i in range(len(index)):
        same = [j for j in range(len(index)) if j == i or (index[j] == index[i] and index[i] >= 0)]
        kept = [j for j in range(len(index)) if j == i or j not in same]
        rows.append(x[i, kept].logsumexp(0) - x[i, same].mean())
    want = torch.stack(rows).mean()
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    for x, y in zip(torch.autograd.grad(got, (anchor, candidate)), torch.autograd.grad(want, (a, c))):
        torch.testing.assert_close(x.double(), y, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize("index", [[0, 0, 0], [-1, -1, -1], [0, 1, 2]])
def test_one_cluster_of_all_none_and_each_its_own(forced, device, index):
    index = torch.tensor(index, device=device)
    rows = [x.to(device) for x in (Z1, Z2)]
    stats = forced(clusterns_loss, *rows, index, alpha=0.1, beta=0.5, return_stats=True).stats
    total, pairs = margin_by_hand(*[x.double() for x in rows], index, 0.1, 0.5)
    assert stats.false_share.item() == pytest.approx(pairs / 6)
    assert stats.margin.item() == pytest.approx((float(total) + 0.1 * (9 - pairs)) / 9, rel=1e-5)


def test_float64_is_differentiable_as_it_stands(device):
    anchor, candidate, index, centroids = problem(device, n=6, d=4, k=2, dtype=torch.float64)
    counts = torch.tensor([2, 4], device=device)
    assert torch.autograd.gradcheck(
        lambda a, c: clusterns_loss(a, c, index, centroids, counts, alpha=0.05, margin_weight=1.0), (anchor, candidate)
    )
    assert fastcse.last_backend() == "reference"


def test_it_compiles_whole(device):
    a, c, _ = views(device)
    rows = a, c[:6].detach().requires_grad_(), torch.tensor([0, 1, 0, 1, 1, -1], device=device)
    whole = torch.compile(lambda *x: clusterns_loss(*x, margin_weight=1.0), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*rows), clusterns_loss(*rows, margin_weight=1.0))
    got = torch.autograd.grad(whole(*rows), rows[:2])
    for x, y in zip(got, torch.autograd.grad(clusterns_loss(*rows, margin_weight=1.0), rows[:2])):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"candidate": Z2[:2]}, "candidate and anchor must have as many rows, got 2 and 3"),
        ({"index": INDEX[:2]}, r"index must have shape \(3,\).*got \(2,\)"),
        ({"counts": None}, "centroids needs counts, got counts=None"),
        ({"centroids": None}, "counts needs centroids, got centroids=None"),
        ({"counts": COUNTS[:1]}, r"counts must have shape \(2,\).*got \(1,\)"),
        ({"centroids": torch.ones(2, 4)}, r"rows of one length, got \(2, 4\) and \(3, 3\)"),
        ({"margin_reduction": "sum"}, "margin_reduction must be one of .*got 'sum'"),
        ({"false_negatives": "keep"}, "false_negatives must be one of .*got 'keep'"),
        ({"beta": float("nan")}, "beta must be a finite number, got nan"),
    ],
)  # fmt: skip
def test_bad_arguments_name_themselves_and_the_values(changes, says):
    given = dict(anchor=Z1, candidate=Z2, index=INDEX, centroids=SUM, counts=COUNTS)
    with pytest.raises(ValueError, match=says):
        clusterns_loss(**{**given, **changes})
