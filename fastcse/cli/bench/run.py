"""All problems of one command, with progress, files and tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..console import INTERRUPTED, fail, show
from .options import check_target

if TYPE_CHECKING:
    from ...bench.output import Files
    from ...bench.subject import Problem, Result


def run_all(
    problems: Sequence[Problem],
    names: list[str],
    *,
    repeat: int,
    memory: bool,
    json_file: str | None,
    csv: str | None,
    plot: str | None,
    as_json: bool,
    quiet: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """Measure inside `quiet`, write and show; ends with the shell's code for an interrupt where one came."""
    from ...bench import output
    from ...bench.machine import machine
    from ...training.options import check_at_least

    check_at_least("repeat", repeat, 1)
    # Before anything is measured: minutes of work must not end at a folder that is not there.
    for option, file in (("--output", json_file), ("--csv", csv), ("--plot", plot)):
        check_target(option, file)
    if plot:
        import matplotlib  # noqa: F401
    files = output.Files(
        json_file and Path(json_file), csv and Path(csv), machine(problems[0].device),
        " ".join(["fastcse", *sys.argv[1:]]),
    )  # fmt: skip
    with quiet():
        results = _measure_all(problems, names, repeat, memory, files)
    if plot:
        from ...bench.figure import draw

        draw(results, Path(plot))
    report = output.finite(files.document(results))
    show(report, as_json, *map(output.result_table, results), output.legend(results))
    if len(results) < len(problems):
        raise typer.Exit(INTERRUPTED)


def _measure_all(
    problems: Sequence[Problem], names: list[str], repeat: int, memory: bool, files: Files
) -> list[Result]:
    """All results, or those before an interrupt. Files are written after each, so that nothing measured is lost; a
    wrong answer takes them away again, since then no number can be trusted.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ...bench.measure import measure, rounds
    from ...bench.subject import WrongAnswer

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for number, problem in enumerate(problems, 1):
            turns = rounds(problem, repeat)
            text = f"{problem.operation} {problem.size} ({number} of {len(problems)})"
            task = progress.add_task(text, total=(len(names) + 1) * (turns + 2), what="verify")

            def step(what: str, task: Any = task) -> None:
                progress.update(task, advance=1, what=what)

            try:
                results.append(measure(problem, names, repeat=turns, memory=memory, step=step))
            except WrongAnswer as wrong:
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
