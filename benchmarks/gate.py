"""Holds the ratios of a benchmark run against those saved for this kind of machine: `make bench`, `make baseline`.

    python -m benchmarks.gate [--save] [--file FILE]

FILE comes from `pytest benchmarks --benchmark-json FILE` or `fastcse bench loss --output FILE`. Ratios only, never
times: a ratio to what ran beside it survives a slow moment of the machine. One that is more than 15% worse than its
baseline is measured again, with more rounds, before it fails. Exit code 1 for a worse ratio, 2 for a file that cannot
be read, 0 where there is no baseline yet.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from fastcse.bench.benchmarks import benchmark_of, case_of
from fastcse.bench.case import Case, WrongAnswer
from fastcse.bench.environment import environment
from fastcse.bench.loss import LossCase
from fastcse.bench.measure import measure, rounds
from fastcse.bench.topk_search import TopkCase

BASELINES = Path(__file__).parent / "baselines"
DEFAULT_FILE = Path("build") / "bench.json"
WORSE = 0.15
# Rounds at the largest size when a ratio is measured again; the suite takes 5.
RETRY = 11
SAVE = "make baseline"
# Whom fastcse is held against, beside the bare products: what one would use without it.
BESIDE = {LossCase: "eager", TopkCase: "FAISS flat"}


class Unreadable(Exception):
    """A file that is missing or not what it should be; the text is one sentence."""


class Reading(NamedTuple):
    """One problem of a run."""

    problem: Case
    ratios: dict[str, float]


class Verdict(NamedTuple):
    """One ratio beside its baseline."""

    problem: Case
    ratio: str
    now: float
    baseline: float | None
    retried: bool = False

    @property
    def change(self) -> float | None:
        return None if self.baseline is None else self.now / self.baseline - 1

    @property
    def worse(self) -> bool:
        return self.change is not None and not self.change <= WORSE

    @property
    def word(self) -> str:
        if self.baseline is None:
            return "no baseline"
        word = "worse" if self.worse else "better" if self.change < -WORSE else "same"
        return f"{word}, measured again" if self.retried else word


def read_run(path: Path) -> tuple[dict[str, Any], list[Reading]]:
    """The machine and the readings of either kind of file."""
    document = _read_json(path, "run the benchmark first: make bench")
    try:
        if "benchmarks" in document:
            notes = [entry["extra_info"] for entry in document["benchmarks"]]
            found = [Reading(_problem(note["problem"]), note["ratios"]) for note in notes]
            return notes[0]["machine"], found
        return document["machine"], [Reading(_problem(result), _ratios(result)) for result in document["results"]]
    except (KeyError, IndexError, TypeError, StopIteration) as error:
        raise Unreadable(f"{path} holds no benchmark run ({type(error).__name__}: {error})") from None


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreadable(f"{path} does not exist: {otherwise}") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read as JSON ({error}): remove it, then {otherwise}") from None
    if not isinstance(document, dict):
        raise Unreadable(f"{path} holds a {type(document).__name__}, not an object: remove it, then {otherwise}")
    return document


def _problem(labels: dict[str, Any]) -> Case:
    return case_of(labels)


def _ratios(result: dict[str, Any]) -> dict[str, float]:
    rows = {row["provider"]: row for row in result["rows"] if row["status"] == "measured"}
    beside = BESIDE[type(_problem(result))]
    return _ratios_of(rows["fastcse"]["to_products"], rows["fastcse"]["ms"], rows[beside]["ms"], beside)


def _ratios_of(to_products: float, ours: float, other: float, beside: str) -> dict[str, float]:
    return {"fastcse/products": to_products, f"fastcse/{beside}": ours / other}


def kind_of_machine(facts: dict[str, Any]) -> str:
    """Processor, instruction set of the C++ module, threads; or the GPU."""
    return facts.get("gpu") or f"{facts['cpu']}, {facts['cpp']}, {facts['threads']} threads"


def baseline_file(facts: dict[str, Any], folder: Path) -> Path:
    return folder / (re.sub(r"[^a-z0-9]+", "-", kind_of_machine(facts).lower()).strip("-") + ".json")


def read_baseline(path: Path) -> dict[str, Any] | None:
    """Title of a problem -> date, commit, torch and ratios; None where nobody saved one."""
    if not path.exists():
        return None
    problems = _read_json(path, f"save a new one: {SAVE}").get("problems")
    try:
        for entry in problems.values():
            for value in entry["ratios"].values():
                if not value > 0:
                    raise ValueError(f"a ratio of {value}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{path} is damaged ({error}): remove it, then save a new one: {SAVE}") from None
    return problems


def save(facts: dict[str, Any], readings: list[Reading], folder: Path) -> Path:
    """Write the readings into this kind of machine's file; problems that were not measured keep what they have."""
    path = baseline_file(facts, folder)
    problems = read_baseline(path) or {}
    origin = {"date": facts["time"], "commit": facts["commit"], "torch": facts["versions"]["torch"]}
    for problem, ratios in readings:
        problems[problem.title] = {**origin, "ratios": {name: round(value, 4) for name, value in ratios.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": kind_of_machine(facts), "problems": dict(sorted(problems.items()))}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def judge(
    readings: list[Reading], baseline: dict[str, Any], again: Callable[[Case], dict[str, float]] | None
) -> list[Verdict]:
    """Every ratio; `again` measures a problem once more where one of its ratios is worse."""
    verdicts = []
    for problem, ratios in readings:
        saved = baseline.get(problem.title, {}).get("ratios", {})
        found = [Verdict(problem, name, value, saved.get(name)) for name, value in ratios.items()]
        if again is not None and any(verdict.worse for verdict in found):
            retried = again(problem)
            found = [v._replace(now=retried[v.ratio], retried=True) for v in found]
        verdicts += found
    return verdicts


def _is_here(kind: str, device: str) -> bool:
    """Whether a problem of that run can be measured again where this program runs."""
    if device != "cpu" and not torch.cuda.is_available():
        return False
    return kind_of_machine(environment(device)) == kind


def measure_again(problem: Case) -> dict[str, float]:
    """The ratios of one problem, with more rounds."""
    beside = BESIDE[type(problem)]
    providers = benchmark_of(problem.labels()).providers
    result = measure(problem, [providers["fastcse"], providers[beside]], repeat=rounds(problem, RETRY), memory=False)
    ours = result.row("fastcse")
    return _ratios_of(ours.to_products, ours.ms, result.row(beside).ms, beside)


def table(verdicts: list[Verdict], kind: str) -> Table:
    out = Table(title=f"against the baseline of {kind}", title_justify="left")
    for name in ("problem", "ratio", "now", "baseline", "change", "verdict"):
        out.add_column(name, justify="right" if name in ("now", "baseline", "change") else "left")
    for v in verdicts:
        old, change = ("-", "-") if v.baseline is None else (f"{v.baseline:.2f}", f"{v.change:+.0%}")
        style = "bold red" if v.worse else "green" if v.word.startswith("better") else None
        out.add_row(
            f"{v.problem.operation}, {v.problem.size}", v.ratio, f"{v.now:.2f}", old, change, v.word, style=style
        )
    return out


def run(file: Path, keep: bool, folder: Path = BASELINES, again: Callable | None = measure_again) -> int:
    """Save or judge one file; the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    facts, readings = read_run(file)
    if keep:
        console.print(f"Saved {len(readings)} problems in {save(facts, readings, folder)}.", soft_wrap=True)
        return 0
    kind = kind_of_machine(facts)
    baseline = read_baseline(baseline_file(facts, folder))
    if baseline is None:
        console.print(f"No baseline for {kind} yet, so nothing is judged: `{SAVE}` saves one.", soft_wrap=True)
        return 0
    verdicts = judge(readings, baseline, again if _is_here(kind, readings[0].problem.device) else None)
    console.print(table(verdicts, kind))
    worse = [v for v in verdicts if v.worse]
    for v in worse:
        console.print(f"{v.ratio} of {v.problem.operation}, {v.problem.size}, is {v.change:.0%} worse than its "
                      f"baseline; at most {WORSE:.0%} is allowed.", style="red", soft_wrap=True)  # fmt: skip
    return 1 if worse else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE, help=f"the run to judge, {DEFAULT_FILE} by default")
    parser.add_argument("--save", action="store_true", help="keep its ratios as the baseline of this kind of machine")
    arguments = parser.parse_args()
    try:
        return run(arguments.file, arguments.save)
    except Unreadable as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except WrongAnswer as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
