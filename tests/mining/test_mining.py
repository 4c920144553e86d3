"""mine_negatives against a plain loop over queries; windows that widen, sampling, a second model, what is refused."""

import math
import sys

import numpy as np
import pytest
import topk_oracle
import torch
from rich.console import Console
from topk_oracle import Search

import fastcse
from fastcse import CorpusIndex, Positives, mine_negatives
from fastcse.mining import candidates, negatives
from fastcse.mining.candidates import CandidateSearch
from fastcse.mining.options import MiningOptions
from fastcse.mining.report import report_table, summarize

every_metric = pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])


def rows(n, d, device="cpu", seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(device)


def pairs(queries, m, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(queries, (count,), generator=generator)
    return Positives.from_pairs(query, torch.randint(m, (count,), generator=generator), queries)


def score_matrix(query, corpus, metric):
    value = torch.from_numpy(topk_oracle.values(Search(query, corpus, 0, metric)))
    return (-value.sqrt() if metric == "l2" else value).float()


def mined_by_hand(score, positives, *, exclude=None, range_min=0, range_max=None, max_score=None, min_score=None,
                  absolute_margin=None, relative_margin=None, num_negatives=3, include_positives=False):  # fmt: skip
    """(Q, num_negatives) rows, one query after another."""
    out = np.full((len(score), num_negatives), -1)
    most = int(positives.counts.max())
    for i, s in enumerate(score.numpy()):
        own = positives.indices[positives.indptr[i] : positives.indptr[i + 1]].numpy()
        out_of = set() if exclude is None else set(exclude[i].tolist()) - (set(own) if include_positives else set())
        order = [j for j in np.lexsort((np.arange(len(s)), -s)) if j not in out_of]
        if range_max is not None:
            order = order[: range_max + most]
        p, left = min((s[j] for j in own), default=np.float32(np.inf)), []
        for j in order:
            drop = j in own and not include_positives
            drop |= absolute_margin is not None and s[j] + np.float32(absolute_margin) > p
            drop |= relative_margin is not None and len(own) > 0 and s[j] > p - abs(p) * np.float32(relative_margin)
            drop |= max_score is not None and s[j] > np.float32(max_score)
            drop |= min_score is not None and s[j] < np.float32(min_score)
            left += [] if drop else [j]
        found = left[range_min:range_max][:num_negatives]
        out[i, : len(found)] = found
    return torch.from_numpy(out)


OPTIONS = {
    "plain": {},
    "one": {"num_negatives": 1},
    "skip": {"range_min": 4},
    "window": {"range_min": 2, "range_max": 9, "num_negatives": 7},
    "max": {"max_score": 0.2},
    "min": {"min_score": 0.3},
    "both": {"max_score": 0.45, "min_score": 0.2, "num_negatives": 5},
    "absolute": {"absolute_margin": 0.1},
    "absolute window": {"absolute_margin": 0.1, "range_max": 30},
    "relative": {"relative_margin": 0.05, "range_min": 1},
    "relative window": {"relative_margin": 0.3, "range_max": 40, "num_negatives": 6},
    "all": {"absolute_margin": 0.01, "relative_margin": 0.05, "max_score": 0.3, "min_score": -0.3, "num_negatives": 8},
    "negative margin": {"relative_margin": -0.2, "absolute_margin": -0.1},
    "with positives": {"include_positives": True, "num_negatives": 6},
    "with positives, filtered": {"include_positives": True, "max_score": 0.4, "range_max": 30},
    "many": {"num_negatives": 90, "range_min": 5},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class Plain:
    """Somebody else's index: numpy in its own way, no bounds."""

    def __init__(self, corpus, metric="cosine"):
        self.corpus, self.metric, self.asked = corpus, metric, []

    def search(self, query, k):
        self.asked.append((len(query), k))
        score = score_matrix(query, self.corpus, self.metric)
        values, ids = score.sort(dim=1, descending=True, stable=True)
        return values[:, :k].numpy(), ids[:, :k].numpy()

    def rows(self, ids):
        return self.corpus[ids].numpy()

    def __len__(self):
        return len(self.corpus)


@every_option
@pytest.mark.parametrize("source", ["rows", "index", "flat", "foreign"])
def test_as_by_hand(options, source):
    query, corpus, positives = rows(40, 8), rows(120, 8, seed=2), pairs(40, 120, 70)
    exclude = torch.randint(-1, 120, (40, 2), generator=torch.Generator().manual_seed(4))
    score = score_matrix(query, corpus, "cosine")
    where = {"rows": corpus, "index": CorpusIndex(corpus), "foreign": Plain(corpus)}
    held = where[source] if source in where else CorpusIndex(corpus, kind="flat")
    got = mine_negatives(query, held, positives, exclude=exclude, **options)
    expected = mined_by_hand(score, positives, exclude=exclude, **options)
    torch.testing.assert_close(got.indices, expected)
    there = expected >= 0
    expected_score = score.gather(1, expected.clamp_min(0))
    torch.testing.assert_close(got.scores[there], expected_score[there], rtol=0, atol=2e-7)
    assert (got.scores[~there] == -math.inf).all()
    torch.testing.assert_close(got.positive_scores, score[positives.queries, positives.indices], rtol=0, atol=2e-7)


@pytest.mark.interpreted_by_value
@every_metric
@pytest.mark.parametrize(
    "options", [OPTIONS[name] for name in ("window", "both", "absolute", "relative", "many")], ids=str
)
def test_every_backend_as_by_hand(forced, device, metric, options):
    query, corpus, positives = rows(12, 5, device), rows(60, 5, device, seed=2), pairs(12, 60, 20)
    got = forced(mine_negatives, query, corpus, positives, metric=metric, **options)
    expected = mined_by_hand(score_matrix(query, corpus, metric), positives, **options)
    torch.testing.assert_close(got.indices, expected)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, np.float32, "map"])
def test_types_and_arrays(kind, tmp_path):
    query, corpus = rows(10, 6).half().float(), rows(30, 6, seed=3).half().float()
    positives = torch.arange(10)
    if kind == "map":
        np.save(tmp_path / "rows.npy", corpus.numpy())
        given = query.numpy(), np.load(tmp_path / "rows.npy", mmap_mode="r")
    elif kind == np.float32:
        given = query.numpy(), corpus.numpy()
    else:
        given = query.to(kind), corpus.to(kind)
    score = score_matrix(*(torch.as_tensor(np.array(x)) if kind in (np.float32, "map") else x for x in given), "cosine")
    got = mine_negatives(*given, positives, max_score=0.5)
    torch.testing.assert_close(got.indices, mined_by_hand(score, got.positives, max_score=0.5))
    assert got.scores.dtype == got.positive_scores.dtype == torch.float32


def test_inputs_are_not_written_and_the_result_is_on_the_host_by_id(device):
    query, corpus = rows(6, 4, device), rows(9, 4, device, seed=1)
    kept = query.clone(), corpus.clone()
    got = mine_negatives(query, corpus, torch.arange(6), relative_margin=0.1)
    assert torch.equal(query, kept[0])
    assert torch.equal(corpus, kept[1])
    tensors = [got.indices, got.scores, got.positive_scores, *got.positives]
    assert {x.device.type for x in tensors} == {"cpu"}
    ids = torch.randperm(100)[:9]
    by_id = mine_negatives(query, CorpusIndex(corpus, ids=ids), ids[:6], relative_margin=0.1)
    torch.testing.assert_close(by_id.indices, torch.where(got.indices < 0, -1, ids[got.indices]))


# ---------------------------------------------------------------- edges of the filters


def on_a_line(*cosines):
    """Unit rows with these cosines to the query (1, 0)."""
    c = torch.tensor(cosines, dtype=torch.float64)
    return torch.stack([c, (1 - c.square()).sqrt()], 1)


QUERY = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


AT_A_BOUND = [
    ({"min_score": 0.4}, [1, 2]),  # which drops none of the best, so that nothing is searched further
    ({"max_score": 0.4}, [2, 3, 4, 5]),
    ({"absolute_margin": 0.1}, [2, 3, 4, 5]),  # 0.4 + 0.1 is 0.5 in float32, and not above it
    ({"absolute_margin": 0.0}, [1, 2, 3, 4, 5]),
    ({"relative_margin": 0.0}, [1, 2, 3, 4, 5]),
    ({"absolute_margin": 0.1, "min_score": 0.0}, [2, 3, 4]),
]
FAR = [(*case, first) for first in (0, 60) for case in AT_A_BOUND[first > 0 :]]


@pytest.mark.parametrize(("options", "kept", "first"), FAR, ids=str)
def test_a_bound_itself_is_kept(options, kept, first):
    corpus = on_a_line(*[0.9] * first, 0.5, 0.5, 0.4, 0.2, 0.0, -0.3)
    got = mine_negatives(QUERY, corpus, torch.tensor([first]), num_negatives=5, **options)
    assert got.widened == (first > 0)
    assert [i - first for i in got.indices[0].tolist() if i >= 0] == kept


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0, -0.3])
def test_what_the_filters_keep_lies_between_their_bounds(margin):
    positive = rows(1, 200)[0] / 2
    near = positive - margin
    for _ in range(4):
        near = torch.nextafter(near, torch.full_like(near, -9.0))
    scores = [near]
    for _ in range(12):
        scores.append(torch.nextafter(scores[-1], torch.full_like(near, 9.0)))
    scores, seen = torch.stack(scores, 1), []
    for filters in (
        MiningOptions(absolute_margin=margin),
        MiningOptions(relative_margin=margin, max_score=0.1, min_score=-0.7),
    ):
        low, high = filters.bounds(positive)
        kept = filters.filter(scores, positive, {}) > -math.inf
        seen += [kept.any(), not kept.all()]
        assert ((scores.double() >= low[:, None]) & (scores.double() <= high[:, None]))[kept].all()
    assert seen[0]  # the scores lie on both sides of the bounds
    assert seen[1]


HALF = (0.9, 0.89, 0.8, 0.7, 0.5, 0.3, 0.1)
ALL = {"absolute_margin": 0.05, "relative_margin": 0.15, "max_score": 0.6, "min_score": 0.2}
BY_HAND = {
    "a negative score lowers the bound": ((-0.4, -0.38, -0.42, -0.45, -0.6), [0],
                                          {"relative_margin": 0.1, "num_negatives": 4}, [3, 4, -1, -1]),
    "the weakest positive": ((0.9, 0.5, 0.6, 0.48, 0.3), [0, 1], {"absolute_margin": 0.05, "num_negatives": 2},
                             [4, -1]),
    "every filter": (HALF, [0], ALL | {"exclude": torch.tensor([6])}, [4, 5, -1]),
    "no positive, no margin": ((0.5, 0.9, 0.2), [], {"relative_margin": 0.1, "absolute_margin": 0.1}, [1, 0, 2]),
    "more than there are": ((0.9, 0.2, 0.5), [0], {"num_negatives": 5}, [2, 1, -1, -1, -1]),
    "ranks that are not there": ((0.9, 0.2, 0.5), [0], {"range_min": 7}, [-1, -1, -1]),
    "only positives": ((0.9, 0.2), [0, 1], {"relative_margin": 0.0}, [-1, -1, -1]),
    "a seed of all there are": ((0.9, 0.5, 0.4, 0.95, 0.94), [0], {"sampling_strategy": "random", "max_score": 0.8},
                                [1, 2, -1]),
}  # fmt: skip


@pytest.mark.parametrize(("cosines", "positives", "options", "found"), BY_HAND.values(), ids=BY_HAND)
def test_one_query_by_hand(cosines, positives, options, found):
    pairs = Positives.from_pairs([0] * len(positives), positives, 1)
    got = mine_negatives(QUERY, on_a_line(*cosines), pairs, **options)
    assert got.indices.tolist() == [found]
    assert ((got.scores == -math.inf) == (got.indices < 0)).all()
    if "exclude" in options:  # what each filter dropped, of what reached it, in their order
        assert [*got.counts.items()] == [
            ("exclude", (1, 7)), ("positive", (1, 6)), ("absolute_margin", (1, 5)), ("relative_margin", (1, 4)),
            ("max_score", (1, 3)), ("min_score", (0, 2)),
        ]  # fmt: skip


def test_equal_scores_go_to_the_lower_row(forced, device):
    corpus = torch.eye(4, device=device)[[1, 0, 0, 2, 0, 0]]
    got = forced(mine_negatives, torch.eye(4, device=device)[:1], corpus, torch.tensor([2]), num_negatives=4)
    assert got.indices.tolist() == [[1, 4, 5, 0]]


def test_a_zero_row_has_cosine_zero():
    corpus = torch.cat([torch.zeros(1, 2), on_a_line(0.5, 0.2, -0.2).float()])
    got = mine_negatives(QUERY.float(), corpus, torch.tensor([1]), num_negatives=3)
    assert got.indices.tolist() == [[2, 0, 3]]
    assert mine_negatives(QUERY.float(), corpus, torch.tensor([0])).positive_scores.tolist() == [0.0]


# ---------------------------------------------------------------- what is refused


def wrong(value, at=2, n=4):
    x = rows(n, 3)
    x[at, 1] = value
    return x


INTS = torch.tensor


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_negatives": 0}, "num_negatives is 0: expected at least 1"),
        ({"num_negatives": 2.0}, "num_negatives is 2.0: expected a whole number"),
        ({"range_min": -1}, "range_min is -1: expected at least 0"),
        ({"range_min": 5, "range_max": 5}, "range_min is 5: expected less than range_max, which is 5"),
        ({"range_min": 2, "range_max": 4}, "num_negatives is 3: expected at most range_max - range_min, which is 2"),
        ({"sampling_strategy": "best"}, "sampling_strategy 'best' is unknown: expected top or random"),
        ({"absolute_margin": math.nan}, "absolute_margin is nan: expected a finite number"),
        ({"relative_margin": math.inf}, "relative_margin is inf: expected a finite number"),
        ({"max_score": "high"}, "max_score is 'high': expected a finite number"),
        ({"max_score": 0.1, "min_score": 0.2}, "max_score is 0.1: expected at least min_score, which is 0.2"),
        ({"seed": -1}, "seed is -1: expected at least 0"),
        ({"metric": "manhattan"}, "metric must be one of .*, got 'manhattan'"),
        ({"backend": "cuda"}, "'cuda'"),
        ({"exclude": torch.zeros(3)}, "exclude must be whole numbers"),
        ({"exclude": INTS([0, 1, 2])}, r"exclude must have shape \(4,\) or \(4, E\).*got \(3,\)"),
        ({"query": wrong(math.nan)}, "query must be finite, got NaN or infinity in 1 of 4 rows, first in row 2"),
        ({"corpus": wrong(math.inf, n=6)}, "corpus must be finite, got NaN or infinity in 1 of 6 rows, first in row 2"),
        ({"corpus": [[1.0, 2.0, 3.0]]}, "corpus must be rows or an index with search and len, got list"),
        ({"corpus": rows(6, 2)}, "query and corpus must have rows of one length, got 3 and 2"),
        ({"corpus": CorpusIndex(rows(6, 3)), "backend": "cpp"},
         "backend is for a corpus of rows, got backend='cpp' and CorpusIndex"),
        ({"positives": INTS([0, 1, 2])}, r"positives must be Positives, or have shape \(4,\).*got \(3,\)"),
        ({"positives": INTS([0, 1, 2, 6])}, "positives must be rows of the 6 of the corpus, got 6"),
        ({"positives": Positives(INTS([0, 1, 2]), INTS([0, 1]))}, r"positives.indptr must have shape \(5,\)"),
        ({"positives": Positives(INTS([0, 2, 1, 2, 2]), INTS([0, 1]))}, "must ascend from 0 to the 2 indices"),
        ({"positives": Positives(INTS([0, 1, 1, 1, 1]), INTS([-3]))}, "0 or more, got -3"),
        ({"rescore": lambda q, r: torch.full(r.shape, math.nan)},
         "rescore must give finite scores, got nan for query 0 and"),
        ({"rescore": lambda q, r: torch.zeros(len(r), 2)},
         r"rescore must give 4 scores, one for each pair, got \(4, 2\)"),
    ],
    ids=range(27),
)  # fmt: skip
def test_one_sentence_names_what_is_wrong(options, says):
    given = {"query": rows(4, 3), "corpus": rows(6, 3), "positives": torch.arange(4)}
    with pytest.raises(ValueError, match=says):
        mine_negatives(**given | options)


def test_a_foreign_index_without_rows_has_no_scores_of_positives():
    rowless = Plain(rows(9, 2))
    rowless.rows = None
    says = r"need the scores of positives: expected a corpus with rows\(ids\), got Plain"
    with pytest.raises(ValueError, match=says):
        mine_negatives(rows(1, 2), rowless, torch.tensor([0]), absolute_margin=0.1)
    without = mine_negatives(rows(1, 2), rowless, torch.tensor([0]))
    torch.testing.assert_close(without.indices, mine_negatives(rows(1, 2), rows(9, 2), torch.tensor([0])).indices)
    assert summarize(without)["scores"]["positive"]["mean"] is None


def test_former_names_work_and_warn():
    made = Positives.from_pairs([1, 0], [7, 5])
    for former, present in (("offsets", made.indptr), ("columns", made.indices)):
        with pytest.warns(DeprecationWarning, match=f"Positives.{former} is "):
            assert getattr(made, former) is present
    with pytest.warns(DeprecationWarning, match="mining.index.CorpusIndex is fastcse.retrieval.index.CorpusIndex now"):
        from fastcse.mining.index import CorpusIndex as former
    assert former is CorpusIndex
    with pytest.warns(DeprecationWarning, match="ShardedBank is fastcse.retrieval.sharded.ShardedIndex now"):
        from fastcse.mining.sharded_bank import ShardedBank
    assert ShardedBank.__name__ == "ShardedIndex"


def test_pairs_become_lists_in_their_order_without_repeats():
    made = Positives.from_pairs([2, 0, 2, 2, 0], [5, 1, 3, 5, 9], 4)
    assert made.indptr.tolist() == [0, 2, 2, 4, 4]
    assert made.indices.tolist() == [1, 9, 5, 3]
    assert made.queries.tolist() == [0, 0, 2, 2]
    assert Positives.from_pairs([], [], 2).indptr.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="query and column must be two lists of one length"):
        Positives.from_pairs([1], [1, 2])
    with pytest.raises(ValueError, match=r"query must be in 0\.\.2 and column 0 or more, got 3"):
        Positives.from_pairs([3], [1], 3)


# ---------------------------------------------------------------- the window


@pytest.fixture
def crowd():
    """One query whose 300 nearest rows lie above its margin."""
    return on_a_line(*torch.linspace(0.99, 0.91, 300).tolist(), *torch.linspace(0.6, 0.2, 100).tolist())


class Counted(CorpusIndex):
    """Keeps how many queries and rows each search asks for."""

    def search(self, query, k, **options):
        self.__dict__.setdefault("asked", []).append((len(query), k))
        return super().search(query, k, **options)


WINDOWS = {
    "one search between the bounds": (299, {"relative_margin": 0.05}, [300, 301, 302, 303, 304], [51, 5]),
    "never where it is given": (299, {"relative_margin": 0.05, "range_max": 51}, [-1] * 5, [51]),
    "without a positive": (-1, {"relative_margin": 0.0, "max_score": 0.7}, [300, 301, 302, 303, 304], [51, 5]),
    "never below min_score": (0, {"min_score": 0.9889}, [1, 2, 3, 4, -1], [6]),
}


@pytest.mark.parametrize(("positive", "options", "found", "asked"), WINDOWS.values(), ids=WINDOWS)
def test_the_window_widens_where_a_query_has_too_few(crowd, positive, options, found, asked):
    index, end = Counted(crowd), asked[0]
    query = torch.cat([QUERY, -QUERY])
    got = mine_negatives(query, index, torch.tensor([positive, 399]), num_negatives=5, **options)
    assert got.indices[0].tolist() == found
    assert got.window == (0, end)
    assert got.widened == len(asked) - 1
    assert index.asked == [(2, end + 1), *((1, k) for k in asked[1:])]
    if "relative_margin" in options and positive >= 0:
        assert got.counts["relative_margin"][0] >= 51  # of the first window


@pytest.mark.parametrize("foreseen", [True, False])
def test_positives_between_the_bounds_do_not_use_up_the_search(crowd, monkeypatch, foreseen):
    index = Counted(crowd)
    if not foreseen:
        monkeypatch.setattr(CandidateSearch, "_positives_between", lambda *_: 0)
    positives = Positives.from_pairs([0] * 40, [*range(300, 340)])
    got = mine_negatives(QUERY, index, positives, max_score=0.7, num_negatives=5)
    assert got.widened == 1
    assert got.indices.tolist() == [[340, 341, 342, 343, 344]]
    assert [k for _, k in index.asked] == [130, 45] if foreseen else [130, 5, 10, 20, 40, 80]


def test_a_foreign_index_is_asked_for_twice_as_many_until_there_are_enough(crowd):
    index = Plain(crowd)
    got = mine_negatives(QUERY, index, torch.tensor([299]), relative_margin=0.05, num_negatives=5)
    assert got.indices[0].tolist() == [300, 301, 302, 303, 304]
    assert [k for _, k in index.asked] == [52, 104, 208, 400]
    index.asked.clear()
    none = mine_negatives(QUERY, index, torch.tensor([299]), relative_margin=0.9)
    assert (none.indices == -1).all()
    assert [k for _, k in index.asked] == [32, 64, 128, 256, 400]


@pytest.mark.parametrize("at_once", [(3, 1, 1 << 20), (1000, 1, 200)])
def test_parts_of_the_queries_give_what_all_give(monkeypatch, at_once):
    query, corpus, positives = rows(40, 8), rows(120, 8, seed=2), pairs(40, 120, 70)
    options = {"relative_margin": 0.3, "num_negatives": 6}
    whole = mine_negatives(query, corpus, positives, **options)
    for name, value in zip(("STEPS", "FEWEST_QUERIES", "MOST_CANDIDATES"), at_once):
        monkeypatch.setattr(negatives, name, value)
    parts = mine_negatives(query, corpus, positives, **options)
    assert whole.widened == parts.widened > 0
    assert whole.counts == parts.counts
    torch.testing.assert_close(whole.indices, parts.indices)
    torch.testing.assert_close(whole.scores, parts.scores)


def calls(function):
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_python_does_not_work_query_by_query():
    def run(n):
        query, corpus, positives = rows(n, 8), rows(300, 8, seed=2), pairs(n, 300, 2 * n)
        options = {"relative_margin": 0.3, "sampling_strategy": "random", "backend": "cpp"}
        return calls(lambda: mine_negatives(query, corpus, positives, **options))

    if not fastcse.backends()["cpp"].available:
        pytest.skip("no C++ module here")
    run(16)
    assert run(2048) < run(64) + 500  # a few calls for each tile of queries, not one for each query


# ---------------------------------------------------------------- sampling


def test_random_negatives_come_from_the_window_once_each_and_in_order_by_the_seed():
    query, corpus = rows(50, 6), rows(200, 6, seed=2)
    options = {"range_min": 3, "range_max": 15, "num_negatives": 4, "sampling_strategy": "random"}
    window = mine_negatives(query, corpus, torch.arange(50), range_min=3, range_max=15, num_negatives=12).indices
    drawn = [mine_negatives(query, corpus, torch.arange(50), seed=seed, **options) for seed in (*range(9), 0)]
    for got in drawn:
        place = (got.indices[:, :, None] == window[:, None, :]).int()
        assert (place.sum(2) == 1).all()
        assert (place.argmax(2).diff(dim=1) > 0).all()
        assert (got.scores.diff(dim=1) <= 0).all()
    assert torch.equal(drawn[0].indices, drawn[-1].indices)
    assert not torch.equal(drawn[0].indices, drawn[1].indices)
    assert (torch.cat([got.indices for got in drawn], 1)[:, :, None] == window[:, None]).any(1).float().mean() > 0.9


def test_sampling_has_a_choice_after_the_window_was_widened(crowd):
    options = {"relative_margin": 0.05, "num_negatives": 2, "sampling_strategy": "random"}
    drawn = [mine_negatives(QUERY, crowd, torch.tensor([299]), seed=s, **options).indices for s in range(8)]
    assert len({tuple(x[0].tolist()) for x in drawn}) > 3
    assert torch.cat(drawn).amin() >= 300


# ---------------------------------------------------------------- a second model


class Second:
    """Scores of pairs from a table, and what it was asked."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def __call__(self, query, row):
        assert query.shape == row.shape == (len(query),)
        self.asked.append((query, row))
        return self.table[query, row]


def test_a_second_model_decides_order_and_filters():
    query, corpus, positives = rows(30, 6), rows(80, 6, seed=2), pairs(30, 80, 50)
    second, options = Second(rows(30, 80, seed=9)), {"relative_margin": 0.1, "num_negatives": 5}
    got = mine_negatives(query, corpus, positives, rescore=second, range_max=20, **options)
    near = score_matrix(query, corpus, "cosine").topk(20 + int(positives.counts.max()), dim=1).indices
    seen = torch.full_like(second.table, -99.0).scatter(1, near, second.table.gather(1, near))
    seen[positives.queries, positives.indices] = second.table[positives.queries, positives.indices]
    torch.testing.assert_close(got.indices, mined_by_hand(seen, positives, min_score=-9, **options))
    torch.testing.assert_close(got.positive_scores, second.table[positives.queries, positives.indices])
    assert len(second.asked) == 2  # the positives, the candidates: never one query at a time
    asked = {(int(q), int(r)) for q, r in zip(*second.asked[1])}
    assert not asked & {*zip(positives.queries.tolist(), positives.indices.tolist())}
    assert len(asked) == len(second.asked[1][0])


def test_a_second_model_scores_the_wide_window_some_pairs_at_a_time(monkeypatch):
    monkeypatch.setattr(candidates, "RERANKED_AT_ONCE", 37)
    query, corpus, second = rows(4, 6), rows(100, 6, seed=2), Second(rows(4, 100, seed=3))
    got = mine_negatives(query, corpus, torch.arange(4), rescore=second)
    assert max(len(some) for some, _ in second.asked) == 37
    assert got.window == (0, 31)
    near = mine_negatives(query, corpus, torch.arange(4), num_negatives=31).indices
    expected = second.table.gather(1, near).topk(3).indices
    torch.testing.assert_close(got.indices, near.gather(1, expected))


def test_a_second_model_widens_eight_times_and_no_further():
    corpus = on_a_line(*torch.linspace(0.9, -0.9, 2000).tolist())
    for last, found in ((32 * 4 + 10, True), (32 * 8 + 10, False)):
        table = torch.where(torch.arange(2000) < last, 0.9, 0.1)[None]
        table[0, 0] = 0.5
        second = Second(table)
        got = mine_negatives(QUERY, corpus, torch.tensor([0]), rescore=second, relative_margin=0.1)
        assert got.widened == 1
        assert (got.indices.tolist() == [[last, last + 1, last + 2]]) == found
        assert (got.indices[0, 0] >= 0) == found
        asked = torch.cat([row for _, row in second.asked])
        assert len(asked) == len(asked.unique()) == 32 * 8  # each pair once, the positive among them


# ---------------------------------------------------------------- the report


def test_the_report_counts_what_was_found(capfd):
    query, corpus, positives = rows(40, 8), rows(120, 8, seed=2), pairs(40, 120, 70)
    mined = mine_negatives(query, corpus, positives, absolute_margin=0.05, range_max=40)
    assert capfd.readouterr() == ("", "")
    summary = summarize(mined)
    found = mined.scores[positives.queries]
    difference = (mined.positive_scores[:, None] - found)[found > -math.inf]
    assert summary["queries"] == 40
    assert summary["negatives"] == int((mined.indices >= 0).sum()) > 0
    assert summary["short"] == int((mined.indices < 0).any(1).sum()) > 0
    assert summary["scores"]["difference"]["count"] == len(difference)
    assert summary["scores"]["difference"]["mean"] == difference.mean().item()
    assert summary["scores"]["negative"]["75%"] == found[found > -math.inf].quantile(0.75).item()
    assert summary["scores"]["difference"]["min"] >= 0.05 - 1e-6
    Console(width=100).print(report_table(mined, "Mined"))
    text = capfd.readouterr().out
    for word in ("Mined", "absolute_margin", "positive", "median", "75%", f"{mined.counts['absolute_margin'][0]:,}"):
        assert word in text
    mine_negatives(rows(5, 3), rows(9, 3), torch.arange(5), progress=True, rescore=Second(rows(5, 9)))
    out, err = capfd.readouterr()
    assert (out, "search" in err, "rescore" in err) == ("", True, True)


def test_the_report_of_nothing():
    mined = mine_negatives(rows(2, 3), rows(2, 3), Positives.from_pairs([0, 0, 1, 1], [0, 1, 0, 1]))
    statistics = ["mean", "median", "std", "min", "25%", "50%", "75%", "max"]
    assert summarize(mined)["scores"]["negative"] == {"count": 0} | dict.fromkeys(statistics)
    report_table(mined)
