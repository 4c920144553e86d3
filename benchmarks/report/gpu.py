"""What is wanted of a GPU, what was measured there, and what a roofline expects."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .files import rows_of, table

NOT_MEASURED = "not measured"
LARGE, PEERS_N, MILLION = 16384, 65536, 1 << 20
ONE_WAY = ("focal", "infonce")
MODEL_ARCH = "90"
# Other than bfloat16, a GPU's results are held to nothing here.
DTYPE = "bfloat16"


class Target(NamedTuple):
    """A number of some results, and its bound. `pick` chooses results, `value` reads one; the worst of them counts."""

    what: str
    bound: str  # "<=" or ">="
    wanted: float
    unit: str
    pick: Callable[[dict], bool]
    value: Callable[[dict], float | str]
    model: tuple[str, int, int] | None = None  # column of the roofline, least N, D
    only: str = ""  # part of the name of the GPU that the bound was set for

    @property
    def text(self) -> str:
        """The bound, to read."""
        return f"{self.bound} {self.wanted:g} {self.unit}".rstrip()

    def meets(self, value: float) -> bool:
        """Whether a number is within the bound; NaN never is."""
        return (operator.le if self.bound == "<=" else operator.ge)(value, self.wanted)


def ours(key: str, factor: float = 1.0) -> Callable[[dict], float | str]:
    """A number of fastcse's row."""

    def read(result: dict) -> float | str:
        value = rows_of(result).get("fastcse", {}).get(key)
        return NOT_MEASURED if value is None else value * factor

    return read


def times_ours(peer: str) -> Callable[[dict], float | str]:
    """A peer's time as a multiple of fastcse's; or why it has none."""

    def read(result: dict) -> float | str:
        found = rows_of(result)
        if peer not in found:
            return next((row["status"] for row in result["rows"] if row["provider"] == peer), NOT_MEASURED)
        return found[peer]["ms"] / found["fastcse"]["ms"] if "fastcse" in found else NOT_MEASURED

    return read


def _one_way(d: int, least: int = LARGE) -> Callable[[dict], bool]:
    return lambda result: result["loss"] in ONE_WAY and result["d"] == d and result["n"] >= least


def _at(loss: tuple[str, ...], n: int, d: int) -> Callable[[dict], bool]:
    return lambda result: result["loss"] in loss and result["n"] == n and result["d"] == d


def _targets() -> Iterator[Target]:
    both = "focal and infonce, N >= 16384"
    for d, ratio in ((384, 1.35), (768, 1.2), (1024, 1.2)):
        yield Target(f"{both}, D = {d}: time / three bare products", "<=", ratio, "x", _one_way(d),
                     ours("to_products"), ("ratio", LARGE, d))  # fmt: skip
    for d in (768, 1024):
        yield Target(f"{both}, D = {d}: TFLOP/s at 6 N^2 D, H100", ">=", 640, "", _one_way(d), ours("tflops"),
                     ("tflops", LARGE, d), only="H100")  # fmt: skip
    for peer, least in (("QuACK", 1), ("eager", 2), ("Cut Cross-Entropy exact", 3), ("Liger Triton", 4), ("Inf-CL", 15),
                        ("sentence-transformers cached", 40)):  # fmt: skip
        what = f"infonce, N = {PEERS_N}, D = 768: time of {peer} / fastcse"
        yield Target(what, ">=", least, "x", _at(("infonce",), PEERS_N, 768), times_ours(peer))
    million = _at(ONE_WAY, MILLION, 768)
    yield Target(f"one step at {MILLION:,} x {MILLION:,}, D = 768, H100: seconds", "<=", 8.5, "s", million,
                 ours("ms", 1e-3), ("total_ms", MILLION, 768), only="H100")  # fmt: skip
    yield Target("the same: GiB beyond inputs and gradients", "<=", 4, "GiB", million, ours("extra_mib", 1 / 1024))
    yield Target(
        "relative gradient error, whatever was measured", "<=", 2e-3, "", lambda result: True, ours("gradient_error")
    )


TARGETS = tuple(_targets())


def target_table(gpu: dict[str, dict], roofline: list[dict[str, str]]) -> str:
    """Every target, with what each GPU reached, and the model's number apart."""
    names = {path: document["machine"].get("gpu", path) for path, document in gpu.items()}
    head = ["target, bfloat16, forward + backward", "wanted",
            *(f"measured, {name}" for name in names.values() or ["any GPU"]), "roofline model, sm_90"]  # fmt: skip
    rows = []
    for target in TARGETS:
        measured = [reached(target, document) for document in gpu.values()] or [NOT_MEASURED]
        rows.append([target.what, target.text, *measured, expected(target, roofline)])
    return table(head, rows)


def reached(target: Target, document: dict[str, Any]) -> str:
    """The worst of a GPU's results that the target speaks of, and whether that is enough."""
    results = [result for result in document["results"]
               if (result["dtype"], result["mode"]) == (DTYPE, "full") and result["device"] != "cpu"]  # fmt: skip
    return worst_of(target, results, document["machine"].get("gpu", ""))


def worst_of(target: Target, results: list[dict], gpu: str = "") -> str:
    """The worst of those results that the target speaks of, and whether that is enough."""
    values = [target.value(result) for result in results if target.pick(result)]
    numbers = [value for value in values if not isinstance(value, str)]
    if not numbers:
        return values[0] if values else NOT_MEASURED
    # NaN is the worst there is, and neither max nor min is sure to keep it.
    missed = [value for value in numbers if not target.meets(value)]
    worst = next((x for x in numbers if x != x), (max if target.bound == "<=" else min)(numbers))
    if target.only not in gpu:
        return f"{_shown(worst, target.unit)} (set for {target.only})"
    return f"{_shown(worst, target.unit)} ({'missed' if missed else 'met'})"


def _shown(value: float, unit: str) -> str:
    text = f"{value:.1e}" if abs(value) < 0.01 else f"{value:#.3g}".rstrip(".")
    return f"{text} {unit}".rstrip()


def expected(target: Target, roofline: list[dict[str, str]]) -> str:
    """The model's numbers over the compiled forms and sizes, from the lowest to the highest."""
    if target.model is None:
        return ""
    column, least, d = target.model
    found = [float(line[column]) for line in roofline
             if line["arch"] == MODEL_ARCH and int(line["d"]) == d and int(line["n"]) >= least]  # fmt: skip
    if not found:
        return "not computed"
    factor = 1e-3 if column.endswith("_ms") else 1.0
    ends = dict.fromkeys(_shown(value * factor, target.unit) for value in (min(found), max(found)))
    return " to ".join(ends)


def model_table(roofline: list[dict[str, str]]) -> str:
    """The roofline's lines for Hopper."""
    lines = [line for line in roofline if line["arch"] == MODEL_ARCH]
    if not lines:
        return "Not computed (`make compiled`)."
    keys = ("tile", "programs_per_sm", "n", "d", "total_ms", "ratio", "tflops", "wanted", "reachable")
    alike: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        alike.setdefault(tuple(line[key] for key in keys), []).append(line["form"])
    forms = dict.fromkeys(form for names in alike.values() for form in names)
    rows = [["all" if len(names) == len(forms) else "; ".join(names), *cells[:-1],
             "yes" if cells[-1] == "True" else "no"] for cells, names in alike.items()]  # fmt: skip
    head = ["form", "tile", "programs / SM", "N", "D", "total ms", "/ bare products", "TFLOP/s", "wanted", "reachable"]
    return f"Compiled forms: {'; '.join(forms)}.\n\n" + table(head, rows, left=2)
