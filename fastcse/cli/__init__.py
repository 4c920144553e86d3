"""The command line, `fastcse`. What a command needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import cluster, demo, eval, info, mine, plan, recipes, train
from .console import INTERRUPTED, fail


class BenchGroup(TyperGroup):
    """The commands of `fastcse bench`, whose options are fields of its cases: imported where one is listed or run."""

    def list_commands(self, context: Any) -> list[str]:
        self._load()
        return super().list_commands(context)

    def get_command(self, context: Any, name: str) -> Any:
        self._load()
        return super().get_command(context, name)

    def _load(self) -> None:
        if not self.commands:
            from .bench import bench

            self.commands = typer.main.get_group(bench).commands


app = typer.Typer(name="fastcse", add_completion=False, pretty_exceptions_enable=False)
app.command("info")(info.info)
app.command("train")(train.train)
app.command("eval")(eval.evaluate)
app.command("mine")(mine.mine)
app.command("cluster")(cluster.cluster)
app.command("plan")(plan.plan)
app.command("recipes")(recipes.recipes)
app.command("demo")(demo.demo)
measured = "Measure an operation beside every peer that is installed."
app.add_typer(typer.Typer(name="bench", cls=BenchGroup, help=measured, no_args_is_help=True))


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Fused contrastive losses for sentence embeddings: train, evaluate, and see what runs here."""
    if version:
        print(info.fastcse_version())
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
