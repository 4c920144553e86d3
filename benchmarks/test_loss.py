"""The same providers under pytest-benchmark: `make bench`. Groups are sizes; compare within a group only."""

import pytest

from benchmarks.providers import make_inputs, providers

SIZES = {(64, 384): 200, (512, 768): 30, (8192, 768): 3}


@pytest.mark.parametrize("name", list(providers()))
@pytest.mark.parametrize(("n", "d"), list(SIZES), ids=lambda x: str(x))
def test_focal_loss(benchmark, n, d, name):
    benchmark.group = f"focal InfoNCE forward + backward, N = {n}, D = {d}"
    run = providers()[name]
    benchmark.pedantic(run, args=make_inputs(n, d), rounds=SIZES[n, d], warmup_rounds=1)
