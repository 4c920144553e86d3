"""What topk, assign, cluster_sums and hardest_negative have in common on every backend, and what each refuses."""

import numpy as np
import pytest
import torch
from calls import LAYOUTS
from conftest import DEVICE

import fastcse
from fastcse import KMeans, OnlineKMeans, assign, cluster_sums, hardest_negative, topk

OPS = {
    "topk by cosine": lambda t, **o: topk(t["x"], t["y"], 5, query_id=t["x_id"], corpus_id=t["y_id"], **o),
    "topk by product": lambda t, **o: topk(t["x"], t["y"], 5, metric="ip", max_score=t["bound"], **o),
    "topk by distance": lambda t, **o: topk(t["x"], t["y"], 5, metric="l2", min_score=0.5, **o),
    "nearest by cosine": lambda t, **o: assign(t["x"], t["y"], **o),
    "two nearest by distance": lambda t, **o: assign(t["x"], t["y"], second=True, metric="euclidean", **o),
    "sums": lambda t, **o: cluster_sums(t["x"], t["index"], 9, **o),
    "sums of directions": lambda t, **o: cluster_sums(t["x"], t["index"], 9, normalize=True, **o),
    "hardest by cosine": lambda t, **o: hardest_negative(
        t["x"], t["y"], t["positive"], anchor_id=t["x_id"], candidate_id=t["y_id"], **o
    ),
    "hardest by product": lambda t, **o: hardest_negative(t["x"], t["y"].to(t["x"].dtype), normalize=False, **o),
}
every_op = pytest.mark.parametrize("name", OPS)
SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


def tensors(n, m, d, device, types=(SINGLE, SINGLE)):
    """Arguments of every op, by name."""
    made = {
        "x": torch.randn(n, d).to(types[0]), "y": torch.randn(m, d).to(types[1]), "bound": torch.rand(n),
        "x_id": torch.arange(n) % 7, "y_id": torch.arange(m) % 7, "positive": torch.randint(0, m, (n,)),
        "index": torch.randint(-1, 9, (n,)),
    }  # fmt: skip
    return {name: x.to(device) for name, x in made.items()}


@every_op
@pytest.mark.parametrize("types", [(SINGLE, SINGLE), (HALF, HALF), (BRAIN, SINGLE)], ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.interpreted_by_value
def test_any_strides_and_inputs_that_are_not_written_to(backend, device, name, types, layout):
    change = LAYOUTS.get(layout, lambda rows: rows[:1].expand(len(rows), -1))
    types = types[:1] * 2 if name == "hardest by cosine" else types
    plain = tensors(6, 40, 7, device, types)
    given = {key: change(x) if x.dim() == 2 else x.repeat_interleave(2)[::2] for key, x in plain.items()}
    plain = {key: x.contiguous() for key, x in given.items()}
    before = {key: (x.clone(), x._version) for key, x in given.items()}
    for key in "xy":
        given[key].requires_grad_()
    got, expected = OPS[name](given, backend=backend), OPS[name](plain, backend=backend)
    assert fastcse.last_backend() == backend
    assert not any(x.requires_grad for x in got)
    for one, two in zip(got, expected):
        torch.testing.assert_close(one, two, rtol=0 if "topk" in name else 1e-6, atol=0 if "topk" in name else 1e-6)
    for key, (copy, version) in before.items():
        assert torch.equal(given[key], copy)
        assert given[key]._version == version


@every_op
@pytest.mark.interpreted
def test_twice_the_same_bits(backend, device, name):
    given = tensors(*((24, 40) if backend == "triton" else (700, 2100)), 24, device)
    given["x"] += 1
    for one, two in zip(*(OPS[name](given, backend=backend) for _ in range(2))):
        assert torch.equal(one, two)


@pytest.mark.interpreted
def test_compiled_whole_for_any_number_of_rows(backend, device):
    # Tracing plain torch takes the time of many kernels, and the interpreter's take their own.
    names = [*OPS] if backend == "cpp" else ["topk by distance", "nearest by cosine", "sums"]

    def everything(given):
        given = {**given, "x": 2 * given["x"]}
        return [x + 1 for name in names for x in OPS[name](given, backend=backend)]

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager", dynamic=backend != "reference")
    for n in (5, 8) if backend != "reference" else (5,):
        given = tensors(n, 11, 6, device)
        got = compiled(given)
        assert fastcse.last_backend() == backend
        for one, two in zip(got, everything(given), strict=True):
            torch.testing.assert_close(one, two)


@every_op
def test_the_backend_is_chosen_by_the_device(device, name):
    OPS[name](tensors(5, 11, 6, device))
    assert fastcse.last_backend() == ("triton" if DEVICE == "cuda" else "cpp")


# ---------------------------------------------------------------- wrong arguments

R, A, META = torch.randn, torch.arange, torch.device("meta")
LONG = torch.ones(4, 3, dtype=torch.int64)
FOUR, SIX, WIDE, NAN = R(4, 3), R(6, 3), R(4, 3).double(), float("nan")
LOST = R(9, 3).index_fill(0, torch.tensor([6, 7]), NAN)


def fitted(points, **options):
    return KMeans(**{"n_clusters": 2, **options}).fit(points)


def online(**options):
    return OnlineKMeans(**{"n_clusters": 2, "dim": 3, **options})


# function, arguments, options, and what the error says of them, in any order
BAD = [
    (topk, (R(0, 3), SIX, 1), {}, "query|(0, 3)"),
    (topk, (FOUR, R(0, 3), 1), {}, "corpus|(0, 3)"),
    (topk, (R(4, 0), R(6, 0), 1), {}, "query|(4, 0)"),
    (topk, (FOUR, R(6, 17), 1), {}, "query|corpus|(4, 3)|(6, 17)"),
    (topk, (R(13), SIX, 1), {}, "query|(13,)"),
    (topk, (FOUR, R(6, 3, 1), 1), {}, "corpus|(6, 3, 1)"),
    (topk, ([[1.0, 2]], R(6, 2), 1), {}, "query|list"),
    (topk, (FOUR, np.ones((6, 3)), 1), {}, "corpus|ndarray"),
    (topk, (FOUR, SIX.long(), 1), {}, "corpus|int64|float32"),
    (topk, (FOUR, SIX.to(META), 1), {}, "query|corpus|cpu|meta"),
    *((topk, (FOUR, SIX, k), {}, f"k |6|{k}") for k in (0, -3, 7, 2.0, True)),
    (topk, (FOUR, SIX, 1), {"metric": "euclid"}, "metric|'euclid'|'cosine'|'ip'|'l2'"),
    (topk, (FOUR, SIX, 1), {"query_id": A(4)}, "query_id|corpus_id|None"),
    (topk, (FOUR, SIX, 1), {"corpus_id": A(6)}, "query_id|corpus_id|None"),
    (topk, (FOUR, SIX, 1), {"query_id": A(9), "corpus_id": A(6)}, "query_id|(4,)|(9,)"),
    (topk, (FOUR, SIX, 1), {"query_id": A(4), "corpus_id": A(9)}, "corpus_id|(6,)|(9,)"),
    (topk, (FOUR, SIX, 1), {"query_id": A(4).int(), "corpus_id": A(6)}, "query_id|torch.int64|torch.int32"),
    (topk, (FOUR, SIX, 1), {"query_id": [1, 2, 3, 4], "corpus_id": A(6)}, "query_id|(4,)|list"),
    (topk, (FOUR, SIX, 1), {"query_id": A(4, device=META), "corpus_id": A(6)}, "query_id|meta|cpu"),
    (topk, (FOUR, SIX, 1), {"max_score": NAN}, "max_score|nan"),
    (topk, (FOUR, SIX, 1), {"min_score": torch.tensor([1, NAN, 2, 3])}, "min_score|nan"),
    (topk, (FOUR, SIX, 1), {"min_score": "0.5"}, "min_score|'0.5'"),
    (topk, (FOUR, SIX, 1), {"min_score": torch.zeros(9)}, "min_score|(4,)|(9,)"),
    (topk, (FOUR, SIX, 1), {"max_score": torch.zeros(4, 1)}, "max_score|(4,)|(4, 1)"),
    (topk, (FOUR, SIX, 1), {"backend": "faiss"}, "backend|'faiss'|'cpp'|'reference'"),
    (topk, (WIDE, SIX, 1), {"backend": "cpp"}, "cpp|query of torch.float64|reference"),
    (topk, (FOUR, SIX.double(), 1), {"backend": "cpp"}, "cpp|corpus of torch.float64|reference"),
    (topk, (WIDE, SIX, 1), {"backend": "triton"}, "triton|query of torch.float64|reference"),
    (topk, (FOUR, SIX.double(), 1), {"backend": "triton"}, "triton|corpus of torch.float64|reference"),
    (assign, (R(0, 3), FOUR), {}, "points|(0, 3)"),
    (assign, (FOUR, R(0, 3)), {}, "centroids|(0, 3)"),
    (assign, (R(4, 0), R(4, 0)), {}, "points|(4, 0)"),
    (assign, (R(11), FOUR), {}, "points|11"),
    (assign, (FOUR, R(13)), {}, "centroids|13"),
    (assign, (np.ones((4, 3)), FOUR), {}, "points|ndarray"),
    (assign, (LONG, FOUR), {}, "points|int64"),
    (assign, (FOUR, R(5, 17)), {}, "centroids|3|17"),
    (assign, (FOUR, WIDE), {}, "centroids|float64|float32"),
    (assign, (WIDE, FOUR), {}, "centroids|float64|float32"),
    (assign, (FOUR, R(4, 3, device=META)), {}, "centroids|cpu|meta"),
    (assign, (FOUR, FOUR), {"metric": "manhattan"}, "metric|cosine|euclidean|manhattan"),
    (assign, (FOUR, R(1, 3)), {"second": True}, "second|2|1"),
    (assign, (FOUR, FOUR), {"backend": "cuda_magic"}, "backend|triton|cuda_magic"),
    (assign, (WIDE, WIDE), {"backend": "cpp"}, "points|cpp|float64"),
    (cluster_sums, (R(0, 3), A(0), 3), {}, "points|(0, 3)"),
    (cluster_sums, (R(11), A(11), 3), {}, "points|11"),
    (cluster_sums, (LONG, A(4), 4), {}, "points|int64"),
    (cluster_sums, (FOUR, A(13), 3), {}, "index|4|13"),
    (cluster_sums, (FOUR, torch.zeros(4, 1, dtype=torch.int64), 3), {}, "index|4|(4, 1)"),
    (cluster_sums, (FOUR, A(4).int(), 4), {}, "index|int64|int32"),
    (cluster_sums, (FOUR, [0, 1, 2, 3], 4), {}, "index|4|list"),
    (cluster_sums, (FOUR, A(4, device=META), 4), {}, "index|meta|cpu"),
    (cluster_sums, (FOUR, A(4), 0), {}, "n_clusters|1|0"),
    (cluster_sums, (FOUR, A(4), 2.5), {}, "n_clusters|1|2.5"),
    (cluster_sums, (FOUR, A(4), 4), {"backend": "cuda_magic"}, "backend|triton|cuda_magic"),
    (cluster_sums, (WIDE, A(4), 4), {"backend": "cpp"}, "points|cpp|float64"),
    (hardest_negative, (FOUR, R(0, 3)), {}, "candidate|(0, 3)"),
    (hardest_negative, (R(19, 3), FOUR), {}, "positive|19|4"),
    (hardest_negative, (FOUR, FOUR, A(13)), {}, "positive|13|4"),
    (hardest_negative, (FOUR, FOUR, A(4).int()), {}, "positive|int32|int64"),
    (hardest_negative, (FOUR, FOUR), {"anchor_id": A(4)}, "candidate_id|anchor_id"),
    (hardest_negative, (FOUR, FOUR), {"candidate_id": A(4)}, "candidate_id|anchor_id"),
    (hardest_negative, (FOUR, FOUR), {"anchor_id": A(13), "candidate_id": A(4)}, "anchor_id|13|4"),
    (hardest_negative, (FOUR, FOUR), {"anchor_id": A(4), "candidate_id": A(13)}, "candidate_id|13|4"),
    (fitted, (SIX,), {"n_clusters": 0}, "n_clusters|1|0"),
    (fitted, (SIX,), {"n_clusters": 2.5}, "n_clusters|2.5"),
    (fitted, (SIX,), {"n_clusters": True}, "n_clusters|True"),
    (fitted, (SIX,), {"metric": "manhattan"}, "metric|euclidean|manhattan"),
    (fitted, (SIX,), {"init": "best"}, "init|k-means++|random|best"),
    (fitted, (SIX,), {"init": None}, "init|None"),
    (fitted, (SIX,), {"max_iter": 0}, "max_iter|1|0"),
    (fitted, (SIX,), {"tol": -1e-4}, "tol|0|-0.0001"),
    (fitted, (SIX,), {"tol": NAN}, "tol|nan"),
    (fitted, (SIX,), {"tol": "small"}, "tol|small"),
    (fitted, (SIX,), {"seed": -1}, "seed|0|-1"),
    (fitted, (SIX,), {"seed": 2**70}, f"seed|{2**70}"),
    (fitted, (SIX,), {"seed": "x"}, "seed|x"),
    (fitted, (SIX,), {"backend": "cuda_magic"}, "backend|triton|faiss|cuda_magic"),
    (fitted, (SIX,), {"block_bytes": 0}, "block_bytes|1|0"),
    (fitted, (FOUR,), {"n_clusters": 5}, "n_clusters|5|4"),
    (fitted, (R(0, 3),), {}, "points|(0, 3)"),
    (fitted, (R(11),), {}, "points|11"),
    (fitted, (LONG,), {}, "points|int64"),
    (fitted, (np.ones((9, 3), np.int32),), {}, "points|int32"),
    (fitted, ([[1.0, 2.0]],), {}, "points|list"),
    (fitted, (LOST,), {}, "points|row|6"),
    (fitted, (LOST.masked_fill(LOST.isnan(), torch.inf).numpy(),), {}, "points|row|6"),
    (fitted, (R(9, 3),), {"init": FOUR, "n_clusters": 5}, "init|(5, 3)|(4, 3)"),
    (fitted, (R(9, 3),), {"init": R(2, 4)}, "init|(2, 3)|(2, 4)"),
    (fitted, (R(9, 3),), {"init": LOST[5:7]}, "init|row 1"),
    (fitted, (R(9, 3).double(),), {"backend": "cpp"}, "points|cpp|float64"),
    (lambda x: fitted(R(9, 3)).predict(x), (R(9, 14),), {}, "points|3|14"),
    (online, (), {"n_clusters": 1}, "n_clusters must be a whole number from 2, got 1"),
    (online, (), {"mode": "sgd"}, "mode must be one of|got 'sgd'"),
    (online, (), {"rate": 0.0}, "rate must be in (0, 1], got 0.0"),
    (online, (), {"rate": NAN}, "rate must be in (0, 1], got nan"),
    (online, (), {"centroid_reduce": "max"}, "centroid_reduce must be one of|got 'max'"),
    (online, (), {"start": "random"}, "start must be one of|got 'random'"),
    (online, (), {"threshold": torch.inf}, "threshold must be a finite number, got inf"),
    (OnlineKMeans(4, 3, threshold=1.0), (R(3, 3), R(3, 3)), {},
     "n_clusters must be at most the anchors of a batch, got 4 and 3"),
    (OnlineKMeans(2, 5), (R(3, 3), R(3, 3)), {}, "anchor must have rows of length 5, got (3, 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "options", "words"), BAD, ids=[row[3] for row in BAD])
def test_what_is_wrong_is_one_sentence_with_both_values(function, arguments, options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are below
        function(*arguments, **options)
    said = str(error.value)
    assert all(word in said for word in words.split("|")), said
    assert "\n" not in said
    assert len(said) < 200
