"""The loss stage of a cached batch: what is done with the embeddings between the two passes through the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data import make_rows
from ..loss import LOSS, Row
from ..peers.peer import absent
from ..problem import LossProblem
from ..runs import bare_products
from ..subject import Subject
from ..truth import Outcome, exact

MODULES = ("sentence_transformers",)
INSTALL = "pip install sentence-transformers"


@dataclass(frozen=True)
class CachedProblem:
    """N anchors and N positives of width D that came from the encoder `mini_batch` at a time; InfoNCE over all."""

    n: int
    d: int = 384
    mini_batch: int = 64
    device: str = "cpu"
    data: str = "clustered"
    stage: str = "early"
    temperature: float = 0.05
    seed: int = 0

    operation = "cached loss stage"
    counted = "anchors"
    mode = "full"
    dtype = "float32"

    def __post_init__(self):
        if self.mini_batch < 1:
            raise ValueError(f"mini_batch must be at least 1, got {self.mini_batch}")

    @property
    def m(self) -> int:
        """Candidates."""
        return self.n

    @property
    def whole(self) -> LossProblem:
        """The same loss of the same rows, in one piece."""
        return LossProblem(self.n, self.n, self.d, device=self.device, data=self.data, stage=self.stage,
                           temperature=self.temperature, seed=self.seed)  # fmt: skip

    @property
    def flops(self) -> float:
        """Of three products, for everybody."""
        return self.whole.flops

    @property
    def size(self) -> str:
        """Rows, width and mini-batch."""
        return f"N = {self.n}, D = {self.d}, mini-batch {self.mini_batch}"

    @property
    def setting(self) -> str:
        """All but the sizes."""
        return self.whole.setting

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"{self.operation}, {self.size}, {self.setting}"

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files."""
        return {"operation": self.operation, "m": self.m, "dtype": self.dtype, "mode": self.mode, **asdict(self)}


class Parts(NamedTuple):
    """A loss, and what each mini-batch of anchors, then of positives, got for a gradient."""

    loss: Tensor
    gradients: list[Tensor]


class Stage(NamedTuple):
    """A way to compute it: `load(problem)` makes a loss whose `calculate_loss` is called."""

    name: str
    load: Callable[[CachedProblem], Any]
    note: str = ""
    modules: tuple[str, ...] = MODULES
    install: str = INSTALL
    choices: tuple[int, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        return absent(self.modules, self.install)


def _fastcse(problem: CachedProblem) -> Any:
    from ...integrations.sentence_transformers import CachedFusedContrastiveLoss
    from ...losses.infonce import infonce_loss

    return CachedFusedContrastiveLoss(_no_model(), infonce_loss, mini_batch_size=problem.mini_batch,
                                      temperature=problem.temperature)  # fmt: skip


def _sentence_transformers(problem: CachedProblem) -> Any:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    return CachedMultipleNegativesRankingLoss(_no_model(), scale=1 / problem.temperature,
                                              mini_batch_size=problem.mini_batch)  # fmt: skip


def _no_model() -> nn.Module:
    # Its first module is looked at, and nothing runs through it: the embeddings are there.
    return nn.Sequential(nn.Identity())


STAGES = {
    stage.name: stage
    for stage in (
        Stage("fastcse", _fastcse, "CachedFusedContrastiveLoss: the whole batch at once"),
        Stage("sentence-transformers cached", _sentence_transformers,
              "CachedMultipleNegativesRankingLoss: a mini-batch's rows at a time, all candidates normalised for each"),
    )
}  # fmt: skip


def _inputs(problem: CachedProblem) -> tuple[Tensor, ...]:
    """Leaves of at most a mini-batch's rows: all of the anchors, then all of the positives."""
    rows = make_rows(problem.whole)
    return tuple(part.clone().requires_grad_() for x in rows for part in x.detach().split(problem.mini_batch))


def _columns(parts: tuple[Tensor, ...]) -> list[list[Tensor]]:
    half = len(parts) // 2
    return [list(parts[:half]), list(parts[half:])]


def _exact(problem: CachedProblem, *parts: Tensor) -> Outcome:
    return exact(problem.whole, *(torch.cat(column).detach() for column in _columns(parts)))


def _prepare(stage: Stage, problem: CachedProblem, choice: None, parts: tuple[Tensor, ...]) -> Callable[[], Parts]:
    loss, columns = stage.load(problem), _columns(parts)

    def run() -> Parts:
        for part in parts:
            part.grad = None
        value = loss.calculate_loss(columns, with_backward=True)
        return Parts(value, [part.grad for part in parts])

    return run


def _judge(row: Row, stage: Stage, got: Parts, truth: Outcome) -> None:
    LOSS.judge(row, stage, Outcome(got.loss, *(torch.cat(g) for g in _columns(tuple(got.gradients)))), truth)


def _limit(problem: CachedProblem) -> Callable[..., None]:
    products = bare_products(problem.whole)
    return lambda *parts: products(*(torch.cat(column) for column in _columns(parts)))


CACHED = Subject(
    row=Row, peers=STAGES, inputs=_inputs, exact=_exact, prepare=_prepare, judge=_judge, check=LOSS.check,
    wrong=LOSS.wrong, limit=_limit, limit_note=lambda problem: "the columns joined, three products, no loss",
    output_bytes=lambda problem, parts: sum(part.nbytes for part in parts),
    metrics=LOSS.metrics, legend=LOSS.legend, axes=("n", "d", "mini_batch"),
)  # fmt: skip
