"""The oracle is right: against autograd through the plain formula, and against its own central differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Case, Extra, oracle, to64
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
