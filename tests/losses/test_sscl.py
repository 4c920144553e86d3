"""SSCL's loss: intermediate vectors as columns of the second of two losses, with gradients into all parts."""

import math

import pytest
import torch

from fastcse import CandidateBlock, infonce_loss, sscl_loss


def rows(n, parts=3, d=5, seed=0, dtype=torch.float64, device="cpu"):
    return torch.randn(n, parts * d, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)


def cosine(x, y):
    return sum(p * q for p, q in zip(x, y)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def by_hand(anchor, candidate, parts, tau):
    """Row after row: the mean of the loss over B columns and of the one over (1 + 2 (parts - 1)) B columns."""
    a, c = anchor.tolist(), candidate.tolist()
    d = len(a[0]) // parts
    losses = []
    for i, row in enumerate(a):
        s = [cosine(row[:d], x[:d]) / tau for x in c]
        more = [cosine(row[:d], x[k * d : (k + 1) * d]) / tau for x in [*a, *c] for k in range(1, parts)]
        lse = [math.log(sum(map(math.exp, logits))) for logits in (s, s + more)]
        losses.append(sum(lse) / 2 - s[i])
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_formula(forced, device, parts, reduction):
    a, c = rows(4, parts, seed=1), rows(6, parts, seed=2)
    expected = by_hand(a, c, parts, 0.4)
    options = dict(parts=parts, temperature=0.4, reduction=reduction)
    a, c = (x.float().to(device) for x in (a, c))
    loss, stats = forced(sscl_loss, a, c, return_stats=True, **options)
    expected_loss = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    torch.testing.assert_close(loss.cpu(), expected_loss.float(), rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(forced(sscl_loss, a, c, **options), loss)
    assert (stats.infonce + stats.extended).item() / 2 == pytest.approx(expected.mean().item(), rel=1e-5)
    plain = infonce_loss(a[:, :5], c[:, :5], temperature=0.4, return_stats=True)
    assert stats.infonce.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert stats.accuracy == plain.stats.accuracy


def test_positives_and_more_negatives(forced, device):
    a, c, h = (rows(n, seed=n, dtype=torch.float32, device=device) for n in (4, 6, 3))
    positive = torch.tensor([5, 0, 2, 2], device=device)
    weight = torch.linspace(0, 1, 3, device=device)
    others = [CandidateBlock(x[:, k : k + 5]) for x in (a, c) for k in (5, 10)]
    narrow = CandidateBlock(h[:, :5], log_weight=weight)
    plain = infonce_loss(a[:, :5], c[:, :5], positive, negatives=narrow)
    extended = infonce_loss(a[:, :5], c[:, :5], positive, negatives=[narrow, *others])
    got = forced(sscl_loss, a, c, positive, negatives=narrow)
    torch.testing.assert_close(got, (plain + extended) / 2, rtol=2e-6, atol=2e-6)
    more = [CandidateBlock(h[:, k : k + 5], log_weight=weight) for k in (5, 10)]
    extended = infonce_loss(a[:, :5], c[:, :5], positive, negatives=[narrow, *others, *more])
    got = forced(sscl_loss, a, c, positive, negatives=[CandidateBlock(h, log_weight=weight)])
    torch.testing.assert_close(got, (plain + extended) / 2, rtol=2e-6, atol=2e-6)


def test_ids_mask_final_parts(forced, device):
    a, c = (rows(5, seed=n, dtype=torch.float32, device=device) for n in (1, 2))
    ids = dict(anchor_id=torch.tensor([0, 0, 1, 2, 2], device=device), candidate_id=torch.arange(5, device=device) // 2)
    others = [CandidateBlock(x[:, k : k + 5]) for x in (a, c) for k in (5, 10)]
    plain = infonce_loss(a[:, :5], c[:, :5], **ids)
    extended = infonce_loss(a[:, :5], c[:, :5], negatives=others, **ids)
    torch.testing.assert_close(forced(sscl_loss, a, c, **ids), (plain + extended) / 2, rtol=2e-6, atol=2e-6)
