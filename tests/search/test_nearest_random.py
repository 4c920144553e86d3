"""topk of random searches by the oracle, and one sentence for every wrong argument."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nearest_oracle import METRICS, Search, checker, may_be_found, values

import fastcse

pytestmark = pytest.mark.interpreted_by_value

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture
def check(forced, backend, device):
    return checker(lambda *a, **o: forced(fastcse.topk, *a, **o), backend, device)


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
    can, value = may_be_found(search), values(search).astype(np.float32)
    middle = [np.quantile(row[keep], draw(st.floats(0, 1)), method="nearest") if keep.any() else 0.0
              for row, keep in zip(value, can)]  # fmt: skip
    for name in draw(st.sampled_from([(), ("min_score",), ("max_score",), ("min_score", "max_score")])):
        setattr(search, name, torch.tensor(np.array(middle)) if draw(st.booleans()) else float(middle[0]))
    return search


@settings(max_examples=150)
@given(search=searches([90, 90, 2100, 4200]))
@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_cpp_finds_what_the_oracle_finds(check, search):
    check(search)


@settings(max_examples=80)
@given(search=searches([60]))
@pytest.mark.parametrize("backend", ["reference"], indirect=True)
def test_reference_finds_what_the_oracle_finds(check, search):
    check(search)


@settings(max_examples=15)
@given(search=searches([30]))
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_triton_finds_what_the_oracle_finds(check, search):
    check(search)


# ---------------------------------------------------------------- wrong arguments


def rows(n=4, m=6, d=3, **kind):
    return torch.randn(n, d), torch.randn(m, d).to(**kind)


ids = torch.arange
BAD = {
    "no queries": (lambda: (*rows(n=0), 1), {}, ["query", "(0, 3)"]),
    "no corpus": (lambda: (*rows(m=0), 1), {}, ["corpus", "(0, 3)"]),
    "no columns": (lambda: (*rows(d=0), 1), {}, ["query", "(4, 0)"]),
    "widths": (lambda: (torch.randn(4, 3), torch.randn(6, 17), 1), {}, ["query", "corpus", "(4, 3)", "(6, 17)"]),
    "one dimension": (lambda: (torch.randn(3), torch.randn(6, 3), 1), {}, ["query", "(3,)"]),
    "three dimensions": (lambda: (torch.randn(4, 3), torch.randn(6, 3, 1), 1), {}, ["corpus", "(6, 3, 1)"]),
    "a list": (lambda: ([[1.0, 2]], torch.randn(6, 2), 1), {}, ["query", "list"]),
    "an array": (lambda: (torch.randn(4, 3), np.ones((6, 3)), 1), {}, ["corpus", "ndarray"]),
    "integers": (lambda: (*rows(dtype=torch.int64), 1), {}, ["corpus", "int64", "float32"]),
    "devices": (lambda: (*rows(device="meta"), 1), {}, ["query", "corpus", "cpu", "meta"]),
    "k zero": (lambda: (*rows(), 0), {}, ["k ", "6", "0"]),
    "k negative": (lambda: (*rows(), -3), {}, ["k ", "6", "-3"]),
    "k past the corpus": (lambda: (*rows(), 7), {}, ["k ", "6", "7"]),
    "k a fraction": (lambda: (*rows(), 2.0), {}, ["k ", "6", "2.0"]),
    "k a truth": (lambda: (*rows(), True), {}, ["k ", "6", "True"]),
    "metric": (lambda: (*rows(), 1), {"metric": "euclid"}, ["metric", "'euclid'", "'cosine'", "'ip'", "'l2'"]),
    "query_id alone": (lambda: (*rows(), 1), {"query_id": ids(4)}, ["query_id", "corpus_id", "None"]),
    "corpus_id alone": (lambda: (*rows(), 1), {"corpus_id": ids(6)}, ["query_id", "corpus_id", "None"]),
    "query_id length": (lambda: (*rows(), 1), {"query_id": ids(9), "corpus_id": ids(6)}, ["query_id", "(4,)", "(9,)"]),
    "corpus_id length": (
        lambda: (*rows(), 1),
        {"query_id": ids(4), "corpus_id": ids(9)},
        ["corpus_id", "(6,)", "(9,)"],
    ),
    "id type": (
        lambda: (*rows(), 1),
        {"query_id": ids(4).int(), "corpus_id": ids(6)},
        ["query_id", "torch.int64", "torch.int32"],
    ),
    "id a list": (lambda: (*rows(), 1), {"query_id": [1, 2, 3, 4], "corpus_id": ids(6)}, ["query_id", "(4,)", "list"]),
    "id device": (
        lambda: (*rows(), 1),
        {"query_id": ids(4, device="meta"), "corpus_id": ids(6)},
        ["query_id", "meta", "cpu"],
    ),
    "bound nan": (lambda: (*rows(), 1), {"max_score": float("nan")}, ["max_score", "nan"]),
    "a bound among them nan": (
        lambda: (*rows(), 1),
        {"min_score": torch.tensor([1, torch.nan, 2, 3])},
        ["min_score", "nan"],
    ),
    "bound a word": (lambda: (*rows(), 1), {"min_score": "0.5"}, ["min_score", "'0.5'"]),
    "bound length": (lambda: (*rows(), 1), {"min_score": torch.zeros(9)}, ["min_score", "(4,)", "(9,)"]),
    "bound matrix": (lambda: (*rows(), 1), {"max_score": torch.zeros(4, 1)}, ["max_score", "(4,)", "(4, 1)"]),
    "backend": (lambda: (*rows(), 1), {"backend": "faiss"}, ["backend", "'faiss'", "'cpp'", "'reference'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_are_one_sentence_with_both_values(name):
    make, options, words = BAD[name]
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are below
        fastcse.topk(*make(), **options)
    said = str(error.value)
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert len(said) < 200


@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("name", ["query", "corpus"])
def test_float64_on_a_forced_backend(backend, name):
    given = dict(zip(("query", "corpus"), rows()))
    given[name] = given[name].double()
    with pytest.raises(ValueError, match=rf"{backend}.*{name} of torch.float64.*reference"):
        fastcse.topk(**given, k=2, backend=backend)
