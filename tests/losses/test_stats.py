"""By-products of the sweep: lse, accuracy, mean similarities, share of masked pairs, hardest negative."""

import math

import numpy as np
import pytest
import torch
from oracle import Case, Extra, make_rows, oracle, row_keep, to64, unit

every_loss = pytest.mark.parametrize("focal", [False, True], ids=["infonce", "focal"])
every_direction = pytest.mark.parametrize("symmetric", [False, True], ids=["one_way", "symmetric"])

ANCHOR_ID = torch.tensor([1, 2, 1, 3, 4, 5, 5, 6, 7])
CANDIDATE_ID = torch.cat([ANCHOR_ID, torch.tensor([1, 3, 9])])


def case_of(**options):
    anchor, candidate, _ = make_rows("random", 9, 12, 5, seed=4)
    anchor = anchor + candidate[:9]
    extras = (
        Extra(torch.randn(4, 5), log_weight=torch.randn(4)),
        Extra(torch.randn(10, 5), own_log_weight=0.5, grad=False, id=torch.arange(10)),
    )
    return Case(
        anchor,
        candidate,
        torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 11]),
        extras,
        anchor_id=ANCHOR_ID,
        candidate_id=CANDIDATE_ID,
        temperature=0.3,
        **options,
    )


def expected(case):
    """The seven by-products, by hand in float64 with one loop per anchor."""
    scale = (lambda z: unit(z)[0]) if case.normalize else (lambda z: z)
    blocks = [case.candidate, *(e.rows for e in case.extras)]
    s = scale(to64(case.anchor)) @ np.concatenate([scale(to64(z)) for z in blocks]).T
    m = len(case.candidate)
    right, own_s, seen, masked, hardest, where = [], [], [], 0, [], []
    for i in range(len(s)):
        own, keep, _ = row_keep(case, i)
        keep = keep.copy()
        masked += int((~keep).sum())
        keep[own] = False
        own_s.append(s[i, own])
        right.append(all(s[i, own] > s[i, j] for j in np.flatnonzero(keep)))
        seen.extend(s[i, keep])
        inside = [j for j in range(m) if keep[j]]
        hardest.append(max((s[i, j] for j in inside), default=-np.inf))
        where.append(next((j for j in inside if s[i, j] == hardest[-1]), -1))
    pairs = s.size - len(s)
    return {
        "lse": oracle(case).stats,
        "accuracy": np.mean(right),
        "positive_similarity": np.mean(own_s),
        "negative_similarity": np.mean(seen),
        "masked_share": masked / pairs,
        "hardest_similarity": np.array(hardest),
        "hardest_index": np.array(where),
    }


def assert_stats(stats, truth):
    assert stats._fields == (*truth, "parts")
    for name, value in truth.items():
        got = getattr(stats, name)
        assert isinstance(got, torch.Tensor), name
        assert not got.requires_grad, name
        assert got.shape == np.shape(value), name
        np.testing.assert_allclose(to64(got), value, rtol=3e-6, atol=3e-6, err_msg=name)
    assert stats.hardest_index.dtype == torch.int64
    assert stats.lse.dtype == torch.float32


@every_loss
@every_direction
def test_stats_by_hand_with_and_without_gradients(run, focal, symmetric):
    """And asking for them changes neither loss nor gradient."""
    for reduction, normalize in (("mean", True), ("sum", True), ("none", True), ("none", False)):
        case = case_of(focal=focal, symmetric=symmetric, normalize=normalize)
        plain, asked = (run(case, reduction=reduction, return_stats=x) for x in (False, True))
        for name in ("loss", "danchor", "dcandidate"):
            torch.testing.assert_close(getattr(asked, name), getattr(plain, name), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(asked.dextras[0], plain.dextras[0], rtol=1e-6, atol=1e-7)
        assert_stats(asked.stats, expected(case))
        value = run(case, reduction=reduction, return_stats=True, grad=False)
        assert_stats(value.stats, expected(case))
        torch.testing.assert_close(value.loss, plain.loss, rtol=1e-6, atol=1e-6)


def test_more_columns_than_a_tile(run):
    case = Case(*make_rows("clustered", 70, 140, 6))
    assert_stats(run(case, return_stats=True).stats, expected(case))


def test_a_small_workspace_gives_the_same_stats(run):
    case = Case(*make_rows("clustered", 40, 70, 6), symmetric=True)
    assert_stats(run(case, return_stats=True, max_workspace_bytes=1 << 12).stats, expected(case))


def test_a_tie_with_the_positive_is_not_a_hit(run):
    # The third anchor of the published vector is as close to a negative as to its positive.
    z1, z2 = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0]]), torch.tensor([[4.0, 3, 0], [0, 4, 3], [4, 0, -3]])
    stats = run(Case(z1, z2), return_stats=True).stats
    assert math.isclose(float(stats.accuracy), 2 / 3, rel_tol=1e-6)
    assert stats.hardest_index.tolist() == [1, 0, 0]


def test_a_tie_with_a_block_is_not_a_hit(run):
    eye = torch.eye(4)
    stats = run(Case(eye, eye, extras=(Extra(eye[1:3].clone()),)), return_stats=True).stats
    assert float(stats.accuracy) == 0.5
    # The hardest negative is looked for within `candidate`, where all are equal: the lowest column wins.
    assert stats.hardest_index.tolist() == [1, 0, 0, 0]
    assert (stats.hardest_similarity == 0).all()


@pytest.mark.interpreted
def test_ties_go_to_the_lowest_column_across_tiles(run):
    anchor = torch.eye(3)
    candidate = torch.zeros(300, 3)
    candidate[[40, 170, 290], 0] = 2.0
    candidate[[131, 132, 299], 1] = 2.0
    candidate[[7], 2] = 2.0
    stats = run(Case(anchor, candidate, torch.tensor([5, 131, 7])), return_stats=True).stats
    assert stats.hardest_index.tolist() == [40, 132, 0]
    assert stats.hardest_similarity.tolist() == [1, 1, 0]


def test_rows_without_negatives(run):
    case = Case(torch.eye(3), torch.eye(3), anchor_id=torch.tensor([1, 1, 2]), candidate_id=torch.tensor([1, 1, 1]))
    stats = run(case, return_stats=True).stats
    assert stats.hardest_index.tolist() == [-1, -1, 0]
    assert stats.hardest_similarity.tolist() == [-math.inf, -math.inf, 0]
    assert math.isclose(float(stats.masked_share), 4 / 6, rel_tol=1e-6)
    alone = run(Case(torch.randn(1, 3), torch.randn(1, 3)), return_stats=True).stats
    assert float(alone.accuracy) == 1
    assert float(alone.masked_share) == 0
    assert alone.hardest_index.tolist() == [-1]


def test_a_block_alone_can_beat_the_positive(run):
    anchor = torch.tensor([[1.0, 0], [0, 1]])
    candidate = torch.tensor([[0.6, 0.8], [0.1, 1]])
    near = torch.tensor([[1.0, 0.1]])
    assert float(run(Case(anchor, candidate), return_stats=True).stats.accuracy) == 1
    assert float(run(Case(anchor, candidate, extras=(Extra(near),)), return_stats=True).stats.accuracy) == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stats_are_float32(run, dtype):
    case = Case(*make_rows("clustered", 20, 24, 8, dtype))
    stats = run(case, return_stats=True).stats
    for name, value in expected(case).items():
        if name == "hardest_index":
            continue
        assert getattr(stats, name).dtype == torch.float32, name
        np.testing.assert_allclose(to64(getattr(stats, name)), value, rtol=2e-2, atol=2e-2, err_msg=name)
