"""The losses under pytest-benchmark, each round right after eager and the bare products: `make bench`.

fastcse is what pytest-benchmark times; the medians of the others and the ratios stand in `extra_info`, where
`benchmarks.gate` reads them.
"""

from functools import partial
from statistics import median

import pytest

from fastcse.bench.data import make_rows
from fastcse.bench.loss import allowed_error
from fastcse.bench.machine import machine
from fastcse.bench.measure import rounds
from fastcse.bench.peers import PEERS
from fastcse.bench.problem import LossProblem
from fastcse.bench.runs import LIMIT, bare_products, outcome_of
from fastcse.bench.truth import errors, exact
from fastcse.bench.turns import on_cpu

SIZES = ((64, 384), (512, 768), (2048, 768), (8192, 768))
PROBLEMS = [LossProblem(n, n, d, loss) for loss in ("focal", "infonce") for n, d in SIZES]
PROBLEMS.append(LossProblem(2048, 2048, 768, "symmetric"))
# Rounds of the largest size; smaller ones take more.
REPEAT = 5


@pytest.fixture(scope="module")
def facts():
    return machine("cpu")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.loss}-{p.n}-{p.d}")
def test_loss(benchmark, problem, facts):
    rows = make_rows(problem)
    ours, eager = (partial(outcome_of, problem, PEERS[name].loss(problem), *rows) for name in ("fastcse", "eager"))
    truth = exact(problem, *rows)
    gradient = {run: errors(run(), truth).gradient for run in (ours, eager)}
    assert gradient[ours] <= allowed_error(problem, gradient[eager]), "fastcse's gradient is wrong: nothing is timed"

    others = {LIMIT: partial(bare_products(problem), *rows), "eager": eager}
    seconds = {name: [] for name in others}

    def others_first():
        for name, run in others.items():
            seconds[name].append(on_cpu(run))

    others[LIMIT]()
    benchmark.group = f"{problem.loss}, {problem.size}"
    benchmark.pedantic(ours, setup=others_first, rounds=rounds(problem, REPEAT), iterations=1)
    if benchmark.disabled:
        return
    limit, plain = (median(seconds[name]) for name in (LIMIT, "eager"))
    fused = benchmark.stats.stats.median
    benchmark.extra_info.update(
        problem=problem.labels(), machine=facts, products_ms=1e3 * limit, eager_ms=1e3 * plain,
        ratios={"fastcse/products": fused / limit, "fastcse/eager": fused / plain},
    )  # fmt: skip
