"""Texts to rows by the caller's model, kept on the disk on request so that a stopped run loses nothing."""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops import checks
from .bars import progress_bar
from .encoded import check_texts
from .identity import digest_of

KINDS = ("query", "document")
DTYPES = ("float32", "float16")
BATCHES_PER_STEP = 4  # encoded between two movements of the progress bar


@torch.no_grad()
def encode_texts(
    model: Any,
    texts: Sequence[str],
    *,
    kind: str = "document",
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = 32,
    dtype: str = "float32",
    cache_folder: str | Path | None = None,
    progress: bool = True,
    shard_rows: int = 4096,
) -> Tensor:
    """Rows of texts, (len(texts), D) on the CPU, as the model gives them: not normalised, row i for text i.

    Args:
        model:        a SentenceTransformer, or anything with `encode(texts)`. Of kind "query" its `encode_query` is
                      called, of "document" `encode_document`, and `encode` where it has none.
        prompt_name, prompt: as in sentence-transformers.
        dtype:        "float32" | "float16".
        cache_folder: write every `shard_rows` rows to a file there, and read what an earlier run wrote. Files lie in a
                      folder named by a sha256 of the texts, the model's weights and settings, the prompt, kind and
                      dtype, so that nothing stale is read; one that is cut short is made again, with a warning. Nothing
                      is ever removed.
        progress:     show a bar on stderr.

    Raises:
        ValueError: no texts, something else than text, an unknown kind or dtype, or a model that takes no prompt, gives
            rows of another number or of changing length, or NaN.

    Example:
        >>> class Lengths:
        ...     def encode(self, texts):
        ...         return [[float(len(text)), 1.0] for text in texts]
        >>> encode_texts(Lengths(), ["a", "three"], progress=False)
        tensor([[1., 1.],
                [5., 1.]])
    """
    texts = check_texts("texts", texts)
    checks.check_choice("kind", kind, KINDS)
    checks.check_choice("dtype", dtype, DTYPES)
    for name, value in (("batch_size", batch_size), ("shard_rows", shard_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
    encode = _encoder(model, kind, prompt_name, prompt, batch_size)
    folder = None
    if cache_folder is not None:
        folder = Path(cache_folder) / digest_of(model, texts, kind, prompt_name, prompt, dtype)
        folder.mkdir(parents=True, exist_ok=True)
    training = getattr(model, "training", False)
    try:
        return _encode_all(encode, texts, folder, shard_rows, batch_size, np.dtype(dtype), progress, kind)
    finally:
        if training:  # sentence-transformers leaves a model without dropout behind
            model.train()


def _encoder(
    model: Any, kind: str, prompt_name: str | None, prompt: str | None, batch_size: int
) -> Callable[[list[str]], Any]:
    """A call of the model with those arguments that it takes."""
    function = getattr(model, f"encode_{kind}", None) or getattr(model, "encode", None)
    if not callable(function):
        raise ValueError(f"model must have encode, encode_query or encode_document, got {type(model).__name__}")
    prompts = {"prompt_name": prompt_name, "prompt": prompt}
    prompts = {name: value for name, value in prompts.items() if value is not None}
    options = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_tensor": True, **prompts}
    taken = accepted(function, options)
    refused = [name for name in prompts if name not in taken]
    if refused:
        raise ValueError(f"{refused[0]} is {prompts[refused[0]]!r}, but {type(model).__name__} takes no prompt")
    return lambda texts: function(texts, **taken)


def accepted(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a function takes."""
    taken = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return options
    return {name: value for name, value in options.items() if name in taken}


def _encode_all(
    encode: Callable, texts: list[str], folder: Path | None, shard_rows: int, batch_size: int, dtype: np.dtype,
    progress: bool, kind: str,
) -> Tensor:  # fmt: skip
    rows, what = None, "encode query" if kind == "query" else "encode corpus"
    with progress_bar(what, len(texts), "texts", progress) as bar:
        for first in range(0, len(texts), shard_rows):
            some = slice(first, min(first + shard_rows, len(texts)))
            shape = (some.stop - first, None if rows is None else rows.shape[1])
            path = None if folder is None else folder / f"rows-{first:010d}-{some.stop:010d}.npy"
            part = None if path is None else _read(path, shape, dtype)
            if part is None:
                part = _encode_some(encode, texts[some], first, batch_size, shape[1], bar).astype(dtype)
                if path is not None:
                    _write(path, part)
            else:
                bar.update(len(part))
            if rows is None:
                rows = torch.zeros(len(texts), part.shape[1], dtype=torch.from_numpy(part[:0]).dtype)
            rows[some] = torch.from_numpy(part)
    return rows


def _encode_some(encode: Callable, texts: list[str], first: int, batch_size: int, width: int | None, bar: Any):
    """(len(texts), D) float32 array; equal texts are encoded once, long ones first. `first` numbers texts[0]."""
    distinct = sorted(set(texts), key=lambda text: (-len(text), text))
    place = {text: i for i, text in enumerate(distinct)}
    parts, step = [], batch_size * BATCHES_PER_STEP
    for start in range(0, len(distinct), step):
        part = torch.as_tensor(encode(distinct[start : start + step])).detach().to("cpu", torch.float32)
        count = len(distinct[start : start + step])
        width = part.shape[-1] if width is None else width
        if part.shape != (count, width):
            raise ValueError(
                f"model must give rows of shape {(count, width)} for {count} texts, got {tuple(part.shape)}"
            )
        parts.append(part)
        bar.update(count)
    bar.update(len(texts) - len(distinct))
    rows = torch.cat(parts)[[place[text] for text in texts]]
    wrong = (~torch.isfinite(rows).all(1)).nonzero()[:, 0]
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(f"model must give finite rows, got NaN or infinity for text {first + at}, {texts[at][:60]!r}")
    return rows.numpy()


def _read(path: Path, shape: tuple[int, int | None], dtype: np.dtype) -> np.ndarray | None:
    """The rows of a finished shard, or None where they must be made."""
    if not path.exists():
        return None
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        problem = str(error)
    else:
        if rows.ndim == 2 and rows.dtype == dtype and rows.shape == (shape[0], shape[1] or rows.shape[1]):
            return rows
        problem = f"it holds {rows.shape} {rows.dtype}"
    warnings.warn(f"{path} is damaged and is made again: {problem}", stacklevel=2)
    return None


def _write(path: Path, rows: np.ndarray) -> None:
    """Whole or not at all, also when the machine stops."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            np.save(file, rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)
