"""`fastcse recipes`: the published ways of training that `fastcse train --recipe` knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .console import Json, one_sentence_errors, show

if TYPE_CHECKING:
    from ..training.recipes.recipe import Recipe


@one_sentence_errors
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One recipe whole. (default: a list)")] = None,
    as_json: Json = False,
) -> None:
    """List the training recipes, or show one: its paper, what it published, what is set here and what is not done."""
    from ..training.recipes import RECIPES, get_recipe

    if name is None:
        show({"recipes": [recipe.as_dict() for recipe in RECIPES.values()]}, as_json, _list(list(RECIPES.values())))
    else:
        recipe = get_recipe(name)
        show(recipe.as_dict(), as_json, *_details(recipe))


def _list(every: list[Recipe]) -> Table:
    table = Table(title="recipes", title_justify="left")
    for column in ("recipe", "objective", "paper", "run"):
        table.add_column(column, overflow="fold")
    for recipe in every:
        cells = (recipe.name, recipe.objective, f"{recipe.title}\n{recipe.url}", recipe.example)
        table.add_row(*map(escape, cells))
    return table


def _details(recipe: Recipe) -> list[Table]:
    about = Table(title=recipe.name, title_justify="left", show_header=False)
    about.add_column(style="bold")
    about.add_column(overflow="fold")
    about.add_row("paper", escape(f"{recipe.title}\n{recipe.url}"))
    about.add_row("objective", recipe.objective)
    about.add_row("set here", escape(", ".join(f"{k} {v}" for k, v in _flat(recipe.options))))
    about.add_row("run", escape(recipe.example))
    published = Table(title="published", title_justify="left")
    for column in ("setting", "value", "source"):
        published.add_column(column, overflow="fold")
    for setting in recipe.published:
        published.add_row(*map(escape, (setting.name, setting.value, setting.source)))
    absent = Table(title="not reproduced", title_justify="left", show_header=False)
    absent.add_column(overflow="fold")
    for sentence in recipe.not_reproduced:
        absent.add_row(escape(sentence))
    return [about, published, absent]


def _flat(options: dict) -> list[tuple[str, object]]:
    """Options with their dictionaries unfolded, under the names of the command line."""
    pairs = []
    for name, value in options.items():
        pairs += _flat(value) if isinstance(value, dict) else [(f"--{name.replace('_', '-')}", value)]
    return pairs
