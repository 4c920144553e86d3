"""Corpus negatives: what is averaged, what is left out, how the bank is kept up."""

import numpy as np
import pytest
import torch

from fastcse import CorpusIndex, CorpusNegatives


def unit(x):
    return torch.nn.functional.normalize(x.double(), dim=1)


def problem(n=6, m=40, d=8, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    bank = torch.randn(m, d, generator=g, dtype=torch.float64) * torch.rand(m, 1, generator=g, dtype=torch.float64) * 9
    return torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype), bank.to(dtype)


def expected(query, bank, own, k, skip):
    """One anchor after the other, in numpy."""
    q, b = unit(query).numpy(), unit(bank).numpy()
    rows = []
    for i in range(len(q)):
        score = b @ q[i]
        score[own[i]] = -np.inf
        near = np.argsort(-score, kind="stable")[skip : skip + k]
        rows.append(b[near].mean(0))
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_of_the_nearest_unit_rows_without_the_anchors_own(k, skip, dtype):
    query, bank = problem(dtype=dtype)
    own = torch.tensor([4, 0, 39, 7, 7, 12])
    rows = CorpusNegatives(CorpusIndex(bank), k=k, skip=skip).rows(query, own)
    assert rows.dtype == dtype
    assert not rows.requires_grad
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(rows.double(), expected(query, bank, own, k, skip), atol=tolerance, rtol=0)


def test_the_vectors_of_the_specification():
    bank = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0], [4, 3, 0], [0, 0, 5]])
    rows = CorpusNegatives(CorpusIndex(bank)).rows(bank[:3], torch.arange(3))
    cosines = torch.nn.functional.cosine_similarity(bank[:3], rows)
    assert cosines.tolist() == pytest.approx([0.8844521689, 0.7393691004, 0.5449492609], abs=1e-6)


def test_copies_whose_ids_are_named_and_rows_above_the_cut_are_no_negatives():
    query, bank = problem()
    copies = torch.cat([bank, query, query * 3])
    own = torch.stack([torch.arange(40, 46), torch.arange(46, 52)], dim=1)
    rows = CorpusNegatives(CorpusIndex(copies)).rows(query, own)
    torch.testing.assert_close(rows.double(), expected(query, copies, own, 3, 0), atol=1e-6, rtol=0)
    rows = CorpusNegatives(CorpusIndex(copies), k=1, max_score=0.999).rows(query)
    assert (unit(rows) * unit(query)).sum(1).amax() < 0.999
    none = CorpusNegatives(CorpusIndex(copies), k=1, max_score=-2.0).rows(query)
    assert torch.equal(none, torch.zeros_like(query))


def test_fewer_rows_than_are_asked_for_are_averaged_or_drawn_as_they_are():
    query, bank = problem(m=3)
    rows = CorpusNegatives(CorpusIndex(bank)).rows(query, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(rows.double(), unit(bank)[1:].mean(0).expand(6, -1), atol=1e-6, rtol=0)
    query, bank = problem(m=10)
    only = CorpusNegatives(CorpusIndex(bank), k=1, sample=10).rows(query, torch.arange(9).expand(6, -1))
    torch.testing.assert_close(only.double(), unit(bank)[9:].expand(6, -1), atol=1e-6, rtol=0)


def test_sampled_rows_are_among_the_nearest_and_a_matter_of_the_generator():
    query, bank = problem()
    index = CorpusIndex(bank)
    near = index.search(query, 10).indices

    def draw(seed):
        negatives = CorpusNegatives(index, k=1, sample=10, generator=torch.Generator().manual_seed(seed))
        return negatives.rows(query)

    drawn = [draw(seed) for seed in range(20)]
    assert torch.equal(draw(4), drawn[4])
    found = torch.stack([(unit(rows) @ unit(bank).T).argmax(1) for rows in drawn])
    assert (found[:, :, None] == near).any(2).all()
    assert len(found[:, 0].unique()) > 4


class Growing:
    """An encoder whose rows say how often it was asked."""

    calls, training = 0, False

    def encode(self, texts, **options):
        self.calls += 1
        return torch.full((len(texts), 4), float(self.calls))


def test_the_index_is_written_through_or_encoded_anew_as_refresh_says():
    query, bank = problem()
    ids = torch.tensor([3, -1, 5, 7, -1, 9])
    for refresh, changed in (("never", False), ("write-through", True), (5, False)):
        index = CorpusIndex(bank.clone())
        CorpusNegatives(index, refresh=refresh).write(ids, query.clone().requires_grad_())
        assert torch.equal(index.rows([3, 5, 7, 9]), query[ids >= 0] if changed else bank[[3, 5, 7, 9]])
        assert torch.equal(index.rows([0, 1, 2, 39]), bank[[0, 1, 2, 39]])
    model = Growing()
    index = CorpusIndex.from_texts(model, ["a", "b", "c", "d"], progress=False)
    due = CorpusNegatives(index, refresh=3)
    assert [due.step(number, model, progress=False) for number in range(1, 8)] == [False, False, True] * 2 + [False]
    assert index.rows([0]).unique().tolist() == [3.0]
    assert not any(CorpusNegatives(index).step(number, model) for number in range(1, 8))
    assert model.calls == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k must be a whole number from 1, got 0"),
        ({"skip": -1}, "skip must be a whole number from 0, got -1"),
        ({"k": 4, "sample": 3}, "sample must be a whole number from 4, got 3"),
        ({"refresh": "often"}, r"refresh must be one of .* or a whole number from 1, got 'often'"),
        ({"refresh": 0}, "a whole number from 1, got 0"),
        ({"k": 4, "skip": 2}, "index must have at least the 6 rows that k, skip and sample ask for, got 5"),
        ({"sample": 6}, "index must have at least the 6 rows"),
        ({"metric": "l2"}, "index must be of metric 'cosine' or 'ip', of similarities, got 'l2'"),
    ],
)
def test_bad_options_name_themselves_and_the_value(options, says):
    index = CorpusIndex(torch.randn(5, 3), metric=options.pop("metric", "cosine"))
    with pytest.raises(ValueError, match=says):
        CorpusNegatives(index, **options)
