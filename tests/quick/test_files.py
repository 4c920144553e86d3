"""Files that are written whole or not at all."""

import os

import pytest

from fastcse.files import write_atomic


def broken(file):
    file.write(b"half")
    raise OSError("no space left")


@pytest.mark.parametrize("content", ["new", b"new", lambda file: file.write(b"new")], ids=["text", "bytes", "function"])
def test_a_file_takes_the_place_of_the_one_before(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    write_atomic(path, content)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="no space left"):
        write_atomic(path, broken)

    def refuse(part, target):
        assert part.read_bytes() == b"new"
        raise OSError("not here")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="not here"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
