"""The list of commands, and the entry point. What a command needs is imported when it runs, so `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .bench import bench
from .cluster import cluster
from .console import INTERRUPTED, fail
from .demo import demo
from .eval import evaluate
from .info import info
from .mine import mine
from .plan import plan
from .recipes import recipes
from .train import train

app = typer.Typer(name="fastcse", add_completion=False, pretty_exceptions_enable=False)
app.command("info")(info)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("mine")(mine)
app.command("cluster")(cluster)
app.command("plan")(plan)
app.command("recipes")(recipes)
app.command("demo")(demo)
app.add_typer(bench)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Fused contrastive losses for sentence embeddings: train, evaluate, and see what runs here."""
    if version:
        from .info import fastcse_version

        print(fastcse_version())
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line; a wrong option is one sentence and exit code 2, like every other mistake."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except typer.BadParameter.__base__ as error:  # UsageError: typer brings its own, or click's, by version
        fail(f"{error.format_message().rstrip('.')}; see fastcse --help")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
