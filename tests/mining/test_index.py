"""CorpusIndex: search by id against a plain sort, memory maps, write-through, texts, and what is refused."""

import gzip
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import topk_oracle
import torch
from tiny_encoder import WIDTH, sentences
from topk_oracle import Search

import fastcse
from fastcse import CorpusIndex
from fastcse.retrieval import exact, faiss_index

VECTORS = Path(__file__).parents[3] / "shared" / "data" / "vectors"
with_vectors = pytest.mark.skipif(
    not VECTORS.exists(), reason="needs ../shared/data/vectors, which is not in the repository"
)
every_metric = pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
KINDS = {"flat": {}, "ivf": {"nlist": 6, "nprobe": 6}, "hnsw": {"efSearch": 400}}
every_faiss_kind = pytest.mark.parametrize("kind", list(KINDS))


def sorted_by_hand(query, rows, ids, k, metric, exclude=None, low=-np.inf, high=np.inf):
    """(N, k) ids and values: one query after another in float64, rounded to float32, sorted by value, then by id."""
    score, ids = topk_oracle.values(Search(query, rows, k, metric)).astype(np.float32), ids.cpu().numpy()
    found, values = np.full((len(query), k), -1), np.full((len(query), k), topk_oracle.worst(metric))
    low, high = (np.broadcast_to(bound, len(query)) for bound in (low, high))
    for i, s in enumerate(score):
        left = ~np.isin(ids, [] if exclude is None else exclude[i]) & (s >= low[i]) & (s <= high[i])
        order = np.lexsort((ids, s if metric == "l2" else -s, ~left))[: min(k, left.sum())]
        found[i, : len(order)], values[i, : len(order)] = ids[order], s[order]
    return found, values


def whole_numbers(n, d, device, dtype=torch.float32):
    """Rows of small whole numbers: exact in every type, with ties in plenty."""
    return torch.randint(-2, 3, (n, d)).to(device, dtype)


def make_ids(order, m):
    return {"rows": torch.arange(m), "gaps": torch.arange(m) * 7 + 3, "shuffled": torch.randperm(10 * m)[:m]}[order]


def assert_found(got, expected, **tolerance):
    ids, values = expected
    np.testing.assert_array_equal(got.indices.cpu().numpy(), ids)
    np.testing.assert_allclose(got.values.cpu().numpy(), values, **({"rtol": 1e-6, "atol": 1e-6} | tolerance))


@pytest.fixture
def searched(monkeypatch):
    """Query, rows and k of every search of a block."""
    calls, search = [], exact.topk

    def spying(query, corpus, k, **options):
        calls.append((query, corpus, k))
        return search(query, corpus, k, **options)

    monkeypatch.setattr(exact, "topk", spying)
    return calls


# ---------------------------------------------------------------- exact


@every_metric
@pytest.mark.parametrize(
    ("order", "block_rows"), [("shuffled", 1), *itertools.product(["rows", "gaps", "shuffled"], [7, 1000])]
)
@pytest.mark.parametrize("several", [0, 1, 5])
def test_exact_search_is_a_sort_by_value_and_id(device, metric, order, block_rows, several):
    m, n, d = 31, 7, 4
    rows, query, ids = whole_numbers(m, d, device), whole_numbers(n, d, device), make_ids(order, m)
    index = CorpusIndex(rows, ids=None if order == "rows" else ids, metric=metric, block_bytes=4 * d * block_rows)
    exclude = None
    if several:
        exclude = ids[torch.randint(m, (n, several))]
        exclude[2:4] = -1
        exclude[5, 1:] = -1
        exclude = exclude[:, 0] if several == 1 else exclude
    for k in (1, 6, m):
        got = index.search(query, k, exclude_id=None if exclude is None else exclude.to(device))
        expected = sorted_by_hand(query, rows, ids, k, metric, None if exclude is None else exclude.numpy())
        assert_found(got, expected)
        assert got.indices.device == query.device


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_may_differ(device, dtype, query_dtype):
    rows, query = whole_numbers(40, 5, device), whole_numbers(6, 5, device, query_dtype)
    index = CorpusIndex(rows, dtype=dtype, metric="l2", block_bytes=300)
    assert index.dtype == dtype
    got = index.search(query, 8)
    assert_found(got, sorted_by_hand(query, rows, index.ids, 8, "l2"))
    assert got.values.dtype == (torch.float64 if dtype == query_dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(CorpusIndex(rows / 3, dtype=dtype).rows([3, 1]), (rows / 3).to(dtype)[[3, 1]])


@pytest.mark.parametrize("kind", ["exact", "flat"])
@every_metric
def test_bounds_for_each_query(device, metric, kind):
    rows, query = whole_numbers(60, 4, device), whole_numbers(8, 4, device)
    index, ids = CorpusIndex(rows, metric=metric, kind=kind), torch.arange(60)
    low = torch.linspace(-0.4, 0.4, 8, device=device) * (1 if metric == "cosine" else 9)
    high = low + (0.3 if metric == "cosine" else 0.5)
    exclude = torch.randint(60, (8, 3), device=device)
    got = index.search(query, 7, exclude_id=exclude, min_score=low, max_score=high)
    bounds = (low.cpu().numpy(), high.cpu().numpy())
    expected = sorted_by_hand(query, rows, ids, 7, metric, exclude.cpu().numpy(), *bounds)
    assert {True, False} == set((expected[0] < 0).flatten().tolist())
    np.testing.assert_allclose(got.values.cpu().numpy(), expected[1], rtol=1e-6, atol=1e-6)
    if kind == "exact":  # which of equal rows FAISS takes at the end is its own affair
        np.testing.assert_array_equal(got.indices.cpu().numpy(), expected[0])
    else:
        assert not (got.indices[:, :, None] == exclude[:, None]).any()


def test_ties_and_duplicates(device):
    ids = torch.randperm(900)[:300]
    got = CorpusIndex(torch.ones(300, 3), ids=ids, block_bytes=1200).to(device)
    got = got.search(torch.ones(2, 3, device=device), 11)
    assert got.indices.tolist() == [ids.sort().values[:11].tolist()] * 2
    rows = torch.randn(50, 8, device=device)
    rows[31] = rows[7]
    index = CorpusIndex(rows)
    assert index.search(rows[7:8], 2).indices.tolist() == [[7, 31]]
    assert index.search(rows[7:8], 1, exclude_id=torch.tensor([7], device=device)).indices.tolist() == [[31]]


def test_one_query_that_leaves_out_much_does_not_widen_the_others(device, searched):
    exclude = torch.full((40, 200), -1, device=device)
    exclude[:, 0], exclude[3] = 5, torch.arange(200, device=device)
    query = torch.randn(40, 4, device=device)
    got = CorpusIndex(torch.randn(400, 4, device=device)).search(query, 10, exclude_id=exclude)
    assert [(len(some), k) for some, _, k in searched] == [(39, 10), (1, 266)]
    assert (got.indices[3] >= 200).all()


def test_rows_stay_where_they_are_and_results_come_to_the_query(device):
    rows = torch.randn(30, 4)
    index = CorpusIndex(rows)
    got = index.search(rows[:5].to(device), 2)
    assert (got.values.device.type, index.device.type) == (device.type, "cpu")
    assert index.to(device).device.type == device.type
    assert index.search(rows[:5], 2).indices.tolist() == got.indices.tolist()
    assert repr(index) == f"CorpusIndex(30 x 4, float32, metric='cosine', kind='exact', device='{index.device}')"
    CorpusIndex(rows, backend="reference").search(rows[:2], 3)
    assert fastcse.last_backend() == "reference"


def test_arrays_are_taken_everywhere():
    rows = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)
    index = CorpusIndex(rows, ids=np.arange(12, dtype=np.int32)[::-1])
    assert index.search(rows[:2], 1, exclude_id=np.array([3, 4])).indices.tolist() == [[11], [10]]
    query = rows[:1].copy()
    index.update(np.array([11]), -query)
    assert index.search(query, 12).indices[0, -1] == 11
    assert rows.flags.writeable


# ---------------------------------------------------------------- memory maps


@pytest.fixture
def mapped(tmp_path):
    """Writes rows to a file and opens it as a memory map."""

    def make(rows, mode="r"):
        np.save(tmp_path / "rows.npy", rows)
        return np.load(tmp_path / "rows.npy", mmap_mode=mode)

    return make


def test_a_memory_map_is_searched_in_blocks_and_never_copied(mapped, searched):
    rows = np.random.default_rng(0).standard_normal((5000, 16), dtype=np.float32)
    index = CorpusIndex(mapped(rows), block_bytes=64 * 700)
    got = index.search(torch.from_numpy(rows[:20]), 9)
    first = index._rows.data_ptr()
    inside = [first <= block.data_ptr() < first + rows.nbytes for _, block, _ in searched]
    assert [*zip(inside, (len(block) for _, block, _ in searched))] == [(True, 700)] * 7 + [(True, 100)]
    assert_found(got, sorted_by_hand(torch.tensor(rows[:20]), torch.tensor(rows), index.ids, 9, "cosine"))


def test_a_memory_map_is_written_to_where_its_mode_allows_it(mapped, tmp_path):
    eye = np.eye(6, dtype=np.float32)
    CorpusIndex(mapped(eye, "r+")).update([2], torch.full((1, 6), 3.0))
    assert np.load(tmp_path / "rows.npy")[2].tolist() == [3.0] * 6
    index = CorpusIndex(mapped(eye))
    with pytest.raises(ValueError, match=r"update needs rows that can be written to.*mode 'r\+'"):
        index.update([2], torch.ones(1, 6))
    with pytest.raises(ValueError, match=r"dtype torch\.float16 would copy the memory map rows, which is float32"):
        CorpusIndex(mapped(eye), dtype=torch.float16)
    assert CorpusIndex(mapped(eye.astype(np.float16)), dtype=torch.float16).dtype == torch.float16


def test_the_reference_backend_takes_a_few_queries_at_a_time(searched):
    rows = torch.randn(2000, 8, dtype=torch.float64)
    got = CorpusIndex(rows, block_bytes=200_000).search(rows[:50], 3)
    for query, block, _ in searched:
        assert len(query) * len(block) * exact.REFERENCE_PAIR <= 200_000
        assert block.numel() * exact.REFERENCE_ENTRY <= 200_000
    assert got.indices[:, 0].tolist() == list(range(50))


# ---------------------------------------------------------------- FAISS


@with_vectors
def test_recall_of_words():
    stored = np.load(VECTORS / "glove_twitter25.gt.npz")
    rows = torch.tensor(np.load(VECTORS / "glove_twitter25.f32.npy"))
    number, truth = torch.tensor(stored["query_index"]).long(), stored["gt"][:, :10]

    def search(kind, **options):
        return CorpusIndex(rows, kind=kind, **options).search(rows[number], 10, exclude_id=number)

    def recall(got):
        return np.mean([len(set(a.tolist()) & set(b)) / len(b) for a, b in zip(got.indices, truth)])

    exact, flat, every_list = search("exact"), search("flat"), search("ivf", nlist=100, nprobe=100)
    assert recall(exact) == 1.0
    np.testing.assert_array_equal(flat.indices, exact.indices)
    np.testing.assert_allclose(flat.values, exact.values, atol=1e-6)
    np.testing.assert_array_equal(every_list.indices, flat.indices)
    assert recall(search("ivf", nlist=100, nprobe=1)) < 0.8 < 0.9 < recall(search("ivf"))
    assert recall(search("hnsw")) > 0.95


@every_faiss_kind
@every_metric
def test_kinds_of_faiss_find_the_same_rows(kind, metric):
    rows, query, ids = torch.randn(300, 6).half(), torch.randn(20, 6), torch.randperm(999)[:300]
    index = CorpusIndex(rows, ids=ids, metric=metric, kind=kind, **KINDS[kind])
    exclude = ids[torch.randint(300, (20, 4))]
    expected = sorted_by_hand(query, rows, ids, 9, metric, exclude.numpy())
    assert_found(index.search(query, 9, exclude_id=exclude), expected, atol=1e-5)


@every_faiss_kind
def test_faiss_fetches_more_until_bounds_are_met_or_all_was_seen(kind, monkeypatch):
    rows = torch.nn.functional.normalize(torch.randn(500, 8), dim=1)
    index, fetched = CorpusIndex(rows, kind=kind, **KINDS[kind]), []
    search = faiss_index.FaissIndex._nearest

    def spying(self, query, fetch):
        fetched.append((len(query), fetch))
        return search(self, query, fetch)

    monkeypatch.setattr(faiss_index.FaissIndex, "_nearest", spying)
    expected = CorpusIndex(rows).search(rows[:4], 5, max_score=0.1)
    np.testing.assert_array_equal(index.search(rows[:4], 5, max_score=0.1).indices, expected.indices)
    assert fetched[-1][1] > 100
    fetched.clear()
    got = index.search(rows[:4], 5, min_score=0.9999)
    assert fetched == [(4, 5)]  # what comes later is worse still
    assert got.indices.tolist() == [[i, -1, -1, -1, -1] for i in range(4)]
    # A graph need not lead to every row.
    assert index.search(rows[:2], 600).indices.ge(0).sum(1).amin() >= (490 if kind == "hnsw" else 500)


def test_faiss_and_rows_of_no_direction():
    for metric, bad in itertools.product(["cosine", "ip"], [torch.nan, torch.inf]):
        query = torch.rand(3, 4)
        query[1, 2] = bad
        got = CorpusIndex(torch.rand(10, 4), kind="flat", metric=metric).search(query, 2)
        assert (got.indices >= 0).all(1).tolist() == [True, False, True]
        assert (got.indices[1].tolist(), got.values[1].tolist()) == ([-1, -1], [-torch.inf, -torch.inf])
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1e30, 1e30]])
    got = CorpusIndex(rows, kind="flat").search(torch.tensor([[1e-30, 1.0], [2.0, 0.0]]), 4)
    assert got.indices[1].tolist() == [1, 3, 0, 2]
    torch.testing.assert_close(got.values[1], torch.tensor([1.0, 0.5**0.5, 0.0, -1.0]))
    assert got.values[0].tolist() == CorpusIndex(rows).search(torch.tensor([[1e-30, 1.0]]), 4).values[0].tolist()


def test_a_gpu_is_used_where_faiss_sees_one(monkeypatch):
    import faiss

    moved, asked = [], []

    class OnGpu:
        def __init__(self, resources, number, index):
            moved.append(number)
            self.index = index

        def search(self, query, k):
            asked.append(k)
            assert k <= 2048, "faiss on a GPU refuses more"
            return self.index.search(query, k)

    rows = torch.randn(3000, 4)
    with pytest.raises(RuntimeError, match=r"gpu=True needs a GPU.*pip install 'fastcse\[mining-gpu\]'"):
        CorpusIndex(rows, kind="flat", gpu=True)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", OnGpu, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    index = CorpusIndex(rows, kind="ivf", nlist=4, nprobe=4)
    index.search(rows[:3], 2)
    index.search(rows[:3], 2048)
    assert (moved, asked) == ([0], [2, 2048])
    assert index.search(rows[:3], 2500).indices.amin() >= 0  # on the CPU
    index.update([5], 2 * rows[:1])
    assert index.search(rows[:1], 2).indices.tolist() == [[0, 5]]
    assert moved == [0, 0]
    CorpusIndex(rows, kind="flat", gpu=False).search(rows[:3], 2)
    CorpusIndex(rows[:100], kind="hnsw").search(rows[:3], 2)
    assert moved == [0, 0]


def test_without_faiss_its_kinds_name_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    says = r"kind 'hnsw' needs faiss.*pip install 'fastcse\[mining\]'"
    with pytest.raises(ModuleNotFoundError, match=says) as caught:
        CorpusIndex(torch.randn(4, 2), kind="hnsw")
    assert caught.value.name == "faiss"
    with pytest.raises(ModuleNotFoundError):
        CorpusIndex.from_texts(None, ["a"], kind="flat")  # before anything is encoded
    assert CorpusIndex(torch.randn(4, 2)).search(torch.randn(1, 2), 1).indices.shape == (1, 1)


# ---------------------------------------------------------------- write-through


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf"])
@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_updated_index_is_as_one_built_anew(device, kind, metric, dtype):
    if kind != "exact" and device.type != "cpu":
        pytest.skip("kinds of FAISS run in the CPU lane")
    rows, ids = whole_numbers(80, 4, device, dtype), make_ids("shuffled", 80)
    index = CorpusIndex(rows, ids=ids, metric=metric, kind=kind, **KINDS.get(kind, {"block_bytes": 500}))
    query = torch.randn(10, 4, device=device)
    index.search(query, 80)
    place = torch.tensor([3, 70, 3, 11])
    new = torch.randn(4, 4, device=device) * 3
    index.update(ids[place], new)
    expected = rows.clone()
    expected[[70, 3, 11]] = new[1:].to(dtype)  # of id 3 the last row counts
    assert torch.equal(index.rows(ids), expected)
    assert torch.equal(rows, expected)  # the caller's own memory
    for _ in range(2):
        assert_found(index.search(query, 80), sorted_by_hand(query, expected, ids, 80, metric), rtol=1e-5, atol=1e-4)
        index.update(ids[:5], expected[:5])


def test_whose_memory_is_written():
    ids = torch.tensor([3, 5])
    index = CorpusIndex(torch.eye(2), ids=ids)
    ids += 1
    assert index.ids.tolist() == [3, 5]
    with torch.inference_mode():
        rows = torch.randn(6, 3)
    index, new = CorpusIndex(rows), torch.randn(2, 3, requires_grad=True)
    index.update(torch.tensor([4, 0]), new)
    torch.testing.assert_close(index.rows([4, 0]), new.detach())
    assert not index.rows([1]).requires_grad
    one_row = CorpusIndex(torch.ones(3).expand(4, 3))  # four times the same memory
    one_row.update([1], torch.zeros(1, 3))
    assert one_row.rows([0, 1, 2]).sum(1).tolist() == [3, 0, 3]
    rows, weight = torch.randn(4, 3), torch.ones(3, requires_grad=True)
    loss = (rows * weight).sum()
    CorpusIndex(rows).update([0], torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


HUGE = torch.tensor([[1.0] * 4, [1e30] * 4])


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        ([1, 9, 8], torch.ones(3, 4), "ids must be in the index, got 2 that are not, first 9"),
        ([1, 2], torch.ones(3, 4), r"rows must have shape \(2, 4\) for these ids, got \(3, 4\)"),
        ([1], torch.ones(1, 5), r"rows must have shape \(1, 4\) for these ids, got \(1, 5\)"),
        ([2, 1], HUGE, r"rows must be finite, got .* 1 of 2 rows, first in row 1 \(id 1\)"),
        ([[1]], torch.ones(1, 4), r"ids must be one list of whole numbers, got shape \(1, 1\)"),
        ([0.5], torch.ones(1, 4), "ids must be whole numbers"),
        (None, torch.ones(1, 4), "update cannot replace rows of kind 'hnsw'"),
    ],
)
def test_update_refuses(ids, rows, message):
    held = torch.zeros(5, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match=message):
        CorpusIndex(held, kind="exact" if ids else "hnsw").update(ids or [0], rows)
    assert not held.any()


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz"])
def test_a_text_file_has_its_line_numbers_for_ids(encoder, tmp_path, name, capfd):
    texts = [*sentences(30), ""]
    texts[4], texts[7], texts[20] = "", texts[6], "a dog \u2028 and a cat"
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8", newline="\n") as file:
        file.write("\r\n".join(texts))
    index = CorpusIndex.from_texts(encoder, tmp_path / name, batch_size=4)
    assert "encode" in capfd.readouterr().err
    assert index.ids.tolist() == [i for i in range(30) if i != 4]
    assert index.texts == [t for t in texts if t]
    assert (len(index), index.dim) == (29, WIDTH)
    expected = torch.as_tensor(encoder.encode(index.texts))
    torch.testing.assert_close(index.rows(index.ids), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(index.rows([6]), index.rows([7]))


class Model:
    """Rows from the letters of a text, and a record of what was asked."""

    def __init__(self, scale=1.0, width=5, array=False):
        self.scale, self.width, self.array, self.asked, self.options, self.training = scale, width, array, [], [], True

    def train(self):
        self.training = True

    def encode(self, texts, **options):
        self.training = False
        self.asked += texts
        self.options.append(options)
        rows = torch.tensor([[self.scale * text.count(c) for c in "abcdefgh"[: self.width]] for text in texts])
        return rows.float().numpy() if self.array else rows.float()


@pytest.mark.parametrize("array", [False, True])
def test_texts_are_encoded_once_in_the_type_asked_for(array, capfd):
    model = Model(array=array)
    options = {"ids": [5, 4, 3, 2, 1], "dtype": torch.bfloat16, "metric": "ip", "block_bytes": 64, "batch_size": 1}
    texts = ["abc", "b", "abc", "aaaa", "b"]
    index = CorpusIndex.from_texts(model, texts, prompt="query: ", progress=False, **options)
    assert capfd.readouterr().err == ""
    assert model.asked == ["aaaa", "abc", "b"]
    assert model.training
    assert all(o["prompt"] == "query: " and "prompt_name" not in o for o in model.options)
    assert index.dtype == torch.bfloat16
    assert index.rows([5, 2, 1]).tolist() == [[1, 1, 1, 0, 0], [4, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert index.search(torch.tensor([[0.0, 1, 1, 0, 0]]), 3).indices.tolist() == [[3, 5, 1]]


@pytest.mark.parametrize("kind", ["exact", *KINDS])
def test_refresh_encodes_all_texts_anew(kind):
    options = {"prompt_name": "p", "metric": "ip", "kind": kind, "progress": False}
    index, model = CorpusIndex.from_texts(Model(), ["abc", "b", "aab"], **options), Model(-2.0)
    index.refresh(model, progress=False)
    assert [o["prompt_name"] for o in model.options] == ["p"]
    assert index.rows([0]).tolist() == [[-2, -2, -2, 0, 0]]
    assert index.search(torch.tensor([[-1.0, -1, 0, 0, 0]]), 2).values.tolist() == [[6, 4]]


def test_refresh_that_fails_changes_nothing():
    index = CorpusIndex.from_texts(Model(), ["abc", "b"], progress=False)
    before = index.rows([0, 1])
    for model, message in (
        (Model(width=4), "refresh needs a model with rows of length 5, got 4"),
        (Model(scale=torch.nan), "model must give finite rows, got NaN or infinity for text 0, 'abc'"),
    ):
        with pytest.raises(ValueError, match=message):
            index.refresh(model, progress=False)
        assert torch.equal(index.rows([0, 1]), before)
    with pytest.raises(ValueError, match="refresh needs the texts"):
        CorpusIndex(torch.randn(3, 2)).refresh(Model())
    given = CorpusIndex(torch.zeros(2, 5), texts=["a", "b"])
    given.refresh(Model(), progress=False)
    assert given.rows([0, 1]).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


def test_texts_and_settings_are_refused_before_anything_is_encoded(tmp_path):
    (tmp_path / "blank.txt").write_bytes(b"\n \n")
    model = Model()
    for source, options, message in (
        (["a", 3], {}, "texts_or_path must be strings, got int at 1"),
        ([], {}, "texts_or_path must have at least 1 texts"),
        ("missing.txt", {}, "texts_or_path 'missing.txt' does not exist"),
        (tmp_path / "blank.txt", {}, "texts_or_path '.*blank.txt' is empty"),
        (["a", "b"], {"kind": "tree"}, "kind"),
        (["a", "b"], {"nprobe": 3}, "kind 'exact' takes the options block_bytes, got nprobe"),
        (["a", "b"], {"metric": "dot"}, "metric"),
        (["a", "b"], {"ids": [1, 1]}, "ids"),
        (["a", "b"], {"dtype": torch.int64}, "dtype"),
        (["a", "b"], {"batch_size": 0}, "batch_size must be a whole number from 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            CorpusIndex.from_texts(model, source, **options)
    assert not model.asked


# ---------------------------------------------------------------- refusals


def bad_rows(*where, count=10, value=torch.nan):
    rows = torch.randn(count, 3)
    rows[list(where), 1] = value
    return rows


X = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (torch.zeros(0, 5), {}, r"rows must have at least one row and one column, got shape \(0, 5\)"),
        (torch.zeros(5), {}, "rows must be a matrix"),
        (np.zeros((3, 2), np.int32), {}, "rows must be one of float16, .*, got torch.int32"),
        (np.array([["a", "b"]]), {}, "rows must hold floats, got an array of <U1"),
        (np.zeros((3, 2), ">f4"), {}, "rows must be an array in the machine's byte order"),
        (np.zeros((3, 2), "f4")[::-1], {}, "without negative strides"),
        (X, {"ids": [1, 2]}, r"ids must have shape \(3,\), one for each row, got \(2,\)"),
        (X, {"ids": [4, 2, 4]}, "ids must be unique, got 4 more than once"),
        (X, {"ids": [4, -1, 5]}, "ids must be 0 or more, because -1 means none, got -1"),
        (X, {"ids": [0.0, 1.0, 2.0]}, r"ids must be whole numbers \(int64\), got torch.float32"),
        (X, {"texts": ["a"]}, "texts must have 3 texts, one for each row, got 1"),
        (X, {"metric": "dot"}, r"metric must be one of \('cosine', 'ip', 'l2'\), got 'dot'"),
        (X, {"kind": "pq"}, r"kind must be one of \('exact', .*, got 'pq'"),
        (X, {"kind": "ivf", "nlists": 3}, "kind 'ivf' takes the options nlist, nprobe, gpu, got nlists"),
        (X, {"kind": "ivf", "nlist": 4}, "nlist must be at most the 3 rows, got 4"),
        (X, {"kind": "ivf", "nlist": 2, "nprobe": 3}, "nprobe must be at most nlist, 2, got 3"),
        (X, {"kind": "hnsw", "M": 0}, "M must be a whole number above 0, got 0"),
        (X, {"kind": "flat", "gpu": "yes"}, r"gpu must be one of \(True, False, None\), got 'yes'"),
        (X, {"kind": "flat", "backend": "cpp"}, "backend 'cpp' is for kind 'exact', got kind 'flat'"),
        (bad_rows(7, 4), {}, r"rows must be finite, got NaN or infinity in 2 of 10 rows, first in row 4 \(id 4\)"),
        (bad_rows(3, value=-torch.inf), {"ids": range(20, 30)}, r"1 of 10 rows, first in row 3 \(id 23\)"),
        (X * 1e30, {"dtype": torch.float16}, "rows must be finite, got NaN or infinity in 3 of 3 rows"),
        (bad_rows(0), {"kind": "flat", "check": False}, "rows must be finite"),
    ],
)
def test_what_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        CorpusIndex(rows, **options)
    assert "\n" not in str(caught.value)


def test_rows_that_are_not_finite_are_found_in_any_piece_or_taken_unseen(monkeypatch):
    index = CorpusIndex(bad_rows(7, 4), check=False)
    assert not {4, 7} & set(index.search(torch.randn(1, 3), 10).indices[0].tolist())
    monkeypatch.setattr("fastcse.retrieval.arrays.PIECE_BYTES", 60)
    with pytest.raises(ValueError, match=r"in 3 of 100 rows, first in row 37"):
        CorpusIndex(bad_rows(99, 37, 80, count=100))
    assert len(CorpusIndex(torch.full((50, 3), 3e38))) == 50  # whose sum overflows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": torch.randn(2, 3)}, r"query must have rows of length 4 as the index has, got shape \(2, 3\)"),
        ({"query": torch.randn(0, 4)}, "query must have at least one row"),
        ({"query": [[1.0]]}, "query must be a matrix"),
        ({"k": 0}, "k must be a whole number from 1 to the 6 rows of the index, got 0"),
        ({"k": 7}, "k must be a whole number from 1 to the 6 rows of the index, got 7"),
        ({"k": 1.0}, "got 1.0"),
        ({"k": True}, "got True"),
        ({"exclude_id": torch.arange(3)}, r"exclude_id must have shape \(2,\) or \(2, E\), .* got \(3,\)"),
        ({"exclude_id": torch.zeros(2)}, "exclude_id must be whole numbers"),
        ({"max_score": torch.zeros(3)}, r"max_score must have shape \(2,\)"),
        ({"min_score": torch.nan}, "min_score must be a number or a tensor with one for each query, got nan"),
        ({"min_score": "0.5"}, "min_score must be a number"),
    ],
)
def test_searches_that_are_refused(options, message):
    rows = torch.randn(6, 4)
    with pytest.raises(ValueError, match=message):
        CorpusIndex(rows).search(**({"query": rows[:2], "k": 2} | options))


def test_kinds_of_faiss_take_any_k_and_fill_up():
    index = CorpusIndex(torch.randn(6, 4), kind="flat")
    assert index.search(torch.randn(2, 4), 7).indices[:, 6].tolist() == [-1, -1]
    with pytest.raises(ValueError, match="k must be a whole number from 1, got 0"):
        index.search(torch.randn(2, 4), 0)
