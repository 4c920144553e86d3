"""Texts to rows by a model: each distinct text once, in batches of one length, kept on the disk on request."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .files import write_atomic
from .ops import checks

KINDS = ("query", "document")
BATCHES_PER_STEP = 4  # encoded between two movements of the progress bar
CACHE_FORMAT = "1"
CACHED = {torch.float16: "float16", torch.float32: "float32"}
SETTINGS = ("prompts", "default_prompt_name", "max_seq_length", "truncate_dim", "similarity_fn_name")


@torch.no_grad()
def encode_texts(
    model: Any,
    texts: Sequence[str],
    *,
    kind: str | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = 64,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    cache_folder: str | Path | None = None,
    shard_rows: int = 4096,
    check: bool = True,
    progress: Any = True,
) -> Tensor:
    """Rows of texts, (len(texts), D), as the model gives them: not normalised, row i for text i.

    Equal texts are encoded once, and long ones first. A model in training mode stays in it.

    Args:
        model:        a SentenceTransformer, or anything with `encode(texts)`. Of kind "query" its `encode_query` is
                      called, of "document" `encode_document`, and `encode` where it has none, or of kind None.
        prompt_name, prompt: as in sentence-transformers.
        dtype:        of the rows; None keeps the model's, without a cache.
        cache_folder: write every `shard_rows` rows to a file there, and read what an earlier run wrote; the type is
                      float32 or float16 then. Files lie in a folder named by a sha256 of the texts, the model's weights
                      and settings, the prompt, kind and dtype, so that nothing stale is read; one that is cut short is
                      made again, with a warning. Nothing is ever removed.
        check:        refuse rows that hold NaN or infinity.
        progress:     show a bar on stderr; or a bar of the caller's, which is moved by the number of texts.

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
    if kind is not None:
        checks.check_choice("kind", kind, KINDS)
    if dtype is not None or cache_folder is not None:
        checks.check_choice("dtype", dtype, checks.FLOATS if cache_folder is None else tuple(CACHED))
    checks.check_count("batch_size", batch_size)
    checks.check_count("shard_rows", shard_rows)
    encode = _encoder(model, kind, {"prompt_name": prompt_name, "prompt": prompt}, batch_size)
    folder = None
    if cache_folder is not None:
        folder = Path(cache_folder) / digest_of(model, texts, kind, prompt_name, prompt, CACHED[dtype])
        folder.mkdir(parents=True, exist_ok=True)
    shard = len(texts) if folder is None else shard_rows
    what = "encode query" if kind == "query" else "encode corpus"
    training, rows = getattr(model, "training", False), None
    try:
        with progress_bar(what, len(texts), "texts", progress) as bar:
            for first in range(0, len(texts), shard):
                some = texts[first : first + shard]
                path = folder and folder / f"rows-{first:010d}-{first + len(some):010d}.npy"
                width = None if rows is None else rows.shape[1]
                stored = path and _read_shard(path, len(some), width, CACHED[dtype])
                if stored is None:
                    batches = _batches(encode, some, batch_size * BATCHES_PER_STEP)
                else:
                    batches = [([[place] for place in range(len(some))], stored)]
                for places, part in batches:
                    if rows is None:
                        rows = torch.empty(len(texts), part.shape[-1], dtype=dtype or part.dtype, device=device)
                    bar.update(_place(rows, part, places, first, texts if check else None))
                if path is not None and stored is None:
                    array = rows[first : first + len(some)].cpu().numpy()
                    write_atomic(path, functools.partial(np.save, arr=array))
    finally:
        if training:  # sentence-transformers leaves a model without dropout behind
            model.train()
    return rows


def check_texts(name: str, texts: Sequence[str], count: int | None = None) -> list[str]:
    """A list of strings, one for each of `count` rows if that is known."""
    texts = list(texts)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"{name} must be strings, got {type(texts[wrong]).__name__} at {wrong}")
    if not texts or count not in (None, len(texts)):
        raise ValueError(f"{name} must have {count or 'at least 1'} texts, one for each row, got {len(texts)}")
    return texts


def _encoder(model: Any, kind: str | None, prompts: dict[str, str | None], batch_size: int) -> Callable:
    """A call of the model with those arguments that it accepts."""
    function = getattr(model, f"encode_{kind}", None) or getattr(model, "encode", None)
    if not callable(function):
        raise ValueError(f"model must have encode, encode_query or encode_document, got {type(model).__name__}")
    prompts = {name: value for name, value in prompts.items() if value is not None}
    options = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_tensor": True, **prompts}
    taken = accepted(function, options)
    for name, value in prompts.items():
        if name not in taken:
            raise ValueError(f"{name} is {value!r}, but {type(model).__name__} takes no prompt")
    return lambda texts: torch.as_tensor(function(texts, **taken)).detach()


def accepted(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that are parameters of a function."""
    taken = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return options
    return {name: value for name, value in options.items() if name in taken}


def _batches(encode: Callable, texts: list[str], step: int) -> Iterator[tuple[list[list[int]], Tensor]]:
    """Rows of the distinct texts, with the places of each in the list; long ones first, so that a batch has little
    padding."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    distinct = sorted(places, key=lambda text: (-len(text), text))
    for start in range(0, len(distinct), step):
        some = distinct[start : start + step]
        yield [places[text] for text in some], encode(some)


def _place(rows: Tensor, part: Tensor, places: list[list[int]], first: int, checked: list[str] | None) -> int:
    """Write each row of `part` to its places, counted from `first`, and return how many there are."""
    expected = (len(places), rows.shape[1])
    if part.shape != expected:
        raise ValueError(f"model must give rows of shape {expected} for {len(places)} texts, got {tuple(part.shape)}")
    wrong = [] if checked is None else (~torch.isfinite(part).all(1)).nonzero()[:, 0].tolist()
    if wrong:
        at = first + places[wrong[0]][0]
        raise ValueError(f"model must give finite rows, got NaN or infinity for text {at}, {checked[at][:60]!r}")
    source = [i for i, same in enumerate(places) for _ in same]
    target = [first + place for same in places for place in same]
    part = part[torch.tensor(source, device=part.device)].to(rows.device, rows.dtype)
    rows[torch.tensor(target, device=rows.device)] = part
    return len(target)


def _read_shard(path: Path, count: int, width: int | None, dtype: str) -> Tensor | None:
    """The rows of a finished shard, or None where they must be made."""
    if not path.exists():
        return None
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        problem = str(error)
    else:
        if rows.ndim == 2 and rows.dtype == dtype and rows.shape == (count, width or rows.shape[1]):
            return torch.from_numpy(rows)
        problem = f"it holds {rows.shape} {rows.dtype}"
    warnings.warn(f"{path} is damaged and is made again: {problem}", stacklevel=3)
    return None


def digest_of(model: Any, texts: Iterable[str], *settings: Any) -> str:
    """The key of a cached encoding: a sha256 over the model's weights, modules and settings, further settings, and the
    texts.

    The weights themselves are read, not the name they were loaded by: a model that was trained further is another one.
    A model without weights of torch (another runtime's) has its revision as the key.

    Raises:
        ValueError: the model has neither.
    """
    parts = [f"{type(model).__module__}.{type(model).__qualname__}"]
    if isinstance(model, nn.Module):
        parts.append(repr(model))  # modules without weights, such as the pooling, are in here only
    parts += [f"{name}={getattr(model, name, None)!r}" for name in SETTINGS]
    digest = hashlib.sha256(CACHE_FORMAT.encode())
    for part in (*parts, *map(repr, settings)):
        _add(digest, part.encode())
    for part in _weights(model):
        _add(digest, part)
    for text in texts:
        _add(digest, text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _add(digest: Any, part: Any) -> None:
    # With its length, so that no two lists of parts run together into the same bytes.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _weights(model: Any) -> Iterable[Any]:
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    if not state:
        yield _revision(model).encode()
    for name, value in state.items():
        yield name.encode()
        if isinstance(value, Tensor):
            yield f"{value.dtype} {tuple(value.shape)}".encode()
            yield memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            yield repr(value).encode()


def _revision(model: Any) -> str:
    card = getattr(model, "model_card_data", None)
    revision = getattr(card, "base_model_revision", None) or getattr(model, "revision", None)
    if revision is None:
        raise ValueError(
            f"cache_folder needs a model that can be told from others by its weights or its revision, got "
            f"{type(model).__name__} without either: leave cache_folder out"
        )
    return f"{getattr(card, 'base_model', None)} {revision}"


class _Silent:
    def update(self, count: int) -> None:
        """Count, and show nothing."""


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str, progress: Any) -> Iterator[Any]:
    """A bar on stderr that `update(count)` moves on, or none; a bar of the caller's is used as it is, and left open."""
    if progress is True:
        from tqdm.auto import tqdm  # only here: it is no dependency of the losses

        with tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True) as bar:
            yield bar
    else:
        yield _Silent() if progress is None or progress is False else progress
