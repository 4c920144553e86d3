"""Contrastive losses: value and gradients against float64, and the matrix products that any of them needs as the lower
bound of time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from ..options import option
from .accuracy import Outcome, allowed_error, errors, run_once
from .case import STAGES, ArrayCase, Measurement, Metric, Result
from .provider import Provider

LOSSES = ("infonce", "focal", "symmetric")
MODES = ("full", "no-grad-forward")
# The accuracy rule of the package: at most twice what plain torch misses, and this much of float32's own rounding.
SLACK = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 4e-3}
# Of a piece of the float64 matrix, and of a panel of the bare products, where the whole matrix would be larger.
PIECE_BYTES, PANEL_BYTES = 1 << 28, 4 << 30


@dataclass
class LossMeasurement(Measurement):
    """A provider of a loss; its errors are relative."""

    loss_error: float | None = None
    gradient_error: float | None = None


@dataclass(frozen=True)
class LossCase(ArrayCase):
    """A contrastive loss of N anchors and M candidates of width D; candidate i is the positive of anchor i.

    `mode` "full" is forward and backward, "no-grad-forward" the value alone. `backend` forces one of fastcse's.
    """

    n: int = option(help="Anchors.", least=1, several="512,2048,8192")
    m: int | None = option(None, "Candidates.", least=1, shown="as many as anchors")
    d: int = option(768, "Width of a row.", least=1, several=True)
    loss: str = option("infonce", "The loss.", choices=LOSSES, several=True)
    stage: str = option("early", "Stage of training that the rows are like.", choices=tuple(STAGES), several=True)
    mode: str = option("full", "full is forward and backward.", choices=MODES)
    temperature: float = option(0.05, "Temperature of the loss.", above=0)
    margin: float = 0.3

    row = LossMeasurement
    metrics = (
        Metric("loss_error", "loss\nerror"),
        Metric("gradient_error", "grad.\nerror", drawn="relative error of the gradients"),
    )
    legend = "MiB: beyond inputs and gradients; errors: relative, from float64."
    axes = ("n", "d", "data", "stage")
    always = ("fastcse", "eager")  # eager is the yardstick of the accuracy rule
    operations = ("loss",)
    labelled = ()

    def __post_init__(self):
        super().__post_init__()
        if self.m is None:
            object.__setattr__(self, "m", self.n)
        if self.m < self.n or (self.loss == "symmetric" and self.m != self.n):
            wanted = "exactly" if self.loss == "symmetric" else "at least"
            text = f" is {self.m}: {self.loss} needs {wanted} as many candidates as "
            raise OptionError("m", text, "n", f", which is {self.n}")

    @property
    def operation(self) -> str:
        return self.loss

    variant = operation

    @property
    def products(self) -> int:
        """Matrix products of N x M x D that the operation needs without keeping the matrix; every provider is counted
        by them."""
        if self.mode == "no-grad-forward":
            return 1
        # Both directions need the similarities before either normaliser is known, and again afterwards. Who keeps the
        # whole matrix does with 3, and may come out below the bare products.
        return 4 if self.loss == "symmetric" else 3

    @property
    def flops(self) -> float:
        """Floating-point operations counted alike for everybody: 2 for one product, 6 forward and backward, 8 for both
        directions, times N M D."""
        return 2.0 * self.products * self.n * self.m * self.d

    @property
    def sizes(self) -> tuple[tuple[str, str], ...]:
        return (("N", "n"), *([("M", "m")] if self.m != self.n else []), ("D", "d"))

    @property
    def setting(self) -> str:
        what = "forward + backward" if self.mode == "full" else "forward alone"
        return f"{what}, {self.where}, {self.data} rows, {self.stage}, temperature {self.temperature:g}"

    def exact(self, anchor: Tensor, candidate: Tensor) -> Outcome:
        """The plain formula in float64, a few anchors at a time, so that the (N, M) matrix is never whole."""
        raw = [x.detach().to(torch.float64).requires_grad_() for x in (anchor, candidate)]
        unit = [F.normalize(x, dim=-1) for x in raw]
        # Gradients of the pieces gather in these leaves and go through the normalisation once.
        a, c = (x.detach().requires_grad_() for x in unit)
        loss = _exact_one_way(self, a, c)
        if self.loss == "symmetric":
            loss = (loss + _exact_one_way(self, c, a)) / 2
            a.grad, c.grad = a.grad / 2, c.grad / 2
        torch.autograd.backward(unit, [a.grad, c.grad])
        return Outcome(loss, tuple(x.grad for x in raw) if self.mode == "full" else ())

    def call(self, provider: Provider, config: int | str | None, inputs: tuple) -> Callable[[], Outcome]:
        return functools.partial(run_once, provider.build(self, config=config), inputs, backward=self.mode == "full")

    def score(self, row: LossMeasurement, provider: Provider, outcome: Outcome, exact: Outcome) -> None:
        row.loss_error, row.gradient_error = errors(outcome, exact)

    def fault(self, ours: LossMeasurement, result: Result) -> str | None:
        if ours.gradient_error is None:
            return None
        eager = result.measured.get("eager")
        allowed = allowed_error(eager and eager.gradient_error, SLACK[self.dtype])
        if ours.gradient_error <= allowed:
            return None
        return f"fastcse's gradient error {ours.gradient_error:.2e} is above the {allowed:.2e} that the rule allows"

    def lower_bound(self) -> Callable[[Tensor, Tensor], None]:
        """The matrix products that any such loss needs and nothing else, in preallocated memory.

        Where the (N, M) matrix would be large, a panel of its rows at a time: it would crowd out what is measured.
        """
        size = {"dtype": self.torch_dtype, "device": self.device}
        rows = max(1, min(self.n, PANEL_BYTES // (self.m * self.torch_dtype.itemsize)))
        panel, by_row = torch.empty(rows, self.m, **size), torch.empty(rows, self.d, **size)
        by_column = torch.empty(self.m, self.d, **size)
        forwards = 2 if self.loss == "symmetric" and self.mode == "full" else 1

        @torch.no_grad()
        def run(anchor: Tensor, candidate: Tensor) -> None:
            for start in range(0, self.n, rows):
                a = anchor[start : start + rows]
                s = panel[: a.shape[0]]
                for _ in range(forwards):
                    torch.mm(a, candidate.T, out=s)
                if self.mode == "full":
                    torch.mm(s, candidate, out=by_row[: a.shape[0]])
                    torch.addmm(by_column, s.T, a, beta=int(start > 0), out=by_column)

        return run

    @property
    def lower_bound_note(self) -> str:
        return f"{self.products} products, no loss"

    def output_bytes(self, inputs: tuple[Tensor, Tensor]) -> int:
        return sum(x.nbytes for x in inputs) if self.mode == "full" else 0


def plain_logits(case: LossCase, similarity: Tensor, positive: Tensor) -> Tensor:
    """(R, M) logits of a block of similarities; `positive` (R,) is each row's positive column."""
    if case.loss != "focal":
        return similarity / case.temperature
    own = F.one_hot(positive, similarity.shape[1]).to(torch.bool)
    return torch.where(own, similarity * similarity, similarity * (similarity + case.margin)) / case.temperature


def plain_loss(case: LossCase) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as one writes it by hand: normalise, one product, cross-entropy."""

    def loss(anchor: Tensor, candidate: Tensor) -> Tensor:
        s = F.normalize(anchor, dim=-1) @ F.normalize(candidate, dim=-1).T
        label = torch.arange(s.shape[0], device=s.device)
        x = plain_logits(case, s, label)
        if case.loss != "symmetric":
            return F.cross_entropy(x, label)
        return (F.cross_entropy(x, label) + F.cross_entropy(x.T, label)) / 2

    return loss


def _exact_one_way(case: LossCase, a: Tensor, c: Tensor) -> Tensor:
    """Mean over rows of a; adds to the gradients of a and c."""
    n, total = a.shape[0], a.new_zeros(())
    rows = max(1, PIECE_BYTES // (8 * c.shape[0]))
    for start in range(0, n, rows):
        piece = a[start : start + rows]
        positive = torch.arange(start, start + piece.shape[0], device=a.device)
        loss = F.cross_entropy(plain_logits(case, piece @ c.T, positive), positive, reduction="sum") / n
        loss.backward()
        total += loss.detach()
    return total
