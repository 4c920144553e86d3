"""Any strides, any offsets, nothing written to, nothing read that was never written."""

import os

import torch

import fastcse


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
