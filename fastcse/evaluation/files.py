"""Text files of the caller, plain or gzip. Whatever is wrong with one is said in one sentence."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """A mistake in what the caller passed, in one sentence that names the argument and what came.

    The command line prints it and ends with exit code 2; anything else that is raised is ours, and keeps its traceback.
    """


class RunError(RuntimeError):
    """What ended a run from outside, a full disk or a lost process, in one sentence. The command line prints it and
    ends with exit code 1."""


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
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.rstrip("\r\n")
