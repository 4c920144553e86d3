"""topk at its limits: bounds of the value, rows that cannot be found, very long, short and similar rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nearest_oracle import METRICS, Search, checker, integers, values, worst

import fastcse

pytestmark = pytest.mark.interpreted_by_value
every_metric = pytest.mark.parametrize("metric", METRICS)
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def check(forced, backend, device):
    return checker(lambda *a, **o: forced(fastcse.topk, *a, **o), backend, device)


@pytest.fixture
def many(backend):
    """Rows of a corpus of several tiles, as far as the interpreter can."""
    return 330 if backend == "triton" else 5000


# ---------------------------------------------------------------- bounds


@every_metric
@pytest.mark.parametrize("kind", ["number", "each"])
@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_bounds_of_the_value_are_inclusive(check, device, metric, kind, dtype):
    n = 1 if kind == "number" else 5
    search = Search(torch.randn(n, 9).to(dtype), torch.randn(90, 9).to(dtype), 90, metric)
    whole = check(search)
    best, last = whole.values[:, 20], whole.values[:, 60]
    if kind == "number":
        best, last = float(best), float(last)
    names = ("min_score", "max_score") if metric == "l2" else ("max_score", "min_score")
    for bounds, first, end in (({names[0]: best}, 20, 90), ({names[1]: last}, 0, 61),
                               (dict(zip(names, (best, last))), 20, 61)):  # fmt: skip
        got = check(replace(search, **bounds))
        assert (got.indices[:, : end - first] == whole.indices[:, first:end]).all()
        assert (got.indices[:, end - first :] == -1).all()


@every_metric
def test_bounds_between_the_values(check, metric):
    search = Search(torch.randn(5, 6), torch.randn(90, 6), 20, metric)
    middle = torch.tensor(np.median(values(search), 1))
    for dtype in (DOUBLE, SINGLE, HALF):
        check(replace(search, max_score=middle.to(dtype)))
        check(replace(search, min_score=middle.to(dtype)))
    check(replace(search, min_score=float(middle[0]), max_score=middle + 1.5))


def test_a_bound_of_l2_is_a_squared_distance(check):
    corpus = torch.tensor([[0.0], [2], [3], [4]])
    got = check(Search(torch.zeros(1, 1), corpus, 4, "l2", min_score=1, max_score=9), exact=True)
    assert got.indices.tolist() == [[1, 2, -1, -1]]
    assert got.values.tolist() == [[4, 9, torch.inf, torch.inf]]


@every_metric
def test_bounds_that_leave_nothing_or_everything(check, metric):
    search = Search(torch.randn(3, 6), torch.randn(50, 6), 5, metric)
    assert (check(replace(search, min_score=2.0, max_score=1.0)).indices == -1).all()
    assert (check(replace(search, min_score=torch.inf)).indices == -1).all()
    assert (check(replace(search, max_score=-torch.inf)).indices == -1).all()
    whole, wide = check(search), check(replace(search, min_score=-torch.inf, max_score=torch.inf))
    assert torch.equal(whole.indices, wide.indices)
    mixed = torch.tensor([torch.inf, -torch.inf, torch.inf])
    assert (check(replace(search, max_score=mixed)).indices[:, 0] >= 0).tolist() == [True, False, True]


@every_metric
def test_bounds_and_ids_and_ties_together(check, many, metric):
    query, corpus = integers(5, many, 4, most=1)
    ids = {"query_id": torch.arange(5), "corpus_id": torch.randint(0, 9, (many,))}
    highest = {"l2": torch.inf, "ip": 2.0, "cosine": 0.6}[metric]
    least = {"l2": 2.0, "ip": -torch.inf, "cosine": -0.1}[metric]
    search = Search(query, corpus, 200, metric, **ids, max_score=highest, min_score=least)
    check(search, exact=None if metric == "cosine" else True)


# ---------------------------------------------------------------- what cannot be found


def test_a_zero_row_has_cosine_zero(check):
    query = torch.tensor([[1.0, 0], [0, 0]])
    got = check(Search(query, torch.tensor([[-1.0, 0], [0, 0], [3, 4], [0, 0]]), 4), exact=None)
    assert got.indices.tolist() == [[2, 1, 3, 0], [0, 1, 2, 3]]
    assert (got.values[1] == 0).all()
    assert got.values[0, 1] == 0


@every_metric
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN])
def test_rows_that_are_not_finite(check, metric, dtype):
    query, corpus = torch.randn(6, 9), torch.randn(90, 9)
    for rows, places in ((query, (0, 2, 4)), (corpus, (0, 33, 88))):
        for place, bad in zip(places, (torch.nan, torch.inf, -torch.inf)):
            rows[place, place % 9] = bad
    corpus[7] = 0  # infinity times nothing must not pass for a number
    query[4, :] = torch.inf
    corpus[88, :] = -torch.inf
    search = Search(query.to(dtype), corpus.to(dtype), 90, metric)
    got = check(search)
    assert (got.indices[[0, 2, 4]] == -1).all()
    assert (got.values[[0, 2, 4]] == worst(metric)).all()
    assert not np.isin(got.indices, [0, 33, 88]).any()
    assert ((got.indices[[1, 3, 5]] >= 0).sum(1) == 87).all()
    check(replace(search, k=3, max_score=1.0))


@every_metric
def test_nothing_is_finite(check, metric):
    got = check(Search(torch.randn(3, 4), torch.full((30, 4), torch.nan), 30, metric))
    assert (got.indices == -1).all()


def test_the_distance_to_oneself_is_a_plain_zero(check):
    rows = torch.randn(5, 7)
    got = check(Search(rows, rows.clone(), 1, "l2"))
    assert not torch.signbit(got.values).any(), "-0 is no distance"


# ---------------------------------------------------------------- sizes of numbers


@every_metric
@pytest.mark.parametrize("offset", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN])
def test_rows_that_differ_little(check, many, metric, offset, dtype):
    # From 10 on all cosines are above 0.98: what rounds products roughly cannot tell the rows apart.
    query, corpus = torch.randn(4, 24) + offset, torch.randn(many, 24) + offset
    check(Search(query.to(dtype), corpus.to(dtype), 15, metric))


@every_metric
@pytest.mark.parametrize("size", [1e-20, 1e-9, 1e-6, 1e6, 1e18])
def test_long_and_short_rows(check, metric, size):
    check(Search(torch.randn(4, 12), size * torch.randn(130, 12), 15, metric))
    check(Search(size * torch.randn(4, 12), torch.randn(130, 12), 15, metric))


def test_cosines_of_the_longest_rows(check):
    check(Search(1e30 * torch.randn(4, 12), 1e30 * torch.randn(300, 12), 15))


def test_rows_of_every_length_at_once(check):
    lengths = 10.0 ** torch.linspace(-7, 18, 300)[torch.randperm(300), None]
    check(Search(torch.randn(4, 12), lengths * torch.randn(300, 12), 300))


@pytest.mark.parametrize("d", [9, 33, 34])
def test_a_query_that_is_not_finite_is_nobody_elses_matter(forced, device, d):
    """300 queries: enough for bfloat16 products, where rows of odd width once met the next row's infinity."""
    g = torch.Generator().manual_seed(0)
    query, corpus = torch.randn(300, d, generator=g).to(device), torch.randn(400, d, generator=g).to(device)
    want = forced(fastcse.topk, query, corpus, 3).indices
    query[31] = torch.inf
    got = forced(fastcse.topk, query, corpus, 3).indices
    assert got[31].tolist() == [-1] * 3
    others = torch.arange(300, device=device) != 31
    assert torch.equal(got[others], want[others])
