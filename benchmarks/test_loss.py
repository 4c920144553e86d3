"""The losses under pytest-benchmark, each round right after eager and the bare products: `make bench`.

fastcse is what pytest-benchmark times; the medians of the others and the ratios stand in `extra_info`, where
`benchmarks.gate` reads them.
"""

from functools import partial
from statistics import median

import pytest

from fastcse.bench.accuracy import allowed_error, errors
from fastcse.bench.environment import environment
from fastcse.bench.loss import SLACK, LossCase
from fastcse.bench.measure import rounds
from fastcse.bench.peers import PEERS
from fastcse.bench.timing import on_cpu

SIZES = ((64, 384), (512, 768), (2048, 768), (8192, 768))
PROBLEMS = [LossCase(n, n, d, loss) for loss in ("focal", "infonce") for n, d in SIZES]
PROBLEMS.append(LossCase(2048, 2048, 768, "symmetric"))
# Rounds of the largest size; smaller ones take more.
REPEAT = 5


@pytest.fixture(scope="module")
def facts():
    return environment("cpu")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.loss}-{p.n}-{p.d}")
def test_loss(benchmark, problem, facts):
    rows = problem.inputs()
    ours, eager = (problem.call(PEERS[name], None, rows) for name in ("fastcse", "eager"))
    truth = problem.exact(*rows)
    gradient = {run: errors(run(), truth).gradient for run in (ours, eager)}
    assert gradient[ours] <= allowed_error(gradient[eager], SLACK[problem.dtype]), (
        "fastcse's gradient is wrong: nothing is timed"
    )

    limit = problem.lower_bound_name
    others = {limit: partial(problem.lower_bound(), *rows), "eager": eager}
    seconds = {name: [] for name in others}

    def others_first():
        for name, run in others.items():
            seconds[name].append(on_cpu(run))

    others[limit]()
    benchmark.group = f"{problem.loss}, {problem.size}"
    benchmark.pedantic(ours, setup=others_first, rounds=rounds(problem, REPEAT), iterations=1)
    if benchmark.disabled:
        return
    products, plain = (median(seconds[name]) for name in (limit, "eager"))
    fused = benchmark.stats.stats.median
    benchmark.extra_info.update(
        problem=problem.labels(), machine=facts, products_ms=1e3 * products, eager_ms=1e3 * plain,
        ratios={"fastcse/products": fused / products, "fastcse/eager": fused / plain},
    )  # fmt: skip
