"""What an adapter of k-means is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..peers.peer import absent, need
from .problem import WHATS, ClustersProblem
from .truth import Outcome

Run = Callable[[], Outcome]


class Provider(NamedTuple):
    """A way to compute k-means or its parts.

    `build(problem, points, start, labels)` makes the call that is timed; it raises Unsuitable where the provider's
    limits are passed. `modules`, `install`, `note` and `choices` are those of a `Peer`.
    """

    name: str
    build: Callable[..., Run]
    whats: tuple[str, ...] = WHATS
    modules: tuple[str, ...] = ()
    install: str = ""
    note: str = ""
    choices: tuple[int, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        return absent(self.modules, self.install)

    def run(self, problem: ClustersProblem, choice: int | None, inputs: tuple[Tensor, Tensor, Tensor | None]) -> Run:
        """The call for this problem; raises Unsuitable."""
        need(problem.what in self.whats, f"computes {' and '.join(self.whats)}, not {problem.what}")
        return self.build(problem, *inputs, *(() if choice is None else (choice,)))
