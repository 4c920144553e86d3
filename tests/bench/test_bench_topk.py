"""`fastcse bench topk` and `bench mining`: whom they measure, what they compare with, what they refuse to report."""

import csv
import json
import math
import warnings

import pytest
import torch
from conftest import DEVICE
from typer.testing import CliRunner

import fastcse
from fastcse.bench import measure as frame
from fastcse.bench import mining
from fastcse.bench.data import make_rows
from fastcse.bench.measure import measure
from fastcse.bench.mining import MINERS, Miner, MiningProblem, WrongTriplets
from fastcse.bench.nearest import subject, truth
from fastcse.bench.nearest.problem import METRICS, TopkProblem
from fastcse.bench.nearest.searcher import Searcher
from fastcse.bench.nearest.subject import SEARCHERS, WrongNeighbours, bare_product
from fastcse.bench.output import LIGER_COLUMNS
from fastcse.bench.peers import Unsuitable
from fastcse.bench.runs import LIMIT
from fastcse.cli import app

SMALL = TopkProblem(30, 200, 24, 5, device=DEVICE)


def all_scores(problem, query, corpus):
    """(N, M) by hand, larger being better."""
    q, c = query.double(), corpus.double()
    if problem.metric == "l2":
        return -torch.cdist(q, c).square()
    if problem.metric == "cosine":
        q, c = q / q.norm(dim=1, keepdim=True), c / c.norm(dim=1, keepdim=True)
    return q @ c.T


def right_answer(problem, query, corpus):
    values, indices = all_scores(problem, query, corpus).topk(problem.k, 1)
    return (-values if problem.metric == "l2" else values).float(), indices


def plant(monkeypatch, name, change, **more):
    """A searcher whose answer is the right one, changed."""

    def build(problem, query, corpus):
        answer = right_answer(problem, query, corpus)
        return lambda: change(*(x.clone() for x in answer))

    monkeypatch.setitem(SEARCHERS, name, Searcher(name, build, **more))


# What is searched, and the truth


@pytest.mark.parametrize(("n", "m", "dtype"), [(30, 200, "float32"), (50, 20, "bfloat16"), (1, 1, "float32")])
def test_rows_have_the_asked_shape_and_want_no_gradients(n, m, dtype):
    query, corpus = make_rows(TopkProblem(n, m, 24, 1, dtype=dtype))
    assert (query.shape, corpus.shape) == ((n, 24), (m, 24))
    assert {query.dtype, corpus.dtype} == {getattr(torch, dtype)}
    assert not query.requires_grad
    assert not corpus.requires_grad


def test_k_beyond_the_corpus_is_refused():
    with pytest.raises(ValueError, match=r"got k = 6, m = 5"):
        TopkProblem(3, 5, 8, 6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_truth_is_the_kth_best_of_all(monkeypatch, metric, rows_at_once):
    monkeypatch.setattr(truth, "PIECE_BYTES", 8 * 64 * rows_at_once)
    problem = TopkProblem(100, 200, 24, 5, metric)
    rows = make_rows(problem)
    found = truth.exact(problem, *rows)
    assert len(found.sampled) == 64
    torch.testing.assert_close(found.kth, all_scores(problem, *rows).topk(5, 1).values[found.sampled, -1])


@pytest.mark.parametrize("metric", METRICS)
def test_what_an_answer_misses_is_counted(metric):
    problem = TopkProblem(30, 200, 24, 5, metric)
    rows = make_rows(problem)
    exact = truth.exact(problem, *rows)
    values, indices = right_answer(problem, *rows)
    assert truth.misses(values, indices, exact, 1e-6)[:2] == (1.0, 1.0)
    assert truth.misses(values, indices, exact, 1e-6).value_error < 1e-6
    worst = all_scores(problem, *rows).argmin(1)
    for other in (worst, torch.full_like(worst, -1), indices[:, 0]):  # a far row, none at all, one that stands twice
        changed = indices.clone()
        changed[:, 3] = other
        assert truth.misses(values, changed, exact, 1e-6)[:2] == (0.8, 0.8)
    assert truth.misses(values * 1.01, indices, exact, 1e-6).value_error > 1e-3
    assert math.isnan(truth.misses(values * math.nan, indices, exact, 1e-6).value_error)


def test_a_tie_is_a_matter_of_the_providers_rounding():
    corpus = torch.tensor([[1.0, 0.0], [1.0 - 1e-4, 0.0], [0.0, 1.0]])
    problem, query = TopkProblem(1, 3, 2, 1), torch.tensor([[1.0, 0.0]])
    second = torch.tensor([[1.0 - 1e-4]]), torch.tensor([[1]])
    exact = truth.exact(problem, query, corpus)
    assert truth.misses(*second, exact, 1e-5)[:2] == (0.0, 0.0)
    assert truth.misses(*second, exact, 1e-3)[:2] == (0.0, 1.0)
    twin = truth.exact(problem, query, corpus[[0, 0, 2]])
    assert truth.misses(torch.ones(1, 1), torch.tensor([[1]]), twin, 0.0)[:2] == (1.0, 1.0)


# Whom it measures


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("searcher", SEARCHERS.values(), ids=lambda s: s.name)
def test_a_searcher_finds_the_nearest(searcher, dtype, metric):
    problem = TopkProblem(40, 300, 32, 7, metric, dtype, DEVICE)
    rows = make_rows(problem)
    if (absent := searcher.missing()) is not None:
        pytest.skip(absent)
    for choice in searcher.choices or (None,):
        try:
            values, indices = searcher.search(problem, choice, *rows)()
        except Unsuitable as why:
            pytest.skip(f"{searcher.name}: {why}")
        assert values.shape == indices.shape == (40, 7)
        missed = truth.misses(values, indices, truth.exact(problem, *rows), searcher.ties(problem))
        assert missed.recall_tied == 1
        assert missed.value_error < (1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("searcher", SEARCHERS.values(), ids=lambda s: s.name)
def test_a_searcher_from_outside_says_how_to_get_it(searcher):
    assert bool(searcher.modules) == bool(searcher.install)
    if searcher.missing():
        assert "pip install" in searcher.missing()


def test_an_absent_and_an_unsuitable_searcher_say_why(monkeypatch):
    plant(monkeypatch, "absent", lambda v, i: (v, i), modules=("no_such_library",), install="pip install nothing")
    plant(monkeypatch, "lacking", lambda v, i: (v, i), missing_part=lambda: "has no GPU part: pip install another")
    plant(monkeypatch, "unsuitable", lambda v, i: (v, i), metrics=("l2",))
    result = measure(SMALL, ["absent", "lacking", "unsuitable"], repeat=1, memory=False)
    assert {row.provider: (row.status, row.reason) for row in result.rows[1:]} == {
        "absent": ("absent", "no_such_library is not installed: pip install nothing"),
        "lacking": ("absent", "has no GPU part: pip install another"),
        "unsuitable": ("unsuitable", "computes l2, not ip"),
    }


@pytest.mark.parametrize("panel_rows", [1, 7, 100])
def test_the_bare_product_is_the_product(monkeypatch, panel_rows):
    monkeypatch.setattr(subject, "PANEL_BYTES", {"cpu": 4 * 200 * panel_rows})
    problem = TopkProblem(30, 200, 24, 5)
    query, corpus = make_rows(problem)
    written, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: written.append(mm(*a, **k).clone()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a panel of another size would be made anew
        bare_product(problem)(query, corpus)
    torch.testing.assert_close(torch.cat(written), query @ corpus.T)


def test_rows_are_whole_and_the_limit_stands_first():
    result = measure(SMALL, ["fastcse", "torch chunked"], repeat=2, memory=False)
    assert [row.provider for row in result.rows] == [LIMIT, "fastcse", "torch chunked"]
    assert result.backend == fastcse.last_backend()
    for row in result.rows:
        assert row.ms_20 <= row.ms <= row.ms_80
        assert row.tflops == pytest.approx(2 * 30 * 200 * 24 / (row.ms * 1e-3) / 1e12)
    assert result.row("fastcse").recall == 1
    assert result.row("torch chunked").choice in (256, 1024, 4096)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v, i: (v, (i + 1) % 200), r"fastcse found 0\.\d+ of the nearest rows where all are promised"),
        (
            lambda v, i: (v, i.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(-1))),
            r"fastcse found 0\.99\d+ ",
        ),
        (lambda v, i: (v * 1.001, i), r"fastcse's values are off by"),
        (lambda v, i: (v * math.nan, i), r"fastcse's values are off by nan"),
        (lambda v, i: 1 / 0, r"fastcse failed at topk, N = 30, .*ZeroDivisionError"),
    ],
)
def test_fastcse_may_not_be_wrong(monkeypatch, change, says):
    plant(monkeypatch, "fastcse", change)
    with pytest.raises(WrongNeighbours, match=says):
        measure(SMALL, ["fastcse"], repeat=1, memory=False)


def test_a_wrong_peer_is_listed_with_its_recall(monkeypatch):
    plant(monkeypatch, "half", lambda v, i: (v, torch.where(torch.arange(5) < 3, i, -1)))
    row = measure(SMALL, ["fastcse", "half"], repeat=1, memory=False).row("half")
    assert (row.status, row.recall) == ("measured", pytest.approx(0.6))


def test_memory_is_what_lies_beyond_the_result():
    problem = TopkProblem(2048, 2048, 16, 4)
    result = measure(problem, ["fastcse"], repeat=1)
    assert 0 <= result.row("fastcse").extra_mib < 200


# From the command line


QUICK = ["bench", "topk", "--device", "cpu", "--n", "20", "--m", "90", "--d", "16", "--k", "3", "--repeat", "2",
         "--no-memory"]  # fmt: skip


def invoke(*arguments):
    return CliRunner().invoke(app, [*QUICK, *map(str, arguments)])


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(frame, "rounds", lambda problem, repeat: repeat)
    for name in set(SEARCHERS) - {"fastcse", "torch chunked", "FlashLib"}:
        monkeypatch.delitem(SEARCHERS, name)


def test_from_the_command_line_to_the_files(tmp_path, few_rounds):
    files = {option: tmp_path / "made" / f"a.{end}" for option, end in
             (("--output", "json"), ("--csv", "csv"), ("--plot", "png"))}  # fmt: skip
    done = invoke("--metric", "ip,l2", "--k", "3,4", *(x for pair in files.items() for x in pair), "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(files["--output"].read_text())
    assert [(r["metric"], r["k"]) for r in report["results"]] == [("ip", 3), ("ip", 4), ("l2", 3), ("l2", 4)]
    rows = {row["provider"]: row for row in report["results"][0]["rows"]}
    assert rows["fastcse"]["recall"] == 1
    assert rows["FlashLib"]["status"] in ("absent", "unsuitable")
    with files["--csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert set(lines[0]) == set(LIGER_COLUMNS)
    assert {line["metric_name"] for line in lines} == {"speed", "recall", "recall with ties", "value error"}
    assert {line["kernel_name"] for line in lines} == {"topk"}
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_80_columns_and_names_everyone(few_rounds, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke()
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    for text in ("bare products", "torch chunked", "recall", "FlashLib"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--k", "91"], "--k is 91 and --m is 90"),
        (["--k", "0"], "--k is 0: each must be at least 1"),
        (["--metric", "hamming"], "--metric is 'hamming': expected one of cosine, ip, l2"),
        (["--peers", "nobody"], "--peers is 'nobody': expected one of fastcse"),
        (["--m", "many"], "--m is 'many': expected whole numbers"),
        (["--repeat", "0"], "--repeat is 0: expected at least 1"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, says):
    monkeypatch.setattr(frame, "measure", lambda *a, **k: pytest.fail("measured before the mistake was found"))
    done = invoke(*arguments, "--output", tmp_path / "a.json")
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_wrong_neighbours_end_with_code_1_and_nothing_written(tmp_path, monkeypatch, few_rounds):
    plant(monkeypatch, "fastcse", lambda v, i: (v, i.flip(0)))
    done = invoke("--output", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "nothing is reported" in done.stderr
    assert not list(tmp_path.iterdir())


# Mining


def test_the_table_model_gives_each_text_its_row():
    rows = 3 * torch.randn(4, 8)
    model = mining.table_model(["a", "b", "c", "d"], rows)
    torch.testing.assert_close(torch.from_numpy(model.encode_query(["c", "a"])), rows[[2, 0]])
    unit = model.encode_document(["d"], normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(rows[[3]]))
    assert model.get_embedding_dimension() == 8


@pytest.mark.parametrize("relative_margin", [0.05, 0.5])
def test_our_miner_gives_their_triplets(relative_margin):
    problem = MiningProblem(300, 16, relative_margin=relative_margin)
    result = measure(problem, list(MINERS), repeat=1, memory=False)
    assert {row.provider: row.same for row in result.rows[1:] if row.status == "measured"} == dict.fromkeys(
        (name for name, miner in MINERS.items() if not miner.missing()), 1.0
    )


@pytest.mark.parametrize("drop", [0, 30])
def test_a_miner_must_give_the_same_triplets(monkeypatch, drop):
    theirs = MINERS["sentence-transformers"].load()
    monkeypatch.setitem(MINERS, "fastcse", Miner("fastcse", lambda: lambda *a, **k: (
        lambda mined: mined.select(range(drop, len(mined))))(theirs(*a, **k))))  # fmt: skip
    problem = MiningProblem(200, 16)
    if drop:
        with pytest.raises(WrongTriplets, match=r"only 0\.9\d+ of fastcse's and sentence-transformers' triplets"):
            measure(problem, ["fastcse"], repeat=1, memory=False)
        return
    result = measure(problem, ["fastcse", "sentence-transformers FAISS"], repeat=1, memory=False)
    assert result.row("fastcse").same == 1
    assert result.row("sentence-transformers FAISS").same > 0.99


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--negatives", "0"], "--negatives is 0: expected at least 1"),
        (["--range-min", "5", "--range-max", "7"], "--range-max is 7: expected at least --range-min 5 + --negatives 3"),
        (["--n", "3"], "--n is 3: expected more than --range-min 0 + --negatives 3"),
    ],
)
def test_a_mistake_of_mining_is_one_sentence(arguments, says):
    done = CliRunner().invoke(app, ["bench", "mining", "--n", "50", *arguments])
    assert done.exit_code == 2, done.output
    assert says in done.stderr
