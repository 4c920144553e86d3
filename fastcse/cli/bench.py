"""`fastcse bench`: what an operation costs here, beside every peer that is installed."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluation.files import InputError
from .console import INTERRUPTED, Backend, Json, fail, one_sentence_errors, real_option, show, whole_option

if TYPE_CHECKING:
    from ..bench.measure import Result
    from ..bench.output import Files
    from ..bench.problem import LossProblem

bench = typer.Typer(name="bench", help="Measure an operation beside every peer that is installed.",
                    no_args_is_help=True, add_completion=False)  # fmt: skip
LIST = "One, or several with commas"


@bench.command("loss")
@one_sentence_errors
def loss(
    n: Annotated[str, typer.Option(metavar="INTS", help=f"Anchors. {LIST}.")] = "512,2048,8192",
    m: Annotated[int | None, whole_option("Candidates; by default as many as anchors.")] = None,
    d: Annotated[str, typer.Option(metavar="INTS", help=f"Width of a row. {LIST}.")] = "768",
    loss: Annotated[str, typer.Option(metavar="NAMES", help=f"infonce, focal, symmetric. {LIST}.")] = "infonce",
    dtype: Annotated[str | None, typer.Option(metavar="NAME", help="float32, bfloat16 or float16; by default float32 "
                                              "on the CPU, bfloat16 on a GPU.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu or cuda; by default a GPU if there is "
                                               "one.")] = None,
    data: Annotated[str, typer.Option(metavar="NAMES", help=f"random, clustered, anisotropic. {LIST}.")] = "clustered",
    stage: Annotated[str, typer.Option(metavar="NAMES", help=f"early or late in training. {LIST}.")] = "early",
    mode: Annotated[str, typer.Option(metavar="NAME", help="full (forward and backward) or no-grad-forward.")] = "full",
    temperature: Annotated[float, real_option("Temperature of the loss.")] = 0.05,
    peers: Annotated[str, typer.Option(metavar="NAMES", help="all, or names with commas.")] = "all",
    backend: Backend = None,
    repeat: Annotated[int, whole_option("Rounds in which everyone takes a turn; more where N is small.")] = 7,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Weigh each provider, from N = 2048 on.")] = True,
    seed: Annotated[int, whole_option("Seed of the rows.")] = 0,
    json_file: Annotated[str | None, typer.Option("--output", metavar="FILE", help="Write all numbers here as "
                                                  "JSON.")] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write them with Liger-Kernel's columns.")] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw time, memory and accuracy (PNG).")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Contrastive losses: time, TFLOP/s, memory, and accuracy against float64, taken in turns in one run.

    A provider that is not installed, or does not compute the problem, is listed with the reason.
    """
    from ..bench import output
    from ..bench.machine import machine
    from ..training.options import check_at_least

    problems = _problems(loss=loss, n=n, m=m, d=d, data=data, stage=stage, dtype=dtype, device=device, mode=mode,
                         temperature=temperature, seed=seed, backend=backend)  # fmt: skip
    check_at_least("repeat", repeat, 1)
    # Before anything is measured: minutes of work must not end at a folder that is not there.
    for option, file in (("--output", json_file), ("--csv", csv), ("--plot", plot)):
        _check_target(option, file)
    if plot:
        import matplotlib  # noqa: F401
    files = output.Files(
        json_file and Path(json_file), csv and Path(csv), machine(problems[0].device),
        " ".join(["fastcse", *sys.argv[1:]]),
    )  # fmt: skip
    results = _measure_all(problems, _names(peers), repeat, memory, files)
    if plot:
        from ..bench.figure import draw

        draw(results, Path(plot))
    report = output.finite(files.document(results))
    show(report, as_json, *map(output.result_table, results), output.legend(results))
    if len(results) < len(problems):
        raise typer.Exit(INTERRUPTED)


def _check_target(option: str, file: str | None) -> None:
    if file is None:
        return
    if Path(file).is_dir():
        raise InputError(f"{option} {file!r} is a folder: expected a file")
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {file!r}: its folder cannot be made: {error.strerror}") from None


def _problems(*, loss, n, m, d, data, stage, dtype, device, mode, temperature, seed, backend) -> list[LossProblem]:
    import torch

    from ..bench.data import KINDS, STAGES
    from ..bench.problem import DTYPES, LOSSES, MODES, LossProblem
    from ..training.options import check_backend

    check_backend(backend)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _one_of("--device", device.partition(":")[0], ("cpu", "cuda"))
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device is {device}, and torch finds no GPU here")
    dtype = dtype or ("bfloat16" if torch.device(device).type == "cuda" else "float32")
    _one_of("--dtype", dtype, DTYPES), _one_of("--mode", mode, MODES)
    if not 0 < temperature < float("inf"):
        raise InputError(f"--temperature must be above 0, got {temperature}")
    losses, kinds, stages = (
        [_one_of(option, x, known) for x in text.split(",")]
        for option, text, known in (("--loss", loss, LOSSES), ("--data", data, KINDS), ("--stage", stage, STAGES))
    )
    problems = []
    for which, rows, width, kind, when in product(losses, _sizes("--n", n), _sizes("--d", d), kinds, stages):
        columns = rows if m is None else m
        try:
            problem = LossProblem(rows, columns, width, which, dtype, device, kind, when, mode, temperature, seed=seed,
                                  backend=backend)  # fmt: skip
        except ValueError as error:
            raise InputError(f"--m is {columns} and --n is {rows}: {error}") from None
        problems.append(problem)
    return problems


def _sizes(option: str, text: str) -> list[int]:
    try:
        sizes = [int(x) for x in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}: expected whole numbers with commas between them") from None
    if min(sizes) < 1:
        raise InputError(f"{option} is {text}: each must be at least 1")
    return sizes


def _one_of(option: str, value: str, known: Any) -> str:
    if value not in known:
        raise InputError(f"{option} is {value!r}: expected one of {', '.join(known)}")
    return value


def _names(text: str) -> list[str]:
    from ..bench.peers import PEERS

    if text == "all":
        return list(PEERS)
    chosen = [_one_of("--peers", name.strip(), PEERS) for name in text.split(",")]
    # fastcse is what the others are held against, and eager is its yardstick.
    return list(dict.fromkeys(["fastcse", "eager", *chosen]))


def _measure_all(
    problems: list[LossProblem], names: list[str], repeat: int, memory: bool, files: Files
) -> list[Result]:
    """All results, or those before an interrupt. Files are written after each, so that nothing measured is lost; a
    wrong gradient takes them away again, since then no number can be trusted.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..bench.measure import WrongGradient, measure, rounds

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for number, problem in enumerate(problems, 1):
            turns = rounds(problem, repeat)
            text = f"{problem.loss} N = {problem.n}, D = {problem.d} ({number} of {len(problems)})"
            task = progress.add_task(text, total=(len(names) + 1) * (turns + 2), what="verify")

            def step(what: str, task: Any = task) -> None:
                progress.update(task, advance=1, what=what)

            try:
                results.append(measure(problem, names, repeat=turns, memory=memory, step=step))
            except WrongGradient as wrong:
                if results:
                    files.remove()
                fail(str(wrong))
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                if not results:
                    raise
                print(f"Stopped after {len(results)} of {len(problems)} problems.", file=sys.stderr)
                return results
            files.write(results)
            progress.update(task, completed=(len(names) + 1) * (turns + 2), what="done")
    return results
