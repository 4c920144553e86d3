"""Degenerate rows: what the losses do where the formula has no answer, or float32 has none, on every backend."""

import pytest
import torch
from oracle import Case, Extra, make_rows, oracle
from yardstick import assert_rule

import fastcse

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])
LOSSES = [fastcse.infonce_loss, fastcse.focal_infonce_loss]


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_rows_have_similarity_zero_and_gradient_zero(run, focal, reduction, symmetric):
    anchor, candidate, _ = make_rows("random", 6, 6, 5)
    hard = torch.randn(4, 5)
    for rows, k in ((anchor, 1), (candidate, 3), (hard, 2)):
        rows[k] = 0
    case = Case(anchor, candidate, extras=(Extra(hard),), focal=focal, symmetric=symmetric, temperature=0.5)
    got, exact = run(case, reduction=reduction), oracle(case)
    expected = exact.loss if reduction == "none" else exact.loss.mean()
    torch.testing.assert_close(got.loss.cpu(), torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-6)
    for gradient, truth, k in (
        (got.danchor, exact.danchor, 1),
        (got.dcandidate, exact.dcandidate, 3),
        (got.dextras[0], exact.dextras[0], 2),
    ):
        assert (gradient[k] == 0).all()
        torch.testing.assert_close(gradient.cpu(), torch.tensor(truth, dtype=torch.float32), rtol=1e-5, atol=1e-6)


def test_similarity_of_a_zero_row_is_zero(forced, device):
    anchor = torch.tensor([[0.0, 0], [3, 4]], device=device, requires_grad=True)
    s = forced(fastcse.similarity, anchor, torch.tensor([[1.0, 0], [0, 0]], device=device))
    torch.testing.assert_close(s.detach().cpu(), torch.tensor([[0.0, 0], [0.6, 0]]))
    s.sum().backward()
    assert (anchor.grad[0] == 0).all()
    assert anchor.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12])
def test_rows_almost_zero_stay_finite(run, size):
    anchor, candidate, _ = make_rows("random", 5, 5, 4)
    anchor[2] *= size
    got = run(Case(anchor, candidate, temperature=0.5))
    for value in (got.loss, got.danchor, got.dcandidate):
        assert value.isfinite().all()


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_one_pair_alone_has_no_loss(run, focal, reduction, symmetric):
    got = run(Case(torch.randn(1, 7), torch.randn(1, 7), focal=focal, symmetric=symmetric), reduction=reduction)
    assert (got.loss == 0).all()
    assert (got.danchor == 0).all()
    assert (got.dcandidate == 0).all()


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_negative_masked_has_no_loss(run, focal, reduction, symmetric):
    same = torch.full((5,), 7)
    case = Case(
        torch.randn(5, 4),
        torch.randn(5, 4),
        extras=(Extra(torch.randn(5, 4), id=same),),
        anchor_id=same,
        candidate_id=same,
        focal=focal,
        symmetric=symmetric,
    )
    got = run(case, reduction=reduction, return_stats=True)
    assert (got.loss == 0).all()
    for gradient in (got.danchor, got.dcandidate, got.dextras[0]):
        assert (gradient == 0).all()
    assert float(got.stats.masked_share) == 1
    assert float(got.stats.accuracy) == 1
    assert (got.stats.hardest_index == -1).all()
    assert (got.stats.hardest_similarity == -torch.inf).all()


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_bad_anchor_row_spoils_its_own_loss_only(forced, device, focal, bad, normalize):
    anchor, candidate, _ = make_rows("random", 7, 7, 5)
    function = LOSSES[focal]
    options = dict(reduction="none", temperature=0.5, normalize=normalize)
    clean = forced(function, anchor.to(device), candidate.to(device), **options).cpu()
    anchor[3, 2] = bad
    with torch.no_grad():
        got = forced(function, anchor.to(device), candidate.to(device), **options).cpu()
    others = torch.arange(7) != 3
    assert got[3].isnan()
    torch.testing.assert_close(got[others], clean[others], rtol=1e-6, atol=1e-6)
    leaf = anchor.to(device).requires_grad_()
    got = forced(function, leaf, candidate.to(device), **options)
    assert got[3].isnan()
    torch.testing.assert_close(got.detach().cpu()[others], clean[others], rtol=1e-6, atol=1e-6)
    got.sum().backward()
    assert leaf.grad.cpu()[others].isfinite().all()
    assert forced(function, anchor.to(device), candidate.to(device), **{**options, "reduction": "mean"}).isnan()


@every_loss
@pytest.mark.parametrize("temperature", [0.01, 0.001])
def test_cold_random_rows(run, focal, temperature):
    anchor, candidate, positive = make_rows("random", 20, 24, 33)
    case = Case(anchor, candidate, positive, focal=focal, temperature=temperature)
    upstream = torch.linspace(0, 1, 20)
    assert_rule(case, run(case, upstream=upstream), upstream)
    assert_rule(case, run(case, reduction="mean"), reduction="mean")


@every_loss
@every_reduction
@pytest.mark.parametrize("temperature", [0.01, 0.001])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_whose_logits_are_all_far_below_the_bound(run, focal, reduction, temperature, symmetric):
    # Anchors opposite to every candidate: exp(logit - bound) is 0 in float32, so a static shift alone has no answer.
    anchor, candidate, positive = make_rows("anisotropic", 9, 9, 6)
    anchor[::2] *= -1
    case = Case(anchor, candidate, positive, focal=focal, temperature=temperature, symmetric=symmetric, margin=0.0)
    got = run(case, reduction=reduction)
    # One rounding of a similarity is 1e-5 of such a logit. With nine rows it is chance whether the yardstick makes one,
    # and it differs between the products of two processors.
    got.slack *= 2
    assert_rule(case, got, reduction=reduction)


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_long_rows_without_normalisation(run, focal, reduction, symmetric):
    anchor, candidate, positive = make_rows("random", 11, 13, 6)
    case = Case(20 * anchor, 10 * candidate, positive, focal=focal, normalize=False, symmetric=symmetric)
    assert_rule(case, run(case, reduction=reduction), reduction=reduction)
