"""The loss stage of a cached batch: what is done with the embeddings between the two passes through the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..options import option
from .accuracy import Outcome
from .case import Case, make_rows
from .loss import LossCase, LossMeasurement
from .provider import Provider, named

SENTENCE_TRANSFORMERS = ((), ("sentence_transformers",), "pip install sentence-transformers")
Columns = list[list[Tensor]]


@dataclass(frozen=True)
class CachedCase(Case):
    """N anchors and N positives of width D that the encoder made `mini_batch` at a time; InfoNCE over all."""

    n: int = option(help="Pairs of a step.", least=1, several="4096", flag="--batch-sizes")
    d: int = option(384, "Width of an embedding, of --stage loss.", least=1, several=True)
    mini_batch: int = option(64, "Encoded at once.", least=1, several="64,32", flag="--mini-batch-size")
    device: str = option("cpu", "cpu or cuda.", metavar="NAME", shown="a GPU if there is one")
    data: str = "clustered"
    stage: str = "early"
    temperature: float = 0.05
    seed: int = option(0, "Seed of the rows.")

    row, metrics, legend = LossMeasurement, LossCase.metrics, LossCase.legend
    axes = ("n", "d", "mini_batch")
    sizes = (("N", "n"), ("D", "d"), ("mini-batch", "mini_batch"))
    operations = ("cached loss stage",)
    operation = "cached loss stage"
    mode = "full"
    labelled = ("operation", "m", "dtype", "mode")
    lower_bound_note = "the columns joined, three products, no loss"

    @property
    def whole(self) -> LossCase:
        """The same loss of the same rows, in one piece."""
        same = {name: getattr(self, name) for name in ("device", "data", "stage", "temperature", "seed")}
        return LossCase(self.n, self.n, self.d, **same)

    @property
    def flops(self) -> float:
        """Of three products, for everybody."""
        return self.whole.flops

    @property
    def setting(self) -> str:
        return self.whole.setting

    def inputs(self) -> tuple[Tensor, ...]:
        """Leaves of at most a mini-batch's rows: all of the anchors, then all of the positives."""
        rows = make_rows(self.whole)
        return tuple(part.clone().requires_grad_() for x in rows for part in x.detach().split(self.mini_batch))

    def exact(self, *parts: Tensor) -> Outcome:
        return self.whole.exact(*(x.detach() for x in joined(parts)))

    def score(self, row: LossMeasurement, provider: Provider, outcome: Outcome, exact: Outcome) -> None:
        self.whole.score(row, provider, outcome._replace(gradients=joined(outcome.gradients)), exact)

    def fault(self, ours: LossMeasurement, result: Any) -> str | None:
        return self.whole.fault(ours, result)

    def lower_bound(self) -> Callable[..., None]:
        products = self.whole.lower_bound()
        return lambda *parts: products(*joined(parts))

    def output_bytes(self, inputs: tuple[Tensor, ...]) -> int:
        return sum(part.nbytes for part in inputs)


def columns(parts: tuple[Tensor, ...]) -> Columns:
    """The parts of the anchors, and those of the positives."""
    half = len(parts) // 2
    return [list(parts[:half]), list(parts[half:])]


def joined(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Anchors and positives in one piece each."""
    return tuple(torch.cat(column) for column in columns(parts))


def stage(loss: Any, parts: tuple[Tensor, ...]) -> Callable[[], Outcome]:
    """The call of a loss's stage; its outcome has the gradient of each part."""

    def run() -> Outcome:
        for part in parts:
            part.grad = None
        value = loss.calculate_loss(columns(parts), with_backward=True)
        return Outcome(value, tuple(part.grad for part in parts))

    return run


def cached_loss(theirs: bool, model: nn.Module, mini_batch: int, temperature: float) -> nn.Module:
    """fastcse's or sentence-transformers' InfoNCE that caches gradients."""
    if theirs:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        return CachedMultipleNegativesRankingLoss(model, scale=1 / temperature, mini_batch_size=mini_batch)
    from ..integrations.sentence_transformers import CachedFusedContrastiveLoss
    from ..losses.infonce import infonce_loss

    return CachedFusedContrastiveLoss(model, infonce_loss, mini_batch_size=mini_batch, temperature=temperature)


def _fastcse(case: CachedCase, *parts: Tensor) -> Callable[[], Outcome]:
    return stage(cached_loss(False, _no_model(), case.mini_batch, case.temperature), parts)


def _sentence_transformers(case: CachedCase, *parts: Tensor) -> Callable[[], Outcome]:
    return stage(cached_loss(True, _no_model(), case.mini_batch, case.temperature), parts)


def _no_model() -> nn.Module:
    # The losses take its first module, and no text runs through it: the embeddings are there.
    return nn.Sequential(nn.Identity())


PROVIDERS = named(
    Provider("fastcse", _fastcse, *SENTENCE_TRANSFORMERS, "CachedFusedContrastiveLoss: the whole batch at once"),
    Provider("sentence-transformers cached", _sentence_transformers, *SENTENCE_TRANSFORMERS,
             "CachedMultipleNegativesRankingLoss: a mini-batch's rows at a time, all candidates normalised for each"),
)  # fmt: skip
