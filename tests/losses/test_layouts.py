"""Any strides, any offsets, nothing written to, nothing read that was never written."""

import os

import pytest
import torch
from calls import LAYOUTS
from oracle import Case, Extra, make_rows

import fastcse

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])


@every_loss
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"normalize": False}], ids=["plain", "symmetric", "raw"])
def test_any_strides(run, focal, layout, options):
    anchor, candidate, _ = make_rows("random", 6, 9, 7)
    index, ids = torch.arange(6).flip(0), torch.arange(9) % 4
    case = Case(
        anchor,
        candidate,
        index,
        extras=(Extra(torch.randn(8, 7), torch.randn(8), 0.5, ids[:8]),),
        focal=focal,
        anchor_id=ids[:6],
        candidate_id=ids,
        temperature=0.5,
        **options,
    )
    plain = run(case)
    change = LAYOUTS[layout]
    twice = dict(positive=index.repeat_interleave(2)[::2], anchor_id=ids[:6].repeat_interleave(3)[::3])
    extra = Extra(change(case.extras[0].rows), case.extras[0].log_weight.repeat_interleave(2)[::2], 0.5, ids[:8])
    got = run(
        Case(
            change(anchor),
            change(candidate),
            extras=(extra,),
            focal=focal,
            candidate_id=ids,
            temperature=0.5,
            **twice,
            **options,
        )
    )
    for name in ("loss", "danchor", "dcandidate"):
        torch.testing.assert_close(getattr(got, name), getattr(plain, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.dextras[0], plain.dextras[0], rtol=1e-5, atol=1e-6)


def test_gradient_of_a_strided_leaf(forced, device):
    rows = torch.randn(7, 10, device=device).T[::2]  # (5, 7), strides (2, 10)
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
    other = [
        torch.arange(6, device=device).flip(0),
        torch.arange(6, device=device) % 4,
        torch.arange(6, device=device) % 3,
        torch.randn(6, device=device),
        torch.tensor(0.3, device=device),
    ]
    before, versions = [t.clone() for t in rows + other], [t._version for t in rows + other]
    for t in (*rows, other[-1]):
        t.requires_grad_()
    block = fastcse.CandidateBlock(rows[2], log_weight=other[3], own_log_weight=0.7, id=other[2])
    loss = forced(
        fastcse.focal_infonce_loss,
        *rows[:2],
        other[0],
        negatives=block,
        anchor_id=other[1],
        candidate_id=other[2],
        temperature=other[4],
        symmetric=symmetric,
        reduction=reduction,
    )
    upstream = torch.rand_like(loss)
    kept = upstream.clone()
    loss.backward(upstream)
    for now, then, version in zip(rows + other, before, versions):
        assert torch.equal(now, then)
        assert now._version == version
    assert torch.equal(upstream, kept)


def test_memory_from_torch_empty_is_poisoned_for_the_package():
    # Without this the NaN poison could be a no-op and every test above would still pass.
    scope = {"torch": torch}
    where = os.path.join(os.path.dirname(fastcse.__file__), "somewhere.py")
    exec(compile("a, b = torch.empty(3), torch.empty_like(torch.ones(3, dtype=torch.int32))", where, "exec"), scope)
    assert scope["a"].isnan().all()
    assert (scope["b"] > 1 << 30).all()
