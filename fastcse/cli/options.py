"""A command line from a dataclass of options: every field of `fastcse.options` becomes a parameter of typer's."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import MISSING
from typing import Annotated, Any

import typer

from ..errors import InputError, OptionError, flag
from ..options import Leaf, leaves, usual
from .console import one_sentence_errors, real, whole

PARSERS = {int: (whole, "INT"), float: (real, "FLOAT")}
SEVERAL = "One, or several with commas."


def command(*options: type, **defaults: Any) -> Callable[[Callable], Callable]:
    """Makes `function(given, **others)` a command whose parameters are the options, and then the function's own others.

    `given` holds the options that the user typed, by name: `fastcse.options.build` makes the tree of them, or `sweep` a
    list of trees. `defaults` are those of this command, which `given` then holds too. A name of several `options` is
    one option. A mistake ends in one sentence that spells options as flags.
    """
    found: dict[str, Leaf] = {}
    for leaf in itertools.chain(*map(leaves, options)):
        found.setdefault(leaf.name, leaf._replace(default=defaults.get(leaf.name, leaf.default)))
    known = list(found.values())
    flags = {leaf.name: leaf.rule.metavar or leaf.name.upper() if leaf.rule.argument else _flag(leaf) for leaf in known}

    def decorate(function: Callable) -> Callable:
        _, *others = inspect.signature(function, eval_str=True).parameters.values()

        @functools.wraps(function)
        def wrapped(**values):
            given = {leaf.name: values.pop(leaf.name) for leaf in known}
            given = defaults | {name: value for name, value in given.items() if value is not None}
            try:
                return function(given, **values)
            except OptionError as error:
                raise InputError(error.spelled(flags)) from None

        parameters = [_parameter(leaf) for leaf in known]
        parameters += [other.replace(kind=inspect.Parameter.KEYWORD_ONLY) for other in others]
        wrapped.__signature__ = inspect.Signature(parameters)
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return one_sentence_errors(wrapped)

    return decorate


def _flag(leaf: Leaf) -> str:
    return leaf.rule.flag or flag(leaf.name)


def _parameter(leaf: Leaf) -> inspect.Parameter:
    """A parameter that is None where the user typed nothing, so that a recipe, or another option, can decide."""
    default = usual(leaf) if leaf.rule.several else leaf.default
    rule, must, kind = leaf.rule, default is MISSING, leaf.type
    shown = rule.shown or (None if default in (None, MISSING) or kind is bool else f"{default}")
    common = {"help": rule.help, "rich_help_panel": rule.panel, "show_default": shown or False}
    if rule.several:
        words = f" {', '.join(rule.choices)}." if rule.choices else ""
        common |= {"help": f"{rule.help}{words} {SEVERAL}", "metavar": "NAMES" if kind is str else "INTS"}
        kind = str
    elif kind in PARSERS:
        common["parser"], common["metavar"] = PARSERS[kind]
    if rule.metavar or (rule.choices and not rule.several):
        common["metavar"] = rule.metavar or "|".join(rule.choices)
    if rule.argument:
        made = typer.Argument(**common)
    elif leaf.type is bool:
        spelled = _flag(leaf)
        made = typer.Option(f"{spelled}/--no-{spelled[2:]}" if leaf.default else spelled, **common)
    else:
        made = typer.Option(_flag(leaf), **common)
    annotation = Annotated[kind if must else kind | None, made]
    absent = inspect.Parameter.empty if must else None
    return inspect.Parameter(leaf.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=absent)
