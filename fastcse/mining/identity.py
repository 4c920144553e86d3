"""What decides the rows that a model gives for texts, as one digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = "1"  # of what is stored under a digest
SETTINGS = ("prompts", "default_prompt_name", "max_seq_length", "truncate_dim", "similarity_fn_name")


def digest_of(model: Any, texts: Iterable[str], *settings: Any) -> str:
    """A sha256 over the model's weights, modules and settings, further settings, and the texts.

    The weights themselves are read, not the name they were loaded by: a model that was trained further is another one.
    A model without weights that torch knows (another runtime's) is told apart by its revision.

    Raises:
        ValueError: the model has neither.
    """
    digest = hashlib.sha256(FORMAT.encode())
    for part in (*_describe(model), *map(repr, settings)):
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


def _describe(model: Any) -> list[str]:
    parts = [f"{type(model).__module__}.{type(model).__qualname__}"]
    if isinstance(model, nn.Module):
        parts.append(repr(model))  # modules without weights, such as the pooling, are seen here only
    return parts + [f"{name}={getattr(model, name, None)!r}" for name in SETTINGS]


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
