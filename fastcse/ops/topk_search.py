"""Exact nearest rows of a corpus: checks, the choice of the backend, and the way from scores back to values."""

from __future__ import annotations

from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from .. import reference
from ..operands import METRICS, TopKQuery
from . import checks
from .dispatch import choose_backend, launchers, record


class TopK(NamedTuple):
    """`values` (N, k) float32, best first; `indices` (N, k) int64, rows of the corpus, -1 where there is none."""

    values: Tensor
    indices: Tensor


# Products of longer rows may leave the range of a float.
LARGEST_ENTRY = 1e15


@custom_op("fastcse::topk", mutates_args=())
def topk_op(
    query: Tensor, corpus: Tensor, k: int, metric: str, query_id: Tensor | None, corpus_id: Tensor | None,
    least: Tensor, most: Tensor, backend: str,
) -> list[Tensor]:  # fmt: skip
    """[score, index, count] of the launchers."""
    record(backend)
    if metric == "cosine":
        query, corpus = _shortened(query), _shortened(corpus)
    return list(launchers(backend).topk(TopKQuery(query, corpus, k, metric, query_id, corpus_id, least, most)))


@topk_op.register_fake
def _(query, corpus, k, metric, query_id, corpus_id, least, most, backend):
    new = query.new_empty
    return [new((query.shape[0], k), dtype=torch.float32), new((query.shape[0], k), dtype=torch.int64),
            new(query.shape[0], dtype=torch.int64)]  # fmt: skip


def _shortened(x: Tensor) -> Tensor:
    """x, or where entries are huge a copy with its rows divided by powers of 2: the same cosines, to the bit."""
    low, high = torch.aminmax(x)
    if max(-low.item(), high.item()) <= LARGEST_ENTRY:
        return x
    top = x.abs().amax(1).float()
    exponent = torch.where(torch.isfinite(top) & (top > 1), torch.frexp(top).exponent, 0)
    return torch.ldexp(x.float(), -exponent[:, None])


@torch.no_grad()
def topk(
    query: Tensor,
    corpus: Tensor,
    k: int,
    *,
    query_id: Tensor | None = None,
    corpus_id: Tensor | None = None,
    metric: str = "cosine",
    max_score: float | Tensor | None = None,
    min_score: float | Tensor | None = None,
    backend: str | None = None,
) -> TopK:
    r"""The k best rows of `corpus` for each query, exactly, without the (N, M) matrix.

        cosine: s_ij = <q_i, c_j> / (|q_i| |c_j|), largest first
        ip:     s_ij = <q_i, c_j>, largest first
        l2:     s_ij = |q_i - c_j|^2, smallest first

    Args:
        query:     (N, D) float16 | bfloat16 | float32 | float64, any strides. Read only.
        corpus:    (M, D) on the same device; its type may differ. Half-precision rows stay as they are.
        k:         1 <= k <= M; there is no other limit.
        query_id, corpus_id: (N,), (M,) int64: a row with the query's id is left out, before anything is selected.
        metric:    "cosine" | "ip" | "l2".
        max_score, min_score: a number, or (N,) one for each query: only rows whose value is at most, at least this
                   take part; the bounds themselves do. Of "l2" too the bounds are of the value, a squared distance.
        backend:   "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        TopK(values, indices), (N, k) each: values float32 (float64 if both inputs are), best first; equal values by
        ascending index. Where fewer than k rows take part the rest is filled with index -1 and the worst value: -inf,
        or +inf for "l2". No gradient flows through them.

    Raises:
        ValueError: shapes, types or devices disagree, k outside 1..M, one id without the other, an unknown metric or
            backend, a bound that is NaN.
        RuntimeError: the backend asked for cannot run here.

    Numerics:
        What may be among the best is scored again and compared: by "cpp" in float64 and then rounded to float32, so
        that values are correct to the last bit; by "triton" in float32. A row shorter than 1e-8 is a zero row and has
        cosine 0. A row of the corpus that is not finite is never found; a query that is not finite finds nothing. Of
        "ip" and "l2" values must stay within float32's range. Same input, same bits.

    Example:
        >>> corpus = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> topk(torch.tensor([[2.0, 0.0]]), corpus, 2).indices
        tensor([[0, 2]])
    """
    _check(query, corpus, k, query_id, corpus_id, metric)
    least, most = _bounds(query, metric, min_score, max_score)
    name, decides = ("query", query) if query.dtype == torch.float64 else ("corpus", corpus)
    chosen = choose_backend(decides, backend, name)
    search = (query.detach(), corpus.detach(), int(k), metric, _whole(query_id), _whole(corpus_id), least, most)
    if chosen == "reference":
        record(chosen)
        return _values(metric, *reference.topk(TopKQuery(*search)))
    return _values(metric, *topk_op(*search, chosen))


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _check(
    query: Tensor, corpus: Tensor, k: int, query_id: Tensor | None, corpus_id: Tensor | None, metric: str
) -> None:
    checks.check_rows("query", query)
    checks.check_rows("corpus", corpus)
    if corpus.shape[1] != query.shape[1]:
        raise ValueError(
            f"corpus and query must have rows of one length, got {tuple(corpus.shape)} and {tuple(query.shape)}"
        )
    if corpus.device != query.device:
        raise ValueError(f"corpus and query must be on one device, got {corpus.device} and {query.device}")
    checks.check_choice("metric", metric, METRICS)
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= corpus.shape[0]:
        raise ValueError(f"k must be a whole number from 1 to the {corpus.shape[0]} rows of corpus, got {k!r}")
    if (query_id is None) != (corpus_id is None):
        given, absent = ("corpus_id", "query_id") if query_id is None else ("query_id", "corpus_id")
        raise ValueError(f"{given} needs {absent} to compare with, got {absent}=None")
    if query_id is not None:
        checks.check_vector("query_id", query_id, query.shape[0], "query", query)
        checks.check_vector("corpus_id", corpus_id, corpus.shape[0], "corpus", corpus)


def _bounds(
    query: Tensor, metric: str, min_score: float | Tensor | None, max_score: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """(N,) float64 each: least and most score, larger being better."""
    least = _bound("min_score", min_score, query, -torch.inf)
    most = _bound("max_score", max_score, query, torch.inf)
    return (-most, -least) if metric == "l2" else (least, most)


def _bound(name: str, value: float | Tensor | None, query: Tensor, absent: float) -> Tensor:
    n, new = query.shape[0], {"dtype": torch.float64, "device": query.device}
    if isinstance(value, Tensor):
        checks.check_vector(name, value, n, "query", query, dtype=None)
        if value.is_cpu and not torch.compiler.is_compiling() and value.isnan().any():
            raise ValueError(f"{name} must hold numbers, got nan for query {int(value.isnan().nonzero()[0])}")
        return value.detach().to(torch.float64)
    if value is None:
        return torch.full((n,), absent, **new)
    if not isinstance(value, Real) or value != value:
        raise ValueError(f"{name} must be a number or a tensor with one for each query, got {value!r}")
    return torch.full((n,), float(value), **new)


def _values(metric: str, score: Tensor, index: Tensor, count: Tensor) -> TopK:
    """Scores to values, and what stands where nothing was found."""
    value = 0.0 - score if metric == "l2" else score  # and not -score, which makes -0.0 of a distance of 0
    absent = torch.arange(index.shape[1], device=index.device) >= count[:, None]
    worst = torch.inf if metric == "l2" else -torch.inf
    return TopK(value.masked_fill(absent, worst), index.masked_fill(absent, -1))
