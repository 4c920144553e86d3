"""quadruplet_loss against a float64 oracle on every backend: values, gradients, degenerate rows, manners."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE, slack_of
from row_oracle import NAMES, Quad, published, quadruplet, settled_quad
from yardstick import assert_within

import fastcse

every_place = pytest.mark.parametrize("index", [False, True], ids=["rows", "index"])
FORMS = {
    "weighted": {},
    "margin": {"margin": 0.3, "weights": (0.5, 0.7)},
    "classic": {"form": "classic", "margin": 0.1},
    "two margins": {"form": "classic", "margin": (0.4, -0.1)},
}
every_form = pytest.mark.parametrize("form", FORMS)
both_forms = pytest.mark.parametrize("form", ["margin", "two margins"])


# ---------------------------------------------------------------- how a case is run


def placed(case, device, needs=NAMES):
    """Leaves by name, the four positional arguments, and the keywords of a `Quad`. Never cloned: strides are part of
    the case."""
    leaves = {name: z.detach().to(device).requires_grad_(name in needs) for name, z in case.rows().items()}
    options = {name: getattr(case, name) for name in ("margin", "form", "normalize")}
    if case.form == "weighted":
        options["weights"] = case.weights
    third = leaves["negative"]
    if case.candidate is not None:
        third, options["candidate"] = case.batch_negative.to(device), third
    return leaves, (leaves["anchor"], leaves["positive"], third, leaves["corpus"]), options


@pytest.fixture
def ask(forced, device):
    """Loss and gradients, by name, of a `Quad` on the forced backend; `upstream` is what arrives in backward."""

    def go(case, *, reduction="none", upstream=None, needs=NAMES):
        leaves, arguments, options = placed(case, device, needs)
        loss = forced(fastcse.quadruplet_loss, *arguments, reduction=reduction, **options)
        if upstream is None:
            upstream = torch.full_like(loss, 1 / len(case.anchor) if reduction == "none" else 1.0)
        loss.backward(torch.as_tensor(upstream, device=device, dtype=loss.dtype))
        # What has weight 0 may be left out of the graph: autograd then leaves None where the gradient is 0.
        nothing = {name: torch.zeros_like(leaf) for name, leaf in leaves.items() if name in needs}
        return loss.detach(), {n: nothing.get(n) if leaf.grad is None else leaf.grad for n, leaf in leaves.items()}

    return go


def eager_rows(case, rows):
    """(N,) losses as plain torch writes them, in the dtype of `rows`."""
    if case.normalize:
        rows = {name: F.normalize(z, dim=1) for name, z in rows.items()}
    number = torch.as_tensor(case.numbers())
    third = rows["negative"][number.clamp_min(0)]
    s = {name: (rows["anchor"] * z).sum(1) for name, z in zip(NAMES[1:], (rows["positive"], third, rows["corpus"]))}
    s["negative"] = s["negative"].masked_fill(number < 0, -torch.inf)
    loss = 0
    for coefficients, margin in case.hinges():
        loss = loss + F.relu(sum(c * s[name] for name, c in coefficients.items() if c != 0) + margin)
    return loss


def eager(case, upstream, dtype, order):
    """Rows and gradients of plain torch with the features in another order."""
    leaves = {name: z.detach().cpu().to(dtype)[:, order].requires_grad_() for name, z in case.rows().items()}
    loss = eager_rows(case, leaves)
    grads = torch.autograd.grad((loss * upstream.to(loss.dtype)).sum(), [*leaves.values()], allow_unused=True)
    back = order.argsort()
    return loss.detach(), {
        name: torch.zeros_like(leaf) if g is None else g[:, back] for g, (name, leaf) in zip(grads, leaves.items())
    }


def assert_rule(case, got, upstream=None, reduction="none", slack=2.0):
    """Loss and every gradient against the oracle: no more than twice what plain torch misses, and 2 ulp."""
    n, width, dtype = *case.anchor.shape, case.anchor.dtype
    by_row = {"none": 1 / n, "mean": 1 / n, "sum": 1.0}[reduction]
    factor = torch.as_tensor(1.0 if upstream is None else upstream, dtype=torch.float64)
    weight = factor.expand(n) if reduction == "none" and upstream is not None else (by_row * factor).expand(n)
    exact = quadruplet(case, weight)
    orders = [torch.randperm(width, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    sticks = [eager(case, weight, dtype, order) for order in [torch.arange(width), *orders]]
    reduce = {"none": lambda r: r, "mean": lambda r: r.mean(), "sum": lambda r: r.sum()}[reduction]
    loss, grads = got
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    size = (n if reduction == "sum" else 1) * exact.loss_terms.max(initial=0)
    assert_within(loss, np.asarray(reduce(exact.loss)), [reduce(s[0]) for s in sticks], "loss", size, slack)
    for name in NAMES:
        assert grads[name].dtype == dtype, name
        yard = [s[1][name] for s in sticks]
        assert_within(grads[name], exact.grads[name], yard, f"d{name}", exact.terms[name], slack)


# ---------------------------------------------------------------- values and gradients

SHAPES = [(1, 1, 1), (1, 4, 3), (2, 5, 17), (2, 2, 384), (63, 7, 3), (64, 64, 96), (65, 130, 17), (130, 65, 384)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(ask, backend, shape):
    upstream = torch.linspace(-1, 2, shape[0])
    # The interpreter, a program a row, takes the long ones in one of the two forms.
    both = backend != "triton" or DEVICE != "cpu" or shape[0] < 10
    for index in (False, True) if both else (shape[0] % 2 == 0,):
        case = settled_quad(*shape, index=index)
        assert_rule(case, ask(case, upstream=upstream), upstream)


@every_place
@every_form
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "raw"])
def test_any_form(ask, form, index, normalize):
    case = settled_quad(20, 9, 6, index=index, normalize=normalize, **FORMS[form])
    assert 0 < quadruplet(case).active.sum() < 20
    assert_rule(case, ask(case))


@every_place
@pytest.mark.parametrize(
    ("form", "dtype"), zip(FORMS, [torch.float16, torch.bfloat16, torch.bfloat16, torch.float16]), ids=str
)
def test_half_precision(ask, backend, form, index, dtype):
    case = settled_quad(24, 7, 33, index=index, dtype=dtype, **FORMS[form])
    upstream = torch.linspace(-1, 2, 24)
    assert_rule(case, ask(case, upstream=upstream), upstream, slack=slack_of(backend, dtype))
    assert_rule(case, ask(case, reduction="mean"), None, "mean", slack=slack_of(backend, dtype))


@every_place
@pytest.mark.parametrize("weights", [(0.0, 0.5), (1.3, 0.0), (0.0, 0.0), (1.0, 1.0)], ids=str)
def test_weights(ask, weights, index):
    case = settled_quad(20, 9, 6, index=index, weights=weights, margin=0.2)
    got = ask(case)
    assert_rule(case, got)
    for name, weight in zip(("negative", "corpus"), weights):
        assert (got[1][name] == 0).all() == (weight == 0), name


@pytest.mark.parametrize("margin", [0.0, 0.25, (0.4, -0.1)], ids=str)
def test_minus_one_switches_off_its_own_hinge_and_not_the_row(ask, margin):
    case = settled_quad(12, 5, 6, index=True, form="classic", margin=margin)
    case.batch_negative[:] = -1
    loss, grads = ask(case)
    second = margin[1] if isinstance(margin, tuple) else margin
    alone = replace(case, form="weighted", weights=(0.0, 1.0), margin=second)
    torch.testing.assert_close(loss, ask(alone)[0], rtol=1e-6, atol=1e-7)
    assert (loss > 0).any()
    assert (grads["negative"] == 0).all()


@every_form
def test_minus_one_has_no_batch_negative(ask, form):
    case = settled_quad(12, 5, 6, index=True, **FORMS[form])
    case.batch_negative[::2] = -1
    got = ask(case)
    assert_rule(case, got)
    if case.form == "weighted":
        assert (got[0][::2] == 0).all()
        assert (got[1]["anchor"][::2] == 0).all()


def test_minus_one_is_no_matter_where_its_weight_is_zero(ask):
    case = settled_quad(12, 5, 6, index=True, weights=(0.0, 0.8), margin=0.4)
    case.batch_negative[::2] = -1
    got = ask(case)
    assert (got[0][::2] > 0).any()
    assert_rule(case, got)


@every_place
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_row_picked_by_everybody_gets_the_same_bits_twice(ask, backend, index, dtype):
    n, d = (24, 5) if backend == "triton" else (700, 24)
    case = settled_quad(n, 3, d, index=index, dtype=dtype, margin=1.0)
    if index:
        case.batch_negative[:] = torch.arange(n) % 2
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, two = ask(case), ask(case)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0])
    for name in NAMES:
        assert torch.equal(one[1][name], two[1][name]), name
    if index:
        assert (one[1]["negative"][2] == 0).all()
    assert_rule(case, one, slack=slack_of(backend, dtype))


# ---------------------------------------------------------------- the published vectors


def test_published_vectors(ask):
    case = published((0.9, 0.5))
    fields = ("anchor", "positive", "corpus_negative", "candidate")
    case = replace(case, **{name: getattr(case, name).float() for name in fields})
    close = dict(rtol=2e-5, atol=2e-7)
    rows = torch.tensor([0.0663078728, 0, 0.1926662156])
    torch.testing.assert_close(ask(case)[0].cpu(), rows, **close)
    loss, grads = ask(case, reduction="mean")
    torch.testing.assert_close(loss.cpu(), torch.tensor(0.0863246961), **close)
    dz1 = [[-0.0310545325, 0.0232908993, 0.0475612145], [0, 0, 0], [0, 0.0618791894, 0.0503969475]]
    dz2 = [[0.0216, -0.0288, 0], [0.036, 0.01728, -0.02304], [0, 0, 0]]
    torch.testing.assert_close(grads["anchor"].cpu(), torch.tensor(dz1), **close)
    torch.testing.assert_close(grads["negative"].cpu(), torch.tensor(dz2), **close)
    loss, grads = ask(replace(case, weights=(0.9, 0.11)), reduction="mean")
    assert loss == 0
    assert all((g == 0).all() for g in grads.values())
    loss, _ = ask(replace(case, weights=(0.9, 0.11), margin=0.05), reduction="mean")
    torch.testing.assert_close(loss.cpu(), torch.tensor(0.0100453346), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- degenerate rows


@every_place
@both_forms
def test_inactive_hinges_have_no_loss_and_no_gradient(ask, form, index):
    case = settled_quad(11, 4, 6, index=index, **FORMS[form])
    case.margin = (-5.0, -5.0) if isinstance(case.margin, tuple) else -5.0
    loss, grads = ask(case)
    assert (loss == 0).all()
    assert not loss.signbit().any()
    for name in NAMES:
        assert (grads[name] == 0).all(), name


@pytest.mark.parametrize("form", ["weighted", "classic"])
def test_a_hinge_at_its_corner_has_no_gradient(ask, form):
    # Exact cosines: 0 against 0, and 1 against 1.
    eye = torch.eye(4)
    rows = Quad(eye, eye.roll(1, 0), eye.roll(1, 0), eye.roll(1, 0), weights=(1.0, 0.0), form=form)
    for case in (rows, replace(rows, positive=eye, batch_negative=2 * eye, corpus_negative=4 * eye)):
        loss, grads = ask(case)
        assert (loss == 0).all()
        assert all((g == 0).all() for g in grads.values())
        assert (ask(replace(case, margin=0.5))[0] > 0).all()


@every_place
@both_forms
def test_rows_shorter_than_1e_8_have_similarity_zero_and_gradient_zero(ask, form, index):
    case = settled_quad(8, 6, 5, index=index, **FORMS[form])
    if index:
        case.batch_negative[:] = torch.arange(8) % 6
    case.margin = (2.5, 2.6) if isinstance(case.margin, tuple) else 2.5
    for k, rows in enumerate(case.rows().values()):
        rows[k] *= 1e-10
    loss, grads = ask(case)
    exact = quadruplet(case)
    torch.testing.assert_close(loss.cpu(), torch.tensor(exact.loss, dtype=torch.float32), rtol=1e-6, atol=1e-6)
    for k, name in enumerate(NAMES):
        assert (grads[name][k] == 0).all(), name
        truth = torch.tensor(exact.grads[name], dtype=torch.float32)
        torch.testing.assert_close(grads[name].cpu(), truth, rtol=1e-5, atol=1e-6)
        assert (truth != 0).any()


@every_place
@pytest.mark.parametrize("size", [1e-6, 1e15])
def test_the_length_of_a_row_is_no_matter(ask, index, size):
    case = settled_quad(7, 7, 6, index=index, margin=0.5)
    expected, by_row = ask(case)
    long = {name: z * size for name, z in case.rows().items()}
    third = {"candidate": long["negative"]} if index else {"batch_negative": long["negative"]}
    loss, grads = ask(
        replace(case, anchor=long["anchor"], positive=long["positive"], corpus_negative=long["corpus"], **third)
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name in NAMES:
        torch.testing.assert_close(grads[name] * size, by_row[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_whose_squares_leave_the_range_of_float32(ask, backend, name):
    # Plain torch takes its length for infinite and its cosine for 0; nobody may make a NaN of it.
    case = settled_quad(5, 5, 6, margin=1.5)
    expected, _ = ask(case)
    case.rows()[name][2] *= 1e20
    loss, grads = ask(case)
    others = torch.arange(5) != 2
    torch.testing.assert_close(loss[others], expected[others], rtol=1e-6, atol=1e-6)
    for gradient in grads.values():
        assert gradient.isfinite().all()
    if backend == "reference":
        assert loss.isfinite().all()
    else:
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@every_place
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_row_spoils_its_own_loss_only(ask, index, name):
    for form, bad, normalize in (("margin", torch.nan, True), ("margin", -torch.inf, False),
                                 ("two margins", -torch.inf, True), ("two margins", torch.nan, False)):  # fmt: skip
        case = settled_quad(7, 4, 5, index=index, normalize=normalize, **FORMS[form])
        if index:
            case.batch_negative[:] = torch.tensor([0, 1, 3, 2, 0, 3, 1])  # only anchor 3 has number 2
        clean, by_row = ask(case)
        place = 2 if index and name == "negative" else 3
        case.rows()[name][place, 1] = bad
        loss, grads = ask(case)
        others = torch.arange(7) != 3
        assert loss[3].isnan()
        torch.testing.assert_close(loss[others], clean[others], rtol=1e-6, atol=1e-6)
        for each in NAMES:
            rest = torch.arange(len(grads[each])) != (2 if index and each == "negative" else 3)
            torch.testing.assert_close(grads[each][rest], by_row[each][rest], rtol=1e-5, atol=1e-6)
        assert ask(case, reduction="mean")[0].isnan()


@pytest.mark.parametrize("form", ["weighted", "classic"])
def test_bad_rows_of_candidate_that_nobody_picked_spoil_nothing(ask, form):
    case = settled_quad(7, 4, 5, index=True, form=form)
    case.batch_negative[:] = torch.tensor([0, 1, -1, 1, 0, 0, 1])
    clean, _ = ask(case)
    case.candidate[2], case.candidate[3] = torch.nan, torch.inf
    loss, grads = ask(case)
    torch.testing.assert_close(loss, clean, rtol=0, atol=0)
    assert all(g.isfinite().all() for g in grads.values())
    assert (grads["negative"][2:] == 0).all()


@pytest.mark.parametrize("options", [{}, {"form": "classic"}, {"weights": (0.0, 1.0)}], ids=str)
def test_minus_one_reads_no_candidate(ask, options):
    # The last two still have a hinge that is active without a batch negative.
    case = settled_quad(7, 4, 5, index=True, margin=2.5, **options)
    case.batch_negative[:] = torch.tensor([1, -1, -1, 1, 2, -1, 3])
    clean, by_row = ask(case)
    case.candidate[0] = torch.nan
    loss, grads = ask(case)
    torch.testing.assert_close(loss, clean, rtol=0, atol=0)
    for name in NAMES:
        torch.testing.assert_close(grads[name], by_row[name], rtol=0, atol=0)


# ---------------------------------------------------------------- manners


def test_one_tensor_in_every_place(forced, device):
    leaf = torch.randn(5, 6, device=device, requires_grad=True)
    copies = [leaf.detach().clone().requires_grad_() for _ in range(4)]
    turned = [3, 1, 4, 0, 2]
    forced(fastcse.quadruplet_loss, leaf, leaf[turned], leaf.roll(1, 0), leaf, margin=0.5).backward()
    a, p, n, c = copies
    forced(fastcse.quadruplet_loss, a, p[turned], n.roll(1, 0), c, margin=0.5).backward()
    torch.testing.assert_close(leaf.grad, sum(c.grad for c in copies), rtol=1e-5, atol=1e-6)


def test_rows_without_columns_are_refused():
    with pytest.raises(ValueError, match=r"anchor.*\(4, 0\)"):
        fastcse.quadruplet_loss(*[torch.randn(4, 0)] * 4)


@pytest.mark.parametrize("weights", [[0.9, 0.11], (1, 0)], ids=str)
def test_weights_may_be_a_list_or_whole_numbers(weights):
    rows = [torch.randn(4, 3) for _ in range(4)]
    expected = fastcse.quadruplet_loss(*rows, margin=1, weights=tuple(float(w) for w in weights))
    torch.testing.assert_close(fastcse.quadruplet_loss(*rows, margin=1, weights=weights), expected)
    with pytest.raises(TypeError):
        fastcse.quadruplet_loss(*rows, None)
