"""What a run leaves on the disk: the output, a report beside it, and a cache of embeddings until it is finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import InputError
from .options import EMBEDDING, TEXT, MineOptions, check_same_run

MANIFEST = "fastcse_mine.json"  # in the cache: which run it belongs to, and that it is ours to remove

SHARDS = "*.npy"


class Workspace:
    """The files of one run. A file appears whole or not at all, because it is written aside and renamed.

    Raises:
        InputError: the output is a folder or stands in none, or is there already; a cache of an earlier run that the
            options do not mention; one that `resume` cannot continue.
    """

    def __init__(self, options: MineOptions):
        self.options = options
        self.output = Path(options.output)
        self.report = self.output.with_name(self.output.name + ".report.json")
        self.kept = options.cache_folder is not None
        self.cache = Path(options.cache_folder) if self.kept else self.output.with_name(self.output.name + ".cache")
        if self.output.is_dir():
            raise InputError(f"--output {options.output!r} is a folder: expected a file")
        if not self.output.parent.is_dir():
            raise InputError(f"--output {options.output!r}: its folder {str(self.output.parent)!r} does not exist")
        for name in TEXT:
            source = getattr(options, name)
            if source is not None and self.output.exists() and Path(source).exists() and self.output.samefile(source):
                raise InputError(f"--output {options.output!r} is the file of --{name}: it would be lost")
        if self.cache.exists() and not (self.cache.is_dir() and (self.kept or self._unfinished() is not None)):
            raise InputError(f"{str(self.cache)!r} is in the way of the cache: move it, or name another --cache-folder")

    def _unfinished(self) -> dict[str, Any] | None:
        """The identity of the run that the default cache belongs to."""
        return _json(self.cache / MANIFEST)

    def finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The report of the run if `resume` finds it finished, or None if there is work to do."""
        name, options = self.options.output, self.options
        unfinished = None if self.kept else self._unfinished()
        if self.output.exists() and not options.overwrite:
            if not options.resume:
                raise InputError(f"--output {name!r} exists: add --overwrite to replace it")
            report = _json(self.report)
            if report is None and unfinished is None:
                raise InputError(f"--resume finds --output {name!r} without its {self.report.name}: add --overwrite "
                                 "instead to replace it")  # fmt: skip
            if report is not None and report["output_sha256"] == _digest(self.output):
                remedy = ": add --overwrite instead of --resume to replace it"
                check_same_run(report["options"], identity, f"the run that made --output {name!r}", remedy)
                return report
        if unfinished is None and options.resume and not self.kept:
            raise InputError(f"--resume finds no unfinished run of --output {name!r}: leave it out to start one")
        if unfinished is not None and not (options.resume or options.overwrite):
            raise InputError(f"--output {name!r} has an unfinished run in {self.cache.name!r}: add --resume to go on "
                             "with it, or --overwrite to start anew")  # fmt: skip
        if unfinished is not None and options.resume:
            needed = {name: value for name, value in identity.items() if name in EMBEDDING}
            check_same_run(unfinished, needed, "the run that --resume continues")
        return None

    def start(self, identity: dict[str, Any]) -> Path:
        """Make the cache, or take over that of the run that is continued, and return its folder."""
        try:
            if not self.kept and self.options.overwrite and self.cache.exists():
                shutil.rmtree(self.cache)
            self.cache.mkdir(parents=True, exist_ok=True)
            if not self.kept:
                write_whole(self.cache / MANIFEST, _as_json(identity))
        except OSError as error:
            raise InputError(f"the cache {str(self.cache)!r} cannot be written: {error.strerror}") from None
        return self.cache

    def leave(self) -> bool:
        """Remove a cache that holds no embeddings yet, and say whether there is something to go on from."""
        encoded = any(self.cache.rglob(SHARDS))
        if not (encoded or self.kept):
            shutil.rmtree(self.cache, ignore_errors=True)
        return encoded

    def finish(self, write: Callable[[BinaryIO], None], report: dict[str, Any]) -> dict[str, Any]:
        """Write the output, then the report, then remove the cache that nobody asked to keep."""
        digest = write_whole(self.output, write)
        report = {**report, "output_sha256": digest}
        write_whole(self.report, _as_json(report))
        if not self.kept:
            shutil.rmtree(self.cache)
        return report


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> str:
    """Let `write` fill a file aside, give it its name when it is whole, and return its sha256."""
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        digest = _digest(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return digest


def _as_json(document: dict[str, Any]) -> Callable[[BinaryIO], None]:
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    return lambda file: file.write(text.encode())


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
