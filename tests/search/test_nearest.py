"""topk against a float64 oracle: shapes, types, ids, ties, layouts, inputs left alone, on every backend."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from calls import LAYOUTS
from nearest_oracle import METRICS, Search, assert_form, checker, integers, nearest, worst

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


# ---------------------------------------------------------------- shapes and types


SHAPES = [(1, 1, 1, 1), (1, 7, 1, 7), (7, 1, 3, 1), (3, 5, 1, 2), (5, 131, 17, 131), (9, 257, 33, 10), (65, 64, 64, 64)]


@every_metric
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(check, metric, shape):
    n, m, d, k = shape
    check(Search(torch.randn(n, d), torch.randn(m, d), k, metric))
    check(Search(*integers(n, m, d), k, metric), exact=None if metric == "cosine" else True)


@every_metric
@pytest.mark.parametrize("k", [2049, 2100])
def test_more_than_2048(check, metric, k):
    check(Search(torch.randn(1, 3), torch.randn(2100, 3), k, metric))


@every_metric
def test_several_tiles_of_rows_and_of_queries(check, backend, metric):
    n, m = (70, 330) if backend == "triton" else (2100, 2100)
    check(Search(torch.randn(n, 5), torch.randn(m, 5), 3, metric))


PAIRS = [(HALF, HALF), (BRAIN, BRAIN), (SINGLE, HALF), (SINGLE, BRAIN), (BRAIN, SINGLE), (HALF, BRAIN)]


@every_metric
@pytest.mark.parametrize("types", PAIRS, ids=str)
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


def test_float64_is_not_rounded(device):
    corpus = torch.tensor([[1.0], [1 + 1e-12]], dtype=DOUBLE, device=device)
    got = fastcse.topk(torch.ones(1, 1, dtype=DOUBLE, device=device), corpus, 2, metric="ip")
    assert got.indices.tolist() == [[1, 0]]
    assert got.values.tolist() == [[1 + 1e-12, 1.0]]


# ---------------------------------------------------------------- ids


@every_metric
def test_rows_of_the_same_id_are_left_out_before_selection(check, metric):
    query = 3 * torch.eye(6, 8)
    near = query.repeat(20, 1) + 0.1 * torch.randn(120, 8)  # the nearest rows of each query are its own
    search = Search(query, torch.cat([near, torch.randn(200, 8).clamp(-1, 1)]), 9, metric)
    owner, corpus_id = torch.arange(6)[:, None], torch.arange(320) % 6
    assert (corpus_id[check(search).indices] == owner).all()
    left = check(replace(search, query_id=torch.arange(6), corpus_id=corpus_id))
    assert (corpus_id[left.indices] != owner).all()


@every_metric
def test_a_query_whose_every_row_is_left_out(check, metric):
    ids = torch.full((50,), 7)
    got = check(Search(torch.randn(3, 4), torch.randn(50, 4), 5, metric, torch.tensor([1, 7, -7]), ids))
    assert (got.indices[1] == -1).all()
    assert (got.values[1] == worst(metric)).all()
    assert (got.indices[[0, 2]] >= 0).all()


@every_metric
def test_fewer_than_k_are_left(check, metric):
    got = check(Search(torch.randn(1, 4), torch.randn(50, 4), 40, metric, torch.tensor([1]), torch.arange(50) % 2))
    assert (got.indices >= 0).sum() == 25


def test_ids_are_compared_in_all_64_bits(check):
    ids = torch.tensor([2**60, 2**60 + 1, 5, 5 + 2**32, -5, 2**63 - 1, -(2**63)])
    got = check(Search(torch.randn(7, 3), torch.randn(7, 3), 7, "l2", ids, ids.clone()))
    assert ((got.indices == -1).sum(1) == 1).all()


def test_ids_of_any_stride(check):
    query_id, corpus_id = torch.arange(12)[::2], torch.arange(0, 90).repeat_interleave(2)[1::2]
    check(Search(torch.randn(6, 5), torch.randn(90, 5), 90, "ip", query_id, corpus_id))


# ---------------------------------------------------------------- ties


@every_metric
def test_ties_go_to_the_lowest_index(check, many, metric):
    query, rows = integers(6, 40, 5, most=1)
    corpus = rows[torch.randint(0, 40, (many,))]
    check(Search(query, corpus, many // 3, metric), exact=None if metric == "cosine" else True)
    check(Search(torch.randn(6, 5), torch.randn(40, 5)[torch.randint(0, 40, (many,))], 100, metric))


@every_metric
@pytest.mark.parametrize("k", [1, 3, 7])
def test_duplicates_on_both_sides_of_a_tile(check, many, metric, k):
    query, corpus = torch.randn(1, 12), torch.randn(many, 12)
    places = [i for i in (63, 64, 127, 128, 255, 256, 2047, 2048, 4095, 4096, many - 1) if i < many]
    corpus[places] = query * (10 if metric == "ip" else 1)
    got = check(Search(query, corpus, k, metric))
    assert got.indices.tolist() == [places[:k]]
    assert (got.values == got.values[0, 0]).all()


@every_metric
def test_all_rows_equal(check, many, metric):
    got = check(Search(torch.randn(3, 7), torch.randn(1, 7).repeat(many, 1), many // 2, metric))
    assert (got.indices == torch.arange(many // 2)).all()


@pytest.mark.parametrize("backend", ["reference", "cpp"], indirect=True)
def test_what_rounds_to_one_float_is_a_tie(check):
    # Cosines 1 - 1e-10 j^2 / 2: the last row is the nearest, and all round to 1.
    angle = 1e-5 * torch.arange(20, 0, -1.0)
    got = check(Search(torch.tensor([[1.0, 0]]), torch.stack([torch.ones(20), angle], 1), 20))
    assert got.indices.tolist() == [list(range(20))]


# ---------------------------------------------------------------- layouts


@every_metric
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(check, metric, layout):
    query, corpus = torch.randn(6, 7), torch.randn(90, 7)
    search = Search(LAYOUTS[layout](query), LAYOUTS[layout](corpus), 12, metric)
    got, plain = check(search), check(Search(query, corpus, 12, metric))
    assert torch.equal(got.indices, plain.indices)
    assert torch.equal(got.values, plain.values)
    check(replace(search, corpus=search.corpus.half(), query=LAYOUTS[layout](query.half())))
    check(replace(search, corpus=LAYOUTS[layout](corpus.bfloat16())))


def test_expanded_rows(check):
    check(Search(torch.randn(1, 5).expand(4, 5), torch.randn(1, 5).expand(60, 5), 60))


@every_metric
@pytest.mark.parametrize("types", [(SINGLE, SINGLE), (SINGLE, HALF), (BRAIN, BRAIN)], ids=str)
def test_nothing_is_written_to(check, device, metric, types):
    place = lambda x: x.to(device)  # noqa: E731
    search = Search(torch.randn(6, 5).to(types[0]), torch.randn(40, 5).to(types[1]), 9, metric,
                    torch.arange(6), torch.arange(40), torch.randn(6), torch.full((6,), 2.0))  # fmt: skip
    given = [place(x) for x in vars(search).values() if isinstance(x, torch.Tensor)]
    copies, versions = [x.clone() for x in given], [x._version for x in given]
    placed = iter(given)
    check(Search(**{n: next(placed) if isinstance(x, torch.Tensor) else x for n, x in vars(search).items()}))
    for x, copy, version in zip(given, copies, versions):
        assert torch.equal(x, copy)
        assert x._version == version


# ---------------------------------------------------------------- the rest of the contract


@every_metric
def test_twice_the_same_bits(check, many, metric):
    search = Search(torch.randn(9, 31) + 1, torch.randn(many, 31) + 1, 40, metric)
    one, two = check(search), check(search)
    assert torch.equal(one.indices, two.indices)
    assert torch.equal(one.values, two.values)


def test_no_gradient(forced, device):
    rows = torch.randn(5, 3, device=device, requires_grad=True)
    got = forced(fastcse.topk, rows, torch.nn.Parameter(rows.detach().clone()), 2)
    assert not got.values.requires_grad


@every_metric
def test_inside_a_compiled_function(device, backend, metric):
    query, corpus = torch.randn(5, 6, device=device), torch.randn(40, 6, device=device)

    def hardest(query, corpus):
        value, index = fastcse.topk(query * 2, corpus, 3, metric=metric, backend=backend)
        return value + 1, index

    torch._dynamo.reset()
    got, expected = torch.compile(hardest, backend="aot_eager")(query, corpus), hardest(query, corpus)
    assert fastcse.last_backend() == backend
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_the_backend_is_chosen_by_the_device(device):
    fastcse.topk(torch.randn(3, 4, device=device), torch.randn(9, 4, device=device).half(), 2)
    assert fastcse.last_backend() == ("triton" if device.type == "cuda" else "cpp")
