"""Autograd, layouts and types: upstream gradients, threads, strides, offsets past 2^31, float16, autocast."""

import functools
import os

import pytest
import torch
from calls import views
from oracle import Case, make_rows

import fastcse
from fastcse import focal_infonce_loss, infonce_loss, quadruplet_loss

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])
LOSSES = [infonce_loss, focal_infonce_loss]


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
    rows = forced(
        fastcse.focal_infonce_loss, *leaves_of(device), temperature=0.5, symmetric=symmetric, reduction="none"
    ).detach()
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
def test_one_tensor_as_both_sides(forced, device, focal):
    leaf, copies = leaves_of(device)[0], [leaves_of(device)[0], leaves_of(device)[0]]
    forced(LOSSES[focal], leaf, leaf, temperature=0.5).backward()
    forced(LOSSES[focal], *copies, temperature=0.5).backward()
    torch.testing.assert_close(leaf.grad, copies[0].grad + copies[1].grad, rtol=1e-5, atol=1e-6)


def quadruplet_of_little_weight(a, c, *, backend=None):
    others = a.detach().flip(0)
    return quadruplet_loss(others, others, a, c, weights=(3e-3, 3e-3), margin=2.0, backend=backend)


@pytest.mark.parametrize("loss", ["infonce", "symmetric", "quadruplet"])
def test_a_loss_scale_saves_what_float16_cannot_hold(backend, device, loss):
    # The gradient of a mean over many rows is below float16's numbers; a GradScaler's factor comes with the upstream.
    options = {"temperature": 200.0, "symmetric": loss == "symmetric"}
    call = quadruplet_of_little_weight if loss == "quadruplet" else functools.partial(infonce_loss, **options)
    rows = [x.half().detach().requires_grad_() for x in views(device, 64, 64, 32)[:2]]
    exact = [x.detach().double().requires_grad_() for x in rows]
    (call(*rows, backend=backend) * 2.0**14).backward()
    assert fastcse.last_backend() == backend
    (call(*exact) * 2.0**14).backward()
    for x, y in zip(rows, exact):
        assert x.grad.dtype == torch.float16
        assert (x.grad.double() - y.grad).norm() <= 1e-3 * y.grad.norm()


@every_loss
def test_autocast_behind_a_layer(forced, device, focal):
    layer = torch.nn.Linear(16, 16, bias=False).to(device)
    a, c, _ = (z.detach() for z in views(device, 20, 20, 16))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        rows = layer(a), layer(c)
        assert rows[0].dtype == torch.bfloat16
        loss = forced(LOSSES[focal], *rows)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32
    outside = forced(LOSSES[focal], *(z.detach() for z in rows))
    torch.testing.assert_close(loss.detach(), outside, rtol=1e-6, atol=1e-6)


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


def test_strided_ids_and_weights(forced, device):
    a, c, h = (torch.randn(n, 5, device=device) for n in (6, 9, 8))
    ids, weight = torch.arange(9, device=device) % 4, torch.randn(8, device=device)

    def loss(change):
        block = fastcse.CandidateBlock(h, log_weight=change(weight), own_log_weight=0.5, id=change(ids[:8]))
        return forced(
            fastcse.infonce_loss, a, c, change(ids[:6]), negatives=block, anchor_id=change(ids[:6]),
            candidate_id=change(ids), symmetric=True, reduction="none",
        )  # fmt: skip

    torch.testing.assert_close(loss(lambda x: x.repeat_interleave(3)[::3]), loss(lambda x: x), rtol=0, atol=0)


def test_memory_from_torch_empty_is_poisoned_for_the_package():
    # Without this the NaN poison could be a no-op and every test above would still pass.
    scope = {"torch": torch}
    where = os.path.join(os.path.dirname(fastcse.__file__), "somewhere.py")
    exec(compile("a, b = torch.empty(3), torch.empty_like(torch.ones(3, dtype=torch.int32))", where, "exec"), scope)
    assert scope["a"].isnan().all()
    assert (scope["b"] > 1 << 30).all()
