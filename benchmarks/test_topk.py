"""The search under pytest-benchmark, each round right after FAISS and the bare product: `make bench`.

fastcse is what pytest-benchmark times; the medians of the others and the ratios stand in `extra_info`, where
`benchmarks.gate` reads them.
"""

from functools import partial
from statistics import median

import pytest

from benchmarks.gate import BESIDE
from fastcse.bench.environment import environment
from fastcse.bench.measure import rounds
from fastcse.bench.timing import on_cpu
from fastcse.bench.topk_providers import PROVIDERS
from fastcse.bench.topk_search import TopkCase

PROBLEMS = [TopkCase(2000, 50_000, 384, k) for k in (10, 100)] + [TopkCase(2000, 50_000, 384, 32, metric="l2")]
PEER = BESIDE[TopkCase]
REPEAT = 5


@pytest.fixture(scope="module")
def facts():
    return environment("cpu")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.metric}-{p.m}-{p.k}")
def test_topk(benchmark, problem, facts):
    if (absent := PROVIDERS[PEER].missing()) is not None:
        pytest.skip(absent)
    rows, row = problem.inputs(), problem.row("fastcse")
    ours, faiss = (problem.call(PROVIDERS[name], None, rows) for name in ("fastcse", PEER))
    problem.score(row, PROVIDERS["fastcse"], ours(), problem.exact(*rows))
    assert problem.fault(row, None) is None, "fastcse's answer is wrong: nothing is timed"

    limit = problem.lower_bound_name
    others = {limit: partial(problem.lower_bound(), *rows), PEER: faiss}
    seconds = {name: [] for name in others}

    def others_first():
        for name, run in others.items():
            seconds[name].append(on_cpu(run))

    others[limit]()
    benchmark.group = f"topk, {problem.size}"
    benchmark.pedantic(ours, setup=others_first, rounds=rounds(problem, REPEAT), iterations=1)
    if benchmark.disabled:
        return
    products, theirs = (median(seconds[name]) for name in (limit, PEER))
    fused = benchmark.stats.stats.median
    benchmark.extra_info.update(
        problem=problem.labels(), machine=facts, products_ms=1e3 * products, faiss_ms=1e3 * theirs,
        ratios={"fastcse/products": fused / products, f"fastcse/{PEER}": fused / theirs},
    )  # fmt: skip
