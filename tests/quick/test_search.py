"""Search, clustering and mining on arrays that one can work out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import fastcse
from fastcse import CorpusIndex, KMeans, OnlineKMeans, mine_negatives
from fastcse.encoding import encode_texts


def at(*cosines):
    """Unit rows whose cosines with (1, 0) these are."""
    c = torch.tensor(cosines)
    return torch.stack([c, (1 - c**2).sqrt()], 1)


QUERY = torch.tensor([[1.0, 0.0]])


@pytest.fixture(params=["reference", "cpp"])
def backend(request):
    return request.param


def test_topk_breaks_ties_by_the_lower_row_and_its_bounds_are_inclusive(forced):
    corpus = torch.tensor([[0.25, 0], [0.5, 1], [1, 2], [0.5, 0], [0.75, 0], [0.5, 5]])
    found = forced(fastcse.topk, QUERY, corpus, 4, metric="ip", max_score=0.75, min_score=0.5)
    assert found.indices.tolist() == [[4, 1, 3, 5]]
    assert found.values.tolist() == [[0.75, 0.5, 0.5, 0.5]]


def test_many_equal_rows_are_found_in_their_order(forced):
    corpus = torch.ones(600, 3)
    assert forced(fastcse.topk, torch.ones(2, 3), corpus, 40).indices.tolist() == [list(range(40))] * 2


@pytest.mark.interpreted
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_the_best_is_found_among_rows_that_bfloat16_cannot_tell_apart(backend):
    """Products of 1 + j 2^-14 all round to 1: more of them than are scored again at first."""
    j = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    corpus = torch.stack([torch.ones(60), j / 128], 1).bfloat16()
    found = fastcse.topk(torch.tensor([[1.0, 2**-7]]).bfloat16(), corpus, 2, metric="ip", backend=backend)
    assert j[found.indices].tolist() == [[59, 58]]


def test_the_only_candidate_is_no_negative_of_its_anchor(forced):
    found = forced(fastcse.hardest_negative, at(1.0, 0.5), at(0.9), torch.tensor([0, 0]))
    assert found.index.tolist() == [-1, -1]
    assert (found.value == -torch.inf).all()


def test_rows_that_differ_by_less_than_their_products_errors_find_the_nearest(forced):
    g = torch.Generator().manual_seed(0)
    centroids = 100 + 1e-3 * torch.randn(64, 32, generator=g)
    found = forced(fastcse.assign, centroids[:40].clone(), centroids, metric="euclidean")
    assert found.index.tolist() == list(range(40))
    assert (found.value == 0).all()


def test_equal_centroids_go_to_the_lower_index(forced):
    found = forced(fastcse.assign, at(0.9, 0.1), at(0.1, 0.9, 0.9, 0.1), second=True)
    assert found.index.tolist() == [[1, 2], [0, 3]]


def test_an_empty_cluster_begins_again_at_the_farthest_point(backend):
    points = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1], [50, 0]])
    start = torch.tensor([[0.5, 0.5], [1e3, 0]])
    got = KMeans(2, metric="euclidean", init=start, max_iter=1, backend=backend, progress=False).fit(points)
    torch.testing.assert_close(got.cluster_centers_, torch.tensor([[0.5, 0.5], [50, 0]]))


def test_a_seed_decides_the_start_of_k_means():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    first, again, other = (KMeans(9, seed=seed, max_iter=1, progress=False).fit(points) for seed in (5, 5, 6))
    assert torch.equal(first.cluster_centers_, again.cluster_centers_)
    assert not torch.equal(first.cluster_centers_, other.cluster_centers_)


def test_online_centroids_move_by_their_rate(backend):
    clusters = OnlineKMeans(2, 2, rate=0.1, threshold=1.0, seed=0, backend=backend)
    clusters(torch.eye(2), torch.eye(2))
    clusters.centroids.copy_(torch.tensor([[1.0, 0], [0, 1]]))
    found = clusters(torch.tensor([[3.0, 0], [1, 0], [0, 4]]), torch.eye(3, 2))
    torch.testing.assert_close(clusters.centroids, torch.tensor([[0.9 + 0.4, 0], [0, 0.9 + 0.4]]))
    assert found.counts.tolist() == [1, 2]


def test_an_index_ranks_equal_rows_by_id_and_skips_absent_ids():
    index = CorpusIndex(at(0.5, 0.5, 0.9, 0.5), ids=[40, 10, 30, 20])
    assert index.search(QUERY, 4).indices.tolist() == [[30, 10, 20, 40]]
    torch.testing.assert_close(index.unit_sums(torch.tensor([[30, -1]])), at(0.9))


def test_an_index_comes_back_from_the_disk_or_says_what_is_damaged(tmp_path):
    CorpusIndex(at(0.5, 0.9), ids=[7, 3], texts=["a", "b"]).save(tmp_path / "index")
    again = CorpusIndex.load(tmp_path / "index")
    assert (again.ids.tolist(), again.texts) == ([7, 3], ["a", "b"])
    assert again.search(QUERY, 1).indices.tolist() == [[3]]
    path = tmp_path / "index" / "rows.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged"):
        CorpusIndex.load(tmp_path / "index")


class Words(nn.Module):
    """A model of one weight; `embeddings` counts texts."""

    def __init__(self):
        super().__init__()
        self.weight, self.texts = nn.Parameter(torch.ones(1)), []

    def encode(self, texts):
        self.texts += texts
        return torch.tensor([[len(text), 1.0] for text in texts]) * self.weight


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_a_refresh_searches_the_new_rows(kind):
    index = CorpusIndex.from_texts(Words(), ["a", "bbbb"], kind=kind, metric="ip", progress=False)

    class Reversed:
        def encode(self, texts):
            return torch.tensor([[-len(text), 1.0] for text in texts])

    assert index.search(torch.tensor([[1.0, 0]]), 1).indices.tolist() == [[1]]
    index.refresh(Reversed(), progress=False)
    assert index.search(torch.tensor([[1.0, 0]]), 1).indices.tolist() == [[0]]


def test_rows_of_a_model_that_was_trained_further_are_made_anew(tmp_path):
    model, options = Words(), {"cache_folder": tmp_path, "progress": False}
    first = encode_texts(model, ["a", "bb"], **options)
    assert torch.equal(encode_texts(model, ["a", "bb"], **options), first)
    assert len(model.texts) == 2
    with torch.no_grad():
        model.weight += 1
    assert torch.equal(encode_texts(model, ["a", "bb"], **options), 2 * first)


def test_kept_rows_of_another_type_are_made_anew(tmp_path):
    options = {"cache_folder": tmp_path, "progress": False}
    first = encode_texts(Words(), ["a", "bb"], **options)
    (shard,) = tmp_path.rglob("*.npy")
    np.save(shard, 2 * first.half().numpy())
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(encode_texts(Words(), ["a", "bb"], **options), first)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"relative_margin": 0.5}, [1, 3]),  # below -0.2 - 0.1, whatever its sign
        ({"range_max": 2}, [0, 2]),
        ({"range_min": 1, "range_max": 3}, [2, 4]),
        ({"max_score": 0.05, "range_max": 4}, [4, 1]),
        ({"exclude": torch.tensor([0])}, [2, 4]),
    ],
)
def test_negatives_by_hand(options, expected):
    corpus = at(0.6, -0.4, 0.1, -0.9, -0.25, -0.2)
    mined = mine_negatives(QUERY, corpus, torch.tensor([5]), num_negatives=2, **options)
    assert mined.indices.tolist() == [expected]


def test_a_seed_decides_what_is_sampled():
    g = torch.Generator().manual_seed(0)
    query, corpus = torch.randn(30, 4, generator=g), torch.randn(99, 4, generator=g)
    options = {"sampling_strategy": "random", "range_max": 20}
    first, again, other = (mine_negatives(query, corpus, torch.arange(30), seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(first.indices, again.indices)
    assert not torch.equal(first.indices, other.indices)
