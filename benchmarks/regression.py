"""Holds the ratios of a benchmark run against those saved for this kind of machine: `make bench`, `make baseline`.

    python -m benchmarks.regression [--save] [--file FILE]

FILE comes from `pytest benchmarks --benchmark-json FILE`. Ratios only, never times: a ratio to what ran beside it
survives a slow moment of the machine. One that is more than 15% worse than its baseline is measured again, by the same
test with more rounds, before it fails. Exit code 1 for a worse ratio, 2 for a file that cannot be read, 0 where there
is no baseline yet.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from fastcse.bench.benchmarks import case_of
from fastcse.bench.environment import environment
from fastcse.errors import InputError, RunError
from fastcse.files import write_json

BASELINES = Path(__file__).parent / "baselines"
DEFAULT_FILE = Path("build") / "bench.json"
WORSE = 0.15
# Rounds at the largest size when a ratio is measured again; the suite takes pytest-benchmark's 5.
RETRY = 11
SAVE = "make baseline"


class Reading(NamedTuple):
    """One case of a run: the test that measured it, its title, and its ratios."""

    test: str
    title: str
    ratios: dict[str, float]


class Verdict(NamedTuple):
    """One ratio beside its baseline."""

    title: str
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
    """The machine and the readings of a run."""
    found = _read_json(path, "run the benchmark first: make bench")
    try:
        entries = [(entry["fullname"], entry["extra_info"]) for entry in found["benchmarks"]]
        readings = [Reading(test, case_of(note["problem"]).title, note["ratios"]) for test, note in entries]
        return entries[0][1]["machine"], readings
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(f"{path} holds no benchmark run ({type(error).__name__}: {error})") from None


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {otherwise}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): remove it, then {otherwise}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, not an object: remove it, then {otherwise}")
    return document


def kind_of_machine(facts: dict[str, Any]) -> str:
    """Processor, instruction set of the C++ module, threads; or the GPU."""
    return facts.get("gpu") or f"{facts['cpu']}, {facts['cpp']}, {facts['threads']} threads"


def baseline_file(facts: dict[str, Any], folder: Path) -> Path:
    return folder / (re.sub(r"[^a-z0-9]+", "-", kind_of_machine(facts).lower()).strip("-") + ".json")


def read_baseline(path: Path) -> dict[str, Any] | None:
    """Title of a case -> date, commit, torch and ratios; None where nobody saved one."""
    if not path.exists():
        return None
    problems = _read_json(path, f"save a new one: {SAVE}").get("problems")
    try:
        for value in (value for entry in problems.values() for value in entry["ratios"].values()):
            if not value > 0:
                raise ValueError(f"a ratio of {value}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it, then save a new one: {SAVE}") from None
    return problems


def save(facts: dict[str, Any], readings: list[Reading], folder: Path) -> Path:
    """Write the readings into this kind of machine's file; cases that were not measured keep their ratios."""
    path = baseline_file(facts, folder)
    problems = read_baseline(path) or {}
    origin = {"date": facts["time"], "commit": facts["commit"], "torch": facts["versions"]["torch"]}
    for reading in readings:
        ratios = {name: round(value, 4) for name, value in reading.ratios.items()}
        problems[reading.title] = {**origin, "ratios": ratios}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"machine": kind_of_machine(facts), "problems": dict(sorted(problems.items()))})
    return path


def judge(readings: list[Reading], baseline: dict[str, Any], again: Callable[[str], dict] | None) -> list[Verdict]:
    """Every ratio; `again` runs the test of a case once more where one of its ratios is worse."""
    verdicts = []
    for test, title, ratios in readings:
        saved = baseline.get(title, {}).get("ratios", {})
        found = [Verdict(title, name, value, saved.get(name)) for name, value in ratios.items()]
        if again is not None and any(verdict.worse for verdict in found):
            retried = again(test)
            found = [verdict._replace(now=retried[verdict.ratio], retried=True) for verdict in found]
        verdicts += found
    return verdicts


def run_again(test: str) -> dict[str, float]:
    """The ratios of one test, with more rounds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "again.json"
        options = ["--benchmark-only", f"--benchmark-min-rounds={RETRY}", f"--benchmark-json={path}"]
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", test, *options], capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"{test} failed when it was measured again: {done.stdout.strip().splitlines()[-1]}")
        return read_run(path)[1][0].ratios


def _is_here(facts: dict[str, Any]) -> bool:
    """Whether that run can be repeated where this program runs."""
    if "gpu" in facts and not torch.cuda.is_available():
        return False
    return kind_of_machine(environment("cuda" if "gpu" in facts else "cpu")) == kind_of_machine(facts)


def show(verdicts: list[Verdict], kind: str, console: Console) -> None:
    """The table, and a sentence for each ratio that is worse."""
    table = Table(title=f"against the baseline of {kind}", title_justify="left")
    for name in ("case", "ratio", "now", "baseline", "change", "verdict"):
        table.add_column(name, justify="right" if name in ("now", "baseline", "change") else "left")
    for v in verdicts:
        old, change = ("-", "-") if v.baseline is None else (f"{v.baseline:.2f}", f"{v.change:+.0%}")
        style = "bold red" if v.worse else "green" if v.word.startswith("better") else None
        table.add_row(v.title.partition(", f")[0], v.ratio, f"{v.now:.2f}", old, change, v.word, style=style)
    console.print(table)
    for v in verdicts:
        if v.worse:
            console.print(
                f"{v.ratio} of {v.title} is {v.change:.0%} worse than its baseline; at most {WORSE:.0%} is allowed.",
                style="red", soft_wrap=True,
            )  # fmt: skip


def run(file: Path, keep: bool, folder: Path = BASELINES, again: Callable | None = run_again) -> int:
    """Save or judge one file; the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    facts, readings = read_run(file)
    if keep:
        console.print(f"Saved {len(readings)} cases in {save(facts, readings, folder)}.", soft_wrap=True)
        return 0
    kind, baseline = kind_of_machine(facts), read_baseline(baseline_file(facts, folder))
    verdicts = judge(readings, baseline or {}, again if _is_here(facts) else None)
    show(verdicts, kind, console)
    if baseline is None:
        console.print(f"No baseline for {kind} yet, so nothing is judged: `{SAVE}` saves one.", soft_wrap=True)
    return 1 if any(v.worse for v in verdicts) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE, help=f"the run to judge, {DEFAULT_FILE} by default")
    parser.add_argument("--save", action="store_true", help="keep its ratios as the baseline of this kind of machine")
    arguments = parser.parse_args()
    try:
        return run(arguments.file, arguments.save)
    except (InputError, RunError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2


if __name__ == "__main__":
    raise SystemExit(main())
