"""The Triton search's own parts: selection by bisection against torch.topk, and every form of its scores against the
oracle, with few groups so that the interpreter comes to the selection at all."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import DEVICE
from topk_oracle import METRICS, Search, assert_nearest, integers

import fastcse
from fastcse.kernels import configs, topk_scores, topk_select

nearest = sys.modules["fastcse.kernels.topk_search"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BASE = configs.INTERPRETED if DEVICE == "cpu" else configs.HALF
every_metric = pytest.mark.parametrize("metric", METRICS)
FORMS = {
    "pointers": BASE._replace(programs=0),
    "persistent": BASE._replace(programs=1),
    "persistent, not flattened": BASE._replace(block_n=16, programs=2, flatten=False),
}


@pytest.fixture
def selected(monkeypatch):
    """How many rows were selected by bisection; one column more than k is rescored, so that few groups are enough."""
    seen, select = [], nearest.select

    def watched(scores, maxima, wanted):
        seen.append(len(scores))
        return select(scores, maxima, wanted)

    monkeypatch.setattr(nearest, "select", watched)
    monkeypatch.setattr(nearest, "EXTRA", 1)
    return seen


# ---------------------------------------------------------------- selection


def matrix(kind, rows, columns, dtype):
    if kind == "ties":
        return torch.randint(-2, 3, (rows, columns)).to(dtype)
    x = torch.randn(rows, columns)
    if kind == "one group":  # all of the best lie beside one another
        x[:, 64:128] += 10
    if kind == "mostly left out":
        x[torch.rand(rows, columns) < 0.98] = -torch.inf
    if kind == "all left out":
        x[:] = -torch.inf
    if kind == "signs and sizes":
        x *= 10.0 ** torch.randint(-30, 30, x.shape)
    return x.to(dtype)


KINDS = ("random", "ties", "one group", "mostly left out", "all left out", "signs and sizes")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("groups", "wanted"), [(5, 5), (20, 1), (33, 17)], ids=str)
def test_selects_what_a_sort_does(device, kind, groups, wanted):
    dtype = (torch.bfloat16, torch.float32)[(KINDS.index(kind) + groups) % 2]
    s = matrix(kind, 3, groups * 64, dtype).to(device)
    rough, column = topk_select.select(s, s.view(3, groups, 64).amax(2), wanted)
    assert rough.dtype == torch.float32
    expected = s.topk(wanted, dim=1).values.float()
    assert torch.equal(rough.sort(dim=1, descending=True).values, expected)
    assert torch.equal(rough[:, -1], expected[:, -1]), "the smallest is not last"
    assert torch.equal(s.gather(1, column).float(), rough)
    assert all(len(set(row)) == wanted for row in column.tolist())


def test_a_row_of_nan_is_nobody_elses_matter(device):
    s = torch.randn(3, 320, device=device)
    s[1] = torch.nan
    column = topk_select.select(s, s.view(3, 5, 64).amax(2), 4)[1]
    for row in (0, 2):
        assert sorted(column[row].tolist()) == sorted(s[row].topk(4).indices.tolist())


# ---------------------------------------------------------------- the whole search


def ask(search, device, **more):
    got = replace(search, **more).on(device).ask(fastcse.topk, backend="triton")
    assert_nearest(got, replace(search, **more).on(device), exact=False)
    return got


@every_metric
@pytest.mark.parametrize("form", FORMS)
def test_every_form_finds_what_the_oracle_finds(device, selected, metric, form):
    dtype = (torch.float16, torch.float32)[(METRICS.index(metric) + [*FORMS].index(form)) % 2]
    search = Search(torch.randn(7, 40).to(dtype), torch.randn(330, 40).to(dtype), 3, metric)
    search.corpus[[5, 329]] = torch.tensor([[torch.nan], [torch.inf]], dtype=dtype)
    search.query[4] = torch.nan
    with configs.pinned(FORMS[form]):
        ask(search, device)
        assert selected
        ids = {"query_id": torch.arange(7), "corpus_id": torch.arange(330) % 7}
        ask(search, device, **ids)
        ask(search, device, max_score=torch.linspace(-5, 30, 7) if metric != "cosine" else 0.3, **ids)


@every_metric
def test_rows_that_no_descriptor_describes(device, selected, metric):
    ask(Search(torch.randn(5, 7).bfloat16(), torch.randn(330, 7).bfloat16(), 3, metric), device)
    ask(Search(torch.randn(5, 8), torch.randn(330, 8).bfloat16(), 3, metric), device)
    assert selected


@every_metric
def test_ties_within_and_between_groups_go_to_the_lowest_index(device, selected, metric):
    search = Search(*integers(5, 400, 4, most=1), 4, metric)
    got = search.on(device).ask(fastcse.topk, backend="triton")
    assert_nearest(got, search.on(device), exact=metric != "cosine")
    assert selected[0] == 5
    query = torch.randn(3, 16)
    search = Search(query, query[torch.arange(390) % 3].bfloat16(), 5)
    assert ask(search, device).indices.tolist() == [list(range(row, row + 15, 3)) for row in range(3)]


@every_metric
def test_groups_of_a_larger_corpus_are_wider(device, selected, monkeypatch, metric):
    monkeypatch.setattr(topk_scores, "MOST_GROUPS", 3)
    assert topk_scores.span_of(192) == 64
    assert topk_scores.span_of(193) == 128
    ask(Search(torch.randn(6, 24), torch.randn(700, 24), 3, metric), device)
    ask(Search(torch.randn(6, 24).half(), torch.randn(700, 24).half(), 3, metric), device)
    assert selected


@every_metric
def test_chunks_of_queries(device, selected, monkeypatch, metric):
    monkeypatch.setattr(nearest, "WORKSPACE", 4 * 450 * 7)
    ask(Search(torch.randn(20, 8), torch.randn(390, 8), 3, metric), device)
    assert len(selected) > 2


@pytest.mark.parametrize("bound", [-torch.inf, torch.inf])
def test_values_of_either_sign_are_in_order(device, selected, bound):
    more = {"min_score": bound} if bound < 0 else {"max_score": bound}
    search = Search(*integers(4, 390, 3), 390, "ip", **more)
    assert_nearest(search.on(device).ask(fastcse.topk, backend="triton"), search.on(device))
    assert not selected, "more are wanted than there are groups"
