"""Puts what the steps left into the files that are committed and that the results page reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fastcse.kernels.configs import TUNED


def gather(output: Path, facts: dict[str, Any], dry: bool) -> None:
    """loss.json from the tables, machine.json, and the search's winners into the launcher's table."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("loss-*.json"))]
    if parts:
        whole = {"command": "make gpu", "machine": parts[-1]["machine"],
                 "results": [result for part in parts for result in part["results"]]}  # fmt: skip
        _write(output / "loss.json", whole)
    _write(output / "machine.json", facts)
    found = output / "tuned.json"
    if found.exists() and not dry:
        _merge_tuned(json.loads(found.read_text(encoding="utf-8"))["winners"])


def _merge_tuned(winners: dict) -> None:
    """Winners replace entries of their own architecture, type, width and kind; others stay."""
    table = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}
    for arch, by_type in winners.items():
        for dtype, by_width in by_type.items():
            for width, kinds in by_width.items():
                table.setdefault(arch, {}).setdefault(dtype, {}).setdefault(width, {}).update(kinds)
    part = TUNED.with_suffix(".part")
    _write(part, table)
    shutil.move(part, TUNED)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
