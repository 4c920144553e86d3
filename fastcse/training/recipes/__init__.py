"""Recipes of the literature: the table, and what they need that no other training does.

`table` (the recipes), `recipe` (what one is), `objectives` (losses beside the package's own), `views` (second views of
a text), `heads` (layers above the encoder while it trains), `queue` and `momentum` (rows of past batches).
"""

from .table import RECIPES, get_recipe

__all__ = ["RECIPES", "get_recipe"]
