"""Degenerate rows, bad arguments, hostile memory layouts and autograd manners, on every backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import Case, Extra, assert_rule, make_rows, oracle

import fastcse

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])
LOSSES = [fastcse.infonce_loss, fastcse.focal_infonce_loss]


def weigh(loss):
    """A scalar of a loss whatever its reduction; rows get different weights."""
    return loss if loss.dim() == 0 else (loss * torch.linspace(0.5, 2, len(loss), device=loss.device)).sum()


# ---------------------------------------------------------------- degenerate rows

@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_rows_have_similarity_zero_and_gradient_zero(run, focal, reduction, symmetric):
    anchor, candidate, _ = make_rows("random", 6, 6, 5)
    hard = torch.randn(4, 5)
    for rows, k in ((anchor, 1), (candidate, 3), (hard, 2)):
        rows[k] = 0
    case = Case(anchor, candidate, extras=(Extra(hard),), focal=focal, symmetric=symmetric, temperature=0.5)
    got, exact = run(case, reduction=reduction), oracle(case)
    expected = exact.loss if reduction == "none" else exact.loss.mean()
    torch.testing.assert_close(got.loss.cpu(), torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-6)
    for gradient, truth, k in ((got.danchor, exact.danchor, 1), (got.dcandidate, exact.dcandidate, 3),
                               (got.dextras[0], exact.dextras[0], 2)):
        assert (gradient[k] == 0).all()
        torch.testing.assert_close(gradient.cpu(), torch.tensor(truth, dtype=torch.float32), rtol=1e-5, atol=1e-6)


def test_similarity_of_a_zero_row_is_zero(forced, device):
    anchor = torch.tensor([[0.0, 0], [3, 4]], device=device, requires_grad=True)
    s = forced(fastcse.similarity, anchor, torch.tensor([[1.0, 0], [0, 0]], device=device))
    torch.testing.assert_close(s.detach().cpu(), torch.tensor([[0.0, 0], [0.6, 0]]))
    s.sum().backward()
    assert (anchor.grad[0] == 0).all()
    assert anchor.grad.isfinite().all()


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
    case = Case(torch.randn(5, 4), torch.randn(5, 4), extras=(Extra(torch.randn(5, 4), id=same),), anchor_id=same,
                candidate_id=same, focal=focal, symmetric=symmetric)
    got = run(case, reduction=reduction, return_stats=True)
    assert (got.loss == 0).all()
    for gradient in (got.danchor, got.dcandidate, got.dextras[0]):
        assert (gradient == 0).all()
    assert float(got.stats.masked_share) == 1
    assert float(got.stats.accuracy) == 1
    assert (got.stats.hardest_index == -1).all()
    assert (got.stats.hardest_similarity == -torch.inf).all()


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_bad_anchor_row_spoils_its_own_loss_only(forced, device, focal, bad, normalize):
    anchor, candidate, _ = make_rows("random", 7, 7, 5)
    function = LOSSES[focal]
    options = dict(reduction="none", temperature=0.5, normalize=normalize)
    clean = forced(function, anchor.to(device), candidate.to(device), **options).cpu()
    anchor[3, 2] = bad
    with torch.no_grad():
        got = forced(function, anchor.to(device), candidate.to(device), **options).cpu()
    others = torch.arange(7) != 3
    assert got[3].isnan()
    torch.testing.assert_close(got[others], clean[others], rtol=1e-6, atol=1e-6)
    leaf = anchor.to(device).requires_grad_()
    got = forced(function, leaf, candidate.to(device), **options)
    assert got[3].isnan()
    torch.testing.assert_close(got.detach().cpu()[others], clean[others], rtol=1e-6, atol=1e-6)
    got.sum().backward()
    assert leaf.grad.cpu()[others].isfinite().all()
    assert forced(function, anchor.to(device), candidate.to(device), **{**options, "reduction": "mean"}).isnan()


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
    assert_rule(case, run(case, reduction=reduction), reduction=reduction)


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_long_rows_without_normalisation(run, focal, reduction, symmetric):
    anchor, candidate, positive = make_rows("random", 11, 13, 6)
    case = Case(20 * anchor, 10 * candidate, positive, focal=focal, normalize=False, symmetric=symmetric)
    assert_rule(case, run(case, reduction=reduction), reduction=reduction)


# ---------------------------------------------------------------- bad arguments

def pair(n=4, m=4, d=3):
    return torch.randn(n, d), torch.randn(m, d)


BAD = {
    "no anchors": (lambda: (torch.randn(0, 3), torch.randn(4, 3)), {}, "0"),
    "no candidates": (lambda: (torch.randn(4, 3), torch.randn(0, 3)), {}, "0"),
    "widths": (lambda: pair()[:1] + (torch.randn(4, 17),), {}, r"(?s)3.*17|17.*3"),
    "one dimension": (lambda: (torch.randn(11), torch.randn(4, 3)), {}, "11"),
    "dtypes": (lambda: (pair()[0], pair()[1].half()), {}, r"(?s)float32.*float16|float16.*float32"),
    "devices": (lambda: (pair()[0], pair()[1].to("meta")), {}, r"(?s)cpu.*meta|meta.*cpu"),
    "integers": (lambda: (torch.ones(4, 3, dtype=torch.int64),) * 2, {}, "int64"),
    "positive length": (lambda: (*pair(), torch.arange(13)), {}, r"(?s)4.*13|13.*4"),
    "positive dtype": (lambda: (*pair(), torch.arange(4, dtype=torch.int32)), {}, r"(?s)int64.*int32|int32.*int64"),
    "positive missing": (lambda: pair(19, 4), {}, r"(?s)19.*4|4.*19"),
    "temperature zero": (pair, {"temperature": 0.0}, r"\b0"),
    "temperature negative": (pair, {"temperature": -0.25}, "-0.25"),
    "temperature nan": (pair, {"temperature": float("nan")}, "nan"),
    "temperature shape": (pair, {"temperature": torch.ones(17)}, "17"),
    "backend": (pair, {"backend": "cuda_magic"}, r"(?s)cuda_magic.*reference|reference.*cuda_magic"),
    "reduction": (pair, {"reduction": "average"}, r"(?s)average.*mean|mean.*average"),
    "negatives width": (pair, {"negatives": torch.randn(4, 17)}, r"(?s)3.*17|17.*3"),
    "negatives dtype": (pair, {"negatives": torch.randn(4, 3).half()}, r"(?s)float32.*float16|float16.*float32"),
    "negatives device": (pair, {"negatives": torch.randn(4, 3, device="meta")}, r"(?s)cpu.*meta|meta.*cpu"),
    "log_weight length": (pair, {"negatives": [(4, {"log_weight": torch.zeros(13)})]}, r"(?s)4.*13|13.*4"),
    "block id length": (pair, {"anchor_id": torch.arange(4), "negatives": [(4, {"id": torch.arange(13)})]},
                        r"(?s)4.*13|13.*4"),
    "anchor_id length": (pair, {"anchor_id": torch.arange(13), "candidate_id": torch.arange(4)}, r"(?s)4.*13|13.*4"),
    "candidate_id length": (pair, {"anchor_id": torch.arange(4), "candidate_id": torch.arange(13)},
                            r"(?s)4.*13|13.*4"),
    "candidate_id alone": (pair, {"candidate_id": torch.arange(4)}, "anchor_id"),
    "anchor_id alone": (pair, {"anchor_id": torch.arange(4)}, "candidate_id"),
    "block id alone": (pair, {"negatives": [(4, {"id": torch.arange(4)})]}, "anchor_id"),
}


@pytest.mark.parametrize("function", LOSSES, ids=["infonce", "focal"])
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_value_errors_that_name_both_values(function, name):
    make, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        if isinstance(options.get("negatives"), list):
            blocks = [fastcse.CandidateBlock(torch.randn(k, 3), **more) for k, more in options["negatives"]]
            options = {**options, "negatives": blocks}
        function(*make(), **options)


@pytest.mark.parametrize("name", ["no anchors", "no candidates", "widths", "one dimension", "dtypes", "devices", "integers"])
def test_bad_arguments_of_similarity(name):
    make, _, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fastcse.similarity(*make())


def test_unknown_backend_of_similarity():
    with pytest.raises(ValueError, match="cuda_magic"):
        fastcse.similarity(*pair(), backend="cuda_magic")


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"reduction": "average"}])
@pytest.mark.parametrize("module", [fastcse.InfoNCELoss, fastcse.FocalInfoNCELoss])
def test_modules_refuse_what_the_functions_refuse(module, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        module(**options)(*pair())


# ---------------------------------------------------------------- backends that are not there

def python(code, **environment):
    """Runs `code` in a fresh interpreter without Triton's; returns what it printed and what it said aloud."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=variables | environment, capture_output=True, text=True,
                          cwd=Path(fastcse.__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_CPP = """
import logging, sys, warnings
sys.modules["fastcse._C"] = None
heard = []
class Ear(logging.Handler):
    def emit(self, record): heard.append(record.getMessage())
logging.getLogger().addHandler(Ear())
import torch, fastcse
rows = torch.eye(3)
"""


def test_forced_cpp_without_the_module_says_how_to_build_it():
    out = python(WITHOUT_CPP + """
assert not fastcse.backends()["cpp"].available, fastcse.backends()
try: fastcse.infonce_loss(rows, rows, backend="cpp")
except RuntimeError as error: print(error)
""")
    assert "cpp" in out
    assert "pip install" in out or "make " in out, out


def test_fallback_is_announced_once():
    out = python(WITHOUT_CPP + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3): fastcse.focal_infonce_loss(rows, rows)
said = heard + [str(w.message) for w in caught]
print(fastcse.last_backend(), len([s for s in said if "reference" in s]))
""")
    assert out.split() == ["reference", "1"], out


def test_forced_triton_on_cpu_tensors_without_the_interpreter():
    out = python("""
import torch, fastcse
rows = torch.eye(3)
try: fastcse.infonce_loss(rows, rows, backend="triton")
except RuntimeError as error: print(error)
assert "reference" in fastcse.backends() and fastcse.backends()["reference"].available
""")
    assert "triton" in out
    assert "TRITON_INTERPRET=1" in out or "pip install" in out or "cuda" in out.lower(), out


# ---------------------------------------------------------------- memory

LAYOUTS = {
    "transposed": lambda rows: rows.T.contiguous().T,
    "every second row": lambda rows: rows.repeat_interleave(2, 0)[::2],
    "every second feature": lambda rows: rows.repeat_interleave(2, 1)[:, ::2],
    "padded": lambda rows: torch.cat([rows, rows + 1e3], 1)[:, :rows.shape[1]],
    "offset": lambda rows: torch.cat([rows.new_full((1, rows.shape[1]), 1e3), rows])[1:],
}


@every_loss
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"normalize": False}], ids=["plain", "symmetric", "raw"])
def test_any_strides(run, focal, layout, options):
    anchor, candidate, _ = make_rows("random", 6, 9, 7)
    index, ids = torch.arange(6).flip(0), torch.arange(9) % 4
    case = Case(anchor, candidate, index, extras=(Extra(torch.randn(8, 7), torch.randn(8), 0.5, ids[:8]),), focal=focal,
                anchor_id=ids[:6], candidate_id=ids, temperature=0.5, **options)
    plain = run(case)
    change = LAYOUTS[layout]
    twice = dict(positive=torch.arange(6).flip(0).repeat_interleave(2)[::2], anchor_id=ids[:6].repeat_interleave(3)[::3])
    extra = Extra(change(case.extras[0].rows), case.extras[0].log_weight.repeat_interleave(2)[::2], 0.5, ids[:8])
    got = run(Case(change(anchor), change(candidate), extras=(extra,), focal=focal, candidate_id=ids, temperature=0.5,
                   **twice, **options))
    for name in ("loss", "danchor", "dcandidate"):
        torch.testing.assert_close(getattr(got, name), getattr(plain, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.dextras[0], plain.dextras[0], rtol=1e-5, atol=1e-6)


def test_strides_survive_as_leaves(forced, device):
    # `run` clones; here the leaf itself is strided, so the kernel sees it as it is and its gradient must fit it.
    rows = torch.randn(7, 10, device=device).T[::2]                       # (5, 7), strides (2, 10)
    strided, dense = rows.detach().requires_grad_(), rows.detach().contiguous().requires_grad_()
    assert not strided.is_contiguous()
    other = torch.randn(5, 7, device=device)
    for leaf in (strided, dense):
        forced(fastcse.infonce_loss, leaf, other, symmetric=True).backward()
    torch.testing.assert_close(strided.grad, dense.grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(forced(fastcse.similarity, strided, other), forced(fastcse.similarity, dense, other))


def test_expanded_rows(forced, device):
    row = torch.randn(1, 6, device=device, requires_grad=True)
    other = torch.randn(5, 6, device=device)
    copy = row.detach().repeat(5, 1).requires_grad_()
    forced(fastcse.infonce_loss, row.expand(5, 6), other, temperature=0.5).backward()
    forced(fastcse.infonce_loss, copy, other, temperature=0.5).backward()
    torch.testing.assert_close(row.grad, copy.grad.sum(0, keepdim=True), rtol=1e-5, atol=1e-6)


def test_offsets_past_two_to_the_31(forced, device):
    # Row 2 starts at element 2^31. Pages that nobody touches cost nothing.
    storage = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    far = storage.as_strided((3, 33), (2**30, 1))
    near = torch.randn(3, 33, device=device).half()
    far.copy_(near)
    other = torch.randn(3, 33, device=device).half()
    for pair_far, pair_near in (((far, other), (near, other)), ((other, far), (other, near))):
        expected = forced(fastcse.infonce_loss, *pair_near, reduction="none")
        torch.testing.assert_close(forced(fastcse.infonce_loss, *pair_far, reduction="none"), expected)


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_inputs_are_never_written_to(forced, device, reduction, symmetric):
    rows = [torch.randn(6, 5, device=device) for _ in range(3)]
    other = [torch.arange(6, device=device).flip(0), torch.arange(6, device=device) % 4,
             torch.arange(6, device=device) % 3, torch.randn(6, device=device), torch.tensor(0.3, device=device)]
    before, versions = [t.clone() for t in rows + other], [t._version for t in rows + other]
    for t in (*rows, other[-1]):
        t.requires_grad_()
    block = fastcse.CandidateBlock(rows[2], log_weight=other[3], own_log_weight=0.7, id=other[2])
    loss = forced(fastcse.focal_infonce_loss, *rows[:2], other[0], negatives=block, anchor_id=other[1],
                  candidate_id=other[2], temperature=other[4], symmetric=symmetric, reduction=reduction)
    upstream = torch.rand_like(loss)
    kept = upstream.clone()
    loss.backward(upstream)
    for now, then, version in zip(rows + other, before, versions):
        assert torch.equal(now, then)
        assert now._version == version
    assert torch.equal(upstream, kept)


# ---------------------------------------------------------------- autograd

def second_derivative(loss, leaf):
    """Gradient by `leaf` of the squared gradient; what a gradient penalty asks for."""
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return torch.autograd.grad(first.pow(2).sum(), leaf)[0]


def assert_second_derivative(backend, of_loss, device):
    """Right where the backend is plain torch, and a clear error elsewhere; never silently something else."""
    leaf = torch.randn(4, 3, generator=torch.Generator().manual_seed(5)).to(device).requires_grad_()
    if backend != "reference":
        with pytest.raises(RuntimeError, match=r"(?i)differentiated (again|twice)|double backward|second derivative"):
            second_derivative(of_loss(leaf), leaf)
        return
    wide = leaf.detach().double().requires_grad_()
    torch.testing.assert_close(second_derivative(of_loss(leaf), leaf), second_derivative(of_loss(wide), wide).float(),
                               rtol=1e-3, atol=1e-4)


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_double_backward_is_a_clear_error(backend, device, focal, reduction, symmetric):
    candidate, options = torch.randn(4, 3, device=device), dict(reduction=reduction, symmetric=symmetric, temperature=0.5)
    assert_second_derivative(backend, lambda leaf: weigh(LOSSES[focal](
        leaf, candidate.to(leaf.dtype), backend=backend if leaf.dtype == torch.float32 else None, **options)), device)


def test_double_backward_of_similarity_is_a_clear_error(backend, device):
    candidate = torch.randn(4, 3, device=device)
    assert_second_derivative(backend, lambda leaf: fastcse.similarity(
        leaf, candidate.to(leaf.dtype), backend=backend if leaf.dtype == torch.float32 else None).pow(2).sum(), device)


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_same_inputs_twice_are_the_same_bits(run, backend, focal, reduction, symmetric):
    n, d = (17, 5) if backend == "triton" else (300, 24)
    anchor, candidate, positive = make_rows("clustered", n, n + 5, d)
    case = Case(anchor, candidate, positive % 7, extras=(Extra(torch.randn(n, d)),), focal=focal, symmetric=symmetric)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, two = (run(case, reduction=reduction, learn=True) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    for name in ("loss", "danchor", "dcandidate", "dtemperature"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.equal(one.dextras[0], two.dextras[0])


@pytest.mark.parametrize("symmetric", [False, True])
def test_more_threads_give_the_same_answer(run, backend, symmetric):
    if backend == "triton":
        pytest.skip("kernels do not follow torch's threads; the cpp and reference cases run here")
    case = Case(*make_rows("clustered", 301, 290, 24), symmetric=symmetric)
    threads, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            answers.append(run(case, reduction="mean"))
    finally:
        torch.set_num_threads(threads)
    for other in answers[1:]:
        torch.testing.assert_close(other.danchor, answers[0].danchor, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(other.dcandidate, answers[0].dcandidate, rtol=1e-5, atol=1e-8)


def leaves_of(device):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, 4, generator=generator).to(device).requires_grad_() for _ in range(2)]


def gradients(forced, device, use, **options):
    """Gradients of `use(loss)`, and those of the rows' loss itself scaled by hand."""
    leaves = leaves_of(device)
    use(forced(fastcse.focal_infonce_loss, *leaves, temperature=0.5, **options)).backward()
    return [leaf.grad for leaf in leaves]


MANNERS = {
    "scaled": (lambda loss: 3 * loss, lambda value: 3.0),
    "used twice": (lambda loss: 2 * loss + loss**2, lambda value: 2 + 2 * value),
    "a layer after": (lambda loss: torch.log1p(loss), lambda value: 1 / (1 + value)),
    "half": (lambda loss: (loss.half() * 4).float(), lambda value: 4.0),
    "unused": (lambda loss: loss * 0, lambda value: 0.0),
}


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("manner", MANNERS)
def test_upstream_gradient(forced, device, manner, reduction, symmetric):
    use, factor = MANNERS[manner]
    options = dict(reduction=reduction, symmetric=symmetric)
    got = gradients(forced, device, lambda loss: use(loss).sum(), **options)
    rows = forced(fastcse.focal_infonce_loss, *leaves_of(device), temperature=0.5, symmetric=symmetric,
                  reduction="none").detach()
    by_hand = torch.as_tensor(factor(rows if reduction == "none" else rows.mean()), device=device).expand(5)
    weight = by_hand if reduction == "none" else by_hand / 5
    expected = gradients(forced, device, lambda loss: (loss * weight).sum(), reduction="none", symmetric=symmetric)
    for one, two in zip(got, expected):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_upstream_is_linear_and_may_be_strided(forced, device, symmetric):
    weight = torch.tensor([0.5, -1, 0, 2, 7], device=device)
    options = dict(reduction="none", symmetric=symmetric)
    whole = gradients(forced, device, lambda loss: (loss * weight).sum(), **options)
    strided = gradients(forced, device, lambda loss: torch.stack([loss, loss.detach()], 1)[:, 0] @ weight, **options)
    parts = [gradients(forced, device, lambda loss, k=k: loss[k] * weight[k], **options) for k in range(5)]
    for k in range(2):
        torch.testing.assert_close(whole[k], sum(part[k] for part in parts), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole[k], strided[k])
        assert (whole[0][2] == 0).all() or symmetric


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_backward_twice_gives_the_same_gradient_twice(forced, device, focal, reduction, symmetric):
    leaves = leaves_of(device)
    temperature = torch.tensor(0.5, device=device, requires_grad=True)
    wanted = [*leaves, temperature]
    loss = weigh(forced(LOSSES[focal], *leaves, temperature=temperature, reduction=reduction, symmetric=symmetric))
    first = [g.clone() for g in torch.autograd.grad(3 * loss, wanted, retain_graph=True)]
    second = torch.autograd.grad(3 * loss, wanted, retain_graph=True)
    third = torch.autograd.grad(loss, wanted)
    for a, b, c in zip(first, second, third):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, 3 * c, rtol=1e-5, atol=1e-6 * float(a.abs().max()))


@every_loss
@every_reduction
@pytest.mark.parametrize("which", [0, 1])
def test_one_side_without_gradient(forced, device, focal, reduction, which):
    both, one = leaves_of(device), leaves_of(device)
    one[1 - which].requires_grad_(False)
    for leaves in (both, one):
        weigh(forced(LOSSES[focal], *leaves, temperature=0.5, reduction=reduction)).backward()
    assert one[1 - which].grad is None
    torch.testing.assert_close(one[which].grad, both[which].grad, rtol=1e-6, atol=1e-8)


@every_loss
def test_one_tensor_as_both_sides(forced, device, focal):
    leaf, copies = leaves_of(device)[0], [leaves_of(device)[0], leaves_of(device)[0]]
    forced(LOSSES[focal], leaf, leaf, temperature=0.5).backward()
    forced(LOSSES[focal], *copies, temperature=0.5).backward()
    torch.testing.assert_close(leaf.grad, copies[0].grad + copies[1].grad, rtol=1e-5, atol=1e-6)


@every_loss
@every_reduction
def test_no_grad_and_inference_mode_give_the_same_loss(forced, device, focal, reduction):
    leaves = leaves_of(device)
    expected = forced(LOSSES[focal], *leaves, reduction=reduction)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = forced(LOSSES[focal], *leaves, reduction=reduction)
        assert not got.requires_grad
        torch.testing.assert_close(got, expected.detach(), rtol=1e-6, atol=1e-6)


def test_memory_from_torch_empty_is_poisoned_for_the_package():
    # Without this the NaN poison could be a no-op and every test above would still pass.
    scope = {"torch": torch}
    where = os.path.join(os.path.dirname(fastcse.__file__), "somewhere.py")
    exec(compile("a, b = torch.empty(3), torch.empty_like(torch.ones(3, dtype=torch.int32))", where, "exec"), scope)
    assert scope["a"].isnan().all()
    assert (scope["b"] > 1 << 30).all()
