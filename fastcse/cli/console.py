"""What every command shares: one-sentence errors, JSON or a table on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, OptionError, RunError

EXTRAS = {
    "sentence_transformers": "train", "transformers": "train", "datasets": "train", "accelerate": "train",
    "scipy": "train", "matplotlib": "train", "tqdm": "train", "huggingface_hub": "train", "faiss": "mining",
}  # fmt: skip
INTERRUPTED = 130  # the shell's code for Ctrl-C
BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def whole(text: str | int) -> int:
    """A whole number from the command line: 65536, 1e9, 2.5e6, or with k, M, G in powers of 1024."""
    text = str(text)  # some versions of typer send defaults through here too
    unit = BINARY.get(text[-1:].lower(), 1)
    try:
        value = Decimal(text[:-1] if unit > 1 else text) * unit
        if value == value.to_integral_value():
            return int(value)
    except (InvalidOperation, OverflowError, ValueError):
        pass
    raise typer.BadParameter(f"{text!r} is not a whole number")


def real(text: str) -> float:
    """A number from the command line."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]


def fail(message: str) -> None:
    """Print one sentence on stderr, as plain text: a path may hold what rich would take for markup."""
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)


def one_sentence_errors(command: Callable) -> Callable:
    """A command whose caller's mistakes end in one sentence and exit code 2; ours keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except OptionError as error:
            fail(error.spelled({}))
        except InputError as error:
            fail(str(error))
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            extra = f"pip install 'fastcse[{EXTRAS[error.name]}]'"
            fail(f"this command needs {error.name}, which is not installed: {extra}")
        except RunError as error:
            fail(str(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(2) from None

    return wrapped


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what libraries print to stderr, and silence their own progress bars: ours show the whole job."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        # Libraries warn one another of names to come; a user can do nothing about it.
        warnings.simplefilter("ignore", FutureWarning)
        yield


def show(result: dict[str, Any], as_json: bool, *pictures: RenderableType) -> None:
    """Print the result: JSON alone, or the tables."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    console = Console()
    for picture in pictures:
        console.print(picture)


def table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], totals: Iterable[Iterable[str]] = ()
) -> Table:
    """Rows of cells in rich's markup, totals below a line. A column whose name begins with ">" is justified right."""
    made = Table(title=title, title_justify="left", show_header=any(columns))
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    made.add_section()
    for row in totals:
        made.add_row(*row)
    return made


def facts_table(facts: dict[str, str], title: str | None = None) -> Table:
    """Two columns without a frame, names and values, both plain text."""
    made = Table(title=title, title_justify="left", show_header=False, box=None)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in facts.items():
        made.add_row(escape(name), escape(value))
    return made


def shown(value: float | None, digits: int = 2) -> str:
    """A number for a table cell."""
    return "-" if value is None else f"{value:.{digits}f}"
