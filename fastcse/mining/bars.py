"""Progress bars, for those who want one: without, tqdm need not be installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class _Silent:
    def update(self, count: int) -> None:
        """Count, and show nothing."""


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str, progress: bool, done: int = 0) -> Iterator[Any]:
    """A bar on stderr that `update(count)` moves on, or none."""
    if not progress:
        yield _Silent()
        return
    from tqdm.auto import tqdm  # only here: it is no dependency of the losses

    with tqdm(total=total, initial=done, desc=what, unit=f" {unit}", dynamic_ncols=True) as bar:
        yield bar
