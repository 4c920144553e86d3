"""What searches and clustering take beyond their inputs and results, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastcse

WEIGHED = """
import sys, torch, fastcse
from fastcse.bench.memory import peak_of_process
search, kmeans = (sys.modules["fastcse.native." + name] for name in ("topk_search", "kmeans"))
search.FEWEST_ROWS, amx, R = 1, kmeans.multiplies_half(), torch.randn

def weigh(limit, what, function, *arguments, warm, **options):
    function(*warm, backend="cpp", **options)
    peak = peak_of_process(lambda: function(*arguments, backend="cpp", **options))
    print(limit, peak if peak is None else peak / 2**20, what)

for half in (True, False):
    search.multiplies_half = lambda: half
    query, corpus = R(2000, 64), R(20_000, 64)  # the matrix of their products is 153 MiB
    weigh(60, f"topk {half}", fastcse.topk, query, corpus, 10, warm=(query[:50], corpus[:3000], 10))
    for kind in (torch.float16, torch.bfloat16, torch.float32):  # a copy of the corpus is 73 or 146 MiB
        query, corpus = R(8, 64), R(600_000, 64).to(kind)
        weigh(45, f"topk {kind} {half}", fastcse.topk, query, corpus, 10, warm=(query, corpus[:3000], 10))
points, centroids = R(20_000, 32), R(4096, 32)  # the matrix is 312 MiB
for half in {amx, False}:
    kmeans.multiplies_half = lambda: half
    for metric in ("cosine", "euclidean"):
        weigh(40, f"assign {metric} {half}", fastcse.assign, points, centroids, warm=(points[:2000], centroids),
              second=True, metric=metric)
index = fastcse.assign(points, centroids).index
weigh(40, "sums", fastcse.cluster_sums, points, index, 4096, warm=(points[:2000], index[:2000], 4096), normalize=True)
"""


def test_nothing_of_the_size_of_the_matrix_or_of_a_copy_is_allocated():
    if not fastcse.backends()["cpp"].available:
        pytest.skip("needs the C++ module: the lane that builds it")
    # Large blocks come from the system and go back to it, so that no call hides in what an earlier one has left.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    root = Path(fastcse.__file__).parent.parent
    command = [sys.executable, "-c", WEIGHED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    for limit, peak, what in (line.split(" ", 2) for line in done.stdout.splitlines()):
        if peak == "None":
            pytest.skip("this system does not tell the peak of a process")
        assert float(peak) < float(limit), f"{what}: {peak} MiB"
