"""hardest_negative against a float64 oracle on every backend: ties, ids, positives, rows that are not finite."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from row_oracle import allowed, cosines, hardest
from yardstick import assert_within

import fastcse


@pytest.fixture
def find(forced, device):
    """(value, index) on the CPU, of arguments put on the device; the form of the answer is checked on the way."""

    def go(anchor, candidate, positive=None, *, plain=False, **options):
        options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        positive = positive if positive is None else positive.to(device)
        got = forced(fastcse.hardest_negative, anchor.to(device), candidate.to(device), positive, **options)
        assert isinstance(got, fastcse.HardestNegative)
        assert got._fields == ("value", "index")
        assert got.value.shape == got.index.shape == (len(anchor),)
        assert got.index.dtype == torch.int64
        assert got.value.dtype == (torch.float64 if anchor.dtype == torch.float64 else torch.float32)
        assert got.value.device == got.index.device == anchor.to(device).device
        assert not got.value.requires_grad
        return got.value.cpu(), got.index.cpu()

    return go


def assert_hardest(got, anchor, candidate, positive=None, *, normalize=True, slack=3e-6, **ids):
    """The oracle's value within `slack`, at an allowed column whose similarity is the largest within `slack`."""
    s, keep = cosines(anchor, candidate, normalize), allowed(anchor, candidate, positive, **ids)
    value, index = hardest(s, keep)
    got_value, got_index = got[0].double().numpy(), got[1].numpy()
    assert ((got_index == -1) == (index == -1)).all()
    none = index == -1
    assert (got_value[none] == -np.inf).all()
    seen = np.flatnonzero(~none)
    np.testing.assert_allclose(got_value[seen], value[seen], rtol=slack, atol=slack)
    assert keep[seen, got_index[seen]].all(), "found what is left out"
    assert (s[seen, got_index[seen]] >= value[seen] - slack * (1 + abs(value[seen]))).all()
    rivals = np.where(keep, s, -np.inf) >= value[:, None] - slack * (1 + abs(value[:, None]))
    alone = (rivals.sum(1) == 1) & ~none
    assert (got_index[alone] == index[alone]).all()


EDGES = [(1, 1, 1), (3, 2, 4), (33, 65, 17)]  # of the interpreter's tiles
SHAPES = [
    (1, 5, 3), (2, 2, 17), (63, 64, 3), (64, 64, 96), (65, 130, 17), (130, 131, 384),
    *(pytest.param(shape, marks=pytest.mark.interpreted) for shape in EDGES),
]  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "raw"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(find, shape, normalize):
    n, m, d = shape
    anchor, candidate = torch.randn(n, d), torch.randn(m, d)
    positive = None if n <= m else torch.arange(n) % m
    got = find(anchor, candidate, positive, normalize=normalize)
    assert_hardest(got, anchor, candidate, positive, normalize=normalize, slack=3e-6 if normalize else 1e-5)


def test_positives_anywhere(find):
    anchor, candidate, positive = torch.randn(20, 6), torch.randn(9, 6), torch.randint(0, 9, (20,))
    near = anchor.clone()
    near[:9] = candidate[positive[:9]]  # a positive is the nearest of all, and is not found
    got = find(near, candidate, positive)
    assert_hardest(got, near, candidate, positive)
    assert (got[1] != positive).all()


def test_the_candidate_of_the_same_number_is_the_positive(find):
    candidate = torch.randn(9, 6)
    value, index = find(candidate[:5], candidate)
    assert (index != torch.arange(5)).all()
    assert (value < 0.999).all()
    for one, two in zip(find(candidate[:5], candidate, torch.arange(5)), (value, index)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("positive", [None, torch.arange(12).flip(0)], ids=["own", "given"])
def test_rows_of_the_same_id_are_left_out(find, positive):
    anchor, ids = torch.randn(12, 5), torch.arange(12) % 4
    candidate = torch.cat([anchor[[4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3]], torch.randn(9, 5)])
    options = dict(anchor_id=ids, candidate_id=torch.arange(21) % 4)
    got = find(anchor, candidate, positive, **options)
    assert_hardest(got, anchor, candidate, positive, **options)
    assert (options["candidate_id"][got[1]] != ids).all()
    assert (got[1] != find(anchor, candidate, positive)[1]).any()


@pytest.mark.interpreted
def test_ids_are_compared_in_all_64_bits(find):
    ids = torch.tensor([2**60, 2**60 + 1, 5, 5 + 2**32, -5, 2**63 - 1, -(2**63)])
    eye = torch.eye(7)
    # Whoever compares 32 bits masks a row that is the nearest.
    candidate = torch.cat([torch.ones(7, 7), eye.roll(1, 0)])
    candidate_id = torch.cat([torch.full((7,), 77), ids])
    anchor = eye.roll(1, 0)
    got = find(anchor, candidate, anchor_id=ids.roll(1), candidate_id=candidate_id)
    assert_hardest(got, anchor, candidate, anchor_id=ids.roll(1), candidate_id=candidate_id)
    assert (got[1] == torch.arange(7) + 7).all()


@pytest.mark.interpreted
def test_ties_go_to_the_lowest_index_across_tiles(find):
    anchor, candidate = torch.eye(4), torch.zeros(300, 4)
    candidate[[40, 170, 290], 0] = 2.0
    candidate[[131, 132, 299], 1] = 4.0
    candidate[7, 2] = 2.0
    candidate[[5, 260], 3] = -1.0
    value, index = find(anchor, candidate, torch.tensor([5, 131, 7, 0]))
    assert index.tolist() == [40, 132, 0, 1]
    assert value.tolist() == [1, 1, 0, 0]


def test_all_equal_rows(find):
    row = torch.tensor([[0.0, 3, 0, 4]])
    value, index = find(row.repeat(5, 1), 2 * row.repeat(70, 1))
    assert index.tolist() == [1, 0, 0, 0, 0]
    torch.testing.assert_close(value, torch.ones(5))


@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "raw"])
def test_a_row_without_negatives(find, normalize):
    value, index = find(torch.randn(1, 6), torch.randn(1, 6), normalize=normalize)
    assert index.tolist() == [-1]
    assert value.tolist() == [-torch.inf]
    ids = dict(anchor_id=torch.tensor([1, 1, 2]), candidate_id=torch.ones(3, dtype=torch.int64))
    value, index = find(torch.eye(3), torch.eye(3), normalize=normalize, **ids)
    assert index.tolist() == [-1, -1, 0]
    assert value.tolist() == [-torch.inf, -torch.inf, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(find, dtype):
    anchor, candidate = torch.randn(40, 33).to(dtype), torch.randn(70, 33).to(dtype)
    value, index = find(anchor, candidate)
    exact, exact_index = hardest(cosines(anchor, candidate), allowed(anchor, candidate))
    plain = F.normalize(anchor, dim=1) @ F.normalize(candidate, dim=1).T
    plain = plain.masked_fill(torch.eye(40, 70, dtype=torch.bool), -torch.inf).amax(1)
    assert_within(value, exact, [plain], "value")
    assert (index.numpy() == exact_index).mean() > 0.9
    taken = cosines(anchor, candidate)[np.arange(40), index.numpy()]
    np.testing.assert_allclose(taken, exact, atol=2 * np.abs(plain.double().numpy() - exact).max())


def test_float64_is_not_rounded(device):
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64, device=device)
    angle = torch.tensor([0.5, 2e-6, 1e-6], dtype=torch.float64, device=device)
    candidate = torch.stack([angle.cos(), angle.sin()], 1)
    value, index = fastcse.hardest_negative(anchor, candidate)
    assert fastcse.last_backend() == "reference"
    assert value.dtype == torch.float64
    assert index.tolist() == [2]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "raw"])
def test_candidates_that_are_not_finite_are_never_found(find, bad, normalize):
    anchor, candidate = torch.randn(9, 6), torch.randn(70, 6)
    candidate[[3, 20, 66], [0, 5, 2]] = bad
    got = find(anchor, candidate, normalize=normalize)
    assert_hardest(got, anchor, candidate, normalize=normalize)
    value, index = find(anchor[:1], torch.stack([anchor[0], candidate[3]]), normalize=normalize)
    assert index.tolist() == [-1]
    assert value.tolist() == [-torch.inf]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_anchor_that_is_not_finite_is_nobody_elses_matter(find, bad):
    anchor, candidate = torch.randn(9, 6), torch.randn(70, 6)
    clean = find(anchor, candidate)
    anchor[4, 2] = bad
    value, index = find(anchor, candidate)
    others = torch.arange(9) != 4
    assert torch.equal(index[others], clean[1][others])
    torch.testing.assert_close(value[others], clean[0][others], rtol=1e-6, atol=1e-6)
    assert -1 <= index[4] < 70


@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_zero_rows_have_similarity_zero(find, size):
    candidate = torch.cat([torch.ones(1, 4), -torch.ones(3, 4), torch.full((2, 4), -size)])
    value, index = find(torch.ones(1, 4), candidate)
    assert (value.tolist(), index.tolist()) == ([0], [4])
    value, index = find(size * torch.ones(2, 4), candidate)
    assert (value.tolist(), index.tolist()) == ([0, 0], [1, 0])


def test_agrees_with_the_by_product_of_the_loss(find, forced, device):
    anchor, candidate, positive = torch.randn(33, 8), torch.randn(70, 8), torch.randperm(70)[:33]
    ids = dict(anchor_id=positive % 5, candidate_id=torch.arange(70) % 5)
    candidate[41] = candidate[40]
    value, index = find(anchor, candidate, positive, **ids)
    ids = {k: v.to(device) for k, v in ids.items()}
    _, stats = forced(
        fastcse.infonce_loss, anchor.to(device), candidate.to(device), positive.to(device), return_stats=True, **ids
    )
    assert torch.equal(index, stats.hardest_index.cpu())
    torch.testing.assert_close(value, stats.hardest_similarity.cpu(), rtol=1e-6, atol=1e-6)
