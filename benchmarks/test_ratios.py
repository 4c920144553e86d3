"""Ratios to eager or FAISS and to the lower bound, each timed in turns with them: `make bench`.

The ratios stand in `extra_info` of pytest-benchmark's JSON, where `benchmarks.regression` reads them. Its
`--benchmark-min-rounds` is the number of rounds at the largest size; smaller ones take more.
"""

import pytest

from fastcse.bench.benchmarks import benchmark_of
from fastcse.bench.environment import environment
from fastcse.bench.loss import LossCase
from fastcse.bench.measure import measure, rounds
from fastcse.bench.topk_search import TopkCase

SIZES = ((64, 384), (512, 768), (2048, 768), (8192, 768))
# What one would use without fastcse.
BESIDE = {LossCase: "eager", TopkCase: "FAISS flat"}
CASES = [
    *(LossCase(n=n, d=d, loss=loss) for loss in ("focal", "infonce") for n, d in SIZES),
    LossCase(n=2048, d=768, loss="symmetric"),
    *(TopkCase(n=2000, m=50_000, d=384, k=k) for k in (10, 100)),
    TopkCase(n=2000, m=50_000, d=384, k=32, metric="l2"),
]


@pytest.fixture(scope="module")
def facts():
    return environment("cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.operation}, {case.size}")
def test_ratios(benchmark, case, facts, pytestconfig):
    beside = BESIDE[type(case)]
    providers = [benchmark_of(case.labels()).providers[name] for name in ("fastcse", beside)]
    if (absent := providers[1].missing()) is not None:
        pytest.skip(absent)
    options = {"repeat": rounds(case, pytestconfig.getoption("benchmark_min_rounds")), "memory": False}
    result = benchmark.pedantic(measure, (case, providers), options, rounds=1)
    ours, theirs = result.row("fastcse"), result.row(beside)
    ratios = {"fastcse/products": ours.to_products, f"fastcse/{beside}": ours.ms / theirs.ms}
    benchmark.extra_info.update(problem=case.labels(), machine=facts, ms=ours.ms, ratios=ratios)
