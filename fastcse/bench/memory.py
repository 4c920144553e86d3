"""Peak memory of one provider beyond its inputs and what it hands back."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from .peak import MIB, weigher
from .subject import Problem
from .subjects import subject_of

# Below this many rows by this many the process's own noise is larger than the matrix.
SMALLEST_WEIGHED = 2048


def extra_memory(problem: Problem, provider: str, choice: int | str | None) -> float | None:
    """MiB; None where the system does not tell. On the CPU in a process of its own: memory that another run has freed
    would hide it."""
    if torch.device(problem.device).type == "cuda":
        return _peak(problem, provider, choice)
    # An executor notices a process that was killed for its memory; a pool would wait for it for ever.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(_peak_on_cpu, problem, provider, choice, torch.get_num_threads()).result()


def _peak_on_cpu(problem: Problem, provider: str, choice: int | str | None, threads: int) -> float | None:
    torch.set_num_threads(threads)
    return _peak(problem, provider, choice)


def _peak(problem: Problem, provider: str, choice: int | str | None) -> float | None:
    subject = subject_of(problem)
    inputs = subject.inputs(problem)
    is_limit = provider == subject.limit_name
    if is_limit:
        run = lambda: subject.limit(problem)(*inputs)  # noqa: E731 - its buffers are what is weighed
    else:
        prepared = subject.prepare(subject.peers[provider], problem, choice, inputs)
        run = lambda: prepared() and None  # noqa: E731
        run()  # what is compiled, loaded and allocated once is not the operation's
    for x in inputs:
        if isinstance(x, torch.Tensor):
            x.grad = None
    handed_back = 0 if is_limit else subject.output_bytes(problem, inputs)
    taken = weigher(problem.device)(run)
    return None if taken is None else max(0.0, (taken - handed_back) / MIB)
