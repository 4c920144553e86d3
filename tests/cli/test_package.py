"""The package from outside: docstrings that run, an import without side effects, company of other libraries."""

import doctest
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import fastcse

ROOT = Path(fastcse.__file__).resolve().parent
PUBLIC = [n for n in fastcse.__all__ if callable(getattr(fastcse, n))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
RESULTS = {n for n in PUBLIC if hasattr(getattr(fastcse, n), "_fields")}  # returned, never called


def scope():
    """What an example may use without importing it."""
    return {"torch": torch, "fastcse": fastcse} | {name: getattr(fastcse, name) for name in fastcse.__all__}


def examples(thing, **more):
    name = thing.__name__
    return [test for test in doctest.DocTestFinder().find(thing, name, globs=scope() | more) if test.examples]


def test_every_public_name_shows_an_example():
    assert not [name for name in PUBLIC if not getattr(fastcse, name).__doc__]
    assert not [name for name in PUBLIC if name not in RESULTS and not examples(getattr(fastcse, name))]


FILES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(["fastcse", *parts]).removesuffix(".__init__"))
    found = examples(module, **vars(module))
    assert not sum(doctest.DocTestRunner(optionflags=FLAGS).run(test).failed for test in found)


# ---------------------------------------------------------------- sdist


def test_an_sdist_holds_what_builds_and_tests_it(tmp_path):
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT.parent).stdout
    files = [name for name in files.splitlines() if (ROOT.parent / name).is_file()]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT.parent / name, tmp_path / name)
    build = [sys.executable, "setup.py", "-q", "sdist"]
    done = subprocess.run(build, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "dist").iterdir()
    with tarfile.open(made) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in files if name not in inside and not name.startswith(".")] == []


# ---------------------------------------------------------------- imports


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_neither_patches_torch_nor_loads_transformers():
    python("""
import sys, torch, torch.nn.functional
places = [torch, torch.nn, torch.nn.functional, torch.Tensor, torch.autograd, torch.nn.Module, torch.optim]
before = [dict(vars(p)) for p in places]
threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
import fastcse
for place, old in zip(places, before):
    now = vars(place)
    changed = [k for k, v in old.items() if now.get(k) is not v]
    assert not changed, f"{place} changed: {changed}"
assert (threads, precision) == (torch.get_num_threads(), torch.get_float32_matmul_precision())
heavy = {"transformers", "sentence_transformers", "datasets", "accelerate", "faiss", "scipy", "matplotlib", "typer"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
""")


def test_importing_is_silent():
    assert python("import warnings; warnings.simplefilter('error'); import torch; import fastcse") == ""


@pytest.mark.parametrize("order", ["faiss, torch, fastcse._C", "fastcse._C, torch, faiss", "fastcse, faiss, torch"])
def test_import_order_of_libraries_with_threads(order):
    # Three libraries with an OpenMP of their own; each must still compute after the others were loaded.
    pytest.importorskip("faiss", reason="the mining extra is not installed")
    if os.environ.get("FASTCSE_ALLOW_NO_CPP") == "1" and not fastcse.backends()["cpp"].available:
        pytest.skip("no C++ module here")
    code = f"""
import {order}
import faiss, numpy, torch, fastcse
torch.set_num_threads(2)
rows = torch.randn(300, 64)
loss = fastcse.focal_infonce_loss(rows, rows, backend="cpp")
index = faiss.IndexFlatIP(64)
index.add(rows.numpy())
values, found = index.search(rows.numpy(), 1)
print(fastcse.last_backend())
torch.testing.assert_close(loss, fastcse.focal_infonce_loss(rows, rows, backend="reference"))
assert (found[:, 0] == (rows @ rows.T).argmax(1).numpy()).all()
"""
    assert python(code).split() == ["cpp"]
