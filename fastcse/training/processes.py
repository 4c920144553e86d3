"""The processes of a run: one, or those that torchrun or accelerate started, one for each device."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from ..errors import InputError, RunError
from .checkpoints import last_checkpoint

# A process that dies closes its connections, and the others know at once. This is for a machine that vanishes.
TIMEOUT = timedelta(minutes=10)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# Libraries that write a file themselves say what the system said in words only.
FULL_WORDS = (*(f"(os error {number})" for number in FULL), "PytorchStreamWriter", "iostream error", "unexpected pos")
LOST_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class Processes:
    """Which of how many this one is. Making it joins the others, where a launcher started several."""

    def __init__(self):
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
        self.rank, self.ranks, self.device = state.process_index, state.num_processes, state.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def first_alone(self, act: Callable[[], Any]) -> Any:
        """What `act` returns on rank 0, on all ranks.

        Raises:
            InputError: on all ranks, what `act` raised on the first; only there it is to be shown.
        """
        if self.ranks == 1:
            return act()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = act()
            except InputError as error:
                told[1] = str(error)
        dist.broadcast_object_list(told, 0, device=self.device if self.device.type == "cuda" else None)
        if told[1] is not None:
            raise InputError(told[1])
        return told[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.ranks > 1:
            dist.barrier()

    def everyones(self, mine: Any) -> list[Any]:
        """What every rank passes, by rank."""
        if self.ranks == 1:
            return [mine]
        told = [None] * self.ranks
        dist.all_gather_object(told, mine)
        return told

    def part(self, batch_size: int) -> int:
        """What of a whole batch is this rank's.

        Raises:
            InputError: the batch cannot be divided by the processes.
        """
        if batch_size % self.ranks:
            raise InputError(f"--batch-size {batch_size} cannot be divided by the {self.ranks} processes of the run")
        return batch_size // self.ranks

    def own_randomness(self, seed: int) -> None:
        """Different dropout on every rank: from one seed all would draw the same masks, for other sentences."""
        if self.ranks > 1:
            torch.manual_seed(seed * self.ranks + self.rank)


class _Named(contextlib.AbstractContextManager):
    """One sentence for what ends a run from outside: a disk that is full, or another process that has stopped.

    Looks at the error on its way out instead of catching a class of errors: of the libraries that write a checkpoint
    one raises a bare Exception.

    Raises:
        RunError: that sentence, with the checkpoint from which the run can go on.
    """

    def __init__(self, output_dir: str | Path, processes: Processes):
        self.output_dir, self.processes = output_dir, processes

    def __exit__(self, kind, error, trace) -> None:
        if error is None or isinstance(error, InputError | RunError):
            return
        if _is_full(error):
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(f"--output-dir {str(self.output_dir)!r} could not be written: {reason}; "
                           f"{_remains(self.output_dir)}") from None  # fmt: skip
        if self.processes.ranks > 1 and _is_loss(error):
            raise RunError(f"rank {self.processes.rank} of {self.processes.ranks} lost another process of the run "
                           f"({_short(error)}); {_remains(self.output_dir)}") from None  # fmt: skip


@contextlib.contextmanager
def failures_named(output_dir: str | Path, processes: Processes) -> Iterator[None]:
    """A run whose end from outside is one sentence."""
    with _told_to_stop(output_dir, processes), _Named(output_dir, processes):
        yield


@contextlib.contextmanager
def _told_to_stop(output_dir: str | Path, processes: Processes) -> Iterator[None]:
    """What launchers send to the processes that are left when one has died."""

    def stop(number, frame):
        raise RunError(f"rank {processes.rank} of {processes.ranks} was told to stop, as launchers do when another "
                       f"process of the run has died; {_remains(output_dir)}")  # fmt: skip

    if processes.ranks == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(words in str(error) for words in FULL_WORDS)


def _is_loss(error: BaseException) -> bool:
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError, ConnectionError)
    return isinstance(error, kinds) or any(words in str(error) for words in LOST_WORDS)


def _short(error: BaseException) -> str:
    """What happened, without the place in the library's source and its advice."""
    text = " ".join(re.sub(r"\[/\S*\]", "", str(error)).split())
    return text.split(". ")[0][:160]


def _remains(output_dir: str | Path) -> str:
    """How the run can go on."""
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        return "there is no checkpoint to continue from"
    return f"--resume continues from {checkpoint.name}"
