"""Each published formula, typed by hand in Python floats. No torch and no numpy inside a formula."""

import math

import pytest
import torch
from oracle import Case, Extra

ANCHOR = [[1.0, 0.2, -0.5], [0.3, -1.0, 0.8], [-0.7, 0.4, 1.1], [0.9, 0.9, -0.1]]
CANDIDATE = [[0.9, 0.1, -0.7], [0.1, -0.8, 0.3], [-0.2, 0.6, 0.9], [1.2, 0.3, 0.4]]
CONTRADICTION = [[0.8, -0.3, -0.2], [0.5, -0.6, 1.0], [-0.9, -0.4, 0.7], [0.2, 1.0, 0.1]]
TAU, MARGIN, HARD_WEIGHT = 0.2, 0.3, math.log(2.0)


def cosine(x, y):
    dot = sum(p * q for p, q in zip(x, y))
    return dot / (math.sqrt(sum(p * p for p in x)) * math.sqrt(sum(q * q for q in y)))


def simcse(z1, z2, z3):
    """-log exp(S_ii / tau) / sum_j exp(S_ij / tau)."""

    def row(i):
        total = sum(math.exp(cosine(z1[i], z2[j]) / TAU) for j in range(len(z2)))
        return -math.log(math.exp(cosine(z1[i], z2[i]) / TAU) / total)

    return [row(i) for i in range(len(z1))]


def supervised_simcse(z1, z2, z3):
    """The denominator also holds every contradiction, the row's own one exp(w) times."""

    def row(i):
        total = sum(math.exp(cosine(z1[i], z2[j]) / TAU) for j in range(len(z2)))
        total += sum(
            math.exp(cosine(z1[i], z3[j]) / TAU) * (math.exp(HARD_WEIGHT) if i == j else 1.0) for j in range(len(z3))
        )
        return -math.log(math.exp(cosine(z1[i], z2[i]) / TAU) / total)

    return [row(i) for i in range(len(z1))]


def clip(z1, z2, z3):
    """Half the image-to-text loss and half the text-to-image loss."""
    return [(p + q) / 2 for p, q in zip(simcse(z1, z2, z3), simcse(z2, z1, z3))]


def focal(z1, z2, z3):
    """Positive logit s^2 / tau, negative logit s (s + m) / tau."""

    def row(i):
        s = [cosine(z1[i], z2[j]) for j in range(len(z2))]
        top = math.exp(s[i] * s[i] / TAU)
        return -math.log(top / (top + sum(math.exp(s[j] * (s[j] + MARGIN) / TAU) for j in range(len(s)) if j != i)))

    return [row(i) for i in range(len(z1))]


def angular(z1, z2, z3):
    """Negative logit cos(t - m) / tau where the angle t is wider than m, else cos(t) / tau."""

    def row(i):
        s = [cosine(z1[i], z2[j]) for j in range(len(z2))]
        turned = [math.cos(math.acos(x) - MARGIN) if math.acos(x) > MARGIN else x for x in s]
        top = math.exp(s[i] / TAU)
        return -math.log(top / (top + sum(math.exp(turned[j] / TAU) for j in range(len(s)) if j != i)))

    return [row(i) for i in range(len(z1))]


FORMULAS = {
    "simcse": (simcse, {}),
    "supervised_simcse": (supervised_simcse, {"hard": True}),
    "clip": (clip, {"symmetric": True}),
    "focal": (focal, {"focal": True, "margin": MARGIN}),
    "angular": (angular, {"angular": True, "margin": MARGIN}),
}


def slope(formula, which, i, k, step=1e-6):
    """Central difference of the mean loss by element (i, k) of view `which`."""

    def mean(shift):
        views = [[row[:] for row in view] for view in (ANCHOR, CANDIDATE, CONTRADICTION)]
        views[which][i][k] += shift
        rows = formula(*views)
        return sum(rows) / len(rows)

    return (mean(step) - mean(-step)) / (2 * step)


def slopes(formula, which):
    return torch.tensor([[slope(formula, which, i, k) for k in range(3)] for i in range(4)])


def case_of(hard=False, **options):
    extras = (Extra(torch.tensor(CONTRADICTION), own_log_weight=HARD_WEIGHT),) if hard else ()
    return Case(torch.tensor(ANCHOR), torch.tensor(CANDIDATE), extras=extras, temperature=TAU, **options)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_and_gradient_are_the_typed_formula(run, name, reduction):
    formula, options = FORMULAS[name]
    rows = torch.tensor(formula(ANCHOR, CANDIDATE, CONTRADICTION))
    got = run(case_of(**options), reduction=reduction)
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    torch.testing.assert_close(got.loss.cpu(), expected, rtol=2e-6, atol=2e-6)
    scale = 4 if reduction == "sum" else 1
    for which, gradient in enumerate([got.danchor, got.dcandidate, *got.dextras]):
        torch.testing.assert_close(gradient.cpu(), scale * slopes(formula, which), rtol=1e-5, atol=1e-6)
