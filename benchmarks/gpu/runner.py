"""Stages as processes: each has a time limit, leaves its files behind even when it is cut off, and is not run again
once it is done for the same sources. Their files are gathered into those that are committed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcse.files import read_json, write_json
from fastcse.kernels.configs import TUNED

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("loss", "topk", "rows", "kmeans", "train")


@dataclass(frozen=True)
class Step:
    """One process of a stage. `makes` is the file, in the output folder, whose presence says that it is done.

    `tools` are programs that must be on the path, `modules` what must be importable; without them the step is skipped
    and says so.
    """

    stage: str
    name: str
    command: tuple[str, ...]
    limit_s: float
    makes: str
    environment: dict[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.name}"

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [f"{tool} is not on the path" for tool in self.tools if shutil.which(tool) is None]
        absent += [f"{name} is not installed" for name in self.modules if importlib.util.find_spec(name) is None]
        return absent[0] if absent else None


def digest(root: Path = ROOT) -> str:
    """What the lane's outcome depends on: a machine may hold the sources without their history."""
    found = hashlib.sha256()
    for folder in ("fastcse", "csrc", "tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".hpp"):
                found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Lane:
    """Runs steps into one output folder and remembers how each ended."""

    def __init__(self, output: Path, sources: str, budget_s: float):
        self.output, self.sources = output, sources
        self.deadline = time.monotonic() + budget_s
        self.state_file = output / "state.json"
        # The outcome of other sources says nothing about these.
        earlier: dict[str, Any] = read_json(self.state_file) or {}
        self.state = {key: value for key, value in earlier.items() if value.get("sources") == sources}
        output.mkdir(parents=True, exist_ok=True)

    def is_done(self, step: Step) -> bool:
        return self.state.get(step.key, {}).get("status") == "passed" and (self.output / step.makes).exists()

    def run(self, step: Step) -> dict[str, Any]:
        """Runs a step within what is left of the budget; its log stands beside its files."""
        left = min(step.limit_s, self.deadline - time.monotonic())
        start = time.monotonic()
        if (why := step.missing()) is not None:
            outcome = {"status": "skipped", "why": why}
        elif left < 5:
            outcome = {"status": "skipped", "why": "the lane's time is over"}
        else:
            outcome = self._run(step, left)
        outcome |= {"makes": step.makes, "seconds": round(time.monotonic() - start, 1), "sources": self.sources}
        self.state[step.key] = outcome
        write_json(self.state_file, self.state)
        return outcome

    def _run(self, step: Step, limit_s: float) -> dict[str, Any]:
        log = self.output / f"{step.stage}-{step.name}.log"
        command = [sys.executable if part == "python" else part for part in step.command]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
        with log.open("w", encoding="utf-8") as file:
            files = {"stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **files)
            try:
                code = process.wait(limit_s)
            except BaseException as why:
                # With everything that it started: a worker left behind would hold the device.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(why, subprocess.TimeoutExpired):
                    return {"status": "cut off", "why": f"after {limit_s:.0f} s; see {log.name}"}
                raise
        if code:
            return {"status": "failed", "why": f"exit code {code}: {_last_line(log)}"}
        if not (self.output / step.makes).exists():
            return {"status": "failed", "why": f"made no {step.makes}; see {log.name}"}
        return {"status": "passed", "why": _last_line(log)}

    def gather(self, facts: dict[str, Any], dry: bool) -> None:
        """loss.json, topk.json, rows.json, kmeans.json and train.json from the tables that steps of these sources made,
        machine.json, and the search's winners into the launcher's table."""
        made = sorted({value["makes"] for value in self.state.values() if value["status"] != "skipped"})
        documents: dict[str, Any] = {}
        for path in (self.output / name for name in made if name.endswith(".json")):
            if path.exists() and (found := read_json(path)) is not None:
                documents[path.name] = found
            elif path.exists():
                print(f"{path} is not whole: its step was cut off while it wrote", file=sys.stderr)
        for table in TABLES:
            parts = [document["results"] for name, document in documents.items() if name.startswith(f"{table}-")]
            if parts:
                results = [result for part in parts for result in part]
                write_json(self.output / f"{table}.json", {"command": "make gpu", "machine": facts, "results": results})
        write_json(self.output / "machine.json", facts)
        if "tuned.json" in documents and not dry:
            merge_tuned(documents["tuned.json"]["winners"])


def merge_tuned(winners: dict) -> None:
    """Winners replace entries of their own architecture, type, width and kind; others stay."""
    table = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}
    for arch, by_type in winners.items():
        for dtype, by_width in by_type.items():
            for width, kinds in by_width.items():
                table.setdefault(arch, {}).setdefault(dtype, {}).setdefault(width, {}).update(kinds)
    write_json(TUNED, table)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""
