"""A saved CorpusIndex: what comes back, what a killed save leaves, and damage in every file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcse import CorpusIndex
from fastcse.files import sha256_of
from fastcse.retrieval import storage

TEXTS = ["a dog", "two\nlines \u2028 and \x85 more", "", 'quoted "é" \U0001f600', "a dog", "\ud800"]
OPTIONS = {
    "exact": {"block_bytes": 100},
    "flat": {},
    "ivf": {"nlist": 2, "nprobe": 1},
    "hnsw": {"M": 4, "efConstruction": 10, "efSearch": 9},
}
FILES = ["ids.npy", "index.faiss", "manifest.json", "rows.npy", "texts.jsonl.gz"]


def make_index(kind="exact", dtype=torch.float32):
    given = {"ids": [9, 2, 30, 4, 5, 1], "metric": "ip", "texts": TEXTS}
    return CorpusIndex(torch.randn(6, 5).to(dtype), kind=kind, **given, **OPTIONS[kind])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same(index, other):
    assert repr(index) == repr(other)
    assert torch.equal(index.ids, other.ids)
    assert torch.equal(index.rows(index.ids), other.rows(other.ids))
    assert index.texts == other.texts
    assert index.options == other.options
    query = torch.randn(4, index.dim)
    for one, two in zip(index.search(query, 4), other.search(query, 4)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", list(OPTIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_saved_comes_back(tmp_path, kind, dtype, mmap):
    index = make_index(kind, dtype)
    index.save(tmp_path / "index")
    loaded = CorpusIndex.load(tmp_path / "index", mmap=mmap)
    assert_same(loaded, index)
    assert names(tmp_path) == ["index"]
    if mmap or kind == "hnsw":
        with pytest.raises(ValueError, match="update"):
            loaded.update([9], torch.zeros(1, 5))
    else:
        loaded.update([9], torch.zeros(1, 5))
        assert not loaded.rows([9]).any()
    if (kind, dtype) == ("ivf", torch.bfloat16):
        manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
        said = {"format": "fastcse.CorpusIndex", "version": 1, "shape": [6, 5], "dtype": "bfloat16"}
        said |= {"stored_as": "uint16", "metric": "ip", "kind": "ivf", "options": OPTIONS["ivf"], "check": True}
        assert said.items() <= manifest.items()
        assert sorted([*manifest["files"], "manifest.json"]) == names(tmp_path / "index") == FILES
        assert np.load(tmp_path / "index" / "rows.npy").dtype == np.uint16


def test_rows_of_a_strange_layout_in_pieces_and_without_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PIECE_BYTES", 50)
    wide, folder = torch.randn(40, 30), tmp_path / "deep" / "index"
    index = CorpusIndex(wide.T[::3, ::2])
    index.save(folder)
    loaded = CorpusIndex.load(folder)
    assert_same(loaded, index)
    assert np.array_equal(np.load(folder / "rows.npy"), wide.T[::3, ::2])
    with pytest.raises(ValueError, match="refresh needs the texts"):
        loaded.refresh(None)


def test_a_mapped_index_leaves_its_rows_on_the_disk(tmp_path):
    CorpusIndex(torch.randn(50_000, 16)).save(tmp_path / "index")
    code = f"""
import warnings; warnings.simplefilter("error")
import pathlib, fastcse
index = fastcse.CorpusIndex.load({str(tmp_path / "index")!r}, verify=False)
index.search(index.rows([7]), 3)
maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
print(*[line.split()[1] for line in maps if "rows.npy" in line])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["r--s"], "")


def test_the_prompt_comes_back_for_refresh(tmp_path):
    class Model:
        def encode(self, texts, **options):
            self.options = options
            return torch.ones(len(texts), 3)

    options = {"batch_size": 2, "prompt_name": "passage"}
    CorpusIndex.from_texts(Model(), TEXTS, progress=False, **options).save(tmp_path / "index")
    loaded, model = CorpusIndex.load(tmp_path / "index"), Model()
    loaded.refresh(model, progress=False)
    assert options.items() <= model.options.items()
    loaded.update([0], torch.zeros(1, 3))  # refreshed rows are in memory


# ---------------------------------------------------------------- replaced


def test_a_save_replaces_an_earlier_index_even_the_one_it_reads(tmp_path):
    make_index("flat").save(tmp_path / "index")
    loaded = CorpusIndex.load(tmp_path / "index")
    before = loaded.rows(loaded.ids)
    loaded.save(tmp_path / "index")
    assert_same(CorpusIndex.load(tmp_path / "index"), loaded)
    assert torch.equal(loaded.rows(loaded.ids), before)
    exact = CorpusIndex(torch.randn(8, 2))
    exact.save(tmp_path / "index")
    assert names(tmp_path / "index") == ["ids.npy", "manifest.json", "rows.npy"]
    assert_same(CorpusIndex.load(tmp_path / "index"), exact)
    assert names(tmp_path) == ["index"]


def test_a_folder_with_anything_else_is_not_replaced(tmp_path):
    folder, index = tmp_path / "thesis", make_index()
    folder.mkdir()
    index.save(folder)  # empty
    (folder / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'chapter.tex', which is no part of an index"):
        index.save(folder)
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        index.save(folder / "chapter.tex")
    assert (folder / "chapter.tex").read_text() == "years of work"
    assert names(tmp_path) == ["thesis"]


@pytest.mark.parametrize("step", ["_write_rows", "sha256_of", "_own_sha256", "_put_in_place", "second rename"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_earlier_index_and_nothing_else(tmp_path, monkeypatch, step, failure):
    index, rename = make_index("flat"), os.rename
    index.save(tmp_path / "index")
    before = {p.name: p.read_bytes() for p in (tmp_path / "index").iterdir()}

    def failing(*_):
        raise failure

    def failing_once(source, target):
        if ".saving-" in source.name:
            raise failure
        rename(source, target)

    if step == "second rename":
        failure = OSError(5, "No space left, or so")
        monkeypatch.setattr(os, "rename", failing_once)
    else:
        monkeypatch.setattr(storage, step, failing)
    expected = "the index cannot be saved to .*index': No space left" if isinstance(failure, OSError) else None
    with pytest.raises(type(failure), match=expected):
        CorpusIndex(torch.randn(9, 2)).save(tmp_path / "index")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in (tmp_path / "index").iterdir()} == before
    assert names(tmp_path) == ["index"]
    assert_same(CorpusIndex.load(tmp_path / "index"), index)


def test_a_save_killed_between_the_renames_leaves_the_earlier_index_to_load(tmp_path):
    index, other = make_index(), make_index("flat")
    index.save(tmp_path / ".index.earlier")
    with pytest.warns(UserWarning, match="was being replaced when a save was stopped"):
        loaded = CorpusIndex.load(tmp_path / "index")
    assert_same(loaded, index)
    other.save(tmp_path / "index")
    assert_same(CorpusIndex.load(tmp_path / "index"), other)
    assert names(tmp_path) == ["index"]


KILLED = """
import sys, torch, fastcse
index = fastcse.CorpusIndex(torch.full((200_000, 32), float(sys.argv[2])))
print("saving", flush=True)
while True:
    index.save(sys.argv[1])
"""


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:.*a save was stopped")  # killed between the renames
def test_a_save_that_is_killed_leaves_a_whole_index(tmp_path):
    folder = tmp_path / "index"
    CorpusIndex(torch.full((10, 32), 1.0)).save(folder)
    for wait in (0.02, 0.1, 0.17, 0.25):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), "2"], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "saving\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        index = CorpusIndex.load(folder)
        assert index.rows([0, len(index) - 1]).unique().tolist() == [1.0 if len(index) == 10 else 2.0]


# ---------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "index"
    make_index("flat").save(folder)
    assert names(folder) == FILES
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_changed_or_cut_short_or_missing_is_named(copy, name):
    content = (copy / name).read_bytes()
    for place in np.linspace(0, len(content) - 2, 40).astype(int):
        changed = bytearray(content)
        changed[place] ^= 0x15
        (copy / name).write_bytes(changed)
        with pytest.raises(ValueError, match=f"{name} (is damaged|is not|has format)") as caught:
            CorpusIndex.load(copy)
        assert "\n" not in str(caught.value)
    if name == "rows.npy":  # both digests are named, and who does not verify loads it
        assert len([word for word in str(caught.value).replace(",", "").split() if len(word) == 64]) == 2
        assert len(CorpusIndex.load(copy, verify=False)) == 6
    is_manifest = name == "manifest.json"
    for size in (0, 1, len(content) // 2, len(content) - 2):
        (copy / name).write_bytes(content[:size])
        sizes = "" if is_manifest else f": it has {size} bytes, manifest.json says {len(content)}"
        with pytest.raises(ValueError, match=f"{name} is damaged{sizes}"):
            CorpusIndex.load(copy, verify=False)
    (copy / name).unlink()
    expected = f"{name} is missing: manifest.json says it has {len(content)} bytes"
    with pytest.raises(ValueError, match="holds no manifest.json" if is_manifest else expected):
        CorpusIndex.load(copy, verify=False)


def rewrite(folder, **changes):
    """A manifest with other contents and a checksum that fits."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    del manifest["manifest_sha256"]
    text = json.dumps(manifest | {"manifest_sha256": storage._own_sha256(manifest)})
    (folder / "manifest.json").write_text(text)


def test_contents_that_do_not_fit_together_are_refused(copy, tmp_path):
    manifest = json.loads((copy / "manifest.json").read_text())
    for changes, message in (
        ({"version": 2}, "manifest.json has format version 2: this fastcse reads 1"),
        ({"format": "other"}, "manifest.json is not the manifest of a saved CorpusIndex"),
        ({"shape": [6, 4]}, r"rows.npy and ids.npy hold \(6, 5\) float32 and \(6,\), .* says \[6, 4\] float32"),
        ({"stored_as": "float16"}, "rows.npy and ids.npy hold .* says .* float16"),
    ):
        rewrite(copy, **manifest | changes)
        with pytest.raises(ValueError, match=message):
            CorpusIndex.load(copy)
    CorpusIndex(torch.randn(7, 5), kind="flat").save(tmp_path / "other")
    for content, message in (
        ((tmp_path / "other" / "index.faiss").read_bytes(), r"index.faiss holds 7 x 5 rows, but rows.npy \(6, 5\)"),
        (b"no index at all", r"index\.faiss is not an index that faiss"),
    ):
        (copy / "index.faiss").write_bytes(content)
        held = {"bytes": len(content), "sha256": sha256_of(copy / "index.faiss")}
        rewrite(copy, **manifest | {"files": manifest["files"] | {"index.faiss": held}})
        with pytest.raises(ValueError, match=message):
            CorpusIndex.load(copy)


def test_what_is_no_index_is_refused(tmp_path, monkeypatch, copy):
    with pytest.raises(ValueError, match=r"folder '.*nothing' does not exist: expected a saved CorpusIndex"):
        CorpusIndex.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no manifest.json: expected a saved CorpusIndex"):
        CorpusIndex.load(Path(__file__).parent)
    with pytest.raises(ValueError, match="backend 'cpp' is for kind 'exact', got kind 'flat'"):
        CorpusIndex.load(copy, backend="cpp")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match="kind 'flat' needs faiss"):
        CorpusIndex.load(copy)
