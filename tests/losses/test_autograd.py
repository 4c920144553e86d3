"""Manners in autograd: upstream gradients, backward twice, second derivatives, modes, the same bits each time."""

import pytest
import torch
from oracle import Case, make_rows

import fastcse

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])
LOSSES = [fastcse.infonce_loss, fastcse.focal_infonce_loss]


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
