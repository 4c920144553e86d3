"""`fastcse recipes`: the published ways of training that `fastcse train --recipe` knows."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import flag
from ..training.recipes.table import RECIPES, Recipe, get_recipe
from .console import Json, one_sentence_errors, show


@one_sentence_errors
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One recipe whole. (default: a list)")] = None,
    as_json: Json = False,
) -> None:
    """List the training recipes, or show one: its paper, what it published, what is set here and what is not done."""
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
        cells = (recipe.name, recipe.objective, f"{recipe.title}\n{recipe.paper.url}", recipe.example)
        table.add_row(*map(escape, cells))
    return table


def _details(recipe: Recipe) -> list[Table]:
    about = Table(title=recipe.name, title_justify="left", show_header=False)
    about.add_column(style="bold")
    about.add_column(overflow="fold")
    about.add_row("paper", escape(f"{recipe.title}\n{recipe.paper.url}"))
    about.add_row("objective", recipe.objective)
    about.add_row("set here", escape(", ".join(f"{flag(name)} {value}" for name, value in recipe.options.items())))
    about.add_row("run", escape(recipe.example))
    published = Table(title="published", title_justify="left")
    for column in ("setting", "value", "source"):
        published.add_column(column, overflow="fold")
    for setting in recipe.settings():
        published.add_row(*map(escape, setting))
    absent = Table(title="not reproduced", title_justify="left", show_header=False)
    absent.add_column(overflow="fold")
    for sentence in recipe.not_reproduced:
        absent.add_row(escape(sentence))
    return [about, published, absent]
