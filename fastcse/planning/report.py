"""The plan of a run as plain values, and what a reader should know about them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ..errors import InputError
from . import model
from .advice import smallest_change, verdict
from .request import Run
from .units import duration, gigabytes

LONG = 3600.0  # seconds from which an approximate search is worth a word
IVF_SHARE = 1 / 16  # of the lists, that `CorpusIndex(kind="ivf")` looks at: fastcse/mining/approximate.py


def planned(run: Run, *, steps: int | None = None, epochs: float | None = None) -> dict[str, Any]:
    """Everything that `fastcse plan --json` prints: bytes, seconds, operations a second.

    Args:
        steps, epochs: how long the training is, at most one of them; an epoch is as many batches as the corpus has.

    Raises:
        InputError: both are given, a length is not above 0, or epochs without a corpus.

    Example:
        >>> plan = planned(Run(batch=65536, dim=768), steps=1000)
        >>> plan["fits"], plan["step"]["seconds"] * 1000 == plan["training"]["seconds"]
        (True, True)
    """
    steps = _steps(run, steps, epochs)
    advice = None if model.fits(run) else smallest_change(run)
    stages = model.step(run)
    seconds = sum(stage.seconds for stage in stages)
    sent = [{**asdict(message), "seconds": message.seconds} for message in model.messages(run)]
    return {
        "estimate": True,
        "run": {**asdict(run), "local_batch": run.local, "candidates": run.candidates, "hosts": run.hosts},
        "memory": [asdict(held) for held in model.memory(run)],
        "peak_bytes": model.peak(run), "usable_bytes": run.hardware.usable, "fits": model.fits(run),
        "verdict": verdict(run, advice), "change": None if advice is None else advice.flags,
        "step": {"stages": [asdict(stage) for stage in stages], "seconds": seconds},
        "messages": sent,
        "corpus": _corpus(run),
        "training": None if steps is None else _training(run, steps, seconds),
        "notes": notes(run),
    }  # fmt: skip


def _steps(run: Run, steps: int | None, epochs: float | None) -> int | None:
    if steps is not None and epochs is not None:
        raise InputError(f"--steps {steps} and --epochs {epochs:g} are both given: expected one of them")
    if steps is not None and steps < 1:
        raise InputError(f"--steps is {steps}: expected at least 1")
    if epochs is None:
        return steps
    if not 0 < epochs < float("inf"):
        raise InputError(f"--epochs is {epochs}: expected a finite number above 0")
    if run.corpus is None:
        raise InputError(f"--epochs is {epochs:g}, and there is nothing to count them by: --corpus is missing")
    return max(1, round(epochs * run.corpus / run.batch))


def _training(run: Run, steps: int, seconds: float) -> dict[str, float]:
    return {"steps": steps, "seconds": steps * seconds, "gpu_hours": steps * seconds * run.gpus / 3600}


def _corpus(run: Run) -> dict[str, Any] | None:
    if run.corpus is None:
        return None
    stages = [asdict(stage) for stage in model.corpus(run)]
    return {"index_bytes": model.index_bytes(run), "index_bytes_per_gpu": model.index_bytes(run) / run.gpus,
            "stages": stages}  # fmt: skip


def notes(run: Run) -> list[str]:
    """What the figures rest on, and what would change the largest of them; one sentence each."""
    gpu = run.hardware
    said = [
        f"Every figure is an estimate by roofline and no measurement: nothing was run on such a machine. "
        f"{gpu.name}: {gpu.source}, of which {gpu.rate(run.dtype) / 1e12:,.3g} TFLOP/s in {run.dtype} products and "
        f"{gpu.bandwidth / 1e12:,.3g} TB/s are taken to be attained. Stages are added up, as if none overlapped.",
        f"Every text is taken to have {run.max_length} tokens; "
        + ("GradCache encodes it twice and goes back once, which costs 4 forward passes." if run.cached else
           "the local batch is encoded at once, and a step costs 3 forward passes."),
    ]  # fmt: skip
    return [*said, *_on_the_loss(run), *_on_the_corpus(run)]


def _on_the_loss(run: Run) -> list[str]:
    """The workspace that would keep the loss from waiting for memory, if there is room for one."""
    larger = run
    while model.loss(larger).bound == "memory" and model.workspace(larger)[0] < min(run.local, model.filling_rows(run)):
        larger = replace(larger, workspace=2 * model.workspace(larger)[1])
    if larger is run or not run.hardware.processors or model.loss(larger).bound == "memory" or not model.fits(larger):
        return []
    rows, more = model.workspace(run)[0], model.workspace(larger)[0]
    return [
        f"The loss waits for memory, since its workspace holds but {rows:,} anchors a chunk; --workspace "
        f"{larger.workspace / 1e9:.3g} (max_workspace_bytes of the loss) holds {more:,}, and then it is bound by "
        f"arithmetic."
    ]


def _on_the_corpus(run: Run) -> list[str]:
    if run.corpus is None:
        return []
    said = []
    everything = next(stage for stage in model.corpus(run) if stage.name == model.SEARCH_ALL)
    if everything.seconds > LONG:
        copy, took = run.corpus * (run.dim * 4 + model.ID_BYTES), everything.seconds
        said.append(
            f"Searching exactly with every row of the corpus takes {duration(took)}; an IVF index of FAISS looks at a "
            f"sixteenth of its lists, about {duration(IVF_SHARE * took)} at the same rate, and holds "
            f"{gigabytes(copy)} GB in float32."
        )
    if run.bank == "host":
        said.append("The corpus is read through PCIe at 55 GB/s a GPU, if the host's memory or disks deliver it.")
    return said
