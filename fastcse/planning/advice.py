"""The smallest change of a run that makes it fit, and how long that run takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product
from typing import NamedTuple

from .model import fits, memory, peak
from .request import Run
from .units import gigabytes

MOST_TIMES = 64  # those of the run, or of a host: more GPUs are not advised


class Change(NamedTuple):
    """New values of options, and what they cost."""

    options: dict
    price: str


class Advice(NamedTuple):
    """Changes that together make a run fit, from the cheapest, and that run."""

    changes: list[Change]
    run: Run

    @property
    def flags(self) -> str:
        """The changes as one types them."""
        return " ".join(flags(change) for change in self.changes)


def _smaller_mini_batches(run: Run) -> Iterator[Change]:
    size, price = min(run.mini_batch, run.local), "more launches"
    if not run.cached:
        price += ", and every text is encoded twice"
    while size > 1:
        size //= 2
        yield Change({"mini_batch": size}, price)


def _chunks(run: Run) -> Iterator[Change]:
    if not run.chunked:  # with one GPU, for the case that more are needed
        price = "two passes: a third more arithmetic in the loss; fastcse train has it as --max-gathered-bytes"
        yield Change({"chunked": True}, price)


def _halves(run: Run) -> Iterator[Change]:
    if not run.half:
        yield Change({"dtype": "bf16"}, "embeddings and activations are rounded to 8 bits of precision")


def _smaller_bank(run: Run) -> Iterator[Change]:
    if run.corpus and run.bank_dtype == "fp32":
        yield Change({"bank_dtype": "fp16"}, "rows of the corpus are rounded to 11 bits of precision")


def _bank_in_host(run: Run) -> Iterator[Change]:
    if run.corpus and run.bank == "gpu":
        yield Change({"bank": "host"}, "the corpus comes through PCIe for every search")


def _more_gpus(run: Run) -> Iterator[Change]:
    """Whole hosts once there is one, and as many as divide the batch."""
    unit = run.gpus_per_host
    counts = [
        *range(run.gpus + 1, unit),
        *range((run.gpus // unit + 1) * unit, MOST_TIMES * max(run.gpus, unit) + 1, unit),
    ]
    for gpus in counts:
        if run.batch % gpus == 0:
            yield Change({"gpus": gpus}, "the work is shared by more")


# Of the same machines, from what costs least; then more of them.
SETTINGS: list[Callable[[Run], Iterator[Change]]] = [_smaller_mini_batches, _chunks, _smaller_bank, _halves]
LAST = [_bank_in_host, _more_gpus]


def smallest_change(run: Run) -> Advice | None:
    """The fewest changes that make `run` fit, each as small as it may be; None: no change does.

    Settings are changed before the corpus leaves the GPUs, and that before there are more GPUs.

    Example:
        >>> big = Run(batch=65536, dim=768, gpus=8, mini_batch=8192)
        >>> smallest_change(big).flags
        '--mini-batch 4096'
    """
    for dear in ((), LAST[:1], LAST[1:], LAST):
        for together in range(len(SETTINGS) + 1):
            for kinds in combinations(SETTINGS, together):
                found = _mildest(run, [list(kind(run)) for kind in (*kinds, *dear)])
                if found is not None:
                    return found
    return None


def more_gpus(run: Run) -> Advice | None:
    """The fewest GPUs with which `run` fits as it is."""
    return _mildest(run, [list(_more_gpus(run))])


def _mildest(run: Run, kinds: list[list[Change]]) -> Advice | None:
    """One change of each kind, mild ones first; a kind's changes go from mild to strong."""
    if not all(kinds) or not fits(_changed(run, [kind[-1] for kind in kinds])):
        return None
    # The last kind is the dearest: it turns slowest, so that the others are tried against its mildest value.
    for dearest_first in product(*reversed(kinds)):
        changed = _changed(run, dearest_first)
        if fits(changed):
            return Advice(list(reversed(dearest_first)), changed)
    return None


def _changed(run: Run, changes: Iterable[Change]) -> Run:
    return dataclasses.replace(run, **{name: value for change in changes for name, value in change.options.items()})


def flags(change: Change) -> str:
    """The change as one types it."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in change.options.items()
    )


def verdict(run: Run, advice: Advice | None) -> str:
    """It fits; or what does not, and what would."""
    room = f"{gigabytes(peak(run))} GB at once, where one {run.hardware.name} has {gigabytes(run.hardware.usable)} GB"
    if fits(run):
        return f"It fits: {room}."
    largest = max(memory(run), key=lambda held: held.bytes)
    said = f"It does not fit: {room}; the most is for {largest.name}, {gigabytes(largest.bytes)} GB."
    if advice is None:
        states = gigabytes(run.encoder.state_bytes(run.half))
        why = f"weights, gradients and AdamW, {states} GB, are whole on every GPU"
        return f"{said} No change of mini-batch, chunks, corpus or GPUs makes it fit: {why}."
    prices = " and ".join(f"{flags(change)} ({change.price})" for change in advice.changes)
    other = None if "gpus" in {name for change in advice.changes for name in change.options} else more_gpus(run)
    alone = "" if other is None else f", or {other.flags} alone"
    return f"{said} The smallest change that fits: {prices}; then {gigabytes(peak(advice.run))} GB{alone}."
