"""Public calls that several tests make: small leaves, and every option at once."""

import torch

from fastcse import CandidateBlock, focal_infonce_loss


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
