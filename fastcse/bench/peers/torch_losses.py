"""torch.nn.functional.linear_cross_entropy (torch >= 2.13): candidates as the weight of a linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..problem import LossProblem
from .limits import need_cuda, need_half
from .linear import linear_loss
from .peer import Loss, Peer, need

# Rows of a chunk. The default of F.linear_cross_entropy follows the aspect ratio and was 3 times slower than the whole
# matrix at N = 4096, D = 768 on 2 cores.
CHUNKS = (1024, 4096, 16384)


def _linear_cross_entropy(problem: LossProblem, chunk: int, **policy: str) -> Loss:
    need(hasattr(F, "linear_cross_entropy"), f"needs torch >= 2.13, this is {torch.__version__}")
    # Left to itself it accumulates in float32, by the policy that it found best for the device.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None, **policy)
    return linear_loss(problem, lambda a, c, label: F.linear_cross_entropy(a, c, label, options=options))


def _balanced(problem: LossProblem, chunk: int) -> Loss:
    need_cuda(problem)
    need_half(problem)
    return _linear_cross_entropy(problem, chunk, acc_policy="balanced", acc_dtype=torch.float32)


def _chunked(problem: LossProblem, chunk: int) -> Loss:
    """The same idea in plain torch, for versions that lack it: rows in chunks, each recomputed in backward."""
    from torch.utils.checkpoint import checkpoint

    def piece(a, c, label):
        return F.cross_entropy((a @ c.T).float(), label, reduction="sum")

    def cross_entropy(a, c, label):
        parts = zip(a.split(chunk), label.split(chunk))
        return sum(checkpoint(piece, x, c, y, use_reentrant=False) for x, y in parts) / problem.n

    return linear_loss(problem, cross_entropy)


PEERS = (
    Peer("F.linear_cross_entropy", _linear_cross_entropy, ("infonce",), note="rows in chunks", choices=CHUNKS),
    Peer(
        "F.linear_cross_entropy balanced",
        _balanced,
        ("infonce",),
        note="rows in chunks, candidates' gradient summed in float32",
        choices=CHUNKS,
    ),
    Peer("chunked eager", _chunked, ("infonce",), note="rows in chunks, recomputed in backward", choices=CHUNKS),
)
