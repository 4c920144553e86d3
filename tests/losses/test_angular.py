"""The angular margin: its formula and jump, its slope at the poles, and the rule of accuracy, on every backend."""

import math

import pytest
import torch
from oracle import Case, Extra, make_rows, oracle, to64
from yardstick import assert_rule

import fastcse
from fastcse.losses.angular import ANGULAR

Z1 = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0]])
Z2 = torch.tensor([[4.0, 3, 0], [0, 4, 3], [4, 0, -3]])
MARGINS = [0.0, 0.09, 0.15, 0.5, math.pi / 2]


def pair_at(angle):
    """An anchor, its own copy as the positive, and one negative at `angle`."""
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    return anchor, torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)


def negative_cosine(angle, margin, temperature=0.5):
    """What the loss takes the negative's cosine for."""
    loss = fastcse.angular_infonce_loss(*pair_at(angle), margin=margin, temperature=temperature)
    return temperature * math.log(math.expm1(loss.item())) + 1.0


def test_the_published_vector(run):
    # A constant teacher similarity of 0.4 makes of the margin 0.15 one of 0.09 for all pairs.
    got = run(Case(Z1, Z2, temperature=0.05, margin=0.15 * (1 - 0.4), angular=True))
    expected = torch.tensor([0.0065723547, 3.19254e-5, 1.3233591193])
    torch.testing.assert_close(got.loss.cpu(), expected, rtol=5e-5, atol=0)
    mean = run(Case(Z1, Z2, temperature=0.05, margin=0.09, angular=True), reduction="mean").loss
    torch.testing.assert_close(mean.cpu(), torch.tensor(0.4433211331), rtol=2e-6, atol=0)


@pytest.mark.parametrize("angle", [0.2, 0.16, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("margin", MARGINS)
def test_a_negative_wider_than_the_margin_is_turned(angle, margin):
    expected = math.cos(angle - margin) if angle > margin else math.cos(angle)
    assert negative_cosine(angle, margin) == pytest.approx(expected, abs=1e-12)


def test_the_jump_stands_at_the_margin():
    assert negative_cosine(0.5 - 1e-6, 0.5) == pytest.approx(math.cos(0.5), abs=2e-6)
    assert negative_cosine(0.5 + 1e-6, 0.5) == pytest.approx(1.0, abs=1e-10)


def test_no_margin_is_infonce(forced, device):
    anchor, candidate = (x.to(device) for x in make_rows("random", 7, 9, 5)[:2])
    got = forced(fastcse.angular_infonce_loss, anchor, candidate, margin=0.0)
    torch.testing.assert_close(got, forced(fastcse.infonce_loss, anchor, candidate), rtol=2e-6, atol=2e-6)


def test_positives_are_untouched(run):
    alone = Case(Z1[:1], -Z1[:1], margin=0.5, angular=True)
    assert run(alone).loss.item() == 0.0
    stats = run(Case(Z1, Z2, margin=0.5, angular=True), return_stats=True).stats
    torch.testing.assert_close(stats.positive_similarity.cpu(), torch.tensor((0.96 + 0.96 + 0.8) / 3))


@pytest.mark.parametrize("margin", MARGINS[:-1])
def test_df_is_the_derivative_of_f(margin):
    t = math.tan(margin / 2)
    s = torch.linspace(-1 + 2e-6, 1 - 2e-6, 1001, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(ANGULAR.f(s, t).sum(), s)
    torch.testing.assert_close(ANGULAR.df(s.detach(), t), expected)
    for one in (-0.9, 0.0, 0.5, 0.999):  # the same source on a float
        assert ANGULAR.f(one, t) == pytest.approx(ANGULAR.f(torch.tensor(one, dtype=torch.float64), t).item())
        assert ANGULAR.df(one, t) == pytest.approx(ANGULAR.df(torch.tensor(one, dtype=torch.float64), t).item())


@pytest.mark.parametrize("s_max", [0.3, 1.0, 4.0])
def test_values_keep_to_the_bounds(s_max):
    s = torch.linspace(-s_max, s_max, 2001, dtype=torch.float64)
    for margin in MARGINS:
        t = math.tan(margin / 2)
        low, high = ANGULAR.bounds(s_max, t)
        f = ANGULAR.f(s, t)
        assert low - 1e-12 <= f.min()
        assert f.max() <= high + 1e-12
        assert ANGULAR.bounds(torch.tensor(s_max), t) == (pytest.approx(low), pytest.approx(high))


def test_opposite_and_equal_rows_have_finite_gradients(run):
    rows = torch.tensor([[3.0, 4.0, 0.0], [-3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    got = run(Case(rows, rows, margin=0.5, temperature=1.0, angular=True))
    for value in (got.loss, got.danchor, got.dcandidate):
        assert torch.isfinite(value).all()
    assert (got.danchor.abs() < 1e3).all()


def test_the_slope_is_bounded_at_the_pole(run):
    anchor = torch.tensor([[1.0, 0.0]])
    for tilt in (1e-2, 1e-3, 1e-4, 0.0):
        # Dot products of unit rows, so that danchor is the slope itself: by s only.
        candidate = torch.tensor([[1.0, 0.0], [-math.sqrt(1 - tilt * tilt), tilt]])
        got = run(Case(anchor, candidate, margin=0.5, temperature=1.0, normalize=False, angular=True))
        assert got.danchor.abs().max() < 1 + 1000 * math.sin(0.5), tilt


def test_every_range_of_similarity(run):
    """Inside the margin, outside, and at both poles: logits and slopes by hand."""
    s = [0.8, 0.999, 1.0, 0.96, 0.95, 0.5, 0.0, -0.5, -0.99, -0.9999, -0.9999999, -1.0, -1.0001]
    margin, c, sine = 0.3, math.cos(0.3), math.sin(0.3)
    logits, slopes = s[:1], [1.0]
    for x in torch.tensor(s)[1:].double().tolist():
        q = (1 - x) * (1 + x)
        logits.append(x if x >= c else x * c + math.sqrt(max(q, 1e-6)) * sine)
        slopes.append(1.0 if x >= c else c - (x * sine / math.sqrt(q) if q > 1e-6 else 0.0))
    p = torch.tensor(logits).double().softmax(0)
    expected = (p - torch.eye(len(s))[0]) * torch.tensor(slopes).double()
    # Candidates are the unit vectors, so the similarities are the anchor's own numbers and danchor is dL/dS.
    got = run(Case(torch.tensor([s]), torch.eye(len(s)), margin=margin, temperature=1.0, normalize=False, angular=True))
    torch.testing.assert_close(got.loss.cpu()[0].double(), -p[0].log(), rtol=1e-6, atol=0, check_dtype=False)
    torch.testing.assert_close(got.danchor.cpu()[0].double(), expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda t: str(t)[6:])
@pytest.mark.parametrize("kind", ["random", "clustered", "anisotropic"])
@pytest.mark.parametrize("temperature", [0.05, 0.01])
@pytest.mark.parametrize("symmetric", [False, True], ids=["one_way", "symmetric"])
def test_accuracy(run, dtype, kind, temperature, symmetric):
    anchor, candidate, positive = make_rows(kind, 40, 48, 33, dtype)
    extras = (Extra(make_rows(kind, 5, 1, 33, dtype, seed=1)[0], own_log_weight=0.3),)
    case = Case(
        anchor, candidate, positive, extras, temperature=temperature, margin=0.15, symmetric=symmetric, angular=True
    )
    assert_rule(case, run(case, reduction="mean"), reduction="mean")
    assert_rule(case, run(case, upstream=torch.linspace(-1, 2, 40)), torch.linspace(-1, 2, 40))


def test_a_learned_temperature(run):
    anchor, candidate, positive = make_rows("clustered", 20, 24, 9)
    case = Case(anchor, candidate, positive, temperature=0.2, margin=0.4, angular=True)
    got = run(case, reduction="mean", learn=True)
    assert to64(got.dtemperature) == pytest.approx(oracle(case).dtemperature, rel=2e-5)
