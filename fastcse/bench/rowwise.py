"""Row-wise operations: value and gradients against float64, and one copy of the same bytes as the lower bound of time.

The bound reads what must be read once, writes what must be written once, and computes nothing.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.quadruplet import WEIGHTS, quadruplet_loss
from ..ops.dispatch import choose_backend, launchers, record
from ..options import option
from .accuracy import Outcome, allowed_error, errors, run_once
from .case import ArrayCase, Measurement, Metric, Result, make_rows
from .provider import Provider, named, need

MODES = ("full", "forward")
# (N, D) arrays that must be read or written, once in each pass: a backward pass is after others have used the memory,
# so that what it needs of the forward pass is read again. Vectors (N,) are not counted.
PASSES = {
    ("quadruplet", "full"): 8,  # four rows; their gradients, which can be made while the rows are read
    ("quadruplet", "forward"): 4,
    ("normalize", "full"): 4,  # the row; and backward it, the gradient above, and what that becomes
    ("normalize", "forward"): 1,
    ("adversarial", "forward"): 3,  # base, direction; the moved row
}
OPS = tuple(dict.fromkeys(op for op, _ in PASSES))
# Beyond twice what plain torch misses: rounding of a few sums along a row.
SLACK = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 1e-3}
# Opens every hinge: a row at rest costs fastcse less, and a benchmark may not live on that.
MARGIN = 1.0
# Length of an adversarial move, relative to the row's.
STEP = 0.1
# Of one array of a piece in float64.
PIECE_BYTES = 1 << 25


@dataclass
class RowwiseMeasurement(Measurement):
    """A provider of a row-wise operation. `gb_s` counts the bytes of the lower bound for everybody."""

    gb_s: float | None = None
    of_copy: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None

    def rate(self, case: RowwiseCase) -> None:
        self.gb_s, self.of_copy = case.bytes / self.ms / 1e6, 1 / self.to_products


@dataclass(frozen=True)
class RowwiseCase(ArrayCase):
    """A row-wise operation on N rows of width D.

    quadruplet: the mean hinge of anchors, positives, batch and corpus negatives. normalize: 1 / |x|, or x / |x|, and
    backward the gradient by x of what is given by x / |x|. adversarial: x + radius g / |g|, which has no backward, with
    the radius of each row known.

    `backend` forces one of fastcse's.
    """

    n: int = option(65_536, "Rows.", least=1, several=True)
    d: int = option(768, "Width of a row.", least=1, several=True)
    op: str = option("quadruplet", "Operation.", choices=OPS, several=",".join(OPS))
    mode: str = option("full", "full is forward and backward; adversarial has no backward.", choices=MODES)

    row = RowwiseMeasurement
    metrics = (
        Metric("gb_s", "GB/s", ".1f"),
        Metric("of_copy", "of\ncopy", ".0%"),
        Metric("value_error", "value\nerror", drawn="relative error of the value"),
        Metric("gradient_error", "grad.\nerror", drawn="relative error of the gradients"),
    )
    legend = (
        "MiB: beyond inputs and gradients or moved rows; GB/s: what the copy reads and writes, by each one's time; "
        "of copy: share of the copy's bandwidth; errors: relative, from float64, over all rows."
    )
    axes = ("op", "n", "d", "data")
    lower_bound_name = "copy"
    always = ("fastcse", "eager")  # eager is the yardstick of the accuracy rule
    operations = OPS
    labelled = ("operation", "m")

    def __post_init__(self):
        super().__post_init__()
        if self.op == "adversarial":
            object.__setattr__(self, "mode", "forward")

    @property
    def operation(self) -> str:
        return self.op

    @property
    def bytes(self) -> int:
        """What must be read and written, in the type of the rows; counted alike for everybody."""
        return PASSES[self.op, self.mode] * self.n * self.d * self.torch_dtype.itemsize

    @property
    def setting(self) -> str:
        what = "forward + backward" if self.mode == "full" else "forward alone"
        return f"{what}, {self.where}, {self.data} rows"

    def inputs(self) -> tuple[Tensor, ...]:
        """Fresh rows, those that require gradients first: anchor, positive, batch and corpus negative; or rows and the
        gradient above x / |x|; or rows, direction and (N,) radius."""
        x, other = make_rows(self)
        if self.op == "normalize":
            return x, other.detach()
        if self.op == "adversarial":
            return x, other, STEP * torch.linalg.vector_norm(x, dim=-1)
        corpus_negative = make_rows(replace(self, seed=self.seed + 1))[1]
        # Another anchor's positive.
        batch_negative = other.detach().roll(1, 0).requires_grad_(other.requires_grad)
        return x, other, batch_negative, corpus_negative

    def run_once(self, fn: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Outcome:
        """One call, and backward unless the mode leaves it out; the gradient above a normalised row is an input."""
        leaves, upstream = (inputs[:1], inputs[1]) if self.op == "normalize" else (inputs, None)
        return run_once(fn, leaves, upstream, self.mode == "full")

    def exact(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The inputs: what is right is made anew for each outcome, in pieces, because all of it in float64 would take
        several times the memory of what is measured."""
        return inputs

    def pieces(self, inputs: tuple[Tensor, ...], factors: bool) -> Iterator[tuple[slice, Outcome]]:
        """Rows, and their part of the outcome in float64; `factors`: the value of normalize is 1 / |x|."""
        fn = PLAIN[self.op]["functional"]
        step = max(1, PIECE_BYTES // (8 * self.d))
        for start in range(0, self.n, step):
            rows = slice(start, start + step)
            piece = tuple(x.detach()[rows].double().requires_grad_(x.requires_grad) for x in inputs)
            share = len(piece[0]) / self.n

            def part(*taken: Tensor, share: float = share) -> Tensor:
                value = fn(*taken)
                return value * share if value.dim() == 0 else value  # a mean

            outcome = self.run_once(part, piece)
            if factors:
                outcome = outcome._replace(value=piece[0].detach().norm(dim=-1).reciprocal())
            yield rows, outcome

    def score(self, row: RowwiseMeasurement, provider: Provider, outcome: Outcome, exact: tuple[Tensor, ...]) -> None:
        row.value_error, row.gradient_error = errors(outcome, self.pieces(exact, outcome.value.dim() == 1))

    def fault(self, ours: RowwiseMeasurement, result: Result) -> str | None:
        eager = result.measured.get("eager")
        for part in ("value", "gradient"):
            error = getattr(ours, f"{part}_error")
            allowed = allowed_error(eager and getattr(eager, f"{part}_error"), SLACK[self.dtype])
            if error is not None and not error <= allowed:
                return f"fastcse's {part} error {error:.2e} is above the {allowed:.2e} that the accuracy rule allows"
        return None

    def lower_bound(self) -> Callable[..., object]:
        run, _ = BOUNDS.get((self.op, self.mode), READ)
        if run is _added:
            run = functools.partial(run, torch.zeros(self.n, self.d, dtype=self.torch_dtype, device=self.device))
        return torch.no_grad()(run)

    @property
    def lower_bound_note(self) -> str:
        return f"{self.op}: {BOUNDS.get((self.op, self.mode), READ)[1]}"

    def output_bytes(self, inputs: tuple[Tensor, ...]) -> int:
        """Moved rows, or gradients; values by row are small, or a provider's own way."""
        count = {"quadruplet": 4, "normalize": 1}.get(self.op, 0) if self.mode == "full" else 0
        return (1 if self.op == "adversarial" else count) * inputs[0].nbytes


def _clones(*rows: Tensor) -> None:
    # Kept where gradients are, so that the next run frees the memory, as with everybody.
    for x in rows:
        x.grad = None
    for x in rows:
        x.grad = x.detach().clone()


def _written_from_two(x: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    return x + direction


def _read(*rows: Tensor) -> None:
    for x in rows:
        x.sum()


def _added(held: Tensor, x: Tensor, gradient: Tensor) -> None:
    x.sum()
    held.add_(x)


# What is done once to the bytes of an operation, and in words; forward alone they are read.
READ = (_read, "the sum of all entries")
BOUNDS = {
    ("quadruplet", "full"): (_clones, "the four inputs cloned into fresh memory"),
    ("normalize", "full"): (_added, "the sum of all entries, then the rows added to the gradient in place"),
    ("adversarial", "forward"): (_written_from_two, "rows and direction added up in fresh memory"),
}


def _hinge(positive: Tensor, batch: Tensor, corpus: Tensor) -> Tensor:
    return F.relu(WEIGHTS[0] * batch + WEIGHTS[1] * corpus - positive + MARGIN).mean()


def _cosines(a: Tensor, p: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _hinge(*(F.cosine_similarity(a, x, dim=-1) for x in (p, b, c)))


def _unit_products(*rows: Tensor) -> Tensor:
    a, *others = (F.normalize(x, dim=-1) for x in rows)
    return _hinge(*((a * x).sum(-1) for x in others))


def _normalize(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def _over_norm(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _step(x: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    return x + radius[:, None] * F.normalize(direction, dim=-1)


def _step_over_norm(x: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    return x + (radius / direction.norm(dim=-1))[:, None] * direction


# operation -> the two usual ways to write it
PLAIN = {
    "quadruplet": {"functional": _cosines, "by hand": _unit_products},
    "normalize": {"functional": _normalize, "by hand": _over_norm},
    "adversarial": {"functional": _step, "by hand": _step_over_norm},
}


Run = Callable[[], Outcome]
COMPILERS = ("g++", "clang++", "c++")
VARIANTS = ("functional", "by hand")


def _by_hand(case: RowwiseCase, *inputs) -> Run:
    *rows, variant = inputs
    return functools.partial(case.run_once, PLAIN[case.op][variant], tuple(rows))


def _compiled(case: RowwiseCase, *inputs) -> Run:
    *rows, variant = inputs
    return functools.partial(case.run_once, torch.compile(PLAIN[case.op][variant], dynamic=False), tuple(rows))


def _no_compiler() -> str | None:
    """What torch.compile builds with; on a GPU too, for what launches its kernels."""
    if any(shutil.which(name) for name in COMPILERS):
        return None
    return f"torch.compile needs a C++ compiler, and none of {', '.join(COMPILERS)} is on the path: apt install g++"


def _fastcse(case: RowwiseCase, *inputs: Tensor) -> Run:
    if case.op == "quadruplet":
        loss = functools.partial(quadruplet_loss, margin=MARGIN, backend=case.backend)
        return functools.partial(case.run_once, loss, inputs)
    make = _fused_normalize if case.op == "normalize" else _fused_step
    return make(case, _launchers(case, inputs[0]), *(x.detach() for x in inputs))


def _launchers(case: RowwiseCase, x: Tensor) -> ModuleType:
    """Those that the losses would take for these rows."""
    name = choose_backend(x, case.backend)
    need(name != "reference", f"{case.op} is a step of cpp and triton; the backend here is reference")
    record(name)
    return launchers(name)


def _fused_normalize(case: RowwiseCase, b: ModuleType, x: Tensor, gradient: Tensor) -> Run:
    # The products of the losses leave float32, which the last step changes in place. Here 1 / |x| is in it already and
    # the factor is 1: the work is the same, and so is what each further call writes.
    held = gradient.float() * b.inverse_norms(b.prepare(x))[:, None]
    factor = torch.ones(case.n, device=x.device)
    into = held if x.dtype == held.dtype else torch.empty_like(x)

    def run() -> Outcome:
        rows = b.prepare(x)
        scale = b.inverse_norms(rows)
        if case.mode == "forward":
            return Outcome(scale)
        b.project_gradient(held, rows, scale, factor=factor, into=into)
        return Outcome(scale, (into,))

    return run


def _fused_step(case: RowwiseCase, b: ModuleType, x: Tensor, direction: Tensor, radius: Tensor) -> Run:
    return lambda: Outcome(b.step_rows(b.prepare(x), b.prepare(direction), radius.float(), "l2").to(x.dtype))


OF_TWO = "the faster of torch.nn.functional (cosine_similarity, normalize) and of norms and products by hand"
PROVIDERS = named(
    Provider("fastcse", _fastcse, note="normalize: 1 / |x| for rows, and backward in place, as within the losses"),
    Provider("eager", _by_hand, note=OF_TWO, configs=VARIANTS),
    Provider("torch.compile", _compiled, note=OF_TWO, configs=VARIANTS, lacks=_no_compiler),
)
