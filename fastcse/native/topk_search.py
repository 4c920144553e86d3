"""Exact top-k on the CPU: products tile by tile through BLAS, and one C++ pass over each tile while it is in cache.

The products only say which rows are worth a look; the C++ module scores those again in double. So the products may be
rough: where the processor multiplies bfloat16 several times faster (AMX) they are bfloat16, and a few rows more are
looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..operands import METRICS, SHORTEST_NORM, TopKQuery
from .extension import _C
from .rows import FLOAT, address, empty, half_rows

# The larger the tile the faster the products, as long as it stays in the last-level cache: on 2 cores with AVX-512
# 2048 x 2048 took 0.90 of the time of 1024 x 1024, and 4096 x 4096 no less (benchmarks/NOTES.md).
TILE_COLS = 2048
MOST_ROWS = 2048
HELD_BYTES, BYTES_HELD = 24, 64 << 20
EPSILON, HALF_EPSILON, SMALLEST = 2.0**-24, 2.0**-8, 2.0**-126
# For fewer queries the corpus is not worth converting.
FEWEST_ROWS = 256
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Where more than this share of a tile had to be scored exactly, bfloat16 cannot tell the rows apart.
CROWDED = 0.01


@dataclass
class Columns:
    """Of the corpus: scale, bias and length of each row, and (0-dim) the longest row and the most that bfloat16 takes
    off a row, in units of the scaled rows."""

    scale: Tensor
    bias: Tensor
    length: Tensor
    longest: Tensor
    cut: Tensor


@dataclass
class Queries:
    """Of a chunk of queries: the rows in float32 and as they are multiplied, scale and squared length, and length and
    what bfloat16 takes off, both in units of the scaled rows."""

    rows: Tensor
    multiplied: Tensor
    scale: Tensor
    square: Tensor
    length: Tensor
    cut: Tensor


def topk(q: TopKQuery) -> tuple[Tensor, Tensor, Tensor]:
    """(N, k) float32 scores, best first, (N, k) int64 columns, and (N,) int64 how many there are.

    A score is larger the better: a squared distance is negative. Entries beyond the count are undefined.
    """
    n, m = q.query.shape[0], q.corpus.shape[0]
    half = multiplies_half() and q.metric != "l2" and n >= FEWEST_ROWS
    corpus = q.corpus if q.corpus.stride(1) == 1 and q.corpus.dtype in ELEMENTS else q.corpus.float().contiguous()
    columns = _columns(corpus, q.metric, half)
    # Twice k where products are exact to a few ulp; rough ones keep more in doubt.
    room = min(m, 4 * q.k + 256)
    size = max(1, min(n, MOST_ROWS, BYTES_HELD // (HELD_BYTES * room)))
    tile, held = empty(size, min(TILE_COLS, m)), empty(size, room, HELD_BYTES // 8, dtype=torch.int64)
    out = empty(n, q.k), empty(n, q.k, dtype=torch.int64), torch.zeros(n, dtype=torch.int64, device="cpu")
    for first in range(0, n, size):
        rows = slice(first, min(first + size, n))
        half = _search(q, rows, corpus, columns, tile, held, tuple(x[rows] for x in out), half)
    return out


def multiplies_half() -> bool:
    """Whether bfloat16 products are several times faster than float32 ones here."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported()


def _float_rows(x: Tensor) -> Tensor:
    x = x.to(torch.float32)
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _measured(x: Tensor, metric: str, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) float32 scale, float64 length of each row, and float64 length of what bfloat16 takes off it."""
    length = empty(x.shape[0], dtype=torch.float64)
    cut = torch.empty_like(length) if half else length
    stride = x.stride(0) if x.shape[0] > 1 else x.shape[1]
    _C.measure_rows(
        address(x), stride, *x.shape, address(length), address(cut if half else None), torch.get_num_threads()
    )
    scale = torch.where(length < SHORTEST_NORM, 0.0, 1.0 / length) if metric == "cosine" else torch.ones_like(length)
    return scale.float(), length, cut


def _columns(corpus: Tensor, metric: str, half: bool) -> Columns:
    m = corpus.shape[0]
    scale, bias, lengths = torch.ones(m, **FLOAT), torch.zeros(m, **FLOAT), empty(m, dtype=torch.float64)
    # Written in place: a small tensor kept from each tile would keep the heap from giving a tile's memory back.
    extremes = torch.zeros(2, dtype=torch.float64, device="cpu")
    for first in range(0, m, TILE_COLS):
        c = _float_rows(corpus[first : first + TILE_COLS])
        cols = slice(first, first + c.shape[0])
        scale[cols], length, cut = _measured(c, metric, half)
        finite = torch.isfinite(length)
        if metric == "l2":
            bias[cols] = (length.square() / -2).float()
        bias[cols].masked_fill_(~finite, -torch.inf)  # a row that is not finite is never found
        lengths[cols] = length
        for k, size in enumerate((length, cut)):
            extremes[k] = torch.maximum(extremes[k], (size * scale[cols]).masked_fill(~finite, 0.0).amax())
    return Columns(scale, bias, lengths, extremes[0], extremes[1])


def _queries(query: Tensor, metric: str, half: bool) -> Queries:
    a = _float_rows(query)
    scale, length, cut = _measured(a, metric, half)
    scale = scale.masked_fill(~torch.isfinite(length), torch.nan)  # a query that is not finite finds nothing
    multiplied = half_rows(a) if half else a
    return Queries(a, multiplied, scale, length.square(), length * scale, cut * scale)


def _search(
    q: TopKQuery, rows: slice, corpus: Tensor, columns: Columns, tile: Tensor, held: Tensor, out: tuple, half: bool
) -> bool:
    """One chunk of queries against the whole corpus; returns whether bfloat16 served it to the end."""
    value, index, count = out
    queries = _queries(q.query[rows], q.metric, half)
    looked = torch.zeros(count.shape[0], dtype=torch.int64, device="cpu")
    threshold = torch.full(count.shape, torch.finfo(torch.float32).min, **FLOAT)
    fields = {
        **_fields(q, rows, queries, corpus, columns), "row_square": address(queries.square), "room": held.shape[1],
        "held": address(held), "count": address(count), "threshold": address(threshold), "looked": address(looked),
    }  # fmt: skip
    seen, rough, threads = 0, False, torch.get_num_threads()
    slacks = {form: _slack(q.metric, form, queries, columns) for form in {half, False}}
    for first in range(0, corpus.shape[0], TILE_COLS):
        c = _float_rows(corpus[first : first + TILE_COLS])
        dot = _product(queries.multiplied if half else queries.rows, c, tile)
        fields |= {
            "dot": address(dot), "half": half, "settle": rough and not half, "stride": dot.stride(0),
            "cols": c.shape[0], "first_col": first, "slack": address(slacks[half]),
            "rounding": HALF_EPSILON if half else EPSILON,
        }  # fmt: skip
        _C.select_tile(fields, threads)
        rough, before, seen = half, seen, int(looked.sum())
        half = half and seen - before <= CROWDED * dot.numel()
    fields |= {"settle": False}
    _C.finish_selection(fields, address(value), address(index), threads)
    return half


def _product(a: Tensor, c: Tensor, tile: Tensor) -> Tensor:
    """(R, T) products in the type of `a`, in the memory of `tile`."""
    dot = tile.view(a.dtype)[: a.shape[0], : c.shape[0]]
    return torch.mm(a, (half_rows(c) if a.dtype == torch.bfloat16 else c).T, out=dot)


def _fields(q: TopKQuery, rows: slice, queries: Queries, corpus: Tensor, columns: Columns) -> dict:
    """What stays the same for all tiles of a chunk."""
    a = queries.rows
    fields = {
        "rows": a.shape[0], "row_scale": address(queries.scale), "col_scale": address(columns.scale),
        "col_bias": address(columns.bias), "col_length": address(columns.length),
        "least": address(q.least, rows.start), "most": address(q.most, rows.start), "query": address(a),
        "query_stride": a.stride(0), "corpus": address(corpus), "corpus_type": ELEMENTS[corpus.dtype],
        "corpus_stride": corpus.stride(0), "d": a.shape[1], "metric": METRICS.index(q.metric), "k": q.k,
    }  # fmt: skip
    if q.query_id is not None:
        fields |= {"row_id": address(q.query_id, rows.start), "col_id": address(q.corpus_id)}
    return fields


def _slack(metric: str, half: bool, queries: Queries, columns: Columns) -> Tensor:
    """(R,) float32: by how much any product may miss the exact score before its last rounding.

    Whatever the order of the sum, |fl(<a, c>) - <a, c>| <= D 2^-24 |a| |c|, and what is too small for a float is lost;
    sixteen more cover scales, bias and threshold. Of bfloat16 rows a' and c' too
    |<a, c> - <a', c'>| <= |a - a'| |c| + |a'| |c - c'|.
    """
    longest, terms = columns.longest, queries.rows.shape[1] + 16
    reach = queries.length * longest
    if metric == "l2":
        reach = reach + longest.square() / 2 + queries.length.square() / 2
    slack = reach * (terms * EPSILON) + terms * SMALLEST
    if half:
        slack = slack + queries.cut * longest + (queries.length + queries.cut) * columns.cut
    return slack.float()
