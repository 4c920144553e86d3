"""Random shapes and options: every backend equals the oracle; permutation, scale and shift change what they should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Case, Extra
from yardstick import assert_rule

INTERPRETED = settings(max_examples=25)
NATIVE = settings(max_examples=100)
LARGEST = {"reference": 40, "cpp": 90, "triton": 9}


@st.composite
def cases(draw, largest):
    """A case of up to `largest` rows with any mix of options, and an upstream gradient."""
    size = st.integers(1, largest)
    n, m, d = draw(size), draw(size), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def rows(count):
        return torch.randn(count, d, generator=g).to(dtype)

    def ids(count):
        return torch.randint(0, draw(st.sampled_from([2, 5, 100])), (count,), generator=g)

    masked = draw(st.booleans())

    def extra(k):
        weight = torch.randn(k, generator=g) if draw(st.booleans()) else None
        own = draw(st.sampled_from([0.0, 0.7, -2.0]))
        return Extra(rows(k), weight, own, ids(k) if masked and draw(st.booleans()) else None, draw(st.booleans()))

    extras = tuple(extra(max(n, draw(size))) for _ in range(draw(st.integers(0, 2))))
    focal = draw(st.booleans())
    in_batch = masked and (draw(st.booleans()) or all(e.id is None for e in extras))
    case = Case(
        rows(n),
        rows(m),
        torch.randint(0, m, (n,), generator=g),
        extras,
        focal=focal,
        temperature=draw(st.sampled_from([0.02, 0.05, 0.3, 1.0])),
        symmetric=draw(st.booleans()),
        margin=draw(st.sampled_from([0.0, 0.3, -0.2])),
        detach=focal and draw(st.booleans()),
        anchor_id=ids(n) if masked else None,
        candidate_id=ids(m) if in_batch else None,
    )
    return case, torch.randn(n, generator=g)


def check(run, drawn, reduction, learn):
    case, upstream = drawn
    if reduction == "mean":
        upstream = None
    # A learnable temperature is checked in float32 only: in half precision the yardstick's own gradient may overflow.
    got = run(case, reduction=reduction, upstream=upstream, learn=learn and case.anchor.dtype == torch.float32)
    assert_rule(case, got, upstream, reduction)


choices = {"reduction": st.sampled_from(["mean", "none"]), "learn": st.booleans()}


@NATIVE
@given(drawn=cases(LARGEST["cpp"]), **choices)
@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_cpp_equals_the_oracle(run, drawn, reduction, learn):
    check(run, drawn, reduction, learn)


@NATIVE
@given(drawn=cases(LARGEST["reference"]), **choices)
@pytest.mark.parametrize("backend", ["reference"], indirect=True)
def test_reference_equals_the_oracle(run, drawn, reduction, learn):
    check(run, drawn, reduction, learn)


@INTERPRETED
@given(drawn=cases(LARGEST["triton"]), **choices)
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_triton_equals_the_oracle(run, drawn, reduction, learn):
    check(run, drawn, reduction, learn)


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
@given(shape=shapes, exponent=st.integers(-12, 12), **flags)
def test_a_power_of_two_in_length_changes_nothing(run, shape, exponent, focal, symmetric):
    case, _ = random_case(shape, focal=focal, symmetric=symmetric)
    factor = 2.0**exponent
    one = run(case)
    two = run(
        Case(
            case.anchor * factor,
            case.candidate / factor,
            case.positive,
            focal=focal,
            symmetric=symmetric,
            temperature=0.3,
        )
    )
    assert_same(two.loss, one.loss)
    assert_same(two.danchor * factor, one.danchor, float(one.danchor.abs().max()) + 1)
    assert_same(two.dcandidate / factor, one.dcandidate, float(one.dcandidate.abs().max()) + 1)


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
