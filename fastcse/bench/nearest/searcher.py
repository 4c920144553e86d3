"""What an adapter of a search is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..peers.peer import absent, need
from .problem import METRICS, TopkProblem

# (N, k) values, and rows of the corpus; of l2 the values are squared distances.
Answer = tuple[Tensor, Tensor]
Search = Callable[[], Answer]
# Ties of scores that were added up in float32, relative to the lengths of the rows.
FLOAT32_TIES = 2e-6


class Searcher(NamedTuple):
    """A way to find the nearest rows.

    `build(problem, query, corpus)` makes the call that is timed; what an index needs once per corpus is made before it,
    and `note` says so. It raises Unsuitable where the searcher's limits are passed. `ties` is what two scores may
    differ by and still be one to the searcher. `modules`, `install` and `choices` are those of a `Peer`; `missing_part`
    says what an installed module lacks.
    """

    name: str
    build: Callable[..., Search]
    metrics: tuple[str, ...] = METRICS
    modules: tuple[str, ...] = ()
    install: str = ""
    note: str = ""
    choices: tuple[int, ...] = ()
    ties: Callable[[TopkProblem], float] = lambda problem: FLOAT32_TIES
    missing_part: Callable[[], str | None] = lambda: None

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        return absent(self.modules, self.install) or self.missing_part()

    def search(self, problem: TopkProblem, choice: int | None, query: Tensor, corpus: Tensor) -> Search:
        """The call for this problem; raises Unsuitable."""
        need(problem.metric in self.metrics, f"computes {' and '.join(self.metrics)}, not {problem.metric}")
        return self.build(problem, query, corpus, *(() if choice is None else (choice,)))
