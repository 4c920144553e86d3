"""What can be measured: an operation's inputs, who computes it, its truth, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from .runs import LIMIT


class Problem(Protocol):
    """One operation at one size on one kind of data."""

    n: int
    m: int
    d: int
    dtype: str
    device: str

    @property
    def operation(self) -> str:
        """The name of what is computed."""

    @property
    def counted(self) -> str:
        """What N counts: anchors, queries, pairs."""

    @property
    def mode(self) -> str:
        """full, no-grad-forward or forward."""

    @property
    def flops(self) -> float | None:
        """Floating-point operations, counted alike for everybody; None where they are not the limit."""

    @property
    def size(self) -> str:
        """The sizes, to read."""

    @property
    def setting(self) -> str:
        """All but the sizes, to read."""

    @property
    def title(self) -> str:
        """One line that says what is measured."""

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files."""


@dataclass
class Entry:
    """What one provider did with one problem. `status` is measured, absent, unsuitable or failed; then `reason` says
    why. Each operation adds its own fields of accuracy."""

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

    def rate(self, problem: Problem) -> None:
        """Fill in what follows from the times."""
        self.tflops = problem.flops / self.ms / 1e9


@dataclass
class Result:
    """One problem and its rows."""

    problem: Problem
    repeat: int
    backend: str | None = None
    rows: list[Entry] = field(default_factory=list)

    def row(self, provider: str) -> Entry:
        return next(row for row in self.rows if row.provider == provider)

    def labels(self) -> dict[str, Any]:
        """As a plain object for JSON."""
        rows = [asdict(row) for row in self.rows]
        return {**self.problem.labels(), "repeat": self.repeat, "backend": self.backend, "rows": rows}


class WrongAnswer(Exception):
    """fastcse failed or missed the accuracy rule: no number of this run may be reported."""


class Metric(NamedTuple):
    """A field of accuracy in an operation's rows, and how it is shown; `drawn` is its label in a figure, if it has
    one there."""

    field: str
    heading: str
    name: str
    unit: str
    form: str = ".1e"
    drawn: str = ""


class Subject(NamedTuple):
    """An operation, as the measuring frame needs it.

    `prepare(peer, problem, choice, inputs)` gives the call that is timed, or raises Unsuitable; `judge` writes what its
    outcome misses into the row; `check` raises WrongAnswer where fastcse's own row breaks the rule. `limit(problem)`
    gives a function of the inputs: the least that anyone can do, called `limit_name`. `output_bytes` is what an outcome
    takes and nobody is charged for.

    An operation that the frame cannot measure in one process brings its own `measure(problem, names, repeat, step)` and
    none of those. `panels`: (field, label) of its figure's, where they are not ratio, memory and what `metrics` draw.
    """

    row: type[Entry]
    peers: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    legend: str
    axes: tuple[str, ...]
    inputs: Callable[[Any], tuple] | None = None
    exact: Callable[..., Any] | None = None
    prepare: Callable[[Any, Any, Any, tuple], Callable[[], Any]] | None = None
    judge: Callable[..., None] | None = None
    check: Callable[[Result], None] | None = None
    wrong: type[WrongAnswer] = WrongAnswer
    limit: Callable[[Any], Callable[..., object]] | None = None
    limit_note: Callable[[Any], str] | None = None
    output_bytes: Callable[[Any, tuple], int] | None = None
    limit_name: str = LIMIT
    ours: str = "fastcse"
    measure: Callable[..., Result] | None = None
    panels: tuple[tuple[str, str], ...] = ()

    @property
    def over_limit(self) -> str:
        """Heading of times divided by the limit's."""
        return f"/ {self.limit_name.partition(' ')[0]}"

    @property
    def yardstick(self) -> str:
        """Whose time the others' are divided by, in a sentence."""
        return self.ours if self.limit_name == self.ours else f"the {self.limit_name}"
