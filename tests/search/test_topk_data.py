"""topk on published vectors: recall 1.0, and agreement with FAISS."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BACKENDS, DEVICE
from topk_oracle import Search, checker, values

import fastcse

VECTORS = Path(__file__).parents[3] / "shared" / "data" / "vectors"
with_vectors = pytest.mark.skipif(
    not VECTORS.exists(), reason="needs ../shared/data/vectors, which is not in the repository"
)


@pytest.fixture(scope="module")
def glove():
    """Rows, the numbers of the queries among them, and their nearest rows by cosine without themselves."""
    truth = np.load(VECTORS / "glove_twitter25.gt.npz")
    rows = torch.tensor(np.load(VECTORS / "glove_twitter25.f32.npy"))
    return rows, torch.tensor(truth["query_index"]).long(), truth["gt"], truth["gt_cosine"]


@pytest.fixture(scope="module")
def sift():
    """Queries, rows, and the nearest rows by distance with their squared distances."""
    data = np.load(VECTORS / "sift5k.npz")
    return *(torch.tensor(data[name]).float() for name in ("query", "base")), data["gt"], data["gt_sqdist"]


def recall(index, truth, k):
    index = index.cpu().numpy()
    return np.mean([len(set(index[i, :k]) & set(truth[i, :k])) / k for i in range(len(truth))])


# A published neighbourhood is of the whole corpus, which takes the interpreter an hour; it gets a slice below.
native = pytest.mark.parametrize("backend", [b for b in BACKENDS if DEVICE != "cpu" or b != "triton"], indirect=True)


@with_vectors
@native
@pytest.mark.parametrize("k", [1, 10, 100])
def test_recall_of_words_is_one(forced, device, glove, k):
    rows, number, truth, cosine = glove
    rows, number = rows.to(device), number.to(device)
    ids = torch.arange(len(rows), device=device)
    got = forced(fastcse.topk, rows[number], rows, k, query_id=number, corpus_id=ids)
    assert recall(got.indices, truth, k) == 1.0
    np.testing.assert_allclose(got.values.cpu().numpy(), cosine[:, :k], rtol=0, atol=1e-7)


@with_vectors
@native
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_recall_of_images_is_one(forced, device, sift, k, dtype):
    query, base, truth, squared = sift
    got = forced(fastcse.topk, query.to(device), base.to(device, dtype), k, metric="l2")
    assert recall(got.indices, truth, k) == 1.0
    assert (got.indices.cpu().numpy() == truth[:, :k]).all(), "integers: ties go to the lowest index"
    assert (got.values.cpu().numpy() == squared[:, :k]).all()


@with_vectors
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.interpreted_by_value
def test_a_slice(forced, backend, device, glove, sift, metric, k):
    check = checker(lambda *a, **o: forced(fastcse.topk, *a, **o), backend, device)
    rows, number = glove[0][:512], torch.arange(5, 512, 32)
    check(Search(rows[number], rows, k, metric, number, torch.arange(512)))
    check(Search(sift[0][:16], sift[1][:512], k, metric), exact=metric == "l2" or None)


# ---------------------------------------------------------------- FAISS


def assert_agree(search, got, value, index):
    """Rows of ours and of another are the same but for rows whose values float32 products cannot tell apart."""
    exact, ours = values(search), got.indices.numpy()
    miss = 1e-5 * np.abs(exact).max(1, keepdims=True)
    np.testing.assert_array_less(np.abs(got.values.numpy() - value), np.broadcast_to(miss, value.shape))
    other = ours != index
    assert other.mean() < 0.01
    at = np.take_along_axis(exact, ours, 1), np.take_along_axis(exact, index, 1)
    assert (np.abs(at[0] - at[1]) < 2 * miss)[other].all()


@with_vectors
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_agreement_with_faiss(forced, glove, sift, metric):
    faiss = pytest.importorskip("faiss", reason="needs faiss-cpu")
    query, rows = sift[:2] if metric == "l2" else (glove[0][glove[1]], glove[0])
    unit = (lambda x: torch.nn.functional.normalize(x, dim=1)) if metric == "cosine" else lambda x: x
    index = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(rows.shape[1])
    index.add(unit(rows).numpy())
    value, found = index.search(unit(query).numpy(), 100)
    got = forced(fastcse.topk, query, rows, 100, metric=metric)
    if metric == "l2":
        assert (got.values.numpy() == value).all()
    else:
        assert_agree(Search(query, rows, 100, metric), got, value, found)
