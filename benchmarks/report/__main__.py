"""Writes benchmarks/RESULTS.md, the README's section and the figures.

python -m benchmarks.report
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fastcse.bench.output import Document, read_results
from fastcse.errors import InputError
from fastcse.files import write_atomic

from . import figures
from .studies import objective_table, scifact_table, sts_table, vaswani_table
from .tables import NOT_MEASURED, accuracy_table, short_table, table
from .targets import model_table, target_table

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"(<!-- results -->\n).*(<!-- end of results -->)", re.DOTALL)
LOSSES = ("loss_infonce_cpu", "loss_focal_cpu", "loss_symmetric_cpu")
OBJECTIVES = ("hsimcse", "clusterns")
MODEL = (
    "The last column is a model and no measurement: peak rates of the data sheet and what the compiled code allows "
    "(`benchmarks/results/compiled_roofline.csv`)."
)


class Section(NamedTuple):
    """An operation on the page: its files of the CPU, the name of its files of a GPU, and who makes the former."""

    title: str
    subject: str
    cpu: tuple[str, ...]
    gpu: str
    command: str


SECTIONS = (
    Section("Losses", "loss", LOSSES, "loss", "make loss"),
    Section("Row-wise operations", "rows", ("rows_cpu",), "rows", "make rows"),
    Section("Exact top-k", "topk", ("topk_cpu",), "topk", "make topk"),
    Section("Mining hard negatives", "mining", ("mining_cpu",), "", "make topk"),
    Section("K-means", "kmeans", ("kmeans_cpu",), "kmeans", "make kmeans"),
    Section("Training steps", "train", ("train_cpu", "train_loss_cpu"), "train", "make train-bench"),
)
WITH_TARGETS = ("loss", "rows", "kmeans", "train")


class Results:
    """The files of benchmarks/results, read when they are asked for; None or empty where nobody measured."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / "compiled_roofline.csv"
        self.roofline = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []

    def json(self, name: str, *keys: str) -> dict[str, Any] | None:
        """A document as it stands in its file."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}): measure it again") from None
        if not isinstance(document, dict) or not set(keys) <= set(document):
            raise InputError(f"{path} is not a result file, it lacks {' or '.join(keys)}: measure it again")
        return document

    def bench(self, name: str) -> Document | None:
        """A document of `fastcse bench`."""
        return (
            None
            if self.json(name, "command", "machine", "results") is None
            else read_results(self.folder / f"{name}.json")
        )

    def gpu(self, name: str) -> list[str]:
        """The documents of that name, one for each GPU."""
        found = sorted(self.folder.glob(f"gpu/*/{name}.json")) if name else []
        return [path.relative_to(self.folder).with_suffix("").as_posix() for path in found]

    def picture(self, name: str, text: str) -> list[str]:
        """The line that shows a figure, where it was drawn."""
        return [f"![{text}](results/{name}.png)"] if (self.folder / f"{name}.png").exists() else []


def readme_section(results: Results) -> str:
    """The short version."""
    losses = [found for name in LOSSES if (found := results.bench(name))]
    more = (
        "All providers, sizes and numbers, accuracy, STS scores, and on a GPU the targets with what was measured there"
    )
    return f"{short_table(losses)}\n\n{more}: [benchmarks/RESULTS.md](benchmarks/RESULTS.md)."


def page(results: Results) -> str:
    """All tables: benchmarks/RESULTS.md."""
    parts = ["# Results", "Made by `make report` from the files in benchmarks/results; not edited by hand."]
    for section in SECTIONS:
        parts += _operation(results, section)
        if section.subject == "loss":
            parts += ["### Roofline model, sm_90", model_table(results.roofline), "## Accuracy"]
            if accuracy := results.bench("accuracy_cpu"):
                parts += [accuracy_table(accuracy), *results.picture("accuracy_cpu", "gradient errors")]
            else:
                parts.append(f"Accuracy on other kinds of rows: {NOT_MEASURED} (`make loss`).")
        if section.subject == "mining":
            report = results.json("retrieval", "command", "machine")
            parts += ["### Training with them: SciFact", scifact_table(report)]
            parts += ["### False ones among them: Vaswani", vaswani_table(report)]
            parts += results.picture("retrieval", "mined negatives")
    found = {name: results.json(f"{name}_cpu", "command", "machine", "results") for name in OBJECTIVES}
    parts += ["## Whole objectives"]
    parts += [target_table(OBJECTIVES, [document for document in found.values() if document], [])]
    for name, report in found.items():
        parts += [f"### {name}", objective_table(report, name)]
    parts += ["## STS after training", sts_table(results.json("sts", "runs"))]
    parts += results.picture("sts", "scores, and alignment against uniformity")
    return "\n\n".join(parts) + "\n"


def _operation(results: Results, section: Section) -> list[str]:
    """An operation: what is wanted, then every number."""
    title, subject, cpu, gpu, command = section
    parts, names = [f"## {title}"], results.gpu(gpu)
    if subject in WITH_TARGETS:
        documents = [found for name in (*cpu, *names) if (found := results.json(name, "machine", "results"))]
        parts.append(target_table((subject,), documents, results.roofline))
        parts += [MODEL] if subject == "loss" else []
    measured = {name: document for name in cpu if (document := results.bench(name))}
    if not measured:
        parts += [f"### {title} on the CPU", f"{title} on the CPU: {NOT_MEASURED} (`{command}`)."]
    for name, document in measured.items():
        what = document.results[0].case.operation if len(cpu) > 1 else title
        parts += [f"### {what} on the CPU", table(document), *results.picture(name, what)]
    for name in names:
        document = results.bench(name)
        parts += [f"### {title} on {document.machine.get('gpu', '')} ({name}.json)", table(document)]
    if gpu and not names:
        parts += [f"### {title} on a GPU", f"{title} on a GPU: {NOT_MEASURED} (`make gpu`)."]
    return parts


def make_report(root: Path) -> list[Path]:
    """Write everything under `root`; the files that were written."""
    folder, readme = root / "benchmarks" / "results", root / "README.md"
    results, text = Results(folder), readme.read_text(encoding="utf-8")
    if not SECTION.search(text):
        raise InputError(f"{readme} has no <!-- results --> ... <!-- end of results --> to write between")
    written = []
    losses = [found for name in LOSSES if (found := results.bench(name))]
    for draw, found, name in (
        (figures.loss_figure, losses, "loss_cpu"),
        (figures.accuracy_figure, results.bench("accuracy_cpu"), "accuracy_cpu"),
        (figures.mining_figure, results.json("retrieval", "command", "machine"), "retrieval"),
        (figures.sts_figure, results.json("sts", "runs"), "sts"),
    ):
        if found:
            written.append(folder / f"{name}.png")
            draw(found, written[-1])
    pages = {root / "benchmarks" / "RESULTS.md": page(results)}
    pages[readme] = SECTION.sub(lambda match: f"{match[1]}{readme_section(results)}\n{match[2]}", text)
    for path, content in pages.items():
        write_atomic(path, content)
    return [*pages, *written]


def main() -> int:
    try:
        for path in make_report(ROOT):
            print(path.relative_to(ROOT))
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
