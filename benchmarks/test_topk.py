"""The search under pytest-benchmark, each round right after FAISS and the bare product: `make bench`.

fastcse is what pytest-benchmark times; the medians of the others and the ratios stand in `extra_info`, where
`benchmarks.gate` reads them.
"""

from functools import partial
from statistics import median

import pytest

from benchmarks.gate import BESIDE
from fastcse.bench.data import make_rows
from fastcse.bench.machine import machine
from fastcse.bench.measure import rounds
from fastcse.bench.nearest.problem import TopkProblem
from fastcse.bench.nearest.subject import LARGEST_VALUE_ERROR, SEARCHERS, bare_product
from fastcse.bench.nearest.truth import exact, misses
from fastcse.bench.runs import LIMIT
from fastcse.bench.turns import on_cpu

PROBLEMS = [TopkProblem(2000, 50_000, 384, k) for k in (10, 100)] + [TopkProblem(2000, 50_000, 384, 32, metric="l2")]
PEER = BESIDE[TopkProblem]
REPEAT = 5


@pytest.fixture(scope="module")
def facts():
    return machine("cpu")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.metric}-{p.m}-{p.k}")
def test_topk(benchmark, problem, facts):
    if (absent := SEARCHERS[PEER].missing()) is not None:
        pytest.skip(absent)
    rows = make_rows(problem)
    ours, faiss = (SEARCHERS[name].search(problem, None, *rows) for name in ("fastcse", PEER))
    missed = misses(*ours(), exact(problem, *rows), SEARCHERS["fastcse"].ties(problem))
    assert missed.recall_tied == 1, "fastcse missed a nearest row: nothing is timed"
    assert missed.value_error <= LARGEST_VALUE_ERROR, "fastcse's values are wrong: nothing is timed"

    others = {LIMIT: partial(bare_product(problem), *rows), PEER: faiss}
    seconds = {name: [] for name in others}

    def others_first():
        for name, run in others.items():
            seconds[name].append(on_cpu(run))

    others[LIMIT]()
    benchmark.group = f"topk, {problem.size}"
    benchmark.pedantic(ours, setup=others_first, rounds=rounds(problem, REPEAT), iterations=1)
    if benchmark.disabled:
        return
    limit, theirs = (median(seconds[name]) for name in (LIMIT, PEER))
    fused = benchmark.stats.stats.median
    benchmark.extra_info.update(
        problem=problem.labels(), machine=facts, products_ms=1e3 * limit, faiss_ms=1e3 * theirs,
        ratios={"fastcse/products": fused / limit, f"fastcse/{PEER}": fused / theirs},
    )  # fmt: skip
