"""What several test files do with a loss: layouts of rows, small leaves, every option at once, gradients twice,
compiled beside eager."""

import torch

from fastcse import CandidateBlock, focal_infonce_loss

LAYOUTS = {
    "transposed": lambda rows: rows.T.contiguous().T,
    "every second row": lambda rows: rows.repeat_interleave(2, 0)[::2],
    "every second feature": lambda rows: rows.repeat_interleave(2, 1)[:, ::2],
    "padded": lambda rows: torch.cat([rows, rows + 1e3], 1)[:, : rows.shape[1]],
    "offset": lambda rows: torch.cat([rows.new_full((1, rows.shape[1]), 1e3), rows])[1:],
}


def views(device, n=6, m=7, d=5, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(k, d, generator=g, dtype=torch.float64).to(device, dtype).requires_grad_() for k in (n, m, 4)]


def everything(a, c, h, **options):
    """All options at once."""
    ids = torch.arange(len(a), device=a.device) % 4
    block = CandidateBlock(
        h, log_weight=torch.linspace(-1, 1, 4, device=a.device), own_log_weight=0.5, id=torch.arange(4, device=a.device)
    )
    frozen = torch.linspace(-1, 2, 3 * a.shape[1], device=a.device, dtype=a.dtype).reshape(3, -1)
    return focal_infonce_loss(
        a,
        c,
        ids,
        negatives=[block, frozen],
        anchor_id=ids,
        candidate_id=torch.arange(len(c), device=a.device) % 5,
        temperature=0.2,
        **options,
    )


def weigh(loss):
    """A scalar of a loss whatever its reduction; rows get different weights."""
    return loss if loss.dim() == 0 else (loss * torch.linspace(0.5, 2, len(loss), device=loss.device)).sum()


def both_ways(compiled, plain, leaves):
    """Value and gradients of the compiled function against the plain one."""
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    got, expected = compiled(), plain()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    weight = torch.linspace(1, 2, expected.numel(), device=expected.device).reshape(expected.shape)
    grads = [torch.autograd.grad((loss * weight).sum(), leaves, allow_unused=True) for loss in (got, expected)]
    for one, two in zip(*grads):
        assert one is not None
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def assert_compiles(function, leaves, backend="aot_eager"):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    both_ways(lambda: compiled(*leaves), lambda: function(*leaves), leaves)
