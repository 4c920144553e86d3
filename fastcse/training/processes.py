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
from accelerate.utils import broadcast_object_list

from ..errors import InputError, OptionError, RunError
from .checkpoints import last_checkpoint

# A process that dies closes its connections, and the others know at once. This is for a machine that vanishes.
TIMEOUT = timedelta(minutes=10)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# Libraries that write a file themselves say what the system said in words only.
FULL_WORDS = (*(f"(os error {number})" for number in FULL), "PytorchStreamWriter", "iostream error", "unexpected pos")
LOST = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError, ConnectionError)
LOST_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def join(batch_size: int) -> PartialState:
    """Join the other processes, where a launcher started several.

    Raises:
        OptionError: the batch cannot be divided by them.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    if batch_size % state.num_processes:
        ranks = f"the {state.num_processes} processes of the run"
        raise OptionError("batch_size", f" {batch_size} cannot be divided by {ranks}")
    return state


def on_first(act: Callable[[], Any]) -> Any:
    """What `act` returns on rank 0, on all ranks.

    Raises:
        InputError: on all ranks, what `act` raised on the first; only there it is shown.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = act()
        except InputError as error:
            outcome[1] = error
    value, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return value


def seed_rank(seed: int) -> None:
    """Different dropout on every rank: from one seed all would draw the same masks, for other sentences."""
    state = PartialState()
    if state.num_processes > 1:
        torch.manual_seed(seed * state.num_processes + state.process_index)


@contextlib.contextmanager
def report_failures(output_dir: str | Path) -> Iterator[None]:
    """One sentence for what ends a run from outside: a disk that is full, or another process that has stopped.

    Raises:
        RunError: that sentence, with the checkpoint from which the run can be resumed.
    """
    state = PartialState()
    rank = f"rank {state.process_index} of {state.num_processes}"
    with _on_sigterm(f"{rank} was stopped, as launchers do when another process of the run has died", output_dir):
        try:
            yield
        except BaseException as error:  # of the libraries that write a checkpoint one raises a bare Exception
            if isinstance(error, InputError | RunError):
                raise
            if _is_full(error):
                reason = getattr(error, "strerror", None) or str(error)
                what = f"--output-dir {str(output_dir)!r} could not be written: {reason}"
            elif state.num_processes > 1 and _is_loss(error):
                what = f"{rank} lost another process of the run ({_short(error)})"
            else:
                raise
            raise RunError(f"{what}; {_remains(output_dir)}") from None


@contextlib.contextmanager
def _on_sigterm(what: str, output_dir: str | Path) -> Iterator[None]:
    """SIGTERM, which launchers send to the processes that are left when one has died, as a RunError."""

    def stop(number, frame):
        raise RunError(f"{what}; {_remains(output_dir)}")

    if PartialState().num_processes == 1 or threading.current_thread() is not threading.main_thread():
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
    return isinstance(error, LOST) or any(words in str(error) for words in LOST_WORDS)


def _short(error: BaseException) -> str:
    """What happened, without the place in the library's source and its advice."""
    text = " ".join(re.sub(r"\[/\S*\]", "", str(error)).split())
    return text.split(". ")[0][:160]


def _remains(output_dir: str | Path) -> str:
    """How the run can be resumed."""
    checkpoint = last_checkpoint(output_dir)
    return f"--resume continues from {checkpoint.name}" if checkpoint else "there is no checkpoint to continue from"
