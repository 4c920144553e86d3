"""Results of the parts of a study, so that an interrupted one continues; two processes may share the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastcse.files import write_atomic


def cached(path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in `path` if it was made with these settings, else that of `make`, which is then written there.

    Args:
        path:     a file of JSON, or of tensors where its name ends in .pt.
        settings: all that the result depends on, as JSON can hold it.
        make:     computes the result.

    Returns:
        The result, with its settings as `settings`.
    """
    settings = json.loads(json.dumps(settings))  # as the file gives them back: a tuple is a list there
    if (found := read_cached(path)) is not None and found.get("settings") == settings:
        return found
    made = {"settings": settings, **make()}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = path.suffix == ".pt"
    write_atomic(path, (lambda file: torch.save(made, file)) if tensors else json.dumps(made, indent=1) + "\n")
    return made


def read_cached(path: Path) -> dict[str, Any] | None:
    """The result in a file with its settings, or None where there is none."""
    if not path.exists():
        return None
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else json.loads(path.read_text("utf-8"))
