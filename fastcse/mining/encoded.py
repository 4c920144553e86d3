"""The texts of an index and their rows: read from a list or a file, encoded by the caller's model."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from .arrays import as_rows

BATCHES_PER_STEP = 4  # encoded between two movements of the progress bar


def read_texts(source: str | Path | Sequence[str]) -> tuple[list[str], Tensor | None]:
    """Texts and their ids: of a list, with None, or the lines of a UTF-8 file, with their numbers from 0.

    Blank lines of a file are passed over and keep their number; a name ending in `.gz` is unpacked.
    """
    if not isinstance(source, str | Path):
        return check_texts("texts_or_path", source), None
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"texts_or_path {str(path)!r} is no file: expected a list of texts or a text file")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        # Only "\n" ends a line: a Unicode line separator inside a sentence must not split it.
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = [(number, line.strip()) for number, line in enumerate(file)]
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"texts_or_path {str(path)!r} is damaged or not UTF-8 text: {error}") from None
    kept = [(number, line) for number, line in lines if line]
    if not kept:
        raise ValueError(f"texts_or_path {str(path)!r} is empty: expected a sentence a line")
    return [line for _, line in kept], torch.tensor([number for number, _ in kept])


def check_texts(name: str, texts: Sequence[str], count: int | None = None) -> list[str]:
    """A list of strings, one for each of `count` rows if that is known."""
    texts = list(texts)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"{name} must be strings, got {type(texts[wrong]).__name__} at {wrong}")
    if not texts or count not in (None, len(texts)):
        raise ValueError(f"{name} must have {count or 'at least 1'} texts, one for each row, got {len(texts)}")
    return texts


def encode_texts(
    model: Any,
    texts: list[str],
    *,
    batch_size: int = 64,
    prompt_name: str | None = None,
    prompt: str | None = None,
    progress: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(len(texts), D) rows; equal texts are encoded once, long ones first; a model in training mode stays in it."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number from 1, got {batch_size!r}")
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    distinct = sorted(places, key=lambda text: (-len(text), text))
    prompts = {"prompt_name": prompt_name, "prompt": prompt}
    options = {name: value for name, value in prompts.items() if value is not None}
    training, rows = getattr(model, "training", False), None
    try:
        with _bar(len(distinct), progress) as bar:
            for start in range(0, len(distinct), batch_size * BATCHES_PER_STEP):
                some = distinct[start : start + batch_size * BATCHES_PER_STEP]
                part = model.encode(
                    some, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True, **options
                )
                part, _ = as_rows("the model's output", part)
                if rows is None:
                    rows = torch.empty(len(texts), part.shape[1], dtype=dtype or part.dtype, device=device or "cpu")
                _place(rows, part, [places[text] for text in some])
                bar.update(len(some))
    finally:
        if training:  # sentence-transformers leaves a model without dropout behind
            model.train()
    return rows


def _place(rows: Tensor, part: Tensor, places: list[list[int]]) -> None:
    if part.shape != (len(places), rows.shape[1]):
        expected = (len(places), rows.shape[1])
        raise ValueError(
            f"the model must give rows of shape {expected} for {len(places)} texts, got {tuple(part.shape)}"
        )
    source = [i for i, same in enumerate(places) for _ in same]
    target = [place for same in places for place in same]
    part = part[torch.tensor(source, device=part.device)].to(rows.device, rows.dtype)
    rows[torch.tensor(target, device=rows.device)] = part


def _bar(total: int, progress: bool):
    from tqdm.auto import tqdm  # only here: it is no dependency of the losses

    return tqdm(total=total, desc="encode", unit=" texts", dynamic_ncols=True, disable=not progress)


def check_same_width(new: Tensor, old: Tensor) -> None:
    """A refreshed index keeps the length of its rows."""
    checks.check_rows("the model's output", new)
    if new.shape[1] != old.shape[1]:
        raise ValueError(f"refresh needs a model with rows of length {old.shape[1]}, got {new.shape[1]}")
