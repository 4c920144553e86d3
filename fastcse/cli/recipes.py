"""`fastcse recipes`: the published ways of training that `fastcse train --recipe` knows."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import flag
from ..training.recipes.table import RECIPES, Recipe, get_recipe
from .console import Json, facts_table, one_sentence_errors, show, table


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
    rows = ((one.name, one.objective, f"{one.title}\n{one.paper.url}", one.example) for one in every)
    return table("recipes", ("recipe", "objective", "paper", "run"), (map(escape, row) for row in rows))


def _details(recipe: Recipe) -> list[Table]:
    about = {
        "paper": f"{recipe.title}\n{recipe.paper.url}",
        "objective": recipe.objective,
        "set here": ", ".join(f"{flag(name)} {value}" for name, value in recipe.options.items()),
        "run": recipe.example,
    }
    published = (map(escape, setting) for setting in recipe.settings())
    return [
        facts_table(about, recipe.name),
        table("published", ("setting", "value", "source"), published),
        table("not reproduced", ("",), ([escape(sentence)] for sentence in recipe.not_reproduced)),
    ]
