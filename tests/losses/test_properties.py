"""Random shapes and options: every backend equals the oracle; permutation, scale and shift change what they should."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Case, Extra
from random_cases import LARGEST, cases, check, choices


@settings(max_examples=40)
@given(data=st.data(), **choices)
def test_every_backend_equals_the_oracle(run, backend, data, reduction, learn):
    check(run, data.draw(cases(LARGEST[backend])), reduction, learn)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1000))
flags = {"focal": st.booleans(), "symmetric": st.booleans()}
FEW = settings(max_examples=8)


def random_case(shape, **options):
    n, m, d, seed = shape
    g = torch.Generator().manual_seed(seed)
    return Case(
        torch.randn(n, d, generator=g),
        torch.randn(m, d, generator=g),
        torch.randint(0, m, (n,), generator=g),
        temperature=0.3,
        **options,
    ), g


def assert_same(got, expected, scale=1.0):
    torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=2e-5, atol=4e-6 * scale)


@FEW
@given(shape=shapes, **flags)
def test_permutations_of_anchors_and_of_candidates(run, shape, focal, symmetric):
    case, g = random_case(shape, focal=focal, symmetric=symmetric)
    of_n, of_m = torch.randperm(shape[0], generator=g), torch.randperm(shape[1], generator=g)
    moved = Case(
        case.anchor[of_n],
        case.candidate[of_m],
        of_m.argsort()[case.positive[of_n]],
        focal=focal,
        symmetric=symmetric,
        temperature=0.3,
    )
    one, two = run(case), run(moved)
    assert_same(two.loss, one.loss.cpu()[of_n])
    assert_same(two.danchor, one.danchor.cpu()[of_n], float(one.danchor.abs().max()) + 1)
    assert_same(two.dcandidate, one.dcandidate.cpu()[of_m], float(one.dcandidate.abs().max()) + 1)


@FEW
@given(shape=shapes)
def test_a_shift_of_all_candidates_changes_no_plain_loss(run, shape):
    # Every logit of a row moves by <anchor, shift>, so the softmax stays; so does the sum of the row's gradient by it.
    case, g = random_case(shape, normalize=False)
    shift = torch.randn(shape[2], generator=g)
    one = run(case)
    two = run(Case(case.anchor, case.candidate + shift, case.positive, temperature=0.3, normalize=False))
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two.dcandidate, one.dcandidate, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two.danchor, one.danchor, rtol=1e-3, atol=1e-4)


@FEW
@given(shape=shapes, amount=st.floats(-5, 5), focal=st.booleans())
def test_a_log_weight_on_every_block_column_is_a_multiplicity(run, shape, amount, focal):
    # Between no block (weight -inf) and a heavier one the loss only grows.
    case, g = random_case(shape, focal=focal)
    rows = torch.randn(4, shape[2], generator=g)
    case.extras = (Extra(rows, torch.full((4,), amount)),)
    light = run(case).loss
    case.extras = (Extra(rows, torch.full((4,), amount + 1)),)
    heavy = run(case).loss
    case.extras = ()
    assert (run(case).loss <= light + 1e-5).all()
    assert (light <= heavy + 1e-5).all()
