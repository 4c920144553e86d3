"""Truth about exact nearest rows: numpy float64, the whole matrix, one lexsort a query. Knows nothing of fastcse."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from oracle import to64

METRICS = ("cosine", "ip", "l2")
SHORTEST = 1e-8  # a shorter row has similarity 0, as in every other op


@dataclass
class Search:
    """Arguments of one topk call."""

    query: torch.Tensor  # (N, D)
    corpus: torch.Tensor  # (M, D)
    k: int
    metric: str = "cosine"
    query_id: torch.Tensor | None = None  # (N,) int64
    corpus_id: torch.Tensor | None = None  # (M,) int64
    min_score: object = None
    max_score: object = None

    def on(self, device):
        """The same with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Search(**{n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in values.items()})

    def ask(self, topk, **more):
        """What `topk` answers."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return topk(values.pop("query"), values.pop("corpus"), values.pop("k"), **values, **more)


def integers(n, m, d, most=2):
    """Rows whose products are exact in every type, so that ties abound and every backend must agree to the bit."""
    return torch.randint(-most, most + 1, (n, d)).float(), torch.randint(-most, most + 1, (m, d)).float()


def worst(metric):
    return torch.inf if metric == "l2" else -torch.inf


def values(search):
    """(N, M) float64 values of the metric; what they are where a row is not finite, nobody asks."""
    q, c = to64(search.query), to64(search.corpus)
    with np.errstate(all="ignore"):
        if search.metric == "l2":
            return np.stack([((row - c) ** 2).sum(1) for row in q])
        dot = np.stack([(row * c).sum(1) for row in q])  # no BLAS: equal rows must have equal sums
        if search.metric == "ip":
            return dot
        q, c = (np.sqrt((x * x).sum(1)) for x in (q, c))
        return np.where((q < SHORTEST)[:, None] | (c < SHORTEST), 0, dot / (q[:, None] * c))


def bounds(search):
    """(N, 1) float64 each, inclusive, of the value as it is returned."""
    n, out = len(search.query), []
    for value, absent in ((search.min_score, -np.inf), (search.max_score, np.inf)):
        value = absent if value is None else value
        value = to64(value) if isinstance(value, torch.Tensor) else np.full(n, float(value))
        out.append(value.reshape(n, 1))
    return out


def may_be_found(search):
    """(N, M): both rows are finite and their ids differ. Bounds are another matter."""
    keep = np.isfinite(to64(search.query)).all(1)[:, None] & np.isfinite(to64(search.corpus)).all(1)
    if search.query_id is not None:
        keep = keep & (search.query_id.cpu().numpy()[:, None] != search.corpus_id.cpu().numpy())
    return keep


def promised(search):
    """The numpy type of the values."""
    return np.float64 if search.query.dtype == search.corpus.dtype == torch.float64 else np.float32


def nearest(search):
    """(N, k) values in the type promised and int64 indices."""
    with np.errstate(over="ignore"):
        value = values(search).astype(promised(search))
    least, most = bounds(search)
    keep = may_be_found(search) & (value.astype(np.float64) >= least) & (value.astype(np.float64) <= most)
    sign, k = (1 if search.metric == "l2" else -1), search.k
    n, m = value.shape
    found, index = np.full((n, k), sign * np.inf, value.dtype), np.full((n, k), -1)
    for i in range(n):
        order = np.lexsort((np.arange(m), np.where(keep[i], sign * value[i], 0), ~keep[i]))[: min(k, keep[i].sum())]
        found[i, : len(order)], index[i, : len(order)] = value[i, order], order
    return found, index


# ---------------------------------------------------------------- verdicts


def assert_form(got, search):
    """Shapes, types, and what stands where nothing was found."""
    n, k = len(search.query), search.k
    assert got.values.shape == got.indices.shape == (n, k)
    assert got.indices.dtype == torch.int64
    assert got.values.dtype == (torch.float64 if promised(search) is np.float64 else torch.float32)
    assert got.values.device == got.indices.device == search.query.device
    assert not got.values.requires_grad
    absent, worst = got.indices < 0, torch.inf if search.metric == "l2" else -torch.inf
    assert (got.indices[absent] == -1).all()
    assert (got.values[absent] == worst).all()
    if k > 1:
        assert (absent[:, 1:] >= absent[:, :-1]).all(), "something was found after nothing"


def assert_same(got, value, index):
    """Equal to (value, index) to the last bit."""
    wrong = np.flatnonzero((got.indices.cpu().numpy() != index).any(1))
    if len(wrong):
        i = wrong[0]
        j = np.flatnonzero(got.indices[i].cpu().numpy() != index[i])[0]
        raise AssertionError(
            f"{len(wrong)} rows; row {i}, rank {j}: row {int(got.indices[i, j])} of value {float(got.values[i, j])!r}, "
            f"expected {index[i, j]} of {value[i, j]!r}"
        )
    np.testing.assert_array_equal(got.values.cpu().numpy(), value)


def slack(search):
    """(N, M): what a sum of float32 products may miss, in any order of adding."""
    terms = search.query.shape[1] + 8
    if search.metric == "cosine":
        return np.full((len(search.query), len(search.corpus)), terms * 2.0**-24)
    absolute = (
        search if search.metric == "l2" else replace(search, query=search.query.abs(), corpus=search.corpus.abs())
    )
    with np.errstate(all="ignore"):
        return values(absolute) * terms * 2.0**-24 + 2.0**-140


def assert_close(got, search):
    """As `assert_same`, but values may miss by `slack`: then order and bounds follow the values that were returned."""
    assert_form(got, search)
    exact, miss, sign = values(search), slack(search), 1 if search.metric == "l2" else -1
    can, (least, most) = may_be_found(search), bounds(search)
    takes_part = can & (exact - miss >= least) & (exact + miss <= most)
    for i, (value, index) in enumerate(zip(got.values.cpu().double().numpy(), got.indices.cpu().numpy())):
        rows, value = index[index >= 0], value[index >= 0]
        assert len(set(rows)) == len(rows), f"query {i} found one row twice"
        assert can[i, rows].all(), f"query {i} found what is left out"
        error = np.abs(value - exact[i, rows])
        assert (error <= miss[i, rows]).all(), f"query {i}: error {error.max()}, allowed {miss[i, rows].max()}"
        assert ((value >= least[i]) & (value <= most[i])).all(), f"query {i} passes a bound"
        assert (np.lexsort((rows, sign * value)) == np.arange(len(rows))).all(), f"query {i} is not in order"
        missed = takes_part[i].copy()
        missed[rows] = False
        worst = sign * value[-1] if len(rows) == len(index) else np.inf
        assert ((sign * exact[i] + miss[i])[missed] >= worst).all(), f"query {i} missed a better row"


def assert_nearest(got, search, exact=True):
    """By float64 truth: to the last bit where `exact`, else within float32's rounding."""
    if not exact:
        return assert_close(got, search)
    assert_form(got, search)
    assert_same(got, *nearest(search))


def checker(topk, backend, device):
    """A function that runs a `Search` by `topk` and holds it to the truth. Triton rescores in float32: only where the
    caller says `exact` is it held to the last bit."""

    def check(search, exact=None):
        search = search.on(device)
        got = search.ask(topk)
        assert_nearest(got, search, backend != "triton" if exact is None else exact)
        return type(got)(got.values.cpu(), got.indices.cpu())

    return check
