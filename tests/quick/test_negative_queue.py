"""The queue of negatives beside a list."""

import copy
import io

import pytest
import torch

from fastcse import NegativeQueue, infonce_loss


def listed(queue):
    """The rows there are, as a set of first entries."""
    block = queue.block()
    return [] if block is None else sorted(block.rows[:, 0].int().tolist())


@pytest.mark.parametrize("sizes", [[3], [7], [8], [30], [3, 3, 3], [5, 9, 1, 0, 7, 20, 2], [7, 7, 7], [1] * 20])
@pytest.mark.parametrize("ids", [False, True])
def test_the_last_rows_stay(device, sizes, ids):
    queue, pushed = NegativeQueue(7, 2, ids=ids, device=device), []
    for size in sizes:
        new = torch.arange(len(pushed), len(pushed) + size, device=device)
        queue.push(new[:, None].float().repeat(1, 2), new + 100 if ids else None)
        pushed += new.tolist()
        assert listed(queue) == pushed[-7:]
        assert len(queue) == min(len(pushed), 7)
        if ids and pushed:
            block = queue.block()
            assert (block.id - 100).tolist() == block.rows[:, 0].int().tolist()
        assert ids or queue.block() is None or queue.block().id is None


def test_the_oldest_goes_first():
    queue = NegativeQueue(4, 1)
    for value in range(6):
        queue.push(torch.full((1, 1), float(value)))
    assert queue.rows[:, 0].tolist() == [4.0, 5.0, 2.0, 3.0]
    queue.push(torch.arange(10.0, 15.0)[:, None])  # one more than it holds
    assert listed(queue) == [11, 12, 13, 14]
    queue.push(torch.full((1, 1), 20.0))
    assert listed(queue) == [12, 13, 14, 20], "the order holds after a batch larger than the queue"


def test_a_loss_takes_what_is_there(forced, device):
    a, p = (torch.randn(5, 4, device=device).requires_grad_() for _ in range(2))
    queue = NegativeQueue(6, 4, ids=True, device=device)
    torch.testing.assert_close(forced(infonce_loss, a, p, negatives=queue.block()), infonce_loss(a, p))
    rows, own = torch.randn(3, 4, device=device, requires_grad=True), torch.tensor([0, 1, 9], device=device)
    queue.push(rows * 2, own)
    loss = forced(
        infonce_loss, a, p, negatives=queue.block(), anchor_id=torch.arange(5, device=device), reduction="none"
    )
    queue.push(torch.randn(6, 4, device=device), own.repeat(2) - 1)  # before the backward pass
    loss.sum().backward()
    assert rows.grad is None
    s = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(torch.cat([p, rows]), dim=1).T
    columns = torch.tensor([-1] * 5 + own.tolist(), device=device)
    s = s.masked_fill(torch.arange(5, device=device)[:, None] == columns, -torch.inf)
    want = torch.nn.functional.cross_entropy(s / 0.05, torch.arange(5, device=device), reduction="none")
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.grad, torch.autograd.grad(want.sum(), a)[0], rtol=1e-4, atol=1e-5)


def test_half_precision_rows_and_another_type_for_the_loss():
    queue = NegativeQueue(4, 2, dtype=torch.bfloat16)
    queue.push(torch.randn(3, 2))
    assert queue.block().rows.dtype == torch.bfloat16
    assert queue.block(torch.float16).rows.dtype == torch.float16
    assert queue.block().rows.data_ptr() != queue.rows.data_ptr()
    assert not queue.block().rows.requires_grad


def test_a_saved_queue_goes_on():
    queue = NegativeQueue(5, 2, ids=True)
    for size in (3, 4):
        queue.push(torch.randn(size, 2), torch.arange(size))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    other = NegativeQueue(5, 2, ids=True)
    other.load_state_dict(torch.load(file, weights_only=True))
    third = copy.deepcopy(queue)
    for one in (queue, other, third):
        one.push(torch.ones(2, 2), torch.arange(2))
    for one in (other, third):
        torch.testing.assert_close(one.rows, queue.rows, rtol=0, atol=0)
        assert one.ids.tolist() == queue.ids.tolist()
        assert len(one) == 5
    assert "filled=5" in repr(queue)
    with pytest.raises(RuntimeError, match="size mismatch"):
        NegativeQueue(6, 2, ids=True).load_state_dict(queue.state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NegativeQueue(0, 3), "size.*0"),
        (lambda: NegativeQueue(3, 0), "dim.*0"),
        (lambda: NegativeQueue(4, 3).push(torch.ones(2, 5)), r"\(B, 3\).*\(2, 5\)"),
        (lambda: NegativeQueue(4, 3).push(torch.ones(2, 3, device="meta")), "meta.*cpu"),
        (lambda: NegativeQueue(4, 3).push(torch.ones(2, 3), torch.arange(2)), "no ids"),
        (lambda: NegativeQueue(4, 3, ids=True).push(torch.ones(2, 3)), "keeps ids.*None"),
        (lambda: NegativeQueue(4, 3, ids=True).push(torch.ones(2, 3), torch.arange(3)), r"id.*\(2,\).*\(3,\)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
