"""Stages as processes: each has a time limit, leaves its files behind even when it is cut off, and is not run again
once it is done for the same sources.
"""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


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
    environment: tuple[tuple[str, str], ...] = ()
    tools: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


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
        self.state: dict[str, Any] = self._read_state()
        output.mkdir(parents=True, exist_ok=True)

    def _read_state(self) -> dict[str, Any]:
        if not self.state_file.exists():
            return {}
        state = json.loads(self.state_file.read_text(encoding="utf-8"))
        # What other sources did says nothing about these.
        return {key: value for key, value in state.items() if value.get("sources") == self.sources}

    def is_done(self, step: Step) -> bool:
        return self.state.get(self._key(step), {}).get("status") == "passed" and (self.output / step.makes).exists()

    def run(self, step: Step) -> dict[str, Any]:
        """Runs a step within what is left of the budget; its log stands beside its files."""
        left = min(step.limit_s, self.deadline - time.monotonic())
        missing = [f"{tool} is not on the path" for tool in step.tools if not _on_path(tool)]
        missing += [f"{name} is not installed" for name in step.modules if importlib.util.find_spec(name) is None]
        start = time.monotonic()
        if missing:
            outcome = {"status": "skipped", "why": missing[0]}
        elif left < 5:
            outcome = {"status": "skipped", "why": "the lane's time is over"}
        else:
            outcome = self._run(step, left)
        outcome |= {"makes": step.makes, "seconds": round(time.monotonic() - start, 1), "sources": self.sources}
        self.state[self._key(step)] = outcome
        self.state_file.write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")
        return outcome

    def files(self) -> list[Path]:
        """What the steps of these sources made; a step that was cut off may have made a part of its file."""
        found = [self.output / value["makes"] for value in self.state.values() if value["status"] != "skipped"]
        return sorted(path for path in found if path.is_file())

    def _run(self, step: Step, limit_s: float) -> dict[str, Any]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(step.environment)}
        log = self.output / f"{step.stage}-{step.name}.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable if part == "python" else part for part in step.command],
                cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                _end(process)
                return {"status": "cut off", "why": f"after {limit_s:.0f} s; see {log.name}"}
            except BaseException:
                _end(process)
                raise
        if code:
            return {"status": "failed", "why": f"exit code {code}: {_last_line(log)}"}
        if not (self.output / step.makes).exists():
            return {"status": "failed", "why": f"made no {step.makes}; see {log.name}"}
        return {"status": "passed", "why": _last_line(log)}

    @staticmethod
    def _key(step: Step) -> str:
        return f"{step.stage}/{step.name}"


def _end(process: subprocess.Popen) -> None:
    """Ends the step with everything that it started: a worker left behind would hold the device."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _on_path(tool: str) -> bool:
    return shutil.which(tool) is not None


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""
