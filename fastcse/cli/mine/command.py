"""`fastcse mine`, on the command line."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from ...mining.options import STRATEGIES
from ..console import Backend, Json, one_sentence_errors, quiet_stdout, real_option, show, whole_option
from .options import FORMATS, INDEXES, MineOptions

WHICH = {"rich_help_panel": "Which candidates become negatives"}
ENCODE = {"rich_help_panel": "Encoding and search"}
RUN = {"rich_help_panel": "The run"}


@one_sentence_errors
def mine(
    output: Annotated[str, typer.Option(metavar="FILE", help="Mined rows: .jsonl or .tsv, also with .gz.",
                                        show_default=False)],
    pairs: Annotated[str | None, typer.Option(metavar="FILE", help="anchor, positive: .tsv or .gz.")] = None,
    corpus: Annotated[str | None, typer.Option(metavar="FILE", help="One text a line, .txt or .gz: more candidates "
                                               "for --pairs. Alone: the anchors too, each its own positive.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Hub name, local folder, or minilm.")] = "minilm",
    format: Annotated[str, typer.Option(metavar="|".join(FORMATS), help="Columns of the output.")] = "triplet",
    scores: Annotated[bool, typer.Option("--scores", help="Write the similarities too.")] = False,
    num_negatives: Annotated[int, whole_option("Negatives of an anchor.", **WHICH)] = 3,
    range_min: Annotated[int, whole_option("Nearest candidates to skip.", **WHICH)] = 0,
    range_max: Annotated[int | None, whole_option("Nearest candidates to consider. (default: as many as the filters "
                                                  "need)", **WHICH)] = None,
    max_score: Annotated[float | None, real_option("Highest similarity of a negative.", **WHICH)] = None,
    min_score: Annotated[float | None, real_option("Lowest similarity of a negative.", **WHICH)] = None,
    absolute_margin: Annotated[float | None, real_option("Least distance of a negative below the positive.",
                                                         **WHICH)] = None,
    relative_margin: Annotated[float | None, real_option("The same as a share of the positive's similarity; 0.05 is "
                                                         "NV-Retriever's.", **WHICH)] = None,
    sampling: Annotated[str, typer.Option(metavar="|".join(STRATEGIES), help="The nearest that are left, or some of "
                                          "them.", **WHICH)] = "top",
    seed: Annotated[int, whole_option("Of --sampling random.", **WHICH)] = 0,
    include_positives: Annotated[bool, typer.Option("--include-positives", help="Let positives be found too: a ranking "
                                                    "to evaluate rerankers, with --format n-tuple.", **WHICH)] = False,
    cross_encoder: Annotated[str | None, typer.Option(metavar="NAME", help="Score candidates again with this model, "
                                                      "for the filters.", **WHICH)] = None,
    query_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Put before every anchor.", **ENCODE)] = None,
    query_prompt_name: Annotated[str | None, typer.Option(metavar="NAME", help="The same, by its name in the model.",
                                                          **ENCODE)] = None,
    corpus_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Put before every candidate.",
                                                      **ENCODE)] = None,
    corpus_prompt_name: Annotated[str | None, typer.Option(metavar="NAME", help="The same, by its name in the model.",
                                                           **ENCODE)] = None,
    batch_size: Annotated[int, whole_option("Texts encoded at once.", **ENCODE)] = 32,
    max_length: Annotated[int | None, whole_option("Tokens of a text. (default: the model's)", **ENCODE)] = None,
    index: Annotated[str, typer.Option(metavar="|".join(INDEXES), help="How to search; all but exact need FAISS.",
                                       **ENCODE)] = "exact",
    backend: Backend = None,
    cache_folder: Annotated[str | None, typer.Option(metavar="DIR", help="Keep embeddings here for other runs. "
                                                     "(default: beside the output, until it is there)", **RUN)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.", **RUN)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.", **RUN)] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Mine hard negatives: for each anchor of --pairs or --corpus, near texts that are not its positives.

    The output is read by fastcse train --hard-negatives and by sentence-transformers' Trainer. A stopped run loses
    nothing that was encoded: add --resume.
    """
    options = MineOptions(
        output=output, pairs=pairs, corpus=corpus, model=model, num_negatives=num_negatives, range_min=range_min,
        range_max=range_max, max_score=max_score, min_score=min_score, absolute_margin=absolute_margin,
        relative_margin=relative_margin, sampling=sampling, seed=seed,
        include_positives=include_positives, format=format, scores=scores,
        cross_encoder=cross_encoder, query_prompt=query_prompt, query_prompt_name=query_prompt_name,
        corpus_prompt=corpus_prompt, corpus_prompt_name=corpus_prompt_name, batch_size=batch_size,
        max_length=max_length, index=index, cache_folder=cache_folder, resume=resume, overwrite=overwrite,
        backend=backend,
    )  # fmt: skip
    with quiet_stdout():
        from ...mining.report import report_table
        from .job import run_mine

        report, mined = run_mine(options, lambda line: print(line, file=sys.stderr))
        tables = [] if mined is None else [report_table(mined)]
    show(report, as_json, *tables, _facts(report, options))


def _facts(report: dict[str, Any], options: MineOptions) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    mined = f"{report['negatives']:,} for {report['queries']:,} anchors among {report['candidates']:,} candidates"
    table.add_row("negatives", mined)
    table.add_row("backend", report["backend"])
    table.add_row("time", f"{report['seconds']:.0f} s")
    if options.cache_folder is not None:
        table.add_row("embeddings", f"kept in {options.cache_folder}")
    table.add_row("written", f"{report['output']}, {report['rows']:,} rows of --format {options.format}")
    return table
