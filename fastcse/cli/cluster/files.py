"""Rows from an .npy file that stays on the disk, and results that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...errors import InputError

ENDING = ".npy"
FLOATS = ("float16", "float32", "float64")


def open_vectors(path: str) -> np.memmap:
    """The (N, D) rows of an .npy file, as a memory map.

    Raises:
        InputError: no such file, not an .npy file, or not a matrix of floats.
    """
    if Path(path).is_dir():
        raise InputError(f"VECTORS {path!r} is a folder: expected an .npy file")
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"VECTORS {path!r} does not exist: expected an .npy file") from None
    except OSError as error:
        raise InputError(f"VECTORS {path!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"VECTORS {path!r} is not an .npy file of numbers: {error}") from None
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise InputError(f"VECTORS {path!r} is an archive (.npz): expected an .npy file")
    if rows.dtype.name not in FLOATS:
        raise InputError(f"VECTORS {path!r} holds {rows.dtype}: expected {', '.join(FLOATS)}")
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"VECTORS {path!r} has shape {rows.shape}: expected (N, D), one row a point")
    return rows


def output_files(
    vectors: str, output_dir: str | None, labels: str | None, centroids: str | None, overwrite: bool = False
) -> dict[str, Path]:
    """What is written, by name, and where.

    Raises:
        InputError: neither a folder nor files, or both; an unknown ending; a file that would be lost.
    """
    named = {name: Path(file) for name, file in (("labels", labels), ("centroids", centroids)) if file is not None}
    if (output_dir is None) == (not named):
        got = "both" if named else "neither"
        raise InputError(f"expected --output-dir, or --labels and --centroids or one of them, got {got}")
    if output_dir is not None:
        named = {name: Path(output_dir, name + ENDING) for name in ("labels", "centroids")}
    for name, path in named.items():
        if path.suffix != ENDING:
            raise InputError(f"--{name} {str(path)!r} has an unknown ending: expected {ENDING}")
        if path.is_dir():
            raise InputError(f"--{name} {str(path)!r} is a folder: expected a file")
        if path.resolve() == Path(vectors).resolve():
            raise InputError(f"{name} would be written to {str(path)!r}, the file of VECTORS: it would be lost")
        if path.exists() and not overwrite:
            raise InputError(f"--{name} {str(path)!r} exists: add --overwrite to replace it")
    if len({path.resolve() for path in named.values()}) < len(named):
        raise InputError(f"--labels and --centroids are both {str(named['labels'])!r}: expected two files")
    return named


def make_folders(files: Mapping[str, Path]) -> None:
    """Make the folders of what will be written: minutes of work must not end at one that is not there."""
    for folder in {path.parent for path in files.values()}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the output folder {str(folder)!r} cannot be made: {error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise InputError(f"the output folder {str(folder)!r} cannot be written to")


def write_arrays(files: Mapping[str, Path], arrays: Mapping[str, np.ndarray]) -> None:
    """Each array to its file. All are whole before the first takes its name.

    Raises:
        InputError: the disk is full, or refuses.
    """
    aside = {name: path.with_name(path.name + ".part") for name, path in files.items()}
    try:
        for name, part in aside.items():
            with part.open("wb") as file:
                np.save(file, arrays[name], allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        for name, part in aside.items():
            os.replace(part, files[name])
    except OSError as error:
        raise InputError(f"{str(error.filename or files[name])!r} cannot be written: {error.strerror}") from None
    finally:
        for part in aside.values():
            part.unlink(missing_ok=True)
