"""Formulas typed by hand in Python floats, vectors computed apart from this package, and invariants of the losses."""

import math
from dataclasses import replace

import pytest
import torch
from oracle import Case, Extra, make_rows

Z1 = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0]])
Z2 = torch.tensor([[4.0, 3, 0], [0, 4, 3], [4, 0, -3]])
Z3 = torch.tensor([[3.0, -4, 0], [0, 3, -4], [0, 0, 5]])
S = torch.tensor([[0.96, 0.64, 0.48], [0.36, 0.96, -0.48], [0.80, 0, 0.80]])

INFONCE, FOCAL, DETACHED = {}, {"focal": True}, {"focal": True, "detach": True}

ROWS = [
    (INFONCE, 1.0, [0.8522565865, 0.5798325562, 0.8958140948]),
    (INFONCE, 0.05, [1.7277925e-3, 6.1442e-6, 0.6931472368]),
    (FOCAL, 1.0, [0.8349577061, 0.6618537526, 1.0290984152]),
    (FOCAL, 0.05, [1.6778126e-3, 1.2008e-6, 4.8081960899]),
    (DETACHED, 1.0, [0.8349577061, 0.6618537526, 1.0290984152]),
]
MEANS = [
    (INFONCE, 1.0, 0.7759677459),
    (INFONCE, 0.05, 0.2316270578),
    (FOCAL, 1.0, 0.8419699579),
    (FOCAL, 0.05, 1.6032917011),
    ({"focal": True, "margin": 0.0}, 1.0, 0.7796828013),
    ({"focal": True, "margin": 0.0}, 0.05, 0.2310621294),
]
HARD = [
    (0.0, 1.0, 1.2899698501),
    (0.0, 0.05, 0.2480060440),
    (math.log(2), 1.0, 1.3788040849),
    (math.log(2), 0.05, 0.2480060626),
]
DS = [
    (
        INFONCE,
        [
            [-0.1911828265, 0.1032224537, 0.0879603728],
            [0.1024433983, -0.1466692914, 0.0442258931],
            [0.1360916962, 0.0611499409, -0.1972416371],
        ],
    ),
    (
        FOCAL,
        [
            [-0.3623085875, 0.1659373208, 0.1054352484],
            [0.0885079046, -0.3098277712, -0.0492334758],
            [0.2876943009, 0.0188416863, -0.3427578785],
        ],
    ),
    (
        DETACHED,
        [
            [-0.1811542937, 0.0987222035, 0.0652694395],
            [0.0572698206, -0.1549138856, -0.0134273116],
            [0.1665598584, 0.0188416863, -0.1713789393],
        ],
    ),
]
DZ = [
    (
        INFONCE,
        [
            [-0.0074853328, 0.0056139997, 0.0018314498],
            [0.0234670867, 0.0038442802, -0.0028832102],
            [0, 0.0261149941, 0.0310069893],
        ],
        [
            [0.0103216053, -0.0137621403, 0.0163909437],
            [0.0246166826, 0.0108737015, -0.0144982686],
            [-0.0070049611, 0.0193807668, -0.0093399482],
        ],
    ),
    (
        FOCAL,
        [
            [-0.0181788415, 0.0136341311, 0.0072602487],
            [0.0062839085, -0.0099187254, 0.007439044],
            [0, 0.037537986, 0.0433919478],
        ],
        [
            [0.0277895029, -0.0370526707, 0.0141612647],
            [0.0236808157, 0.0199682028, -0.0266242703],
            [-0.0239048955, 0.0109616226, -0.031873194],
        ],
    ),
]


def close(got, expected, rtol=2e-6, atol=2e-7):
    torch.testing.assert_close(got.cpu(), torch.as_tensor(expected, dtype=got.dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("options", "tau", "rows"), ROWS)
def test_rows(run, options, tau, rows):
    # The printed vectors carry the digits; a similarity rounded to float32 moves a logit by 2e-7 / tau.
    close(run(Case(Z1, Z2, temperature=tau, **options)).loss, rows, rtol=5e-5 if tau < 1 else 1e-6, atol=0)


@pytest.mark.parametrize(("options", "tau", "mean"), MEANS)
def test_mean(run, options, tau, mean):
    close(run(Case(Z1, Z2, temperature=tau, **options), reduction="mean").loss, mean)


@pytest.mark.parametrize(("weight", "tau", "mean"), HARD)
def test_hard_negatives(run, weight, tau, mean):
    case = Case(Z1, Z2, extras=(Extra(Z3, own_log_weight=weight),), temperature=tau)
    close(run(case, reduction="mean").loss, mean)


@pytest.mark.parametrize(("options", "ds"), DS)
def test_gradient_by_similarity(run, options, ds):
    # Candidates are the unit vectors, so the similarities are the anchors' own numbers and danchor is dL/dS.
    got = run(Case(S, torch.eye(3), temperature=1.0, normalize=False, **options), reduction="mean")
    close(got.danchor, ds)


@pytest.mark.interpreted_by_value
@pytest.mark.parametrize(("options", "dz1", "dz2"), DZ)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_by_views(run, options, dz1, dz2, reduction):
    got = run(Case(Z1, Z2, temperature=1.0, **options), reduction=reduction)
    close(got.danchor, dz1)
    close(got.dcandidate, dz2)


def test_a_negative_below_half_the_margin_is_pulled_back(run):
    got = run(Case(S, torch.eye(3), temperature=1.0, normalize=False, focal=True), reduction="mean")
    assert got.danchor[1, 2] < 0


# ---------------------------------------------------------------- formulas, without torch and numpy

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
def test_loss_and_gradient_are_the_typed_formula(run, name):
    formula, options = FORMULAS[name]
    rows = torch.tensor(formula(ANCHOR, CANDIDATE, CONTRADICTION))
    by_hand = [slopes(formula, which) for which in range(3)]
    for reduction, expected in {"mean": rows.mean(), "sum": rows.sum(), "none": rows}.items():
        got = run(case_of(**options), reduction=reduction)
        torch.testing.assert_close(got.loss.cpu(), expected, rtol=2e-6, atol=2e-6)
        for gradient, wanted in zip([got.danchor, got.dcandidate, *got.dextras], by_hand):
            scale = 4 if reduction == "sum" else 1
            torch.testing.assert_close(gradient.cpu(), scale * wanted, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- invariants

BOTH = pytest.mark.parametrize("options", [INFONCE, FOCAL], ids=["infonce", "focal"])


@pytest.mark.parametrize("batch", [2, 5])
def test_equal_similarities_give_log_of_the_columns(run, batch):
    rows = torch.tensor([[3.0, 4.0]]).repeat(batch, 1)
    close(run(Case(rows, rows)).loss, torch.full((batch,), math.log(batch)))
    close(run(Case(rows, rows, extras=(Extra(rows),))).loss, torch.full((batch,), math.log(2 * batch)))


def test_focal_with_equal_similarities(run):
    # One anchor direction at cosine 0.3 from one candidate direction: log(1 + (B - 1) exp(c m / tau)).
    anchor = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    candidate = torch.tensor([[0.3, math.sqrt(1 - 0.09)]]).repeat(4, 1)
    close(run(Case(anchor, candidate, focal=True)).loss, torch.full((4,), 2.9522474866))


@BOTH
def test_rescaling_a_row_changes_nothing_and_the_gradient_is_orthogonal(run, options):
    anchor, candidate, _ = make_rows("random", 6, 6, 5)
    one = run(Case(anchor, candidate, temperature=0.5, **options))
    stretch = torch.tensor([[0.01], [1], [3], [50], [1e4], [0.5]])
    two = run(Case(anchor * stretch, candidate * stretch.flip(0), temperature=0.5, **options))
    torch.testing.assert_close(two.loss, one.loss, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(two.danchor * stretch.to(two.loss.device), one.danchor, rtol=1e-5, atol=1e-6)
    for rows, gradient in ((anchor, one.danchor.cpu()), (candidate, one.dcandidate.cpu())):
        assert ((rows * gradient).sum(1).abs() <= 1e-6 * rows.norm(dim=1) * gradient.norm(dim=1) + 1e-7).all()


def test_rows_of_ds_sum_to_zero(run):
    s = make_rows("random", 7, 7, 7)[0] / 4
    ds = run(Case(s, torch.eye(7), temperature=0.5, normalize=False)).danchor
    close(ds.sum(1), torch.zeros(7))


def test_focal_rows_of_ds_over_the_slope_sum_to_zero(run):
    s = make_rows("random", 7, 7, 7)[0] / 4
    ds = run(Case(s, torch.eye(7), temperature=0.5, normalize=False, focal=True)).danchor.cpu()
    slope = torch.where(torch.eye(7, dtype=torch.bool), 2 * s, 2 * s + 0.3) / 0.5
    close((ds / slope).sum(1), torch.zeros(7), atol=2e-6)


def test_focal_on_orthogonal_rows_is_infonce(run):
    # Where every cosine is 0 or 1 and the margin is 0, the squared cosine is the cosine.
    eye = torch.eye(5)
    plain = run(Case(eye, eye, temperature=0.5)).loss
    torch.testing.assert_close(run(Case(eye, eye, temperature=0.5, focal=True, margin=0.0)).loss, plain)


def test_focal_without_margin_does_not_see_the_sign_of_a_view(run):
    anchor, candidate, _ = make_rows("random", 6, 6, 5)
    one, two = (run(Case(anchor, sign * candidate, focal=True, margin=0.0)).loss for sign in (1, -1))
    torch.testing.assert_close(one, two)
    assert (one - run(Case(anchor, candidate)).loss).abs().max() > 1e-2


def test_full_over_detached_gradient_is_two_on_positives(run):
    s = make_rows("random", 6, 6, 6)[0] / 4
    case = Case(s, torch.eye(6), temperature=0.5, normalize=False, focal=True)
    full, half = (run(replace(case, detach=detach)) for detach in (False, True))
    torch.testing.assert_close(full.loss, half.loss)
    ratio = (full.danchor / half.danchor).cpu()
    close(ratio.diagonal(), torch.full((6,), 2.0), rtol=1e-5)
    expected = (2 * s + 0.3) / (s + 0.3)
    off = ~torch.eye(6, dtype=torch.bool) & ((s + 0.3).abs() > 0.02)
    close(ratio[off], expected[off], rtol=1e-4)


@pytest.mark.interpreted
def test_a_tie_with_the_positive_is_no_hit_and_of_equal_negatives_the_lowest_column_counts(run):
    """Columns 40, 50 and 75 of 80: in the interpreter of three tiles."""
    candidate = torch.eye(2)[:1].repeat(80, 1)
    candidate[[40, 50, 75]] = torch.tensor([0.0, 1.0])
    case = Case(torch.tensor([[0.0, 1.0]] * 2), candidate, torch.tensor([40, 3]))
    stats = run(case, return_stats=True, grad=False).stats
    assert stats.hardest_index.tolist() == [50, 40]
    assert stats.accuracy == 0
