"""Options that the benchmarks share, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InputError
from ..console import whole_option

LIST = "One, or several with commas"

Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="float32, bfloat16 or float16; by default float32 on the CPU, bfloat16 on a GPU."
    ),
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="cpu or cuda; by default a GPU if there is one.")]
Data = Annotated[str, typer.Option(metavar="NAMES", help=f"random, clustered, anisotropic. {LIST}.")]
Peers = Annotated[str, typer.Option(metavar="NAMES", help="all, or names with commas.")]
Repeat = Annotated[int, whole_option("Rounds in which everyone takes a turn; more where N is small.")]
Memory = Annotated[bool, typer.Option("--memory/--no-memory", help="Weigh each provider, from N = 2048 on.")]
Seed = Annotated[int, whole_option("Seed of the rows.")]
JsonFile = Annotated[str | None, typer.Option("--output", metavar="FILE", help="Write all numbers here as JSON.")]
CsvFile = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write them with Liger-Kernel's columns.")]
PlotFile = Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw time, memory and accuracy (PNG).")]


def sizes(option: str, text: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        found = [int(x) for x in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}: expected whole numbers with commas between them") from None
    if min(found) < 1:
        raise InputError(f"{option} is {text}: each must be at least 1")
    return found


def one_of(option: str, value: str, known: Any) -> str:
    """The value, if it is known."""
    if value not in known:
        raise InputError(f"{option} is {value!r}: expected one of {', '.join(known)}")
    return value


def place(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Device and type of the rows, chosen where the caller did not."""
    import torch

    from ...bench.problem import DTYPES

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    one_of("--device", device.partition(":")[0], ("cpu", "cuda"))
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device is {device}, and torch finds no GPU here")
    return device, one_of("--dtype", dtype or ("float32" if device == "cpu" else "bfloat16"), DTYPES)


def names(text: str, known: Iterable[str], always: Iterable[str], option: str = "--peers") -> list[str]:
    """The chosen peers, and `always`: fastcse is what the others are held against, or the yardstick of a rule."""
    if text == "all":
        return list(known)
    chosen = [one_of(option, name.strip(), known) for name in text.split(",")]
    return list(dict.fromkeys([*always, *chosen]))


def check_target(option: str, file: str | None) -> None:
    """Make the folder of a file that will be written, or say why it cannot be."""
    if file is None:
        return
    if Path(file).is_dir():
        raise InputError(f"{option} {file!r} is a folder: expected a file")
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {file!r}: its folder cannot be made: {error.strerror}") from None
