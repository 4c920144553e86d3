"""Files of text that are read, and files that are written whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, flag

BLOCK = 1 << 22
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
SHA256 = "_sha256"  # ends the name of what is no option, but the content of the file that an option names


def read_lines(path: str | Path, argument: str) -> list[str]:
    """The lines of a UTF-8 text file, without their ends; a name ending in `.gz` is unpacked.

    Args:
        path:     the file.
        argument: what the caller called it (`--corpus`), for the message.

    Raises:
        InputError: the file is missing, empty, a folder, cut short, damaged, or not UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{argument} {str(path)!r} is a folder: expected a text file")
    if not path.exists():
        raise InputError(f"{argument} {str(path)!r} does not exist: expected a text file")
    try:
        lines = list(_iterate(path))
    except EOFError:
        raise InputError(f"{argument} {str(path)!r} is cut short: its gzip stream has no end") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{argument} {str(path)!r} is damaged or not gzip: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{argument} {str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{argument} {str(path)!r} cannot be read: {error.strerror or error}") from None
    if not any(line.strip() for line in lines):
        raise InputError(f"{argument} {str(path)!r} is empty: expected text")
    return lines


def _iterate(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    # Only "\n" ends a line: a lone "\r", or a Unicode line separator inside a sentence, must not split it.
    # Editors and Excel begin UTF-8 with a byte order mark, which is no part of the first line.
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield line.rstrip("\r\n")


def refuse_tables(path: str | Path, argument: str) -> None:
    """An InputError if the name of a file that is read line by line says that its lines are no sentences."""
    suffix = Path(str(path).removesuffix(".gz")).suffix.lower()
    if suffix in TABLES:
        raise InputError(f"{argument} {str(path)!r} is a {suffix} file: expected plain text, one text a line")


def write_atomic(path: str | Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is whole or not there, also when the machine stops or two processes write it.

    Args:
        path:    the file; its folder must exist.
        content: text, bytes, or a function that fills the open file.

    Raises:
        OSError: the disk is full, or refuses; the file is then as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, document: Any) -> None:
    """Write an object as JSON, whole or not at all. A float that JSON lacks (NaN, infinity) is a ValueError."""
    write_atomic(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any | None:
    """What a JSON file holds, or None where there is none that can be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sha256_of(path: str | Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_same_run(earlier: dict[str, Any], now: dict[str, Any], run: str, remedy: str = "") -> None:
    """Refuse to go on with a run under other options.

    Args:
        earlier: the options of the run that is continued, by name; `<name>_sha256` is the content of a file.
        now:     those of this run. A name that only `earlier` has is not compared.
        run:     what the earlier run is, for the message: "the run that --resume continues".
        remedy:  ends the message.

    Raises:
        InputError: at the first name that differs, with both values.
    """
    for name, value in now.items():
        if earlier.get(name) != value:
            option = name.removesuffix(SHA256)
            what = flag(name) if option == name else f"the sha256 of {flag(option)}"
            raise InputError(f"{what} is {value!r}, but {run} had {earlier.get(name)!r}{remedy}")
