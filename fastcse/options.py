"""Options of a command or a function as fields of a dataclass: name, type, default, help and range are typed once.

The command line (`fastcse.cli.options`), the check, the sentence of an error and the JSON of a run come from them.
A field that holds another such dataclass is a part of the tree; names are unique over the whole tree.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING
from numbers import Integral, Real
from typing import Any, NamedTuple

from .errors import OptionError


class Rule(NamedTuple):
    """How one option reads, and what it may be.

    `least` and `most` are in the range, `above` is not; a float is finite. `choices` are the words of a string. `shown`
    is the default in words, where it follows from other options. `flag` is the spelling on the command line where it
    is not the name, `metavar` what stands for the value there, `panel` the heading under which it is listed; an
    `argument` has no flag.
    """

    help: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None
    shown: str | None = None
    flag: str | None = None
    metavar: str | None = None
    panel: str | None = None
    argument: bool = False
    several: str | bool = False


def option(default: Any = MISSING, help: str = "", **rule: Any) -> Any:
    """A field of a dataclass that is an option; without `default` it must be given. `rule`: see `Rule`."""
    return dataclasses.field(default=default, metadata={"rule": Rule(help, **rule)})


def part(options: type) -> Any:
    """A field of a dataclass that holds further options, by default with all their defaults.

    A field of type `Inner | None` with the plain default None is a part that `build` makes only where one of its
    options is given.
    """
    return dataclasses.field(default_factory=options)


class Leaf(NamedTuple):
    """One option of a tree."""

    name: str
    type: type
    optional: bool
    default: Any
    rule: Rule


@functools.cache
def _own(options: type) -> tuple[tuple[dataclasses.Field, type, bool], ...]:
    """The fields of a dataclass with their types, and whether they may be None."""
    hints, found = typing.get_type_hints(options), []
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        several = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = [kind for kind in several if kind is not type(None)]
        found.append((field, kinds[0], len(kinds) < len(several)))
    return tuple(found)


def leaves(options: type) -> Iterator[Leaf]:
    """Every option of the tree, in the order of its fields; those that are keyword-only come last."""
    for field, kind, optional in sorted(_own(options), key=lambda own: own[0].kw_only):
        if "rule" in field.metadata:
            yield Leaf(field.name, kind, optional, field.default, field.metadata["rule"])
        elif dataclasses.is_dataclass(kind):
            yield from leaves(kind)


def build(options: type, given: Mapping[str, Any]) -> Any:
    """The tree with the values that are given by name, and defaults for the rest. Unknown names are a TypeError."""
    known = {leaf.name for leaf in leaves(options)}
    if unknown := sorted(set(given) - known):
        raise TypeError(f"{options.__name__} has no option {unknown[0]!r}: expected one of {', '.join(sorted(known))}")
    return _build(options, given)


def _build(options: type, given: Mapping[str, Any]) -> Any:
    values = {}
    for field, kind, optional in _own(options):
        if "rule" not in field.metadata and dataclasses.is_dataclass(kind):
            if not optional or any(leaf.name in given for leaf in leaves(kind)):
                values[field.name] = _build(kind, given)
        elif field.name in given:
            values[field.name] = given[field.name]
    return options(**values)


def flat(options: Any) -> dict[str, Any]:
    """All options of a tree, by name."""
    values = {}
    for field, _, _ in _own(type(options)):
        value = getattr(options, field.name)
        if "rule" in field.metadata:
            values[field.name] = value
        elif dataclasses.is_dataclass(value):
            values |= flat(value)
    return values


def sweep(options: type, given: Mapping[str, Any]) -> list[Any]:
    """An object for each combination of the options that take several values: words outermost, in the order of fields.

    Args:
        given: values by name, text with commas for an option that takes several; names of other options are left out.

    Raises:
        OptionError: a text that is no list of whole numbers, or a value outside its range.
    """
    known = list(leaves(options))
    several = sorted((leaf for leaf in known if leaf.rule.several), key=lambda leaf: leaf.type is not str)
    given = {leaf.name: given[leaf.name] for leaf in known if leaf.name in given}
    lists = [_values(leaf, given.get(leaf.name)) for leaf in several]
    names = [leaf.name for leaf in several]
    return [build(options, {**given, **dict(zip(names, chosen))}) for chosen in itertools.product(*lists)]


def usual(leaf: Leaf) -> Any:
    """The values of an option that takes several, where none are typed."""
    return leaf.rule.several if isinstance(leaf.rule.several, str) else leaf.default


def _values(leaf: Leaf, text: str | None) -> list[Any]:
    parts = str(usual(leaf) if text is None else text).split(",")
    try:
        return [leaf.type(part.strip()) for part in parts]
    except ValueError:
        raise OptionError(leaf.name, f" is {text!r}: expected whole numbers with commas between them") from None


def check(options: Any) -> None:
    """Hold the options of one dataclass to their rules; called by its `__post_init__`.

    Raises:
        OptionError: a value of another type or outside its range, named with its option.
    """
    for field, kind, optional in _own(type(options)):
        if "rule" in field.metadata:
            value = getattr(options, field.name)
            if not (value is None and optional):
                _check_one(field.name, value, kind, field.metadata["rule"])


def _check_one(name: str, value: Any, kind: type, rule: Rule) -> None:
    if rule.choices is not None and value not in rule.choices:
        raise OptionError(name, f" {value!r} is unknown: expected {either(rule.choices)}")
    if kind is int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise OptionError(name, f" is {value!r}: expected a whole number")
    if kind is float:
        bound = "" if rule.above is None else f" above {rule.above:g}"
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise OptionError(name, f" is {value!r}: expected a finite number{bound}")
        if rule.above is not None and value <= rule.above:
            raise OptionError(name, f" is {value}: expected a finite number{bound}")
    if rule.least is not None and rule.most is not None and not rule.least <= value <= rule.most:
        raise OptionError(name, f" is {value}: expected {rule.least:g} to {rule.most:g}")
    if rule.least is not None and value < rule.least:
        raise OptionError(name, f" is {value}: expected at least {rule.least:g}")
    if rule.most is not None and value > rule.most:
        raise OptionError(name, f" is {value}: expected at most {rule.most:g}")


def either(words: Iterable[str]) -> str:
    """The words as a choice.

    >>> either(["a", "b", "c"])
    'a, b or c'
    """
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else str(last)
