"""Indices out of range: an IndexError that names argument and values on every backend, compiled or not."""

import pytest
import torch

import fastcse

N, M, D = 4, 6, 8
ROWS = {"a": torch.randn(N, D), "c": torch.randn(M, D), "n": torch.randn(N, D)}
LEAF = torch.randn(N, D, requires_grad=True)
# name: (argument, lowest and highest value allowed, call with an index)
CALLS = {
    "infonce": ("positive", 0, M - 1, lambda i, **o: fastcse.infonce_loss(ROWS["a"], ROWS["c"], i, **o)),
    "infonce, rows": (
        "positive",
        0,
        M - 1,
        lambda i, **o: fastcse.infonce_loss(ROWS["a"], ROWS["c"], i, reduction="none", symmetric=True, **o),
    ),
    "focal, learned": (
        "positive",
        0,
        M - 1,
        lambda i, **o: fastcse.focal_infonce_loss(LEAF, ROWS["c"], i, **o),
    ),
    "angular": ("positive", 0, M - 1, lambda i, **o: fastcse.angular_infonce_loss(ROWS["a"], ROWS["c"], i, **o)),
    "soft negative": (
        "positive",
        0,
        M - 1,
        lambda i, **o: fastcse.soft_negative_loss(ROWS["a"], ROWS["c"], ROWS["n"], i, **o),
    ),
    "sscl": ("positive", 0, M - 1, lambda i, **o: fastcse.sscl_loss(ROWS["a"], ROWS["c"], i, parts=2, **o)),
    "hsimcse": ("positive", 0, M - 1, lambda i, **o: fastcse.hsimcse_loss(ROWS["a"], ROWS["c"], ROWS["n"], i, **o)),
    "hsimcse, part": (
        "anchor_index",
        0,
        M - 1,
        lambda i, **o: fastcse.hsimcse_loss(
            ROWS["a"], ROWS["c"], ROWS["n"], all_anchor=ROWS["c"], anchor_index=i, **o
        ),
    ),
    "adversarial": (
        "anchor_index",
        0,
        M - 1,
        lambda i, **o: fastcse.adversarial_positive(ROWS["c"], ROWS["a"], anchor_index=i, **o),
    ),
    "quadruplet": (
        "batch_negative",
        -1,
        M - 1,
        lambda i, **o: fastcse.quadruplet_loss(ROWS["a"], ROWS["n"], i, ROWS["n"], candidate=ROWS["c"], **o),
    ),
    "hardest": ("positive", 0, M - 1, lambda i, **o: fastcse.hardest_negative(ROWS["a"], ROWS["c"], i, **o)),
    "clusterns": ("index", -1, 2, lambda i, **o: fastcse.clusterns_loss(
        ROWS["a"], ROWS["n"], i, ROWS["c"][:3], torch.ones(3, dtype=torch.int64), **o)),
    "clusterns, positive": ("positive", 0, M - 1, lambda i, **o: fastcse.clusterns_loss(
        ROWS["a"], ROWS["c"], torch.zeros(N, dtype=torch.int64), positive=i,
        candidate_index=torch.zeros(M, dtype=torch.int64), **o)),
    "cluster sums": ("index", -1, 4, lambda i, **o: fastcse.cluster_sums(ROWS["a"], i, 5, **o)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_index_out_of_range_is_named(backend, name):
    argument, least, most, call = CALLS[name]
    inside = torch.tensor([0, most, max(least, 0), 1])
    if name != "hardest":
        call(inside, backend=backend)
    for wrong in (most + 1, least - 1, -100, 10**9):
        index = inside.clone()
        index[2] = wrong
        with pytest.raises(IndexError, match=rf"{argument} .*{least} to {most}, got {wrong}$"):
            call(index, backend=backend)
    call(torch.full((N,), least), backend=backend)


@pytest.mark.parametrize("name", ["infonce", "focal, learned", "quadruplet", "adversarial", "cluster sums"])
def test_compiled_code_checks_too(name):
    argument, least, most, call = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda i: call(i, backend="cpp"), fullgraph=True, backend="aot_eager")
    compiled(torch.tensor([0, most, max(least, 0), 1]))
    with pytest.raises(IndexError, match=rf"{argument} .*got -100$"):
        compiled(torch.tensor([0, -100, 1, 1]))
