"""`fastcse train`: train a sentence encoder with a fused loss."""

from __future__ import annotations

from typing import Annotated

import typer

from ...pairs import STEPS
from ...training.objectives import OBJECTIVES
from ..console import Backend, Json, one_sentence_errors, quiet_stdout, real_option, show, whole_option
from .table import table_of


@one_sentence_errors
def train(
    output_dir: Annotated[str, typer.Option(metavar="DIR", help="Model and checkpoints go here.", show_default=False)],
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A paper's settings where none are given; see fastcse recipes.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="|".join(OBJECTIVES), help="What to train. (default: focal)")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Hub name, local folder, or minilm. (default: minilm)")
    ] = None,
    pooling: Annotated[str | None, typer.Option(metavar="cls|mean", help="By default the model's own.")] = None,
    corpus: Annotated[str | None, typer.Option(metavar="FILE", help="One sentence a line, .txt or .gz.")] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="FILE", help="anchor, positive [, negative]: .tsv or .gz.")
    ] = None,
    hard_negatives: Annotated[
        str | None, typer.Option(metavar="FILE", help="What fastcse mine wrote for --corpus or --pairs.")
    ] = None,
    batch_size: Annotated[
        int | None, whole_option("Sentences, or pairs, in a batch of all processes together. (default: 64)")
    ] = None,
    mini_batch_size: Annotated[
        int | None, whole_option("Encode the batch in such parts: memory no longer depends on it. (default: whole)")
    ] = None,
    max_gathered_bytes: Annotated[
        int | None, whole_option("More candidates of all processes travel in a ring. (default: gather all)")
    ] = None,
    max_steps: Annotated[int | None, whole_option("Optimizer steps. (default: 1000)")] = None,
    lr: Annotated[float | None, real_option("First learning rate; it decays linearly to 0. (default: 3e-5)")] = None,
    max_length: Annotated[int | None, whole_option("Tokens of a sentence, in training only. (default: 32)")] = None,
    head: Annotated[
        str | None, typer.Option(metavar="tanh|batchnorm|none", help="A layer of training only. (default: none)")
    ] = None,
    view: Annotated[
        str | None, typer.Option(metavar="case-switch|negation|none", help="Change the second view. (default: none)")
    ] = None,
    view_rate: Annotated[float | None, real_option("Of words whose case is switched. (default: 0.05)")] = None,
    queue: Annotated[int | None, whole_option("Past rows that are negatives too. (default: 0)")] = None,
    queue_momentum: Annotated[
        float | None, real_option("What the queue's encoder keeps of itself in a step. (default: 0.999)")
    ] = None,
    parts: Annotated[int | None, whole_option("Layers of sscl, the last one included. (default: 3)")] = None,
    temperature: Annotated[float | None, real_option("Divisor of the logits. (default: the objective's)")] = None,
    margin: Annotated[
        float | None, real_option("Of focal's and angular's negatives, of hsimcse's hinge. (default: the objective's)")
    ] = None,
    quadruplet_weight: Annotated[
        float | None, real_option("Of hsimcse's hinge beside InfoNCE. (default: 0.22)")
    ] = None,
    adversarial_step: Annotated[float | None, real_option("How far hsimcse moves positives. (default: 3)")] = None,
    adversarial_mode: Annotated[
        str | None, typer.Option(metavar="|".join(STEPS), help="How it moves them. (default: raw)")
    ] = None,
    noise: Annotated[float | None, real_option("Length of their random offset. (default: 1)")] = None,
    margin_weight: Annotated[
        float | None, real_option("Of the margin loss of clusterns and soft-negative. (default: 0.001)")
    ] = None,
    alpha: Annotated[float | None, real_option("Its upper margin. (default: the objective's)")] = None,
    beta: Annotated[float | None, real_option("Its lower margin. (default: 0.3)")] = None,
    false_negatives: Annotated[
        str | None, typer.Option(metavar="margin|remove|positive", help="Pairs of one cluster. (default: margin)")
    ] = None,
    clusters: Annotated[int | None, whole_option("Of clusterns. (default: 128, or half of a smaller batch)")] = None,
    cluster_mode: Annotated[
        str | None, typer.Option(metavar="momentum|kmeans|adamw", help="How centroids move. (default: momentum)")
    ] = None,
    cluster_rate: Annotated[float | None, real_option("How far, in a step. (default: 0.001)")] = None,
    centroid_reduce: Annotated[
        str | None, typer.Option(metavar="sum|mean", help="Of a cluster's anchors. (default: sum)")
    ] = None,
    cluster_start: Annotated[
        str | None, typer.Option(metavar="chain|max-min", help="Choice of the first centroids. (default: chain)")
    ] = None,
    cluster_threshold: Annotated[
        float | None, real_option("Mean cosine of a batch at which clustering starts. (default: 0.4)")
    ] = None,
    bank: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Texts, or a saved bank-N folder, for hsimcse. (default: the training text)"),
    ] = None,
    neighbours: Annotated[int | None, whole_option("Bank rows averaged to a negative. (default: 3)")] = None,
    skip: Annotated[int | None, whole_option("Nearest bank rows passed over. (default: 0)")] = None,
    sample: Annotated[
        int | None, whole_option("Draw the rows from this many nearest. (default: take the first)")
    ] = None,
    max_similarity: Annotated[float | None, real_option("More similar bank rows are no negatives.")] = None,
    refresh: Annotated[
        str | None,
        typer.Option(metavar="never|N|write-through", help="Bank: encoded anew every N steps, or row by row."),
    ] = None,
    parity: Annotated[bool, typer.Option("--parity", help="Bank of raw [CLS] as in HSimCSE's released code.")] = False,
    seed: Annotated[int, whole_option("The same seed gives the same numbers.")] = 42,
    sts_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Its stsb.dev file chooses the checkpoint.")
    ] = None,
    eval_steps: Annotated[
        int | None,
        whole_option("Steps between evaluations and checkpoints. (default: 125, or a quarter of a short run)"),
    ] = None,
    patience: Annotated[
        int | None, whole_option("Stop after this many evaluations without a better score. (default: never)")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Encode in bfloat16 (autocast).")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory of activations, a third more time.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the log for TensorBoard too, in DIR/runs.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of --output-dir.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model or run that --output-dir holds.")
    ] = False,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Train a sentence encoder on --corpus (SimCSE: two dropout masks of a sentence) or on --pairs.

    With --hard-negatives the mined negatives of a pair join those of the batch; pairs without any are left out.
    """
    given = dict(
        output_dir=output_dir, objective=objective, model=model, pooling=pooling, corpus=corpus, pairs=pairs,
        hard_negatives=hard_negatives, batch_size=batch_size, mini_batch_size=mini_batch_size, max_steps=max_steps,
        max_gathered_bytes=max_gathered_bytes, lr=lr, max_length=max_length,
        seed=seed, sts_dir=sts_dir, eval_steps=eval_steps, patience=patience, bf16=bf16,
        gradient_checkpointing=gradient_checkpointing, tensorboard=tensorboard, resume=resume, overwrite=overwrite,
        backend=backend,
        recipe=recipe, head=head, view=view, view_rate=view_rate, queue=queue, queue_momentum=queue_momentum,
        objective_options={
            "temperature": temperature, "margin": margin, "quadruplet_weight": quadruplet_weight,
            "adversarial_step": adversarial_step, "adversarial_mode": adversarial_mode, "noise": noise,
            "margin_weight": margin_weight, "alpha": alpha, "beta": beta, "false_negatives": false_negatives,
            "parts": parts,
        },
        cluster_options={
            "clusters": clusters, "cluster_mode": cluster_mode, "cluster_rate": cluster_rate,
            "centroid_reduce": centroid_reduce, "cluster_start": cluster_start, "cluster_threshold": cluster_threshold,
        },
        bank_options={
            "bank": bank, "neighbours": neighbours, "skip": skip, "sample": sample, "max_similarity": max_similarity,
            "refresh": refresh, "parity": parity,
        },
    )  # fmt: skip
    with quiet_stdout():
        from ...training import run
        from ...training.options import TrainOptions
        from ...training.recipes import get_recipe

        if recipe is not None:
            given = get_recipe(recipe).fill(given)
        report = run.train(TrainOptions(**{name: value for name, value in given.items() if value is not None}))
    if report.rank == 0:
        show(report.as_dict(), as_json, table_of(report))
