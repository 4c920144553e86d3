"""Arguments of an index and of a search, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..operands import METRICS
from ..ops import checks
from .arrays import as_ids, as_rows
from .exact import Search
from .faiss_index import import_faiss

OPTIONS = {
    "exact": ("block_bytes",),
    "flat": ("gpu",),
    "ivf": ("nlist", "nprobe", "gpu"),
    "hnsw": ("M", "efConstruction", "efSearch"),
}


def check_settings(metric: str, kind: str, dtype: torch.dtype | None, backend: str | None, options: dict) -> None:
    """The settings of an index.

    Raises:
        ValueError: an unknown word, or an option that is not of the kind.
        ModuleNotFoundError: a kind of FAISS without faiss.
    """
    checks.check_choice("metric", metric, METRICS)
    checks.check_choice("kind", kind, tuple(OPTIONS))
    if dtype is not None and dtype not in checks.FLOATS:
        raise ValueError(f"dtype must be one of float16, bfloat16, float32, float64, got {dtype}")
    if kind != "exact" and backend is not None:
        raise ValueError(f"backend {backend!r} is for kind 'exact', got kind {kind!r}")
    unknown = [name for name in options if name not in OPTIONS[kind]]
    if unknown:
        raise ValueError(f"kind {kind!r} takes the options {', '.join(OPTIONS[kind])}, got {', '.join(unknown)}")
    for name, value in options.items():
        if name == "gpu":
            checks.check_choice(name, value, (True, False, None))
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
    if kind != "exact":
        import_faiss(kind)


def make_search(
    query: Tensor | np.ndarray,
    k: int,
    exclude_id: Tensor | np.ndarray | Sequence | None,
    min_score: float | Tensor | None,
    max_score: float | Tensor | None,
    width: int,
    most: int | None,
    settings: tuple[str, str | None],
) -> Search:
    """A search of rows of length `width` for at most `most` of them; `settings` are metric and backend."""
    query, _ = as_rows("query", query)
    n = query.shape[0]
    if query.shape[1] != width:
        raise ValueError(f"query must have rows of length {width} as the index has, got shape {tuple(query.shape)}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1 or (most is not None and k > most):
        limit = "" if most is None else f" to the {most} rows of the index"
        raise ValueError(f"k must be a whole number from 1{limit}, got {k!r}")
    exclude = None if exclude_id is None else as_excluded("exclude_id", exclude_id, n, query.device)
    bounds = _as_bound("min_score", min_score, query), _as_bound("max_score", max_score, query)
    return Search(query, k, settings[0], exclude, *bounds, settings[1])


def as_excluded(name: str, excluded: Any, n: int, device: torch.device) -> Tensor:
    """(N, E) ids to leave out, padded by -1, of (N,) or (N, E)."""
    ids = as_ids(name, excluded, device)
    if ids.dim() not in (1, 2) or ids.shape[0] != n:
        shape = tuple(ids.shape)
        raise ValueError(f"{name} must have shape ({n},) or ({n}, E), one row for each query, got {shape}")
    return ids[:, None] if ids.dim() == 1 else ids


def _as_bound(name: str, value: float | Tensor | None, query: Tensor) -> float | Tensor | None:
    """None, a number, or (N,) float64."""
    if isinstance(value, Tensor):
        checks.check_vector(name, value, query.shape[0], "query", query, dtype=None)
        return value.detach().double()
    if value is not None and (not isinstance(value, Real) or value != value):
        raise ValueError(f"{name} must be a number or a tensor with one for each query, got {value!r}")
    return value if value is None else float(value)
