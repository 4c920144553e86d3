"""A default device or dtype of the process changes no result: what the package makes for itself says both."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS

import fastcse
from fastcse import native

N, M, D = 9, 12, 16
A, C, E = torch.randn(N, D), torch.randn(M, D), torch.randn(N, D)
INDEX = torch.arange(N) % 3
IDS = {"anchor_id": torch.arange(N), "candidate_id": torch.arange(M)}
BLOCK = fastcse.CandidateBlock(torch.randn(5, D), log_weight=torch.zeros(5), own_log_weight=0.5, id=torch.arange(5))
WITH = {"negatives": BLOCK, **IDS}


def learned(function, *rows, **options):
    """Value and gradients of a loss."""
    leaves = [x.clone().requires_grad_() for x in rows]
    out = function(*leaves, **options)
    loss, more = (out.loss, [*out.stats[:-1], *out.stats.parts.values()]) if isinstance(out, tuple) else (out, [])
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True), *more]


STATE = fastcse.OnlineKMeans(3, D, mode="adamw").state_dict()


def online(b):
    # A module's buffers are on the default device, as of every module; its steps are where they are.
    clusters = fastcse.OnlineKMeans(3, D, threshold=1.0, seed=0, mode="adamw", backend=b).to_empty(device="cpu")
    clusters.load_state_dict(STATE)
    return [y for _ in range(3) for x in [clusters(A, E)] if x is not None for y in x] + [clusters.centroids]


def kmeans(b, init):
    found = fastcse.KMeans(3, init=init, seed=0, backend=b, block_bytes=200).fit(C)
    return [found.cluster_centers_, found.labels_, found.predict(A)]


CALLS = {
    "infonce": lambda b: learned(fastcse.infonce_loss, A, C, return_stats=True, backend=b, **WITH),
    "rows": lambda b: learned(fastcse.infonce_loss, A, C, reduction="none", symmetric=True, backend=b),
    "focal": lambda b: learned(fastcse.focal_infonce_loss, A, C, symmetric=True, return_stats=True, backend=b),
    "angular": lambda b: learned(fastcse.angular_infonce_loss, A, C, normalize=False, backend=b),
    "half": lambda b: learned(fastcse.infonce_loss, A.half(), C.half(), backend=b),
    "clusterns": lambda b: learned(
        fastcse.clusterns_loss, A, E, index=INDEX, centroids=C[:3], counts=INDEX[:3], return_stats=True, backend=b
    ),
    "clusterns, positive": lambda b: learned(
        fastcse.clusterns_loss, A, E, index=INDEX, false_negatives="positive", backend=b
    ),
    "hsimcse": lambda b: learned(
        fastcse.hsimcse_loss, A, C, E, generator=torch.Generator("cpu").manual_seed(1), return_stats=True, backend=b
    ),
    "quadruplet": lambda b: learned(
        lambda a, p, c, k: fastcse.quadruplet_loss(a, p, INDEX, k, candidate=c, backend=b), A, E, C, E
    ),
    "soft negative": lambda b: learned(fastcse.soft_negative_loss, A, C, E, return_stats=True, backend=b),
    "sscl": lambda b: learned(fastcse.sscl_loss, A, C, parts=2, return_stats=True, backend=b),
    "similarity": lambda b: learned(fastcse.similarity, A, C, backend=b),
    "alignment": lambda b: learned(fastcse.alignment, A, E) + learned(fastcse.uniformity, A),
    "hardest": lambda b: list(fastcse.hardest_negative(A, C, backend=b, **IDS)),
    "adversarial": lambda b: [fastcse.adversarial_positive(A, E, noise=0.0, backend=b)],
    "topk": lambda b: list(
        fastcse.topk(A, C, 3, query_id=IDS["anchor_id"], corpus_id=IDS["candidate_id"], max_score=0.9, backend=b)
    ),
    "topk, l2": lambda b: list(fastcse.topk(A, C.half(), 3, metric="l2", backend=b)),
    "assign": lambda b: list(fastcse.assign(C, E[:3], second=True, backend=b)),
    "sums": lambda b: list(fastcse.cluster_sums(A, INDEX, 4, normalize=True, backend=b)),
    "k-means++": lambda b: kmeans(b, "k-means++"),
    "k-means": lambda b: kmeans(b, "random") + kmeans(b, np.ones((3, D))),
    "online k-means": online,
    "index": lambda b: list(fastcse.CorpusIndex(C).search(A, 3)),
}


INTERPRETED = ("infonce", "rows", "quadruplet", "adversarial", "topk", "assign", "sums")
RUNS = [(name, b) for name in CALLS for b in BACKENDS if b != "triton" or name in INTERPRETED]


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_a_default_device_or_dtype_changes_nothing(name, backend):
    expected = CALLS[name](backend)
    with torch.device("meta"):
        assert_same(CALLS[name](backend), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(CALLS[name](backend), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, two in zip(got, expected):
        assert (one.device, one.dtype) == (two.device, two.dtype)
        torch.testing.assert_close(one, two, equal_nan=True)


def test_no_address_of_another_device_is_given_to_cpp():
    with pytest.raises(RuntimeError, match=r"takes tensors on 'cpu', got one of shape \(4, 3\) on meta"):
        native.inverse_norms(torch.randn(4, 3, device="meta"))
