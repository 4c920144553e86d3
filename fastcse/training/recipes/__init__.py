"""Recipes of the literature: the table, and what they need that no other training does.

`table` (the recipes), `views` (second views of a text), `heads` (layers above the encoder while it trains) and `queue`
(negatives of past batches, made by a momentum encoder).
"""

from .table import RECIPES, get_recipe

__all__ = ["RECIPES", "get_recipe"]
