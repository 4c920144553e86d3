"""Digits at the ends of float32's range: large logits, sums that nearly vanish, sums of many tiles, rounded weights."""

import pytest
import torch
from conftest import DEVICE

import fastcse
from fastcse.engine import problem


def test_exponents_are_rounded_after_the_shift_and_not_before(forced, backend, device):
    """A logit around 1000 is rounded to 6e-5, its distance from the shift is not: x - shift is one fused operation."""
    if backend == "reference" or (backend == "triton" and DEVICE == "cpu"):
        pytest.skip("plain torch and the interpreter round the product of similarity and 1 / temperature first")
    # Exact similarities whose products with 1000 round down by nearly half a step; the positive's is exact, since its
    # logit is stored.
    s = 1 - torch.arange(1, 1000, dtype=torch.float64) / 2**20
    s = torch.cat([s.new_ones(1), s[(1000 * s).float().double() - 1000 * s < -2.8e-5]])
    candidate = torch.stack([s, torch.zeros_like(s)], 1).float()
    anchor = torch.tensor([[1.0, 0.0]])
    loss = forced(fastcse.infonce_loss, anchor.to(device), candidate.to(device), temperature=0.001, normalize=False)
    x = s * 1000
    truth = x.logsumexp(0) - x[0]
    assert abs(loss.item() - truth.item()) < 2e-6


@pytest.mark.interpreted
def test_rows_whose_sums_nearly_vanish_keep_their_digits(forced, device):
    """All logits of a row are 95 below the bound less its headroom: their exponentials are subnormal."""
    g = torch.Generator().manual_seed(0)
    side = torch.nn.functional.normalize(torch.randn(33, 7, generator=g), dim=1)
    s = torch.linspace(0.19, 0.21, 33)[:, None]
    candidate = torch.cat([s, side * (1 - s**2).sqrt()], 1)
    anchor = torch.eye(8)[:1]
    options = {"positive": torch.tensor([16]), "temperature": 0.005}
    x = candidate.to(device, copy=True).requires_grad_()
    loss = forced(
        fastcse.infonce_loss, anchor.to(device), x, temperature=0.005, positive=options["positive"].to(device)
    )
    loss.backward()
    exact = candidate.double().requires_grad_()
    truth = fastcse.infonce_loss(anchor.double(), exact, **options)
    truth.backward()
    torch.testing.assert_close(loss.cpu().double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(x.grad.cpu().double(), exact.grad, rtol=1e-3, atol=1e-4 * exact.grad.abs().max().item())


@pytest.mark.interpreted
def test_sums_of_more_tiles_than_are_added_at_once(forced, device):
    candidate = torch.linspace(-1, 1, 2100, device=device)[:, None]
    anchor, temperature = torch.ones(1, 1, device=device), torch.tensor(0.5, device=device, requires_grad=True)
    loss = forced(fastcse.infonce_loss, anchor, candidate, temperature=temperature, normalize=False)
    loss.backward()
    x, inv = candidate[:, 0].double().cpu(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    truth = (x * inv).logsumexp(0) - x[0] * inv
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-6)
    assert temperature.grad.item() == pytest.approx(-4 * inv.grad.item(), rel=1e-5)  # d(1 / t) = -1 / t^2


@pytest.mark.parametrize("excess", [2**-12, 2**-11, 2**-10, 2**-9.5])
def test_the_shift_keeps_rounded_gradients_without_bias(excess):
    """dc of a confident row in the kernels' types: weights e^(x - shift) and rows a / Z, both bfloat16. With Z just
    above 1 all components of a / Z would round back to a."""
    a = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64).bfloat16().double()
    shift = getattr(problem, "SHIFT_DITHER", None) or problem.SHIFT_DITHER
    z = (1 + excess) * torch.exp(torch.tensor(-shift, dtype=torch.float64))
    rounded, exact = (a / z).bfloat16().double(), a / z
    bias = (rounded @ exact) / (exact @ exact) - 1
    assert abs(bias.item()) < 2**-13


def test_a_heavy_column_that_is_left_out_leaves_the_others_their_digits(forced, device):
    """The static shift is below the heaviest column's logit by its headroom: without that column all sums vanish."""
    anchor = torch.eye(2)[:1]
    heavy = fastcse.CandidateBlock(
        anchor.to(device), log_weight=torch.tensor([200.0], device=device), id=torch.tensor([7], device=device)
    )
    loss = forced(
        fastcse.infonce_loss, anchor.to(device), torch.eye(2, device=device), negatives=heavy, temperature=1.0,
        anchor_id=torch.tensor([7], device=device),
    )  # fmt: skip
    torch.testing.assert_close(loss.cpu(), torch.tensor(-1.0).exp().log1p())


def test_a_weight_of_ones_own_raises_the_bound_of_the_shift(forced, device):
    heavy = fastcse.CandidateBlock(torch.eye(2, device=device)[1:], own_log_weight=150.0)
    rows = torch.eye(2, device=device)
    loss = forced(fastcse.infonce_loss, rows[:1], rows, negatives=heavy, temperature=1.0)
    torch.testing.assert_close(loss.cpu(), torch.tensor(149.0))


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_rows_whose_squares_overflow_have_their_cosines(forced, device):
    rows = torch.tensor([[3e25, 4e25], [3.0, 4.0]], device=device)
    got = forced(fastcse.similarity, rows, torch.eye(2, device=device)[:1])
    torch.testing.assert_close(got.cpu(), torch.full((2, 1), 0.6))


def test_a_loss_scale_reaches_gradients_that_float16_cannot_hold(forced, device):
    """The gradients of the mean are around 1e-8; the upstream gradient brings the scale."""
    rows = [(torch.randn(64, 8) + k).half().to(device).requires_grad_() for k in range(2)]
    exact = [x.detach().double().requires_grad_() for x in rows]
    (forced(fastcse.infonce_loss, *rows, temperature=200.0) * 2.0**14).backward()
    (fastcse.infonce_loss(*exact, temperature=200.0) * 2.0**14).backward()
    for x, truth in zip(rows, exact):
        assert (x.grad.double() - truth.grad).norm() <= 1e-3 * truth.grad.norm()
