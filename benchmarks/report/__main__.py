"""Writes benchmarks/RESULTS.md, the README's section and the figures.

python -m benchmarks.report
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .figures import accuracy_figure, loss_figure
from .files import Files, Unreadable, read_files
from .gpu import model_table, target_table
from .kmeans import kmeans_table, kmeans_target_table
from .loss import accuracy_table, full_table, left_out, short_table
from .mining import mining_figure, scifact_table, vaswani_table
from .nearest import search_table
from .objectives import TARGETS as OBJECTIVES
from .objectives import objective_table, objective_target_table
from .rows import row_target_table, rows_table
from .sts import sts_table
from .sts_figure import sts_figure
from .training import LOSS_STAGE, STEP, training_table, training_target_table

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"(<!-- results -->\n).*(<!-- end of results -->)", re.DOTALL)
MODEL = (
    "The last column is a model and no measurement: peak rates of the data sheet and what the compiled code allows "
    "(`benchmarks/results/compiled_roofline.csv`)."
)


def readme_section(files: Files) -> str:
    """The short version."""
    return "\n\n".join([
        short_table(files.cpu),
        "What is wanted of a GPU, and what was measured on one:",
        target_table(files.gpu, files.roofline),
        MODEL,
        "All providers, sizes and numbers, accuracy, STS scores: [benchmarks/RESULTS.md](benchmarks/RESULTS.md).",
    ])  # fmt: skip


def page(files: Files) -> str:
    """All tables: benchmarks/RESULTS.md."""
    parts = ["# Results", "Made by `make report` from the files in benchmarks/results; not edited by hand.",
             "## Losses on the CPU"]  # fmt: skip
    parts += [part for loss, document in files.cpu.items() for part in (f"### {loss}", full_table(document))]
    if not files.cpu:
        parts.append(short_table(files.cpu))
    parts += ["## Accuracy", accuracy_table(files.accuracy)]
    if files.accuracy:
        parts += [*left_out(files.accuracy), "![gradient errors](results/accuracy_cpu.png)"]
    parts += ["## Losses on a GPU", target_table(files.gpu, files.roofline), MODEL]
    for path, document in files.gpu.items():
        parts += [f"### {document['machine'].get('gpu', '')} ({path}.json)", full_table(document)]
    parts += ["### Roofline model, sm_90", model_table(files.roofline), *_rows_parts(files), *_nearest_parts(files),
              *_kmeans_parts(files), *_training_parts(files), *_objective_parts(files),
              "## STS after training", sts_table(files.sts)]  # fmt: skip
    parts += ["![scores, and alignment against uniformity](results/sts.png)"] if files.sts else []
    return "\n\n".join(parts) + "\n"


def _rows_parts(files: Files) -> list[str]:
    """Row-wise operations: what is wanted, then every number."""
    parts = ["## Row-wise operations", row_target_table(files.rows, files.gpu_rows), "### Rows on the CPU",
             rows_table(files.rows, "Rows on the CPU", "make rows")]  # fmt: skip
    for path, document in files.gpu_rows.items():
        parts += [f"### Rows on {document['machine'].get('gpu', '')} ({path}.json)",
                  rows_table(document, "Rows", "make gpu")]  # fmt: skip
    return parts if files.gpu_rows else [*parts, "### Rows on a GPU", rows_table(None, "Rows on a GPU", "make gpu")]


def _nearest_parts(files: Files) -> list[str]:
    """The search, the miner, and what its negatives are worth."""
    parts = ["## Exact top-k on the CPU", search_table(files.topk, "topk on the CPU", "make topk")]
    for path, document in files.gpu_topk.items():
        title = f"## Exact top-k on {document['machine'].get('gpu', '')} ({path}.json)"
        parts += [title, search_table(document, "topk", "make gpu")]
    parts += ["## Mining hard negatives", search_table(files.mining, "Mining on the CPU", "make topk"),
              "### Training with them: SciFact", scifact_table(files.retrieval),
              "### False ones among them: Vaswani", vaswani_table(files.retrieval)]  # fmt: skip
    return [*parts, "![mined negatives](results/retrieval.png)"] if files.retrieval else parts


def _kmeans_parts(files: Files) -> list[str]:
    """K-means: what is wanted, then every number."""
    parts = ["## K-means", kmeans_target_table(files.kmeans, files.gpu_kmeans), "### K-means on the CPU",
             kmeans_table(files.kmeans, "K-means on the CPU", "make kmeans")]  # fmt: skip
    for path, document in files.gpu_kmeans.items():
        parts += [f"### K-means on {document['machine'].get('gpu', '')} ({path}.json)",
                  kmeans_table(document, "K-means", "make gpu")]  # fmt: skip
    if files.gpu_kmeans:
        return parts
    return [*parts, "### K-means on a GPU", kmeans_table(None, "K-means on a GPU", "make gpu")]


def _training_parts(files: Files) -> list[str]:
    """Training steps: the loss stage, which has a target, then whole steps."""
    kinds = ((STEP, "Steps"), (LOSS_STAGE, "Loss stage"))
    parts = ["## Training steps", training_target_table(files.loss_stage)]
    for (operation, what), document in zip(kinds, (files.training, files.loss_stage)):
        title = f"{what} on the CPU"
        parts += [f"### {title}", training_table(document, operation, title, "make train-bench")]
    if files.training:
        parts.append("![sentences a second and memory](results/train_cpu.png)")
    for path, document in files.gpu_training.items():
        for operation, what in kinds:
            parts += [f"### {what} on {document['machine'].get('gpu', '')} ({path}.json)",
                      training_table(document, operation, what, "make gpu")]  # fmt: skip
    if files.gpu_training:
        return parts
    return [*parts, "### Steps on a GPU", training_table(None, STEP, "Steps on a GPU", "make gpu")]


def _objective_parts(files: Files) -> list[str]:
    """Whole objectives beside InfoNCE."""
    parts = ["## Whole objectives", objective_target_table(files.objectives)]
    for name in OBJECTIVES:
        parts += [f"### {name}", objective_table(files.objectives.get(name), name)]
    return parts


def make_report(root: Path) -> list[Path]:
    """Write everything under `root`; the files that were written."""
    results, readme = root / "benchmarks" / "results", root / "README.md"
    files = read_files(results)
    text = readme.read_text(encoding="utf-8")
    if not SECTION.search(text):
        raise Unreadable(f"{readme} has no <!-- results --> ... <!-- end of results --> to write between")
    written = [root / "benchmarks" / "RESULTS.md", readme]
    written[0].write_text(page(files), encoding="utf-8")
    readme.write_text(SECTION.sub(lambda m: f"{m[1]}{readme_section(files)}\n{m[2]}", text), encoding="utf-8")
    for draw, found, name in ((loss_figure, files.cpu, "loss_cpu.png"),
                              (accuracy_figure, files.accuracy, "accuracy_cpu.png"),
                              (mining_figure, files.retrieval, "retrieval.png"),
                              (sts_figure, files.sts, "sts.png")):  # fmt: skip
        if found:
            draw(found, results / name)
            written.append(results / name)
    return written


def main() -> int:
    try:
        for path in make_report(ROOT):
            print(path.relative_to(ROOT))
    except Unreadable as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
