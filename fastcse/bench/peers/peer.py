"""What an adapter is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..problem import LOSSES, LossProblem

Loss = Callable[[Tensor, Tensor], Tensor]


class Unsuitable(Exception):
    """This peer does not compute this problem; the text says why."""


class Peer(NamedTuple):
    """A way to compute the loss.

    `build` makes a function of raw anchors (N, D) and candidates (M, D) that returns the mean loss, and normalises the
    rows itself where the peer does not; it raises Unsuitable where the peer's limits are passed. `modules` must be
    importable; `install` says how to get them. `note` stands beside the numbers: what the peer does differently.
    `choices` are the sizes of its chunk or tile: `build` then takes one as its second argument, and the fastest at this
    problem is the one that is reported.
    """

    name: str
    build: Callable[..., Loss]
    losses: tuple[str, ...] = LOSSES
    modules: tuple[str, ...] = ()
    install: str = ""
    note: str = ""
    choices: tuple[int, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        return absent(self.modules, self.install)

    def loss(self, problem: LossProblem, choice: int | None = None) -> Loss:
        """The function for this problem; raises Unsuitable."""
        need(problem.loss in self.losses, f"computes {' and '.join(self.losses)}, not {problem.loss}")
        return self.build(problem) if choice is None else self.build(problem, choice)


def absent(modules: tuple[str, ...], install: str) -> str | None:
    """Which of the modules are not installed and how to get them, or None."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    be = "is" if len(lacking) == 1 else "are"
    return f"{', '.join(lacking)} {be} not installed: {install}" if lacking else None


def need(condition: bool, reason: str) -> None:
    """Raise Unsuitable with the reason where the condition does not hold."""
    if not condition:
        raise Unsuitable(reason)
