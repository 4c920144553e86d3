"""`fastcse bench`: what an operation costs here, beside every peer that is installed."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from ..bench.benchmarks import BENCHMARKS, Benchmark
from ..bench.case import ArrayCase, Case, WrongAnswer, check_device
from ..errors import InputError, OptionError, flag
from ..options import build, check, either, leaves, option, sweep
from .console import INTERRUPTED, Json, fail, quiet_stdout, show
from .options import command

bench = typer.Typer()  # the commands of `fastcse.cli.BenchGroup`
# Steps without a cache run only where they fit into this share of the memory that is free when the command starts.
USUAL_SHARE = 0.5
DOCSTRINGS = "docstrings' first lines"
NOT_MEASURED = "A provider that is not installed, or does not compute the case, is listed with the reason."


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the numbers are written."""

    output: str | None = option(None, "Write all numbers here as JSON.", metavar="FILE")
    plot: str | None = option(None, "Draw time, memory and accuracy (PNG).", metavar="FILE")

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Run(Files):
    """Who is measured, and how often."""

    peers: str = option("all", "all, or names with commas.", metavar="NAMES")
    repeat: int = option(5, "Rounds in which everyone is timed once; more where N is small.", least=1)
    memory: bool = option(True, "Measure the memory of each provider, from N = 2048 on.")


@dataclass(frozen=True)
class TrainRun(Files):
    """The same of training steps, and the text that they train on."""

    stage: str = option("step", "step: all of it; loss: between the two passes.", choices=("step", "loss"))
    corpus: str | None = option(None, "Sentences, one a line.", metavar="FILE", shown="out of docstrings")
    memory_limit_gib: float | None = option(
        None, "Steps without a cache only where they fit.", above=0, shown="half of what is free"
    )
    peers: str = option("all", "all, or names with commas.", metavar="NAMES", flag="--providers")
    repeat: int = option(3, "Steps, in which everyone is timed once.", least=1, flag="--steps")
    memory: bool = True


def _add(name: str, benchmark: Benchmark) -> None:
    @command(benchmark.case, Run, repeat=benchmark.repeat)
    def measured(given: dict, as_json: Json = False) -> None:
        run = build(Run, _own(Run, given))
        run_all(benchmark, sweep(benchmark.case, given | device_and_dtype(given)), run, as_json)

    measured.__doc__ = f"{benchmark.about}\n\n{NOT_MEASURED}"
    bench.command(name)(measured)


for _name, _benchmark in BENCHMARKS.items():
    if not _name.startswith("train"):
        _add(_name, _benchmark)


@bench.command()
@command(BENCHMARKS["train"].case, BENCHMARKS["train --stage loss"].case, TrainRun)
def train(given: dict, as_json: Json = False) -> None:
    """One training step, GradCache or plain, beside sentence-transformers': sentences a second, memory, the loss.

    A pair is a sentence twice. Every provider has a process of its own; no number is reported where their losses or
    gradients differ without dropout.
    """
    run = build(TrainRun, _own(TrainRun, given))
    benchmark = BENCHMARKS["train" if run.stage == "step" else "train --stage loss"]
    cases = sweep(benchmark.case, given | device_and_dtype(given))
    if run.stage == "loss":
        return run_all(benchmark, cases, run, as_json)
    with tempfile.TemporaryDirectory() as folder:
        run_all(benchmark, _with_texts(cases, Path(folder) / "sentences.txt", run), run, as_json)


def _own(options: type, given: dict[str, Any]) -> dict[str, Any]:
    """What is given of these options."""
    return {leaf.name: given[leaf.name] for leaf in leaves(options) if leaf.name in given}


def device_and_dtype(given: dict[str, Any]) -> dict[str, str]:
    """Device and type of the rows, chosen where the user did not."""
    import torch

    from ..ops.dispatch import check_backend

    check_backend(given.get("backend"))
    device = given.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", f" is {device}, and torch finds no GPU here")
    return {"device": device, "dtype": given.get("dtype") or ("float32" if device == "cpu" else "bfloat16")}


def _with_texts(cases: list[Case], texts: Path, run: TrainRun) -> list[Case]:
    """Cases of a step with the file of their sentences, which is written here."""
    from ..bench.memory import GIB, free_bytes

    found = _sentences(run.corpus)
    source = DOCSTRINGS if run.corpus is None else Path(run.corpus).name
    if (largest := max(case.n for case in cases)) > len(found):
        raise OptionError("n", f" is {largest} and {source} has {len(found)} distinct sentences: expected no more")
    texts.write_text("\n".join(found[:largest]) + "\n", encoding="utf-8")
    limit = run.memory_limit_gib
    allowed = int(limit * GIB) if limit is not None else int(USUAL_SHARE * (free_bytes(cases[0].device) or 8 * GIB))
    return [replace(case, texts=str(texts), corpus=source, memory_limit=allowed) for case in cases]


def _sentences(corpus: str | None) -> list[str]:
    """Distinct, each on one line."""
    if corpus is None:
        from .demo_text import collect_pairs

        texts: Iterable[str] = (pair.summary for pair in collect_pairs())
    else:
        from ..training.data import read_corpus

        texts = read_corpus(corpus)["anchor"]
    return list(dict.fromkeys(" ".join(text.split()) for text in texts))


def run_all(benchmark: Benchmark, cases: Sequence[Case], run: Run | TrainRun, as_json: bool) -> None:
    """Measure, write and show; ends with the shell's code for an interrupt where one came."""
    from ..bench import output
    from ..bench.environment import environment

    providers = _chosen(benchmark, run.peers)
    # Before anything is measured: minutes of work must not end at a folder that is not there.
    for name in ("output", "plot"):
        _check_target(flag(name), getattr(run, name))
    if run.plot:
        import matplotlib  # noqa: F401
    made = output.Document(" ".join(["fastcse", *sys.argv[1:]]), environment(cases[0].device), [])
    # Of rows alone no library is loaded that prints.
    with contextlib.nullcontext() if isinstance(cases[0], ArrayCase) else quiet_stdout():
        _measure_all(cases, providers, run, made)
    if run.plot:
        output.draw(made.results, run.plot)
    show(made.labels(), as_json, *map(output.result_table, made.results), output.legend(made.results))
    if len(made.results) < len(cases):
        raise typer.Exit(INTERRUPTED)


def _measure_all(cases: Sequence[Case], providers: list, run: Run | TrainRun, made: Any) -> None:
    """All results, or those before an interrupt. The file is written after each, so that nothing measured is lost; a
    wrong answer removes it again, since then no number can be trusted.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..bench.measure import measure, rounds
    from ..bench.output import write_results

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for number, case in enumerate(cases, 1):
            repeat = rounds(case, run.repeat)
            total = (len(providers) + 1) * (repeat + 2)
            text = f"{case.operation} {case.size} ({number} of {len(cases)})"
            task = progress.add_task(text, total=total, what="verify")

            def step(what: str, task: Any = task) -> None:
                progress.update(task, advance=1, what=what)

            try:
                made.results.append(measure(case, providers, repeat=repeat, memory=run.memory, step=step))
            except WrongAnswer as wrong:
                if made.results and run.output:
                    Path(run.output).unlink(missing_ok=True)
                fail(str(wrong))
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                if not made.results:
                    raise
                print(f"Stopped after {len(made.results)} of {len(cases)} problems.", file=sys.stderr)
                return
            if run.output:
                write_results(run.output, made)
            progress.update(task, completed=total, what="done")


def _chosen(benchmark: Benchmark, text: str) -> list:
    """The chosen providers, and those that are always measured: fastcse is what the others are held against, and eager
    may be the yardstick of its rule."""
    known = benchmark.providers
    names = [name.strip() for name in text.split(",")] if text != "all" else known
    for name in names:
        if name not in known:
            raise OptionError("peers", f" {name!r} is unknown: expected {either(known)}")
    always = benchmark.case.always if text != "all" else ()
    return [known[name] for name in dict.fromkeys((*always, *names))]


def _check_target(option: str, file: str | None) -> None:
    """Make the folder of a file that will be written, or say why it cannot be."""
    if file is None:
        return
    if Path(file).is_dir():
        raise InputError(f"{option} {file!r} is a folder: expected a file")
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {file!r}: its folder cannot be made: {error.strerror}") from None
