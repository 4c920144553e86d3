"""Degenerate rows: what the losses do where the formula has no answer, or float32 has none, on every backend."""

import pytest
import torch
from oracle import Case, Extra, make_rows
from yardstick import assert_rule

import fastcse

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])
LOSSES = [fastcse.infonce_loss, fastcse.focal_infonce_loss]


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
