"""One encoder with its loss and its optimiser, in a process of its own, so that its memory is nobody else's."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..peak import MIB, give_back_freed_memory, weigher
from ..turns import clock
from .losses import PROVIDERS
from .problem import StepProblem

Columns = list[dict[str, Any]]


class Stepper:
    """Makes steps of one provider, each from the same weights: see `LEARNING_RATE`."""

    # A step of rate 0 is the same arithmetic, and every step of every provider starts where the first one did: their
    # losses can be compared.
    LEARNING_RATE = 0.0

    def __init__(self, problem: StepProblem, provider: str):
        # Here, because the other operations are measured without any of these.
        from transformers.utils import logging

        from ...training.encoders import load_encoder

        logging.disable_progress_bar()
        self.problem = problem
        self.model = load_encoder(problem.model).to(problem.device).train()
        self.loss = PROVIDERS[provider].build(self.model, problem).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.LEARNING_RATE)
        self.columns = self._columns(problem.n)
        self.weigh = weigher(problem.device)

    def _columns(self, count: int) -> Columns:
        """The first `count` texts tokenized, as two columns of the same."""
        with Path(self.problem.texts).open(encoding="utf-8") as file:
            texts = [line.rstrip("\n") for line in itertools.islice(file, count)]
        if len(texts) < count:
            raise ValueError(f"n is {count}, and {self.problem.texts!r} has {len(texts)} lines: expected as many")
        made = self.model.preprocess(texts, max_length=self.problem.max_length)
        one = {name: x.to(self.problem.device) if isinstance(x, Tensor) else x for name, x in made.items()}
        return [one, dict(one)]

    def warm_up(self) -> float:
        """A small step without dropout: what is loaded, compiled and allocated once, and the optimiser's moments. The
        norm of its gradient."""
        # More than a mini-batch, so that a cached loss has something to join.
        few = self._columns(min(self.problem.n, self.problem.mini_batch + 1))
        self.model.eval()
        self._step(few)
        self.model.train()
        gradients = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        return torch.stack(gradients).norm().item()

    def foretold_mib(self) -> float | None:
        """What a step of all pairs will take at its peak, on the line through two small ones; None: nobody tells.

        Beside the encoder's activations, which are what fills the memory, an (N, N) matrix counts for little.
        """
        small, large = (min(self.problem.n, k * self.problem.mini_batch) for k in (1, 2))
        taken = [self.weigh(functools.partial(self._step, self._columns(count))) for count in (small, large)]
        if None in taken:
            return None
        slope = max(0.0, (taken[1] - taken[0]) / max(1, large - small))
        return (taken[1] + slope * (self.problem.n - large)) / MIB

    def check(self) -> float:
        """The loss of all pairs, as a step computes it, without dropout."""
        self.model.eval()
        loss = self._value(self.columns).item()
        self.model.train()
        give_back_freed_memory()
        return loss

    def peak_mib(self) -> float | None:
        """Memory of a whole step at its peak, beyond the model's, the optimiser's and the texts'."""
        self.optimizer.zero_grad()
        taken = self.weigh(functools.partial(self._step, self.columns))
        return None if taken is None else max(0.0, taken / MIB)

    def seconds(self) -> float:
        """Of a whole step."""
        taken = clock(self.problem.device)(functools.partial(self._step, self.columns))
        # The others take their turns meanwhile.
        give_back_freed_memory()
        return taken

    def _step(self, columns: Columns) -> None:
        self.optimizer.zero_grad()
        self._value(columns).backward()
        self.optimizer.step()

    def _value(self, columns: Columns) -> Tensor:
        # Copies, because the modules of a model write into what they are given.
        return self.loss([dict(column) for column in columns], None)


@functools.cache
def stepper(problem: StepProblem, provider: str) -> Stepper:
    """The one of this process."""
    return Stepper(problem, provider)


def ask(problem: StepProblem, provider: str, what: str, threads: int) -> float | None:
    """What a worker process is sent: the method to call, and its answer."""
    torch.set_num_threads(threads)
    return getattr(stepper(problem, provider), what)()
