"""`fastcse bench train`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ..console import Json, one_sentence_errors, quiet_stdout, real_option, whole_option
from .options import LIST, CsvFile, Device, JsonFile, PlotFile, Seed, names, one_of, place, sizes
from .run import run_all

if TYPE_CHECKING:
    from ...bench.steps.problem import StepProblem

STAGES = ("step", "loss")
# What each stage measures where nothing is asked for: batch sizes, mini-batch sizes.
USUAL = {"step": ("64,512,2048,8192", "64"), "loss": ("4096", "64,32")}
# Of the memory that is free when the command starts.
USUAL_SHARE = 0.5
DOCSTRINGS = "docstrings' first lines"


@one_sentence_errors
def train(
    stage: Annotated[str, typer.Option(metavar="NAME", help="step: all of it; loss: between the two passes.")] = "step",
    batch_sizes: Annotated[str | None, typer.Option(metavar="INTS", help=f"Pairs of a step. {LIST}.")] = None,
    mini_batch_size: Annotated[str | None, typer.Option(metavar="INTS", help=f"Encoded at once. {LIST}.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="minilm, a folder, or a name on the hub.")] = "minilm",
    corpus: Annotated[
        str | None, typer.Option(metavar="FILE", help="Sentences, one a line; by default out of docstrings.")
    ] = None,
    max_length: Annotated[int, whole_option("Tokens that a sentence is cut to.")] = 32,
    memory_limit_gib: Annotated[
        float | None, real_option("Steps without a cache only where they fit; by default half of what is free.")
    ] = None,
    d: Annotated[str, typer.Option(metavar="INTS", help=f"Width of an embedding, for --stage loss. {LIST}.")] = "384",
    providers: Annotated[str, typer.Option(metavar="NAMES", help="all, or names with commas.")] = "all",
    steps: Annotated[int, whole_option("Steps, in which everyone takes a turn.")] = 3,
    device: Device = None,
    seed: Seed = 0,
    json_file: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """One training step, GradCache or plain, beside sentence-transformers': sentences a second, memory, the loss.

    A pair is a sentence twice. Every provider has a process of its own; no number is reported where their losses or
    gradients differ without dropout.
    """
    one_of("--stage", stage, STAGES)
    usual = USUAL[stage]
    chosen = list(product(sizes("--batch-sizes", batch_sizes or usual[0]),
                          sizes("--mini-batch-size", mini_batch_size or usual[1])))  # fmt: skip
    files = dict(json_file=json_file, csv=csv, plot=plot, as_json=as_json)
    device, _ = place(device, None)
    if stage == "loss":
        return _loss_stage(chosen, sizes("--d", d), providers, device=device, seed=seed, repeat=steps, **files)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "sentences.txt"
        problems = _problems(chosen, texts, model=model, corpus=corpus, max_length=max_length,
                             limit=memory_limit_gib, device=device, seed=seed)  # fmt: skip
        _run(problems, providers, repeat=steps, **files)


def _loss_stage(chosen, widths, providers, *, device, seed, repeat, **files) -> None:
    from ...bench.steps.cached import STAGES as WAYS
    from ...bench.steps.cached import CachedProblem

    problems = [CachedProblem(n, width, size, device, seed=seed) for (n, size), width in product(chosen, widths)]
    run_all(problems, _named(providers, WAYS, "fastcse"), repeat=repeat, memory=True, quiet=quiet_stdout, **files)


def _run(problems: list[StepProblem], providers: str, **more) -> None:
    from ...bench.steps.losses import OURS, PROVIDERS

    run_all(problems, _named(providers, PROVIDERS, OURS), memory=True, quiet=quiet_stdout, **more)


def _named(text: str, known: Iterable[str], ours: str) -> list[str]:
    return names(text, known, (ours,), "--providers")


def _problems(chosen, texts, *, model, corpus, max_length, limit, device, seed) -> list[StepProblem]:
    from ...bench.peak import GIB, free_bytes
    from ...bench.steps.problem import StepProblem
    from ...training.options import check_at_least

    check_at_least("max_length", max_length, 1)
    if limit is not None and not limit > 0:
        raise InputError(f"--memory-limit-gib is {limit:g}: expected more than 0")
    found = _sentences(corpus)
    place_of_texts = DOCSTRINGS if corpus is None else Path(corpus).name
    if (largest := max(n for n, _ in chosen)) > len(found):
        raise InputError(f"--batch-sizes asks for {largest} and {place_of_texts} has {len(found)} distinct sentences: "
                         "expected at least as many")  # fmt: skip
    texts.write_text("\n".join(found[:largest]) + "\n", encoding="utf-8")
    allowed = int(limit * GIB) if limit is not None else int(USUAL_SHARE * (free_bytes(device) or 8 * GIB))
    return [
        StepProblem(n, str(texts), place_of_texts, size, model, max_length, allowed, device, seed=seed)
        for n, size in chosen
    ]


def _sentences(corpus: str | None) -> list[str]:
    """Distinct, each on one line."""
    if corpus is None:
        from ..demo.docstrings import collect_pairs

        texts: Iterable[str] = (pair.summary for pair in collect_pairs())
    else:
        from ...training.data import read_corpus

        texts = read_corpus(corpus)["anchor"]
    return list(dict.fromkeys(" ".join(text.split()) for text in texts))
