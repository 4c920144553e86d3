"""Who computes the loss of a training step: with a cache of gradients or without, fastcse's and the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ..peers.peer import absent
from .problem import StepProblem

OURS = "fastcse cached"


class Provider(NamedTuple):
    """`build(model, problem)` makes a loss of sentence-transformers' kind. `cached`: it encodes a mini-batch at once,
    and its activations are those of one."""

    name: str
    build: Callable[[nn.Module, StepProblem], nn.Module]
    cached: bool
    note: str
    modules: tuple[str, ...] = ("sentence_transformers",)
    install: str = "pip install sentence-transformers"

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        return absent(self.modules, self.install)


def _fastcse_cached(model: nn.Module, problem: StepProblem) -> nn.Module:
    from ...integrations.sentence_transformers import CachedFusedContrastiveLoss
    from ...losses.infonce import infonce_loss

    return CachedFusedContrastiveLoss(model, infonce_loss, mini_batch_size=problem.mini_batch,
                                      temperature=problem.temperature)  # fmt: skip


def _fastcse_plain(model: nn.Module, problem: StepProblem) -> nn.Module:
    from ...integrations.sentence_transformers import FusedContrastiveLoss
    from ...losses.infonce import infonce_loss

    return FusedContrastiveLoss(model, infonce_loss, temperature=problem.temperature)


def _theirs_cached(model: nn.Module, problem: StepProblem) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    return CachedMultipleNegativesRankingLoss(model, scale=1 / problem.temperature, mini_batch_size=problem.mini_batch)


def _theirs_plain(model: nn.Module, problem: StepProblem) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    return MultipleNegativesRankingLoss(model, scale=1 / problem.temperature)


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(OURS, _fastcse_cached, True, "CachedFusedContrastiveLoss around infonce_loss"),
        Provider("sentence-transformers cached", _theirs_cached, True, "CachedMultipleNegativesRankingLoss"),
        Provider("fastcse plain", _fastcse_plain, False, "FusedContrastiveLoss around infonce_loss"),
        Provider("sentence-transformers plain", _theirs_plain, False, "MultipleNegativesRankingLoss"),
    )
}
