"""Numbered steps with a bar."""

from __future__ import annotations

from collections.abc import Iterator

from ..encoding import progress_bar


def steps(numbers: range, what: str, unit: str, show: bool) -> Iterator[int]:
    """The numbers, with a bar on stderr that moves on after each one if `show`."""
    with progress_bar(what, len(numbers), unit, show) as bar:
        for number in numbers:
            yield number
            bar.update(1)
