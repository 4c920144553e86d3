"""The accuracy rule over dtypes, data, temperatures and shapes; and where the formula or float32 has no answer."""

import numpy as np
import pytest
import torch
from oracle import Case, Extra, make_rows, oracle, to64
from yardstick import assert_rule, assert_within

import fastcse

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["random", "clustered", "anisotropic"]
TEMPERATURES = [0.05, 0.01, *(pytest.param(t, marks=pytest.mark.whole) for t in (0.1, 0.02))]
SHAPES = [
    (1, 1, 1),
    (13, 17, 7),
    (64, 64, 64),
    (65, 65, 33),
    (128, 128, 16),
    (129, 129, 33),
    (150, 7, 12),
    (7, 150, 12),
]
LARGE = [(257, 251, 127), (512, 513, 64), (700, 40, 33), (40, 700, 33)]

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t)[6:])
every_kind = pytest.mark.parametrize("kind", KINDS)
every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def label(shape):
    return "x".join(map(str, shape))


def make_case(kind, shape, dtype, **options):
    anchor, candidate, positive = make_rows(kind, *shape, dtype, seed=sum(shape))
    hard = make_rows(kind, 5, 1, shape[2], dtype, seed=1)[0]
    return Case(anchor, candidate, positive, extras=(Extra(hard),), **options)


@every_loss
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_shapes(run, shape, dtype, focal):
    case = make_case("random", shape, dtype, focal=focal)
    assert_rule(case, run(case, reduction="mean"), reduction="mean")


@every_loss
@every_dtype
@every_kind
@every_temperature
def test_temperatures(run, kind, temperature, dtype, focal):
    case = make_case(kind, (48, 40, 33), dtype, focal=focal, temperature=temperature)
    upstream = torch.linspace(-1, 2, 48)
    assert_rule(case, run(case, upstream=upstream), upstream)
    assert_rule(case, run(case, reduction="mean"), reduction="mean")


@every_loss
@every_kind
@every_dtype
def test_symmetric(run, kind, dtype, focal):
    case = make_case(kind, (17, 20, 17), dtype, focal=focal, symmetric=True, temperature=0.02)
    assert_rule(case, run(case, reduction="mean"), reduction="mean")


@every_loss
@every_dtype
@pytest.mark.parametrize("shape", LARGE, ids=label)
def test_large_shapes(run, backend, device, shape, dtype, focal):
    if backend == "triton" and device.type == "cpu":
        pytest.skip("the interpreter is slow; these sizes run in the GPU lane")
    case = make_case("anisotropic", shape, dtype, focal=focal)
    upstream = torch.linspace(-1, 2, shape[0])
    assert_rule(case, run(case, upstream=upstream), upstream)
    assert_rule(case, run(case, reduction="mean"), reduction="mean")


@every_loss
@every_temperature
@every_kind
def test_half_precision_keeps_three_digits_of_the_gradient(run, backend, device, kind, temperature, focal):
    # Stricter than the rule, whose yardstick rounds its logits: rows are exact bf16 numbers, so what is left is the
    # rounding of the weights and of the result, 2^-9 each. The interpreter's bf16 stores cut off instead of rounding,
    # all one way, so that sums which nearly cancel keep more of it.
    case = make_case(kind, (32, 32, 32), torch.bfloat16, focal=focal, temperature=temperature, normalize=False)
    for rows in (case.anchor, case.candidate, case.extras[0].rows):
        rows.copy_(torch.nn.functional.normalize(rows.float(), dim=1))
    got, exact = run(case, reduction="mean"), oracle(case)
    allowed = 2e-2 if backend == "triton" and device.type == "cpu" else 4e-3
    for name in ("danchor", "dcandidate"):
        truth = getattr(exact, name)
        error = np.linalg.norm(to64(getattr(got, name)) - truth) / np.linalg.norm(truth)
        assert error <= allowed, f"{name}: relative error {error:.2e} > {allowed}"


def test_a_loss_of_one_millionth_keeps_its_digits(run):
    candidate = torch.randn(32, 24)
    case = Case(candidate + 0.3 * torch.randn(32, 24), candidate, temperature=0.04)
    exact, got = oracle(case).loss, to64(run(case).loss)
    small = exact < 1e-3
    assert small.sum() > 8, "the data must hold small losses"
    assert exact.min() < 2e-6
    np.testing.assert_allclose(got[small], exact[small], rtol=2e-5)


@every_loss
@pytest.mark.parametrize("workspace", [1 << 12, 1 << 16])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}], ids=["one_way", "symmetric"])
def test_small_workspace_gives_the_same_answer(run, workspace, options, focal):
    case = make_case("clustered", (40, 66, 9), torch.float32, focal=focal, **options)
    assert_rule(case, run(case, reduction="mean", max_workspace_bytes=workspace), reduction="mean")


@every_dtype
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 14, 5), (65, 129, 33)], ids=label)
def test_similarity(forced, device, dtype, normalize, shape):
    anchor, candidate, _ = make_rows("clustered", *shape, dtype)
    weight = torch.randn(shape[:2]).to(dtype)

    def answers(similarity, cast):
        leaves = [cast(z).detach().requires_grad_() for z in (anchor, candidate)]
        s = similarity(*leaves)
        (s * cast(weight)).sum().backward()
        return [s.detach(), leaves[0].grad, leaves[1].grad]

    def eager(a, c):
        rows = [torch.nn.functional.normalize(z, dim=1) if normalize else z for z in (a, c)]
        return rows[0] @ rows[1].T

    got = answers(lambda a, c: forced(fastcse.similarity, a, c, normalize=normalize), lambda z: z.to(device))
    exact, stick = answers(eager, torch.Tensor.double), answers(eager, lambda z: z)
    for name, one, truth, yard in zip(("similarity", "danchor", "dcandidate"), got, exact, stick):
        assert_within(one, to64(truth), [yard], name, terms=float(weight.abs().sum()) / 4)


# ---------------------------------------------------------------- degenerate rows


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12])
def test_rows_almost_zero_stay_finite(run, size):
    anchor, candidate, _ = make_rows("random", 5, 5, 4)
    anchor[2] *= size
    got = run(Case(anchor, candidate, temperature=0.5))
    for value in (got.loss, got.danchor, got.dcandidate):
        assert value.isfinite().all()


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_one_pair_alone_has_no_loss(run, focal, reduction, symmetric):
    got = run(Case(torch.randn(1, 7), torch.randn(1, 7), focal=focal, symmetric=symmetric), reduction=reduction)
    assert (got.loss == 0).all()
    assert (got.danchor == 0).all()
    assert (got.dcandidate == 0).all()


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
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
@pytest.mark.parametrize("reduction", ["mean", "none"])
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
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_long_rows_without_normalisation(run, focal, reduction, symmetric):
    anchor, candidate, positive = make_rows("random", 11, 13, 6)
    case = Case(20 * anchor, 10 * candidate, positive, focal=focal, normalize=False, symmetric=symmetric)
    assert_rule(case, run(case, reduction=reduction), reduction=reduction)
