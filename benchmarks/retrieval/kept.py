"""What an interrupted study keeps: each part's result in a file of its own, written whole, and used again only for the
settings that it was made with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def kept_json(path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in `path`, or that of `make`, which is then written there with its settings."""
    # As JSON gives them back: a tuple would never equal the list that it became.
    settings = json.loads(json.dumps(settings))
    if (found := read_kept(path)) is not None and found["settings"] == settings:
        return found
    made = {"settings": settings, **make()}
    replace(path, lambda part: part.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8"))
    return made


def read_kept(path: Path) -> dict[str, Any] | None:
    """The result in a file, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def kept_rows(path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in `path`, or those of `make`, which are then written there with their settings."""
    if path.exists() and (found := torch.load(path, weights_only=True)).get("settings") == settings:
        return found["rows"]
    made = make()
    replace(path, lambda part: torch.save({"settings": settings, "rows": made}, part))
    return made


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all, also where two runs share the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
