"""assign of half-precision points: float32 centroids keep their digits, in every form of the kernel.

Against float64 loops, and against rounded centroids, which must have misled: a test where they do not proves nothing.
"""

import numpy as np
import pytest
import torch
from cluster_oracle import assert_nearest, nearest, pairs
from conftest import DEVICE

import fastcse
from fastcse.kernels import configs

HALVES = (torch.bfloat16, torch.float16)
every_metric = pytest.mark.parametrize("metric", ["cosine", "euclidean"])
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
BASE = configs.INTERPRETED if DEVICE == "cpu" else configs.HALF
FORMS = {
    "pointers": BASE._replace(programs=0),
    "pointers, several tiles a segment": BASE._replace(block_m=16, programs=0),
    "persistent": BASE._replace(programs=1),
    "persistent, several tiles a segment": BASE._replace(block_n=16, block_m=16, programs=1),
    "persistent, more programs, not flattened": BASE._replace(block_n=16, block_m=16, programs=2, flatten=False),
}  # fmt: skip


def find(points, centroids, metric, device, second=False):
    got = fastcse.assign(points.to(device), centroids.to(device), second=second, metric=metric, backend="triton")
    assert fastcse.last_backend() == "triton"
    return got.index.cpu().reshape(len(points), -1), got.value.cpu().reshape(len(points), -1)


def close_centroids(dtype, n, k, d):
    """Points between pairs of centroids, of which rounding to the points' type leaves one or swaps two."""
    digits = 7 if dtype == torch.bfloat16 else 10
    first = torch.randn(k // 2, d)
    centroids = torch.cat([first, first + 2.0 ** -(digits + 1) * torch.randn(k // 2, d)])
    centroids = centroids[torch.randperm(len(centroids))]
    return (centroids[torch.randint(len(centroids), (n,))] + 0.2 * torch.randn(n, d)).to(dtype), centroids


@pytest.mark.parametrize(
    ("width", "dtype", "metric", "second"),
    [  # every two values of two arguments
        (24, torch.bfloat16, "cosine", False),
        (24, torch.float16, "euclidean", True),
        (40, torch.bfloat16, "euclidean", True),
        (40, torch.float16, "cosine", False),
        (264, torch.bfloat16, "cosine", True),
        (264, torch.float16, "euclidean", False),
    ],
    ids=str,
)
def test_what_rounding_the_centroids_would_swap_is_told_apart(device, dtype, metric, width, second):
    points, centroids = close_centroids(dtype, 60, 70, width)
    best = nearest(points, centroids, 1, metric)[0]
    rounded = nearest(points, centroids.to(dtype), 1, metric)[0]
    assert (best != rounded).mean() > 0.05, "rounded centroids do as well: the test shows nothing"
    index, value = find(points, centroids, metric, device, second)
    assert_nearest(index, value, points, centroids, metric, roughly=True)
    # Farther than float32 sums of so many terms can miss, nothing is in doubt.
    two = np.sort(pairs(points, centroids, metric) * (-1 if metric == "cosine" else 1), 1)
    size = 2 if metric == "cosine" else 5 * pairs(points, 0 * centroids[:1], metric)[:, 0]
    sure = two[:, 1] - two[:, 0] > (width + 8) * 2.0**-24 * size
    assert sure.mean() > 0.4 or width > 100  # wide rows are as close as float32 sums can tell
    np.testing.assert_array_equal(index[:, :1].numpy()[sure], best[sure])


@every_metric
@pytest.mark.parametrize("form", FORMS)
def test_every_form_finds_the_same(device, metric, form):
    dtype = HALVES[([*FORMS].index(form) + len(metric)) % 2]
    points, centroids = close_centroids(dtype, 45, 150, 40)
    centroids[[3, 77, 149]], centroids[[5, 100]] = centroids[17].clone(), torch.tensor([[torch.nan], [torch.inf]])
    points[7], points[9], points[11, 3] = centroids[17].to(dtype), 0, torch.nan
    expected = find(points, centroids, metric, device, second=True)
    assert_nearest(*expected, points, centroids, metric, roughly=True)
    assert expected[0][7].tolist() == [3, 17]
    assert expected[0][11].tolist() == [-1, -1]
    if metric == "cosine":
        assert expected[0][9].tolist() == [0, 1]
    with configs.pinned(FORMS[form]):
        for second in (True, False):
            got = find(points, centroids, metric, device, second)
            for one, two in zip(got, expected):
                np.testing.assert_array_equal(one.numpy(), two[:, : one.shape[1]].numpy())


@every_metric
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6, 1e12])
def test_float32_centroids_that_float16_has_no_room_for(device, metric, size):
    points, centroids = torch.randn(20, 12).half(), size * torch.randn(50, 12)
    index, value = find(points, centroids, metric, device, second=True)
    assert_nearest(index, value, points, centroids, metric, roughly=True)


@every_half
def test_centroids_of_the_other_half_and_a_nan_among_zeros(device, dtype):
    points, centroids = torch.randn(20, 40).to(dtype), torch.randn(70, 40).to(HALVES[dtype == HALVES[0]])
    for metric in ("cosine", "euclidean"):
        assert_nearest(*find(points, centroids, metric, device, True), points, centroids, metric, roughly=True)
    points = torch.zeros(3, 5)
    points[1, 2] = torch.nan
    assert find(points.to(dtype), torch.randn(4, 5), "cosine", device)[0][:, 0].tolist() == [0, -1, 0]
