"""The C++ search multiplies roughly first: rows made so that rough products mislead, in bfloat16 and in float32, on
every instruction set and number of threads. The answer is the oracle's to the last bit, so all of them agree.
"""

import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from topk_oracle import METRICS, Search, assert_same, integers, nearest, values

import fastcse

_C = pytest.importorskip("fastcse._C", reason="the C++ module is not built; test_house fails without it")
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def half(request, monkeypatch):
    """Both forms of the products, whatever this processor would choose."""
    module = sys.modules["fastcse.native.topk_search"]
    monkeypatch.setattr(module, "multiplies_half", lambda: request.param)
    monkeypatch.setattr(module, "FEWEST_ROWS", 1)
    return request.param


@pytest.fixture(params=_C.usable())
def isa(request):
    before = _C.isa()
    _C.use(request.param)
    yield request.param
    _C.use(before)


# ---------------------------------------------------------------- rows that mislead


def cut_off():
    """Row 3000 is the nearest, and of its product bfloat16 takes off the most it can, while it adds the most to all
    others. All rows have length 16, so that unit rows mislead as well."""
    less, more = 1 + 2.0**-8 - 2.0**-12, 1 + 2.0**-8 + 2.0**-12
    query, corpus = torch.zeros(2, 131), torch.zeros(4000, 131)
    query[:, :64], query[:, 64:128], query[:, 128] = less, more, 1
    corpus[:, 64:128], corpus[:, 128] = more, -0.125
    corpus[3000] = 0
    corpus[3000, :64] = less
    for rows, column in ((query, 129), (corpus, 130)):
        rows[:, column] = (256 - rows.double().square().sum(1)).sqrt().float()
    return query, corpus


def cancelling(long):
    """Products are small integers, sums of large terms that cancel, in the tiles where `long` says so; there float32
    products are off by more than the integers."""
    u, a = torch.randint(1, 2**10, (5, 16)).float(), torch.randint(-(2**24), 2**24, (6000, 16)).float()
    a = (a * long[:, None]).round()
    order, (v, w) = torch.randperm(16), integers(5, 6000, 4, most=90)
    return torch.cat([u, u[:, order], v], 1), torch.cat([a, -a[:, order], w], 1)


def one_coordinate(size):
    query, corpus = torch.randn(4, 20), torch.randn(5000, 20)
    query[:, 0] = corpus[:, 0] = size
    return query, corpus


def in_order(descending):
    query, corpus = torch.randn(1, 20), torch.randn(6000, 20)
    return query, corpus[(corpus @ query[0]).argsort(descending=descending)]


def copies(noise):
    query = torch.randn(8, 40)
    return query, (query[:, None] + noise * torch.randn(8, 600, 40)).reshape(-1, 40)


tile = torch.arange(6000) // 2048
MISLEADING = {
    "random": lambda: (torch.randn(7, 33), torch.randn(4999, 33)),
    "integers": lambda: integers(9, 5000, 5, most=1),
    "one to four wide": lambda: (torch.randn(9, 3), torch.randn(5000, 3)),
    "cut off by bfloat16": cut_off,
    "first tile long": lambda: cancelling(tile == 0),
    "second tile long": lambda: cancelling(tile == 1),
    "last tile long": lambda: cancelling(tile == 2),
    "shorter by the tile": lambda: cancelling(2.0 ** (-4 * tile)),
    "all close": lambda: (torch.randn(4, 24) + 100, torch.randn(5000, 24) + 100),
    "first tile close": lambda: (torch.randn(4, 24) + 9, torch.randn(6000, 24) + 9 * (tile == 0)[:, None]),
    "one large coordinate": lambda: one_coordinate(1e3),
    "one huge coordinate": lambda: one_coordinate(1e8),
    "best last": lambda: in_order(False),
    "best first": lambda: in_order(True),
    "copies": lambda: copies(1e-6),
    "near copies": lambda: copies(1e-4),
    "all equal": lambda: (torch.randn(3, 9), torch.randn(1, 9).repeat(5000, 1)),
    "features of many sizes": lambda: tuple(10.0 ** torch.linspace(-5, 5, 20) * torch.randn(n, 20) for n in (5, 5000)),
    "below float32's smallest": lambda: (1e-20 * torch.randn(4, 12), 1e-20 * torch.randn(3000, 12)),
}  # fmt: skip


@cache
def searched(name, metric, k, bounded):
    """The search and its answer."""
    torch.manual_seed(7)
    search = Search(*MISLEADING[name](), k, metric)
    if bounded:
        middle = torch.tensor(values(search)).sort(dim=1).values
        count = middle.shape[1]
        lowest, highest = middle[:, count // 10].float(), middle[:, -count // 10].float()
        ids = {"query_id": torch.arange(len(search.query)), "corpus_id": torch.arange(count) % 11}
        search = replace(search, min_score=lowest, max_score=highest, **ids)
    return search, nearest(search)


@every_metric
@pytest.mark.parametrize("name", MISLEADING)
def test_rows_that_mislead(half, metric, name):
    for k, bounded in ((1, False), (10, False), (100, False), (1000, False), (10, True)):
        search, expected = searched(name, metric, k, bounded)
        assert_same(search.ask(fastcse.topk, backend="cpp"), *expected)


@every_metric
@pytest.mark.parametrize("name", ["random", "integers", "first tile long", "all close"])
@pytest.mark.parametrize("threads", [1, 3])
def test_instruction_sets_and_threads_change_no_bit(half, isa, metric, name, threads):
    search, expected = searched(name, metric, 10, False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same(search.ask(fastcse.topk, backend="cpp"), *expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("d", [1, 3, 7, 8, 15, 16, 17, 31, 33, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_width_and_instruction_set(half, isa, d, dtype):
    g = torch.Generator().manual_seed(d)
    m = 300 + d  # no multiple of any vector's width
    search = Search(torch.randn(3, d, generator=g), torch.randn(m, d, generator=g).to(dtype), 9, "ip")
    assert_same(search.ask(fastcse.topk, backend="cpp"), *nearest(search))


def test_float16_rows_below_its_normal_numbers(isa, half):
    corpus = torch.tensor([0, 1, 2, 1023, 1024, 1025, 31743, -1, -1023]).to(torch.int16)
    corpus = torch.cat([corpus, corpus | -(2**15)]).view(torch.float16)[:, None].repeat(3, 1)
    corpus = corpus[corpus.isfinite()[:, 0]]
    search = Search(torch.tensor([[1.0], [-3]]), corpus, len(corpus), "ip")
    assert_same(search.ask(fastcse.topk, backend="cpp"), *nearest(search))


def test_both_forms_are_what_they_say(half, monkeypatch):
    seen, mm = set(), torch.mm

    def watched(a, b, *, out):
        seen.add(out.dtype)
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    fastcse.topk(torch.randn(4, 8), torch.randn(3000, 8), 2, backend="cpp")
    assert seen == {torch.bfloat16 if half else torch.float32}
