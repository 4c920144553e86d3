"""`fastcse train`: train a sentence encoder with a fused loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..pairs import STEPS
from ..training.objectives import OBJECTIVES
from .console import Backend, Json, one_sentence_errors, quiet_stdout, real_option, show, shown, whole_option

if TYPE_CHECKING:
    from ..training.run import TrainReport


@one_sentence_errors
def train(
    output_dir: Annotated[str, typer.Option(metavar="DIR", help="Model and checkpoints go here.", show_default=False)],
    objective: Annotated[str, typer.Option(metavar="|".join(OBJECTIVES), help="What to train.")] = "focal",
    model: Annotated[str, typer.Option(metavar="NAME", help="Hub name, local folder, or minilm.")] = "minilm",
    pooling: Annotated[str | None, typer.Option(metavar="cls|mean", help="By default the model's own.")] = None,
    corpus: Annotated[str | None, typer.Option(metavar="FILE", help="One sentence a line, .txt or .gz.")] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="FILE", help="anchor, positive [, negative]: .tsv or .gz.")
    ] = None,
    hard_negatives: Annotated[
        str | None, typer.Option(metavar="FILE", help="What fastcse mine wrote for --corpus or --pairs.")
    ] = None,
    batch_size: Annotated[int, whole_option("Sentences, or pairs, in a batch of all processes together.")] = 64,
    mini_batch_size: Annotated[
        int | None, whole_option("Encode the batch in such parts: memory no longer depends on it. (default: whole)")
    ] = None,
    max_gathered_bytes: Annotated[
        int | None, whole_option("More candidates of all processes travel in a ring. (default: gather all)")
    ] = None,
    max_steps: Annotated[int, whole_option("Optimizer steps.")] = 1000,
    lr: Annotated[float, real_option("First learning rate; it decays linearly to 0.")] = 3e-5,
    max_length: Annotated[int, whole_option("Tokens of a sentence, in training only.")] = 32,
    temperature: Annotated[float | None, real_option("Divisor of the logits. (default: the objective's)")] = None,
    margin: Annotated[
        float | None, real_option("Of focal's negatives, of hsimcse's hinge. (default: the objective's)")
    ] = None,
    quadruplet_weight: Annotated[
        float | None, real_option("Of hsimcse's hinge beside InfoNCE. (default: 0.22)")
    ] = None,
    adversarial_step: Annotated[float | None, real_option("How far hsimcse moves positives. (default: 3)")] = None,
    adversarial_mode: Annotated[
        str | None, typer.Option(metavar="|".join(STEPS), help="How it moves them. (default: raw)")
    ] = None,
    noise: Annotated[float | None, real_option("Length of their random offset. (default: 1)")] = None,
    margin_weight: Annotated[float | None, real_option("Of clusterns' margin loss. (default: 0.001)")] = None,
    alpha: Annotated[float | None, real_option("Its upper margin. (default: 0)")] = None,
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
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Train a sentence encoder on --corpus (SimCSE: two dropout masks of a sentence) or on --pairs.

    With --hard-negatives the mined negatives of a pair join those of the batch; pairs without any are left out.
    """
    from ..training.options import TrainOptions

    options = TrainOptions(
        output_dir=output_dir, objective=objective, model=model, pooling=pooling, corpus=corpus, pairs=pairs,
        hard_negatives=hard_negatives, batch_size=batch_size, mini_batch_size=mini_batch_size, max_steps=max_steps,
        max_gathered_bytes=max_gathered_bytes, lr=lr, max_length=max_length,
        seed=seed, sts_dir=sts_dir, eval_steps=eval_steps, patience=patience, bf16=bf16,
        gradient_checkpointing=gradient_checkpointing, tensorboard=tensorboard, resume=resume, backend=backend,
        objective_options={
            "temperature": temperature, "margin": margin, "quadruplet_weight": quadruplet_weight,
            "adversarial_step": adversarial_step, "adversarial_mode": adversarial_mode, "noise": noise,
            "margin_weight": margin_weight, "alpha": alpha, "beta": beta, "false_negatives": false_negatives,
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
        from ..training import run

        report = run.train(options)
    if report.rank == 0:
        show(report.as_dict(), as_json, _table(report))


def _table(report: TrainReport) -> Table:
    options = report.options
    table = Table(title="training", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    values = options["objective_options"].items()
    chosen = ", ".join(f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in values)
    table.add_row("objective", f"{options['objective']} ({chosen})")
    table.add_row("backend", str(report.backend))
    table.add_row("model", f"{options['model']}, pooling {options['pooling'] or 'its own'}")
    table.add_row("text", f"{options['corpus'] or options['pairs']}, {report.sentences:,} rows")
    if options["hard_negatives"]:
        table.add_row("hard negatives", "; ".join((options["hard_negatives"], *report.notes)))
    if report.bank:
        table.add_row("bank", _bank(report))
    speed = report.new_steps * options["batch_size"] / max(report.seconds, 1e-9)
    table.add_row(
        "steps", f"{report.steps} of batch {options['batch_size']}, {report.seconds:.0f} s, {speed:.0f} rows/s"
    )
    table.add_row("loss", f"{report.loss[0][1]:.4f} first, {report.loss[-1][1]:.4f} last")
    table.add_row(
        "last batch",
        f"accuracy {report.accuracy:.3f}, similarity of positives {report.positive_similarity:.3f}, "
        f"of negatives {report.negative_similarity:.3f}",
    )
    if "quadruplet" in report.stats:
        table.add_row("hinge", _hinge(report.stats))
    if options["cluster_options"]:
        table.add_row("clusters", _clusters(options["cluster_options"], report.stats))
    if report.dev:
        table.add_row(
            "STS-B dev", f"{shown(report.dev_before)} before, {shown(report.dev_best)} at step {report.best_step}"
        )
    else:
        table.add_row("STS-B dev", "not measured: no --sts-dir, so the last step is saved")
    table.add_row("saved", report.saved)
    return table


def _bank(report: TrainReport) -> str:
    options = report.options["bank_options"]
    refresh = options["refresh"]
    upkeep = f"refreshed every {refresh} steps" if isinstance(refresh, int) else f"refresh {refresh}"
    return f"{report.bank:,} texts, mean of {options['neighbours']} behind {options['skip']}, {upkeep}"


def _clusters(options: dict, stats: dict[str, float]) -> str:
    text = f"{options['clusters']}, {options['cluster_mode']} {options['cluster_rate']:g}"
    if "largest_cluster" not in stats:
        return f"{text}; not started: the mean cosine stayed above {options['cluster_threshold']:g}"
    sizes = f"largest {stats['largest_cluster']:.0f}, empty {stats['empty_clusters']:.0f}"
    return f"{text}; in the last batch {sizes}, {100 * stats['false_share']:.1f}% of pairs in one cluster"


def _hinge(stats: dict[str, float]) -> str:
    parts = f"adversarial positive {stats['adversarial_similarity']:.3f}"
    parts += f", batch negative {stats['batch_similarity']:.3f}, corpus negative {stats['corpus_similarity']:.3f}"
    return f"{stats['quadruplet']:.4f}, above 0 in {100 * stats['active_share']:.0f}% of rows; similarities: {parts}"
