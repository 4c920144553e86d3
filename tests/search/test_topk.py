"""topk against a float64 oracle on every backend: shapes, types, ids, ties, bounds, what cannot be found, sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from topk_oracle import METRICS, Search, assert_form, checker, integers, may_be_found, nearest, values, worst

import fastcse

every_metric = pytest.mark.parametrize("metric", METRICS)
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def check(forced, backend, device):
    return checker(lambda *a, **o: forced(fastcse.topk, *a, **o), backend, device)


@pytest.fixture
def many(backend):
    """Rows of a corpus of several tiles, as far as the interpreter can."""
    return 330 if backend == "triton" else 5000


# ---------------------------------------------------------------- shapes and types

SEVERAL_TILES = (2100, 2100, 5, 3)
SHAPES = [
    (1, 1, 1, 1), (1, 7, 1, 7), (7, 1, 3, 1), (3, 5, 1, 2), (5, 131, 17, 131), (9, 257, 33, 10), (65, 64, 64, 64),
    (1, 2100, 3, 2049), (1, 2100, 3, 2100), SEVERAL_TILES,
]  # fmt: skip


@every_metric
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.interpreted_by_value
def test_any_shape(check, backend, metric, shape):
    n, m, d, k = (70, 330, 5, 3) if shape == SEVERAL_TILES and backend == "triton" else shape
    check(Search(torch.randn(n, d), torch.randn(m, d), k, metric))
    if m < 300:
        check(Search(*integers(n, m, d), k, metric), exact=None if metric == "cosine" else True)


@every_metric
@pytest.mark.parametrize(
    "types", [(HALF, HALF), (BRAIN, BRAIN), (SINGLE, HALF), (SINGLE, BRAIN), (BRAIN, SINGLE), (HALF, BRAIN)], ids=str
)
@pytest.mark.interpreted_by_value
def test_types_alone_and_mixed(check, metric, types):
    query, corpus = torch.randn(5, 37).to(types[0]), torch.randn(133, 37).to(types[1])
    check(Search(query, corpus, 11, metric))


@every_metric
@pytest.mark.parametrize("types", [(DOUBLE, DOUBLE), (DOUBLE, SINGLE), (HALF, DOUBLE)], ids=str)
def test_float64_goes_to_the_reference(device, metric, types):
    search = Search(torch.randn(4, 9).to(types[0]), torch.randn(50, 9).to(types[1]), 7, metric).on(device)
    got = search.ask(fastcse.topk)
    assert fastcse.last_backend() == "reference"
    assert_form(got, search)
    value, index = nearest(search)
    assert (got.indices.cpu().numpy() == index).all()
    np.testing.assert_allclose(got.values.cpu().numpy(), value, rtol=1e-14, atol=1e-15)
    corpus = torch.tensor([[1.0], [1 + 1e-12]], dtype=DOUBLE, device=device)
    got = fastcse.topk(torch.ones(1, 1, dtype=DOUBLE, device=device), corpus, 2, metric="ip")
    assert (got.indices.tolist(), got.values.tolist()) == ([[1, 0]], [[1 + 1e-12, 1.0]])


# ---------------------------------------------------------------- ids


@every_metric
@pytest.mark.interpreted_by_value
def test_rows_of_the_same_id_are_left_out_before_selection(check, metric):
    query = 3 * torch.eye(6, 8)
    near = query.repeat(20, 1) + 0.1 * torch.randn(120, 8)  # the nearest rows of each query are its own
    search = Search(query, torch.cat([near, torch.randn(200, 8).clamp(-1, 1)]), 9, metric)
    owner, corpus_id = torch.arange(6)[:, None], torch.arange(320) % 6
    assert (corpus_id[check(search).indices] == owner).all()
    left = check(replace(search, query_id=torch.arange(6), corpus_id=corpus_id))
    assert (corpus_id[left.indices] != owner).all()


@every_metric
def test_fewer_than_k_are_left(check, metric):
    ids = torch.full((50,), 7)
    got = check(Search(torch.randn(3, 4), torch.randn(50, 4), 5, metric, torch.tensor([1, 7, -7]), ids))
    assert (got.indices[1] == -1).all()
    assert (got.values[1] == worst(metric)).all()
    assert (got.indices[[0, 2]] >= 0).all()
    got = check(Search(torch.randn(1, 4), torch.randn(50, 4), 40, metric, torch.tensor([1]), torch.arange(50) % 2))
    assert (got.indices >= 0).sum() == 25


@pytest.mark.interpreted
def test_ids_are_compared_in_all_64_bits(check):
    ids = torch.tensor([2**60, 2**60 + 1, 5, 5 + 2**32, -5, 2**63 - 1, -(2**63)])
    got = check(Search(torch.randn(7, 3), torch.randn(7, 3), 7, "l2", ids, ids.clone()))
    assert ((got.indices == -1).sum(1) == 1).all()


# ---------------------------------------------------------------- ties


@every_metric
@pytest.mark.interpreted_by_value
def test_ties_go_to_the_lowest_index(check, many, metric):
    query, rows = integers(6, 40, 5, most=1)
    corpus = rows[torch.randint(0, 40, (many,))]
    check(Search(query, corpus, many // 3, metric), exact=None if metric == "cosine" else True)
    check(Search(torch.randn(6, 5), torch.randn(40, 5)[torch.randint(0, 40, (many,))], 100, metric))
    got = check(Search(torch.randn(3, 7), torch.randn(1, 7).repeat(many, 1), many // 2, metric))
    assert (got.indices == torch.arange(many // 2)).all()


@every_metric
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.interpreted_by_value
def test_duplicates_on_both_sides_of_a_tile(check, many, metric, k):
    query, corpus = torch.randn(1, 12), torch.randn(many, 12)
    places = [i for i in (63, 64, 127, 128, 255, 256, 2047, 2048, 4095, 4096, many - 1) if i < many]
    corpus[places] = query * (10 if metric == "ip" else 1)
    got = check(Search(query, corpus, k, metric))
    assert got.indices.tolist() == [places[:k]]
    assert (got.values == got.values[0, 0]).all()


@pytest.mark.parametrize("backend", ["reference", "cpp"], indirect=True)
def test_what_rounds_to_one_float_is_a_tie(check):
    # Cosines 1 - 1e-10 j^2 / 2: the last row is the nearest, and all round to 1.
    angle = 1e-5 * torch.arange(20, 0, -1.0)
    got = check(Search(torch.tensor([[1.0, 0]]), torch.stack([torch.ones(20), angle], 1), 20))
    assert got.indices.tolist() == [list(range(20))]


# ---------------------------------------------------------------- bounds


@every_metric
@pytest.mark.parametrize("kind", ["number", "each"])
@pytest.mark.parametrize("dtype", [SINGLE, HALF], ids=str)
@pytest.mark.interpreted_by_value
def test_bounds_of_the_value_are_inclusive(check, metric, kind, dtype):
    n = 1 if kind == "number" else 5
    search = Search(torch.randn(n, 9).to(dtype), torch.randn(90, 9).to(dtype), 90, metric)
    whole = check(search)
    best, last = whole.values[:, 20], whole.values[:, 60]
    if kind == "number":
        best, last = float(best), float(last)
    upper, lower = ("min_score", "max_score") if metric == "l2" else ("max_score", "min_score")
    for bounds, first, end in (
        ({upper: best}, 20, 90),
        ({lower: last}, 0, 61),
        ({upper: best, lower: last}, 20, 61),
    ):
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


@pytest.mark.interpreted
def test_a_bound_of_l2_is_a_squared_distance(check):
    corpus = torch.tensor([[0.0], [2], [3], [4]])
    got = check(Search(torch.zeros(1, 1), corpus, 4, "l2", min_score=1, max_score=9), exact=True)
    assert got.indices.tolist() == [[1, 2, -1, -1]]
    assert got.values.tolist() == [[4, 9, torch.inf, torch.inf]]


@every_metric
def test_bounds_that_leave_nothing_or_everything(check, metric):
    search = Search(torch.randn(3, 6), torch.randn(50, 6), 5, metric)
    for nothing in ({"min_score": 2.0, "max_score": 1.0}, {"min_score": torch.inf}, {"max_score": -torch.inf}):
        assert (check(replace(search, **nothing)).indices == -1).all()
    whole, wide = check(search), check(replace(search, min_score=-torch.inf, max_score=torch.inf))
    assert torch.equal(whole.indices, wide.indices)
    mixed = torch.tensor([torch.inf, -torch.inf, torch.inf])
    assert (check(replace(search, max_score=mixed)).indices[:, 0] >= 0).tolist() == [True, False, True]


@every_metric
@pytest.mark.interpreted_by_value
def test_bounds_and_ids_and_ties_together(check, many, metric):
    query, corpus = integers(5, many, 4, most=1)
    ids = {"query_id": torch.arange(5), "corpus_id": torch.randint(0, 9, (many,))}
    highest = {"l2": torch.inf, "ip": 2.0, "cosine": 0.6}[metric]
    least = {"l2": 2.0, "ip": -torch.inf, "cosine": -0.1}[metric]
    search = Search(query, corpus, 200, metric, **ids, max_score=highest, min_score=least)
    check(search, exact=None if metric == "cosine" else True)


# ---------------------------------------------------------------- what cannot be found, and sizes of numbers


@pytest.mark.interpreted
def test_zeros(check):
    query = torch.tensor([[1.0, 0], [0, 0]])
    got = check(Search(query, torch.tensor([[-1.0, 0], [0, 0], [3, 4], [0, 0]]), 4), exact=None)
    assert got.indices.tolist() == [[2, 1, 3, 0], [0, 1, 2, 3]]
    assert (got.values[1] == 0).all()
    assert got.values[0, 1] == 0
    rows = torch.randn(5, 7)
    assert not torch.signbit(check(Search(rows, rows.clone(), 1, "l2")).values).any(), "-0 is no distance"


@every_metric
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN], ids=str)
@pytest.mark.interpreted_by_value
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
    assert (check(replace(search, corpus=torch.full((30, 9), torch.nan, dtype=dtype), k=30)).indices == -1).all()


@pytest.mark.parametrize("d", [9, 33, 34])
@pytest.mark.interpreted_by_value
def test_a_query_that_is_not_finite_is_nobody_elses_matter(forced, device, backend, d):
    """300 queries: enough for bfloat16 products, where rows of odd width once met the next row's infinity."""
    n, m = (40, 70) if backend == "triton" and device.type == "cpu" else (300, 400)
    query, corpus = torch.randn(n, d, device=device), torch.randn(m, d, device=device)
    want = forced(fastcse.topk, query, corpus, 3).indices
    query[31] = torch.inf
    got = forced(fastcse.topk, query, corpus, 3).indices
    assert got[31].tolist() == [-1] * 3
    others = torch.arange(n, device=device) != 31
    assert torch.equal(got[others], want[others])


@every_metric
@pytest.mark.parametrize("offset", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN], ids=str)
@pytest.mark.interpreted_by_value
def test_rows_that_differ_little(check, many, metric, offset, dtype):
    # From 10 on all cosines are above 0.98: what rounds products roughly cannot tell the rows apart.
    query, corpus = torch.randn(4, 24) + offset, torch.randn(many, 24) + offset
    check(Search(query.to(dtype), corpus.to(dtype), 15, metric))


@every_metric
@pytest.mark.parametrize("size", [1e-20, 1e-9, 1e-6, 1e6, 1e18])
@pytest.mark.interpreted_by_value
def test_long_and_short_rows(check, metric, size):
    check(Search(torch.randn(4, 12), size * torch.randn(130, 12), 15, metric))
    check(Search(size * torch.randn(4, 12), torch.randn(130, 12), 15, metric))


@pytest.mark.interpreted
def test_rows_of_every_length_at_once(check):
    check(Search(1e30 * torch.randn(4, 12), 1e30 * torch.randn(300, 12), 15))
    lengths = 10.0 ** torch.linspace(-7, 18, 300)[torch.randperm(300), None]
    check(Search(torch.randn(4, 12), lengths * torch.randn(300, 12), 300))


# ---------------------------------------------------------------- random searches


@st.composite
def searches(draw, largest):
    """Up to `largest` rows of any kind, some of them not finite, with any mix of options."""
    n, m, d = draw(st.integers(1, 12)), draw(st.sampled_from(largest)), draw(st.integers(1, 40))
    m = m if m > 100 else draw(st.integers(1, m))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kind = draw(st.sampled_from(["random", "integers", "repeated", "close", "lengths"]))

    def rows(count):
        x = torch.randn(count, d, generator=g)
        if kind == "integers":
            return x.round()
        if kind == "repeated":
            return x[torch.randint(0, min(count, 5), (count,), generator=g)]
        if kind == "close":
            return 1 + 0.03 * x
        return x * 10 ** torch.randint(-4, 5, (count, 1), generator=g) if kind == "lengths" else x

    query, corpus = (rows(count).to(draw(st.sampled_from([SINGLE, SINGLE, HALF, BRAIN]))) for count in (n, m))
    if draw(st.booleans()):
        corpus[torch.randint(0, m, (3,), generator=g)] = draw(st.sampled_from([0.0, torch.nan, torch.inf]))
    search = Search(query, corpus, draw(st.integers(1, m)), draw(st.sampled_from(METRICS)))
    if draw(st.booleans()):
        most = draw(st.sampled_from([2, 20]))
        search.query_id, search.corpus_id = (torch.randint(0, most, (count,), generator=g) for count in (n, m))
    share, (can, value) = draw(st.floats(0, 1)), (may_be_found(search), values(search).astype(np.float32))
    middle = [np.quantile(v[c], share, method="nearest") if c.any() else 0.0 for v, c in zip(value, can)]
    for name in draw(st.sampled_from([(), ("min_score",), ("max_score",), ("min_score", "max_score")])):
        setattr(search, name, torch.tensor(np.array(middle)) if draw(st.booleans()) else float(middle[0]))
    return search


def found_by(backend, largest, examples):
    @settings(max_examples=examples)
    @given(search=searches(largest))
    @pytest.mark.parametrize("backend", [backend], indirect=True)
    @pytest.mark.interpreted
    def test(check, search):
        check(search)

    return test


test_cpp_finds_what_the_oracle_finds = found_by("cpp", [90, 90, 2100, 4200], 150)
test_reference_finds_what_the_oracle_finds = found_by("reference", [60], 80)
test_triton_finds_what_the_oracle_finds = found_by("triton", [30], 15)
