"""An index on the disk: a folder with a manifest of what it holds, and a checksum for each file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import uuid
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import sha256_of
from .arrays import PIECE_BYTES, pieces, shared
from .faiss_index import FaissIndex

FORMAT, VERSION = "fastcse.CorpusIndex", 1
MANIFEST, ROWS, IDS, TEXTS, FAISS = "manifest.json", "rows.npy", "ids.npy", "texts.jsonl.gz", "index.faiss"
# NumPy has no bfloat16: its bits are stored.
STORED_AS = {torch.bfloat16: torch.uint16}
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def save(
    folder: str | Path, rows: Tensor, ids: Tensor, texts: list[str] | None, faiss: FaissIndex | None, about: dict
) -> None:
    """Write everything beside `folder`, then put it in its place. `about` is what else the manifest says (metric, kind,
    options, ...).

    Raises:
        ValueError: something that is no saved index is already there.
        OSError: it cannot be written; what was there before is there still.
    """
    folder = Path(folder).resolve()
    _check_replaceable(folder)
    made = folder.with_name(f".{folder.name}.saving-{uuid.uuid4().hex[:8]}")
    try:
        made.mkdir(parents=True)
        _write_rows(made / ROWS, rows.view(STORED_AS.get(rows.dtype, rows.dtype)))
        _write_rows(made / IDS, ids)
        if texts is not None:
            with gzip.open(made / TEXTS, "wt", encoding="utf-8", compresslevel=3) as file:
                file.writelines(json.dumps(text) + "\n" for text in texts)
        if faiss is not None:
            faiss.write(made / FAISS)
        _write_manifest(made, rows, about)
        _put_in_place(made, folder)
    except OSError as error:
        raise OSError(error.errno, f"the index cannot be saved to {str(folder)!r}: {error.strerror}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """Replacing a folder removes what is in it, so it must be an index and nothing else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder {str(folder)!r} is a file: expected a folder to save to")
    strange = {path.name for path in folder.iterdir()} - {MANIFEST, ROWS, IDS, TEXTS, FAISS} if folder.exists() else ()
    if strange:
        raise ValueError(
            f"folder {str(folder)!r} holds {min(strange)!r}, which is no part of an index: name another one"
        )


def _earlier(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.earlier")


def _put_in_place(made: Path, folder: Path) -> None:
    # A folder cannot be renamed onto a full one. Between the two renames `load` finds the earlier one by its name.
    if folder.exists():
        shutil.rmtree(_earlier(folder), ignore_errors=True)
        os.rename(folder, _earlier(folder))
    try:
        os.rename(made, folder)
    except OSError:
        if _earlier(folder).exists():
            os.rename(_earlier(folder), folder)
        raise
    shutil.rmtree(_earlier(folder), ignore_errors=True)


def _write_manifest(made: Path, rows: Tensor, about: dict) -> None:
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "fastcse": version("fastcse"),
        "shape": list(rows.shape),
        "dtype": str(rows.dtype).removeprefix("torch."),
        "stored_as": str(STORED_AS.get(rows.dtype, rows.dtype)).removeprefix("torch."),
        **about,
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(made.iterdir())},
    }
    text = json.dumps({**manifest, "manifest_sha256": _own_sha256(manifest)}, indent=2)
    (made / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for path in made.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _write_rows(path: Path, rows: Tensor) -> None:
    """An .npy file, some rows at a time."""
    matrix = rows if rows.dim() == 2 else rows[:, None]
    some = rows[:0].cpu().numpy()
    header = {"descr": np.lib.format.dtype_to_descr(some.dtype), "fortran_order": False, "shape": tuple(rows.shape)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, piece in pieces(matrix, PIECE_BYTES):
            file.write(np.ascontiguousarray(piece.cpu().numpy()).data.cast("B"))


def _own_sha256(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def load(folder: str | Path, *, mmap: bool, verify: bool) -> tuple[Tensor, Tensor, list[str] | None, Path | None, dict]:
    """Rows, ids, texts, where the FAISS index is, and the manifest.

    Raises:
        ValueError: there is no index, or one of another version, or a file is missing, cut short or damaged.
    """
    folder = _existing(Path(folder))
    manifest = _manifest(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        _check_file(folder / name, expected, verify)
    dtype, stored = DTYPES[manifest["dtype"]], manifest["stored_as"]
    array = np.load(folder / ROWS, mmap_mode="r" if mmap else None)
    ids = np.load(folder / IDS)
    if list(array.shape) != manifest["shape"] or str(array.dtype) != stored or ids.shape != array.shape[:1]:
        raise ValueError(
            f"{folder / ROWS} and {IDS} hold {array.shape} {array.dtype} and {ids.shape}, "
            f"but {MANIFEST} says {manifest['shape']} {stored}"
        )
    # As int16 on the way: a type that torch shares with NumPy whatever the versions.
    rows = shared("rows", array.view(np.int16) if dtype in STORED_AS else array).view(dtype)
    texts = _read_texts(folder / TEXTS) if TEXTS in manifest["files"] else None
    return rows, torch.from_numpy(ids), texts, folder / FAISS if FAISS in manifest["files"] else None, manifest


def _existing(folder: Path) -> Path:
    earlier = _earlier(folder.resolve())
    if not folder.exists() and earlier.exists():
        warnings.warn(f"{folder} was being replaced when a save was stopped: loading {earlier}", stacklevel=4)
        return earlier
    if not folder.is_dir():
        raise ValueError(f"folder {str(folder)!r} does not exist: expected a saved CorpusIndex")
    return folder


def _manifest(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"folder {str(path.parent)!r} holds no {MANIFEST}: expected a saved CorpusIndex")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not the manifest of a saved CorpusIndex")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path} has format version {manifest.get('version')!r}: this fastcse reads {VERSION}")
    expected = manifest.pop("manifest_sha256", None)
    if (found := _own_sha256(manifest)) != expected:
        raise ValueError(f"{path} is damaged: its own checksum is {found}, expected {expected}")
    return manifest


def _check_file(path: Path, expected: dict, verify: bool) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {MANIFEST} says it has {expected['bytes']} bytes")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise ValueError(f"{path} is damaged: it has {size} bytes, {MANIFEST} says {expected['bytes']}")
    if verify and (found := sha256_of(path)) != expected["sha256"]:
        raise ValueError(f"{path} is damaged: its sha256 is {found}, {MANIFEST} says {expected['sha256']}")


def _read_texts(path: Path) -> list[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
