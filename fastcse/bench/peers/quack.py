"""QuACK's chunked linear cross-entropy through its Hopper pipeline of scaled exponentials."""

from __future__ import annotations

from ..problem import LossProblem
from .limits import need_hopper
from .linear import linear_loss
from .peer import Loss, Peer, need

TILE = 128


def _scaled_exp(problem: LossProblem, chunk: int) -> Loss:
    need_hopper(problem)
    need(problem.m % TILE == 0, f"needs a multiple of {TILE} candidates, not {problem.m}")
    need(problem.d % 8 == 0, f"needs a width that is a multiple of 8, not {problem.d}")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    # Said aloud, because by itself it would take the other pipeline where this one does not fit.
    options = dict(chunk_size=chunk, use_scaled_exp=True)
    return linear_loss(problem, lambda a, c, label: chunked_linear_cross_entropy(a, c, label, **options))


PEERS = (
    Peer(
        "QuACK",
        _scaled_exp,
        ("infonce",),
        ("quack", "cutlass"),
        "pip install quack-kernels",
        "input / tau rounded to bf16",
        # The default of 4096 rows leaves half of the multiprocessors without a tile of the gradient at D = 384.
        choices=(2048, 4096, 8192),
    ),
)
