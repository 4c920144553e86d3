"""`fastcse cluster`: an .npy file in, labels and centroids out, and one sentence for each mistake."""

import json
import os

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastcse
from fastcse.cli import app
from fastcse.cli.cluster import _sizes

N, D, K = 60, 8, 4


@pytest.fixture
def points():
    """Four groups, far from one another."""
    generator = np.random.default_rng(0)
    return (20 * np.eye(K, D)[np.arange(N) % K] + generator.normal(size=(N, D))).astype(np.float32)


@pytest.fixture
def call(tmp_path, points):
    """`fastcse cluster` of the points into out/, unless the arguments say otherwise."""
    np.save(tmp_path / "points.npy", points)

    def go(*more, vectors="points.npy", clusters=K, to=("--output-dir", "out")):
        to = [str(tmp_path / word) if not word.startswith("--") else word for word in to]
        arguments = ["cluster", str(tmp_path / vectors), "--clusters", str(clusters), *to, *map(str, more)]
        return CliRunner().invoke(app, arguments)

    return go


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(result, *says):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    for words in says:
        assert words in last, last


# What is written


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_files_hold_what_kmeans_gives(call, tmp_path, points, dtype, metric):
    np.save(tmp_path / "points.npy", points.astype(dtype))
    done = call("--metric", metric, "--seed", 3, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    labels, centroids = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("labels", "centroids"))
    right = fastcse.KMeans(K, metric=metric, seed=3).fit(points.astype(dtype))
    assert (labels.dtype, centroids.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(labels, right.labels_.numpy())
    np.testing.assert_array_equal(centroids, right.cluster_centers_.float().numpy())
    assert (report["iterations"], report["inertia"]) == (right.n_iter_, right.inertia_)
    assert report["backend"] == fastcse.last_backend()
    assert report["sizes"] == {"smallest": 15, "median": 15.0, "largest": 15, "empty": 0}
    assert (report["points"], report["width"], report["dtype"], report["clusters"]) == (N, D, dtype, K)
    assert written(tmp_path) == ["out/centroids.npy", "out/labels.npy", "points.npy"]


def test_the_table_says_it_and_the_file_is_a_memory_map(call, monkeypatch):
    seen, plain = [], fastcse.KMeans.fit
    monkeypatch.setattr(fastcse.KMeans, "fit", lambda self, points: seen.append(points) or plain(self, points))
    done = call()
    assert done.exit_code == 0, done.output
    for words in ("60 of width 8, float32", "euclidean", "smallest 15, median 15, largest 15, 0 empty", "labels.npy"):
        assert words in " ".join(done.stdout.split())
    assert "k-means" in done.stderr
    assert "k-means" not in done.stdout
    assert (type(seen[0]), seen[0].mode) == (np.memmap, "r")


def test_either_file_can_be_asked_for_alone_and_replaces_an_older_one(call, tmp_path):
    (tmp_path / "a.npy").write_text("older")
    done = call("--json", "--overwrite", to=("--labels", "a.npy"))
    assert done.exit_code == 0, done.output
    assert np.load(tmp_path / "a.npy").shape == (N,)
    report = json.loads(done.stdout)
    assert (report["labels"], report["centroids"]) == (str(tmp_path / "a.npy"), None)
    assert call(to=("--centroids", "new/c.npy")).exit_code == 0
    assert np.load(tmp_path / "new" / "c.npy").shape == (K, D)
    assert written(tmp_path) == ["a.npy", "new/c.npy", "points.npy"]


def test_results_are_kept_unless_they_may_be_replaced(call, tmp_path):
    for name, to in (("labels", ("--output-dir", "out")), ("centroids", ("--centroids", "out/centroids.npy"))):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / f"{name}.npy").write_bytes(b"older")
        refused(call(to=to), f"--{name}", f"out/{name}.npy' exists: add --overwrite to replace it")
        assert (tmp_path / "out" / f"{name}.npy").read_bytes() == b"older"
        assert call("--overwrite", to=to).exit_code == 0


def test_options_reach_kmeans(call, tmp_path):
    def report(*more):
        return json.loads(call(*more, "--overwrite", "--json").stdout)

    assert report("--init", "random", "--max-iter", 1)["iterations"] == 1
    assert report("--backend", "reference")["backend"] == "reference"
    assert report("--tol", 1e9)["iterations"] == 1 < report("--tol", 0)["iterations"]
    by_faiss = report("--backend", "faiss", "--max-iter", 4)
    assert (by_faiss["backend"], by_faiss["iterations"], by_faiss["sizes"]["empty"]) == ("faiss", 4, 0)
    np.save(tmp_path / "points.npy", np.ones((9, 3), np.float32))  # equal points share one cluster
    alike = report()
    assert (alike["inertia"], alike["sizes"]) == (0, {"smallest": 0, "median": 0.0, "largest": 9, "empty": K - 1})


# What is refused, and that nothing is left


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist: expected an .npy file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is not an .npy file"),
        (lambda path: path.write_text("0.1 0.2\n"), "is not an .npy file"),
        (lambda path: np.save(path, np.array([{}, []], dtype=object), allow_pickle=True), "is not an .npy file"),
        (lambda path: np.save(path, np.ones((50, 8))) or os.truncate(path, 500), "is not an .npy file"),
        (lambda path: np.savez(path.open("wb"), a=np.ones((5, 2))), "is an archive (.npz)"),
        (lambda path: np.save(path, np.ones((5, 2), np.int32)), "holds int32: expected float16, float32, float64"),
        (lambda path: np.save(path, np.ones(5)), "has shape (5,): expected (N, D)"),
        (lambda path: np.save(path, np.ones((5, 2, 2))), "has shape (5, 2, 2): expected (N, D)"),
        (lambda path: np.save(path, np.ones((0, 2))), "has shape (0, 2): expected (N, D)"),
        (lambda path: np.save(path, np.ones((3, 2))), "--clusters is 4: VECTORS"),
        (lambda path: np.save(path, _with_nan()), "in 2 of 9 rows, first in row 3"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_in_one_sentence(call, tmp_path, make, says):
    make(tmp_path / "wrong.npy")
    result = call(vectors="wrong.npy")
    refused(result, says)
    assert ("--clusters" in says) or str(tmp_path / "wrong.npy") in result.stderr
    assert not [name for name in written(tmp_path) if name.startswith("out")]


def _with_nan():
    rows = np.ones((9, 2), np.float32)
    rows[3, 1], rows[5, 0] = np.nan, np.inf
    return rows


@pytest.mark.parametrize(
    ("more", "to", "says"),
    [
        (("--metric", "l2"), None, "--metric 'l2' is unknown: expected cosine or euclidean"),
        (("--init", "first"), None, "--init 'first' is unknown"),
        (("--max-iter", 0), None, "--max-iter is 0: expected at least 1"),
        (("--clusters", 0), None, "--clusters is 0: expected at least 1"),
        (("--seed", -1), None, "--seed is -1"),
        (("--tol", "nan"), None, "--tol is nan"),
        (("--tol", -1), None, "--tol is -1"),
        (("--backend", "gpu"), None, "--backend 'gpu' is unknown"),
        ((), (), "got neither"),
        ((), ("--output-dir", "out", "--labels", "l.npy"), "got both"),
        ((), ("--labels", "l.txt"), "unknown ending: expected .npy"),
        ((), ("--labels", "points.npy"), "it would be lost"),
        ((), ("--labels", "a.npy", "--centroids", "a.npy"), "expected two files"),
        ((), ("--output-dir", "points.npy"), "cannot be made"),
        ((), ("--output-dir", "points.npy/below"), "cannot be made"),
    ],
)
def test_an_option_or_place_that_cannot_be_is_named_before_any_work(call, tmp_path, monkeypatch, more, to, says):
    monkeypatch.setattr(fastcse.KMeans, "fit", lambda *_: pytest.fail("worked"))
    before = (tmp_path / "points.npy").read_bytes()
    refused(call(*more, **({} if to is None else {"to": to})), says)
    assert written(tmp_path) == ["points.npy"]
    assert (tmp_path / "points.npy").read_bytes() == before


def test_a_disk_that_is_full_leaves_no_file_and_the_older_ones(call, tmp_path, monkeypatch):
    assert call().exit_code == 0
    before = {name: (tmp_path / name).read_bytes() for name in written(tmp_path)}
    plain = np.save

    def full(file, array, **options):
        if array.ndim == 2:  # the second file
            file.write(b"a part")
            raise OSError(28, "No space left on device")
        plain(file, array, **options)

    monkeypatch.setattr(np, "save", full)
    refused(call("--seed", 1, "--overwrite"), "centroids.npy", "cannot be written: No space left on device")
    assert {name: (tmp_path / name).read_bytes() for name in written(tmp_path)} == before


def test_an_interrupt_leaves_nothing_and_a_mistake_of_ours_keeps_its_traceback(call, tmp_path, monkeypatch):
    for error in (KeyboardInterrupt(), RuntimeError("ours")):
        monkeypatch.setattr(fastcse.KMeans, "fit", lambda *_, error=error: (_ for _ in ()).throw(error))
        result = call()
        assert result.exit_code == 130 or result.exception is error
        assert written(tmp_path) == ["points.npy"]


def test_labels_count_the_sizes():
    assert _sizes(torch.tensor([0, 0, 0, 2, 3]), 4) == {"smallest": 0, "median": 1.0, "largest": 3, "empty": 1}
