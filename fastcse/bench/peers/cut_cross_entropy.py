"""Apple's Cut Cross-Entropy, without and with its gradient filter, and its torch.compile version."""

from __future__ import annotations

import inspect

from ..problem import LossProblem
from .limits import need_cuda, need_half
from .linear import linear_loss
from .peer import Loss, Peer


def _cut(problem: LossProblem, **options) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    return linear_loss(problem, lambda a, c, label: linear_cross_entropy(a, c, label, **options))


def _filtered(problem: LossProblem) -> Loss:
    need_cuda(problem)
    need_half(problem)
    return _cut(problem, impl="cce")


def _exact(problem: LossProblem) -> Loss:
    need_cuda(problem)
    need_half(problem)
    from cut_cross_entropy import linear_cross_entropy

    # The release on PyPI (25.1.1) knows only the filter's threshold; later ones have a preset with float32 sums.
    preset = "accum_e_fp32" in inspect.signature(linear_cross_entropy).parameters
    return _cut(problem, **(dict(impl="cce_exact") if preset else dict(impl="cce", filter_eps=None)))


def _compiled(problem: LossProblem) -> Loss:
    return _cut(problem, impl="torch_compile")


INFONCE = ("infonce",)
MODULES = ("cut_cross_entropy", "triton")
# The release on PyPI, 25.1.1, works too, but is old and sums gradients in the input's dtype.
INSTALL = "pip install git+https://github.com/apple/ml-cross-entropy"
PEERS = (
    Peer("Cut Cross-Entropy exact", _exact, INFONCE, MODULES, INSTALL, "input / tau rounded to the input's dtype"),
    Peer("Cut Cross-Entropy", _filtered, INFONCE, MODULES, INSTALL, "filters small gradients"),
    Peer("Cut Cross-Entropy compiled", _compiled, INFONCE, MODULES, INSTALL, "whole matrix"),
)
