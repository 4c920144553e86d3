"""What makes a run fit, and the plan of it as plain values and sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import combinations, product
from typing import Any, NamedTuple

from ..errors import flag
from . import model
from .model import Run, fits, memory, peak

MOST_TIMES = 64  # those of the run, or of a host: more GPUs are not advised
LONG = 3600.0  # seconds from which an approximate search is worth a word
IVF_SHARE = 1 / 16  # of the lists, that `CorpusIndex(kind="ivf")` searches
SPANS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3))
# Of a run's options, those that its hardware, its encoder and its length stand for in a report.
STOOD_FOR = ("gpu", "memory", "tflops", "model", "parameters", "steps", "epochs")


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
        """The changes on the command line."""
        return " ".join(flags(change) for change in self.changes)


def _settings(run: Run) -> list[list[Change]]:
    """What can be changed on the same machines, a list for each kind, from the kind that costs least; mild changes of a
    kind before strong ones."""
    size, sizes = min(run.mini_batch, run.local), []
    while size > 1:
        size //= 2
        sizes.append(size)
    launches = "more launches" + ("" if run.cached else ", and every text is encoded twice")
    passes = "two passes: a third more arithmetic in the loss; fastcse train has it as --max-gathered-bytes"
    chunks = [] if run.chunked else [Change({"chunked": True}, passes)]  # on one GPU too: more may be needed as well
    half = Change({"dtype": "bf16"}, "embeddings and activations are rounded to 8 bits of precision")
    bank = Change({"bank_dtype": "fp16"}, "rows of the corpus are rounded to 11 bits of precision")
    return [
        [Change({"mini_batch": size}, launches) for size in sizes],
        chunks,
        [bank] if run.corpus and run.bank_dtype == "fp32" else [],
        [] if run.half else [half],
    ]


def _machines(run: Run) -> list[list[Change]]:
    """The corpus off the GPUs; more GPUs, whole hosts once there is one, as many as divide the batch."""
    unit = run.gpus_per_host
    whole_hosts = range((run.gpus // unit + 1) * unit, MOST_TIMES * max(run.gpus, unit) + 1, unit)
    counts = [*range(run.gpus + 1, unit), *whole_hosts]
    host = Change({"bank": "host"}, "every search reads the corpus through PCIe")
    return [
        [host] if run.corpus and run.bank == "gpu" else [],
        [Change({"gpus": gpus}, "the work is shared by more") for gpus in counts if run.batch % gpus == 0],
    ]


def smallest_change(run: Run) -> Advice | None:
    """The fewest changes that make `run` fit, each as small as it may be; None: no change does.

    Settings are changed before the corpus leaves the GPUs, and that before there are more GPUs.

    Example:
        >>> big = Run(batch=65536, dim=768, gpus=8, mini_batch=8192)
        >>> smallest_change(big).flags
        '--mini-batch 4096'
    """
    settings, (host, more) = _settings(run), _machines(run)
    for dear in ([], [host], [more], [host, more]):
        for together in range(len(settings) + 1):
            for kinds in combinations(settings, together):
                found = _mildest(run, [*kinds, *dear])
                if found is not None:
                    return found
    return None


def more_gpus(run: Run) -> Advice | None:
    """The fewest GPUs with which `run` fits as it is."""
    return _mildest(run, _machines(run)[1:])


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
    return replace(run, **{name: value for change in changes for name, value in change.options.items()})


def flags(change: Change) -> str:
    """The change on the command line."""
    return " ".join(flag(name) + ("" if value is True else f" {value}") for name, value in change.options.items())


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


def planned(run: Run) -> dict[str, Any]:
    """Everything that `fastcse plan --json` prints: bytes, seconds, operations a second.

    Example:
        >>> plan = planned(Run(batch=65536, dim=768, steps=1000))
        >>> plan["fits"], plan["step"]["seconds"] * 1000 == plan["training"]["seconds"]
        (True, True)
    """
    advice = None if fits(run) else smallest_change(run)
    stages, steps = model.step(run), run.total_steps
    seconds = sum(stage.seconds for stage in stages)
    options = {name: value for name, value in asdict(run).items() if name not in STOOD_FOR}
    return {
        "estimate": True,
        "run": {
            **options,
            "network": 1e9 * run.network,
            "workspace": None if run.workspace is None else 1e9 * run.workspace,
            "hardware": asdict(run.hardware),
            "encoder": asdict(run.encoder),
            "local_batch": run.local,
            "candidates": run.candidates,
            "hosts": run.hosts,
        },
        "memory": [asdict(held) for held in memory(run)],
        "peak_bytes": peak(run),
        "usable_bytes": run.hardware.usable,
        "fits": fits(run),
        "verdict": verdict(run, advice),
        "change": None if advice is None else advice.flags,
        "step": {"stages": [asdict(stage) for stage in stages], "seconds": seconds},
        "messages": [{**asdict(message), "seconds": message.seconds} for message in model.messages(run)],
        "corpus": run.corpus
        and {
            "index_bytes": model.index_bytes(run),
            "index_bytes_per_gpu": model.index_bytes(run) / run.gpus,
            "stages": [asdict(stage) for stage in model.corpus(run)],
        },
        "training": steps
        and {"steps": steps, "seconds": steps * seconds, "gpu_hours": steps * seconds * run.gpus / 3600},
        "notes": notes(run),
    }


def notes(run: Run) -> list[str]:
    """What the figures rest on, and what would change the largest of them; one sentence each."""
    gpu, once = run.hardware, "the local batch is encoded at once, and a step costs 3 forward passes."
    cached = "GradCache encodes it twice and goes back once, which costs 4 forward passes."
    said = [
        f"Every figure is an estimate by roofline and no measurement: nothing was run on such a machine. "
        f"{gpu.name}: {gpu.source}, of which {gpu.rate(run.dtype) / 1e12:,.3g} TFLOP/s in {run.dtype} products and "
        f"{gpu.bandwidth / 1e12:,.3g} TB/s are taken to be attained. Stages are added up, as if none overlapped.",
        f"Every text is taken to have {run.max_length} tokens; {cached if run.cached else once}",
    ]
    larger = run  # with the workspace that would keep the loss from waiting for memory, if there is room for one
    while model.loss(larger).bound == "memory" and model.workspace(larger)[0] < min(run.local, model.filling_rows(run)):
        larger = replace(larger, workspace=2e-9 * model.workspace(larger)[1])
    if larger is not run and gpu.processors and model.loss(larger).bound != "memory" and fits(larger):
        said.append(
            f"The loss waits for memory, since its workspace holds but {model.workspace(run)[0]:,} anchors a chunk; "
            f"--workspace {larger.workspace:.3g} (max_workspace_bytes of the loss) holds "
            f"{model.workspace(larger)[0]:,}, and then it is bound by arithmetic."
        )
    took = next(stage.seconds for stage in model.corpus(run) if stage.name == model.SEARCH_ALL) if run.corpus else 0.0
    if took > LONG:
        said.append(
            f"Searching exactly with every row of the corpus takes {duration(took)}; an IVF index of FAISS looks at a "
            f"sixteenth of its lists, about {duration(IVF_SHARE * took)} at the same rate, and holds "
            f"{gigabytes(run.corpus * (run.dim * 4 + model.ID_BYTES))} GB in float32."
        )
    if run.corpus and run.bank == "host":
        said.append("The corpus is read through PCIe at 55 GB/s a GPU, if the host's memory or disks deliver it.")
    return said


def gigabytes(size: float) -> str:
    """Bytes in units of 1e9; three digits where there are few.

    Example:
        >>> gigabytes(6.34e9), gigabytes(1.544e12)
        ('6.34', '1,544')
    """
    value = size / 1e9
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}" if value else "0"


def duration(seconds: float) -> str:
    """Seconds in the unit that one would say.

    Example:
        >>> duration(0.127), duration(100.0), duration(40000.0)
        ('127 ms', '100 s', '11.1 h')
    """
    for unit, size in SPANS:
        if seconds >= (2 * size if size > 1 else size):
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"
