"""The oracles are right: against autograd, central differences and published vectors, and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Case, Extra, oracle, to64
from row_oracle import (
    NAMES,
    Z1,
    Z2,
    adversarial,
    allowed,
    attack_gradient,
    attack_rows,
    cosines,
    hardest,
    published,
    quadruplet,
    settled_quad,
)  # fmt: skip
from yardstick import eager

N, M, D = 7, 9, 4
KINDS = {"infonce": {}, "focal": {"focal": True}, "detached": {"focal": True, "detach": True}}
every_direction = pytest.mark.parametrize("symmetric", [False, True], ids=["one_way", "symmetric"])
every_map = pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "raw"])


def case_of(kind, **options):
    extras = (
        Extra(torch.randn(3, D), torch.randn(3), id=torch.tensor([0, 1, 7])),
        Extra(torch.randn(N, D), own_log_weight=0.8),
    )
    return Case(
        torch.randn(N, D),
        torch.randn(M, D),
        torch.tensor([3, 0, 0, 8, 5, 2, 5]),
        extras,
        temperature=0.4,
        anchor_id=torch.arange(N) % 3,
        candidate_id=torch.arange(M) % 4,
        **KINDS[kind],
        **options,
    )


@pytest.mark.parametrize("kind", KINDS)
@every_direction
@every_map
def test_oracle_against_autograd(kind, symmetric, normalize):
    case, upstream = case_of(kind, symmetric=symmetric, normalize=normalize), torch.linspace(-1, 2, N)
    exact, other = oracle(case, upstream), eager(case, upstream, torch.float64)
    for name in ("loss", "danchor", "dcandidate", "dtemperature"):
        got, truth = to64(getattr(other, name)), getattr(exact, name)
        np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-11, err_msg=name)
    for one, two in zip(other.dextras, exact.dextras):
        np.testing.assert_allclose(to64(one), two, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["infonce", "focal"])  # a detached weight has no derivative to compare with
@every_direction
@every_map
def test_oracle_against_central_differences(kind, symmetric, normalize):
    case, upstream = case_of(kind, symmetric=symmetric, normalize=normalize), torch.linspace(-1, 2, N)
    exact, step = oracle(case, upstream), 1e-6

    def total(**changed):
        return (oracle(replace(case, **changed)).loss * to64(upstream)).sum()

    places = [("anchor", 0, 0), ("anchor", 6, 3), ("candidate", 0, 1), ("candidate", 8, 2), ("candidate", 1, 0)]
    for name, i, k in places:
        up, down = getattr(case, name).double().clone(), getattr(case, name).double().clone()
        up[i, k] += step
        down[i, k] -= step
        slope = (total(**{name: up}) - total(**{name: down})) / (2 * step)
        assert abs(slope - getattr(exact, f"d{name}")[i, k]) < 1e-7 * max(1, abs(slope))
    slope = (total(temperature=0.4 + step) - total(temperature=0.4 - step)) / (2 * step)
    assert abs(slope - exact.dtemperature) < 1e-7 * max(1, abs(slope))


# ---------------------------------------------------------------- row-wise losses

HINGES = {
    "weighted": {},
    "one weight is 0": {"weights": (0.0, 0.7)},
    "margin": {"margin": 0.4, "weights": (0.5, 0.5)},
    "classic": {"form": "classic", "margin": 0.2},
    "two margins": {"form": "classic", "margin": (0.4, -0.1)},
}


@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "raw"])
@pytest.mark.parametrize("index", [False, True], ids=["rows", "index"])
@pytest.mark.parametrize("kind", HINGES)
def test_gradient_against_central_differences(kind, index, normalize):
    case = settled_quad(9, 4, 3, index=index, dtype=torch.float64, normalize=normalize, **HINGES[kind])
    upstream, step = torch.linspace(-1, 2, 9), 1e-6
    exact = quadruplet(case, upstream)
    assert 1 <= exact.active.sum() <= 8, "rows with and without a loss"
    fields = dict(zip(NAMES, ("anchor", "positive", "candidate" if index else "batch_negative", "corpus_negative")))
    for name, attribute in fields.items():
        rows, slope = getattr(case, attribute), np.zeros_like(exact.grads[name])
        for place in np.ndindex(*rows.shape):
            total = []
            for sign in (1, -1):
                moved = rows.clone()
                moved[place] += sign * step
                total.append((quadruplet(replace(case, **{attribute: moved})).loss * to64(upstream)).sum())
            slope[place] = (total[0] - total[1]) / (2 * step)
        np.testing.assert_allclose(exact.grads[name], slope, rtol=1e-7, atol=1e-8, err_msg=name)
        assert exact.terms[name] >= np.abs(slope).max() * (1 - 1e-6)


def test_rows_and_index_form_agree():
    case = settled_quad(12, 5, 4, index=True, dtype=torch.float64)
    case.batch_negative = case.batch_negative.clamp_min(0)
    rows = quadruplet(replace(case, batch_negative=case.candidate[case.batch_negative], candidate=None))
    exact = quadruplet(case)
    np.testing.assert_allclose(exact.loss, rows.loss)
    scattered = np.zeros_like(exact.grads["negative"])
    for i, j in enumerate(case.batch_negative.tolist()):
        scattered[j] += rows.grads["negative"][i]
    np.testing.assert_allclose(exact.grads["negative"], scattered, atol=1e-15)


def test_zero_rows_and_minus_one():
    case = settled_quad(4, 3, 5, index=True, dtype=torch.float64, margin=3.0)
    case.batch_negative = torch.tensor([-1, 0, 1, 2])
    case.anchor[1], case.candidate[1] = 0, 0
    exact = quadruplet(case)
    assert exact.loss[0] == 0
    assert exact.loss[1] == 3
    assert exact.loss[2] > 0
    assert (exact.grads["anchor"][:2] == 0).all()
    assert (exact.grads["negative"][:2] == 0).all()
    assert (exact.grads["negative"][2] != 0).any()


# ---------------------------------------------------------------- the published vectors


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=atol)


def test_published_attack():
    x, z1 = to64(Z2), to64(Z1)
    g = [
        [0.0275715615, -0.036762082, 6.2971e-6],
        [0.001327047, 0.0010085521, -0.0013447361],
        [-0.0003184898, 0.0017693878, -0.0004246531],
    ]
    close(attack_gradient(x, z1), g)
    adv = adversarial(Z1, Z2)
    close(adv, x + 3 * np.array(g), atol=1e-9)
    close([attack_rows(x, z1).mean(), attack_rows(adv, z1).mean()], [0.0144265327, 0.0225280411])


def test_published_quadruplet():
    case = published()
    assert case.batch_negative.tolist() == [1, 0, 0]
    for name, expected in (
        ("positive", [0.9519182117, 0.9597168131, 0.7998084148]),
        ("corpus_negative", [0.8844521689, 0.7393691004, 0.5449492609]),
    ):
        close(np.diag(cosines(Z1, getattr(case, name))), expected)
    assert quadruplet(case).loss.tolist() == [0, 0, 0]
    close(quadruplet(published(margin=0.05)).loss.mean(), 0.0100453346)
    exact = quadruplet(published((0.9, 0.5)))
    close(exact.loss, [0.0663078728, 0, 0.1926662156])
    close(
        exact.grads["anchor"],
        [[-0.0310545325, 0.0232908993, 0.0475612145], [0, 0, 0], [0, 0.0618791894, 0.0503969475]],
    )
    close(exact.grads["negative"], [[0.0216, -0.0288, 0], [0.036, 0.01728, -0.02304], [0, 0, 0]])


# ---------------------------------------------------------------- the attack, the hardest


def test_gradient_of_the_attack_against_central_differences():
    rng, step = np.random.default_rng(0), 1e-6
    x, anchor = rng.normal(size=(2, 5, 4))
    x[3] = 0
    g, slope = attack_gradient(x, anchor, 0.3), np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        slope[place] = (attack_rows(up, anchor, 0.3).mean() - attack_rows(down, anchor, 0.3).mean()) / (2 * step)
    assert (g[3] == 0).all()
    g[3], slope[3] = 0, 0
    np.testing.assert_allclose(g, slope, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose((g * x).sum(1), 0, atol=1e-15)


def test_modes_of_the_step():
    anchor, positive = torch.randn(2, 6, 5, dtype=torch.float64)
    x = to64(positive)
    assert (adversarial(anchor, positive, step=0.0) == x).all()
    size = np.linalg.norm(x, axis=1)
    for mode in ("l2", "sign"):
        moved = adversarial(anchor, positive, step=0.5, mode=mode) - x
        np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.5 * size)


def test_hardest_by_hand():
    s = np.array([[0.9, 0.5, 0.5, 0.1], [0.3, 0.9, -0.2, 0.3], [0.1, 0.2, 0.9, 0.4]])
    eye = torch.ones(3, 2), torch.ones(4, 2)
    assert hardest(s, allowed(*eye))[1].tolist() == [1, 0, 3]
    assert hardest(s, allowed(*eye, torch.tensor([1, 0, 3])))[1].tolist() == [0, 1, 2]
    ids = dict(anchor_id=torch.tensor([1, 2, 3]), candidate_id=torch.tensor([2, 1, 3, 3]))
    assert hardest(s, allowed(*eye, **ids))[1].tolist() == [2, 3, 1]
    value, index = hardest(s, allowed(*eye, anchor_id=torch.ones(3), candidate_id=torch.ones(4)))
    assert index.tolist() == [-1] * 3
    assert (value == -np.inf).all()
    bad = torch.ones(4, 2)
    bad[1, 0], bad[3, 1] = torch.nan, torch.inf
    assert hardest(s, allowed(torch.ones(3, 2), bad))[1].tolist() == [2, 0, 0]
