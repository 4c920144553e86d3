"""Puts what the steps left into the files that are committed and that the results page reads."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from fastcse.kernels.configs import TUNED


def gather(output: Path, made: list[Path], facts: dict[str, Any], dry: bool) -> None:
    """loss.json, topk.json, rows.json, kmeans.json and train.json from the tables that were `made`, machine.json, and
    the search's winners into the launcher's table."""
    documents = {path.name: found for path in made if path.suffix == ".json" and (found := _read(path)) is not None}
    for table in ("loss", "topk", "rows", "kmeans", "train"):
        parts = [document for name, document in documents.items() if name.startswith(f"{table}-")]
        if parts:
            results = [result for part in parts for result in part["results"]]
            _write(output / f"{table}.json", {"command": "make gpu", "machine": facts, "results": results})
    _write(output / "machine.json", facts)
    if "tuned.json" in documents and not dry:
        merge_tuned(documents["tuned.json"]["winners"])


def merge_tuned(winners: dict) -> None:
    """Winners replace entries of their own architecture, type, width and kind; others stay."""
    table = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}
    for arch, by_type in winners.items():
        for dtype, by_width in by_type.items():
            for width, kinds in by_width.items():
                table.setdefault(arch, {}).setdefault(dtype, {}).setdefault(width, {}).update(kinds)
    part = TUNED.with_suffix(".part")
    _write(part, table)
    shutil.move(part, TUNED)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        print(f"{path} is not whole: its step was cut off while it wrote", file=sys.stderr)
        return None


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
