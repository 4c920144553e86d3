"""What can be measured: an operation at one size on one kind of data, and the rows that a measurement gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from ..errors import OptionError
from ..options import check, either, option

if TYPE_CHECKING:
    from .provider import Provider

# Rows like those of training. Speed and accuracy depend on them: filters drop small gradients, rounding cancels where
# the loss is small, and a GPU's clock falls on random bits.
# Weights of a common direction, of one of 64 centres, and of each row's own part.
KINDS = {"random": (0.0, 0.0, 1.0), "clustered": (0.3, 0.8, 1.0), "anisotropic": (1.4, 0.0, 1.0)}
CENTRES = 64
# Length of what separates a positive from its anchor, in lengths of the anchor's own part: a cosine of own parts of
# 0.45 early in training, 0.95 late.
STAGES = {"early": 2.0, "late": 0.33}


def make_rows(case: Case) -> tuple[Tensor, Tensor]:
    """(N, D) anchors and (M, D) candidates, not normalised, that require gradients where the mode is "full"; the same
    for the same seed."""
    # Made on their device: a million rows made on the CPU would take longer than the measurement.
    g = torch.Generator(case.device).manual_seed(case.seed)
    common, centre, own = KINDS[case.data]
    n, m, d = case.n, case.m, case.d

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=case.device)

    def background(rows: int) -> Tensor:
        return common * direction + centre * centres[torch.randint(CENTRES, (rows,), generator=g, device=g.device)]

    direction, centres = normal(1, d), normal(CENTRES, d)
    base, part = background(n), own * normal(n, d)
    anchor = base + part
    candidate = base + part + STAGES[case.stage] * normal(n, d)
    if m > n:
        candidate = torch.cat([candidate, background(m - n) + own * normal(m - n, d)])
    wants_grad = case.mode == "full"
    return tuple(x.to(case.torch_dtype).requires_grad_(wants_grad) for x in (anchor, candidate[:m]))


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("cpu", "cuda")


def check_device(device: str) -> None:
    """An OptionError where it is none of DEVICES, with or without a number."""
    if device.partition(":")[0] not in DEVICES:
        raise OptionError("device", f" {device!r} is unknown: expected {either(DEVICES)}")


class WrongAnswer(Exception):
    """fastcse failed or missed its accuracy rule: no number of this run may be reported."""


class Metric(NamedTuple):
    """A field of a measurement that only its operation has: heading and format of a table; `drawn` is its label in a
    figure, if it has one there."""

    field: str
    heading: str
    form: str = ".1e"
    drawn: str = ""


@dataclass
class Measurement:
    """What one provider did with one case. `status` is measured, absent, unsuitable or failed; `reason` says why it is
    not measured. `choice` is the configuration that was fastest, `to_products` the time divided by the lower bound's.
    An operation's own fields follow."""

    provider: str
    status: str = "measured"
    reason: str = ""
    note: str = ""
    choice: int | str | None = None
    ms: float | None = None
    ms_20: float | None = None
    ms_80: float | None = None
    tflops: float | None = None
    to_products: float | None = None
    extra_mib: float | None = None

    def rate(self, case: Case) -> None:
        """Fill in what follows from the time."""
        self.tflops = None if case.flops is None else case.flops / self.ms / 1e9

    def labels(self) -> dict[str, Any]:
        """As a plain object for JSON, which has no word for NaN: null, and the note says so."""
        kept = asdict(self)
        lost = {key: value for key, value in kept.items() if isinstance(value, float) and not math.isfinite(value)}
        said = [f"{key} is {value}" for key, value in lost.items()]
        return kept | dict.fromkeys(lost) | {"note": "; ".join(filter(None, (self.note, *said)))}

    @classmethod
    def read(cls, labels: dict[str, Any]) -> Measurement:
        """The inverse of `labels`; text in the place of a number, as older files have it for NaN, is a number."""
        kinds = get_type_hints(cls)
        kept = {key: value for key, value in labels.items() if key in kinds}
        text = [key for key, value in kept.items() if isinstance(value, str) and float in get_args(kinds[key])]
        return cls(**kept | {key: float(kept[key]) for key in text})


@dataclass
class Result:
    """One case and its measurements."""

    case: Case
    repeat: int
    backend: str | None = None
    rows: list[Measurement] = field(default_factory=list)

    def row(self, provider: str) -> Measurement:
        return next(row for row in self.rows if row.provider == provider)

    @property
    def measured(self) -> dict[str, Any]:
        """Provider -> measurement, of those that were measured."""
        return {row.provider: row for row in self.rows if row.status == "measured"}

    def labels(self) -> dict[str, Any]:
        """As a plain object for JSON."""
        rows = [row.labels() for row in self.rows]
        return {**self.case.labels(), "repeat": self.repeat, "backend": self.backend, "rows": rows}

    def check(self) -> None:
        """WrongAnswer where fastcse failed or broke the rule of its operation."""
        ours = next((row for row in self.rows if row.provider == self.case.ours), None)
        if ours is None or ours.status in ("absent", "unsuitable"):
            return
        if ours.status == "failed":
            raise WrongAnswer(f"{ours.provider} failed at {self.case.title}: {ours.reason}")
        if (fault := self.case.fault(ours, self)) is not None:
            raise WrongAnswer(f"{fault}, at {self.case.title}: nothing is reported; run the tests")


class Case:
    """One operation at one size. A subclass is a frozen dataclass, and its fields are the options of the command.

    The class says how its measurements are read: `row` is their type, `metrics` are its fields of accuracy, `legend`
    explains the columns, `axes` are the fields that a figure varies, and `panels` (field, label) its panels where they
    are not ratio, memory and what `metrics` draw. `lower_bound_name` is what times are divided by, `ours` the provider
    that must be right, `always` those that are measured whatever a user chooses.
    """

    row: ClassVar[type[Measurement]] = Measurement
    metrics: ClassVar[tuple[Metric, ...]] = ()
    legend: ClassVar[str] = ""
    axes: ClassVar[tuple[str, ...]] = ()
    panels: ClassVar[tuple[tuple[str, str], ...]] = ()
    lower_bound_name: ClassVar[str] = "bare products"
    ours: ClassVar[str] = "fastcse"
    always: ClassVar[tuple[str, ...]] = ("fastcse",)
    # The names of what is computed, as JSON has them; (label of a size, field); properties that stand beside the fields
    # in JSON; fields that do not.
    operations: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[tuple[tuple[str, str], ...]] = (("N", "n"), ("D", "d"))
    labelled: ClassVar[tuple[str, ...]] = ("operation",)
    unlabelled: ClassVar[tuple[str, ...]] = ()
    # What its data and its providers depend on, where it is no field: `variant` is what a provider may not compute.
    operation: Any = ""
    variant: Any = None
    mode: Any = "forward"
    stage: Any = "early"
    dtype: Any = "float32"
    flops: Any = None
    lower_bound_note: Any = ""
    # An operation that cannot be measured in one process has its own function (providers, repeat, step) -> Result.
    measure: Any = None

    def __post_init__(self):
        check(self)
        check_device(self.device)

    @property
    def m(self) -> int:
        """Candidates, where it is no field: as many of everything."""
        return self.n

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def size(self) -> str:
        """The sizes, to read."""
        return ", ".join(f"{label} = {getattr(self, name)}" for label, name in self.sizes)

    @property
    def setting(self) -> str:
        """All but the sizes, to read."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"{self.operation}, {self.size}, {self.setting}"

    def labels(self) -> dict[str, Any]:
        """As a plain object for JSON."""
        kept = {key: value for key, value in asdict(self).items() if key not in self.unlabelled}
        return {name: getattr(self, name) for name in self.labelled} | kept

    def inputs(self) -> tuple:
        """Fresh inputs, the same for the same seed."""
        return make_rows(self)

    def exact(self, *inputs) -> Any:
        """The outcome in float64, in the form that `score` takes."""
        raise NotImplementedError

    def call(self, provider: Provider, config: int | str | None, inputs: tuple) -> Callable[[], Any]:
        """The function that is timed; raises Unsupported."""
        return provider.build(self, *inputs, config=config)

    def score(self, row: Any, provider: Provider, outcome: Any, exact: Any) -> None:
        """Write the errors of an outcome into its row."""
        raise NotImplementedError

    def fault(self, ours: Any, result: Result) -> str | None:
        """What is wrong with fastcse's measurement, in words, or None."""

    def lower_bound(self) -> Callable[..., object]:
        """A function of the inputs: what no provider can do without, and nothing else."""
        raise NotImplementedError

    def output_bytes(self, inputs: tuple) -> int:
        """Size of an outcome, which is in nobody's memory."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ArrayCase(Case):
    """A case of rows that `data` makes: what such operations share."""

    dtype: str = option(
        "float32", "Type of the rows.", choices=tuple(DTYPES), shown="float32 on the CPU, bfloat16 on a GPU"
    )
    device: str = option("cpu", "cpu or cuda.", metavar="NAME", shown="a GPU if there is one")
    data: str = option("clustered", "Kind of rows.", choices=tuple(KINDS), several=True)
    seed: int = option(0, "Seed of the rows.")
    backend: str | None = option(None, "triton, cpp or reference.", metavar="NAME", shown="the fastest that runs")

    @property
    def where(self) -> str:
        return f"{self.dtype} on {self.device}"
