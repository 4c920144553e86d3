"""What every option of a run is checked with."""

from __future__ import annotations

import math

from ..errors import InputError


def flag(name: str) -> str:
    """The spelling of an option on the command line."""
    return "--" + name.replace("_", "-")


def check_at_least(name: str, value: float, lowest: int) -> None:
    """An InputError if the option `name` is below `lowest`."""
    if value < lowest:
        raise InputError(f"{flag(name)} is {value}: expected at least {lowest}")


def check_finite(name: str, value: float) -> None:
    """An InputError unless the option `name` is a finite number."""
    if not math.isfinite(value):
        raise InputError(f"{flag(name)} is {value}: expected a finite number")


def check_positive(name: str, value: float) -> None:
    """An InputError unless the option `name` is a finite number above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{flag(name)} is {value}: expected a finite number above 0")
