"""What mined hard negatives are worth, from what `python -m benchmarks.studies.retrieval` wrote."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .figures import COLOURS, OTHERS, plain, save
from .files import table
from .loss import OURS
from .sts import spread

SCORES = {"ndcg_at_10": "nDCG@10", "recall_at_100": "recall@100"}
NEGATIVES = {"in-batch": "in-batch alone", "random": "and one random", "mined": "and one mined"}
NOT_MEASURED = "{}: not measured (`python -m benchmarks.studies.retrieval`)."


def scifact_table(report: dict[str, Any] | None) -> str:
    """Before, and after training with each kind of negatives: mean and spread over seeds, and the gain."""
    found = (report or {}).get("scifact")
    if found is None:
        return NOT_MEASURED.format("SciFact")
    before = found["before"]
    rows = [["untrained", "", *(f"{before[key]:.4f}" for key in SCORES), "", ""]]
    for method, runs in _by_method(found["runs"]).items():
        cells = [spread([run[key] for run in runs], 4) for key in SCORES]
        gain = statistics.mean(run["ndcg_at_10"] for run in runs) - before["ndcg_at_10"]
        seeds, pairs = (", ".join(dict.fromkeys(str(run[key]) for run in runs)) for key in ("seed", "pairs"))
        rows.append([NEGATIVES[method], seeds, *cells, f"{gain:+.4f}", pairs])
    head = ["negatives", "seeds", *SCORES.values(), "nDCG@10 gained", "pairs"]
    s = found["settings"]
    how = (
        f"Batches of {s['batch_size']}, {s['epochs']} epoch, learning rate {s['lr']:g}, temperature "
        f"{s['temperature']:g}, texts cut to {s['train_tokens']} tokens in training and {s['score_tokens']} in "
        f"scoring; mined at {s['mining_rows']['tokens']} tokens with relative margin "
        f"{s['filters']['relative_margin']:g}."
    )
    return f"{found['what']}; mean ± standard deviation over seeds. {how} {_where(report)}\n\n" + table(head, rows, 2)


def _by_method(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    ordered = sorted(runs, key=lambda run: run["seed"])
    return {name: found for name in NEGATIVES if (found := [run for run in ordered if run["method"] == name])}


def vaswani_table(report: dict[str, Any] | None) -> str:
    """Each setting of the filters: what it leaves, and how much of that is relevant in truth."""
    found = (report or {}).get("vaswani")
    if found is None:
        return NOT_MEASURED.format("Vaswani")
    s = found["settings"]
    rows = [[row["filters"], f"{row['negatives']}", f"{row['negatives'] / row['wanted']:.0%}", f"{row['false']}",
             _share(row), f"{row['short_queries'] / row['queries']:.0%}"] for row in found["rows"]]  # fmt: skip
    head = ["filters", "negatives", "of those wanted", "false", "share false", "queries with fewer"]
    how = (
        f"The {s['negatives']} best of the first {s['range_max']} ranks, {len(s['draws'])} draws of the known "
        "document, all added up."
    )
    return f"{found['what']}. {how} {_where(report)}\n\n" + table(head, rows)


def _share(row: dict[str, Any]) -> str:
    return f"{row['false'] / row['negatives']:.1%}" if row["negatives"] else "-"


def _where(report: dict[str, Any]) -> str:
    facts = report["machine"]
    return f"{facts['cpu']}; torch {facts['versions']['torch']}, commit {facts['commit']}; `{report['command']}`."


def mining_figure(report: dict[str, Any], path: Path) -> None:
    """nDCG@10 after training, each seed a point; and what the filters leave against what of it is false."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.4), layout="constrained")
    _score_panel(left, report.get("scifact"))
    _filter_panel(right, report.get("vaswani"))
    save(figure, path)


def _score_panel(panel: Any, found: dict[str, Any] | None) -> None:
    panel.set_title("SciFact, nDCG@10 on the 300 test claims", fontsize=10)
    if found is None:
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)
        return
    panel.axhline(found["before"]["ndcg_at_10"], color="#8d99ae", linestyle="--", label="untrained")
    groups = _by_method(found["runs"])
    for place, (method, runs) in enumerate(groups.items()):
        scores = [run["ndcg_at_10"] for run in runs]
        colour = COLOURS[OURS] if method == "mined" else OTHERS[place]
        panel.scatter([place] * len(scores), scores, color=colour, s=28, zorder=3)
        panel.hlines(statistics.mean(scores), place - 0.25, place + 0.25, color=colour, linewidth=2.6)
    panel.set_xticks(range(len(groups)), [NEGATIVES[method] for method in groups])
    panel.set_xlim(-0.6, max(len(groups), 1) - 0.4)
    panel.legend(frameon=False, fontsize=8)
    plain(panel, "y")


def _filter_panel(panel: Any, found: dict[str, Any] | None) -> None:
    panel.set_title("Vaswani, what the filters let through", fontsize=10)
    if found is None:
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)
        return
    kinds: dict[str, list[tuple[float, float, str]]] = {}
    for row in found["rows"]:
        if row["negatives"]:
            name, _, value = row["filters"].rpartition(" ")
            kind = "several" if "," in row["filters"] else name or "none"
            point = (100 * row["negatives"] / row["wanted"], 100 * row["false"] / row["negatives"], value)
            kinds.setdefault(kind, []).append(point)
    for number, (kind, points) in enumerate(kinds.items()):
        x, y, values = zip(*points)
        panel.plot(x, y, "o-" if kind != "several" else "o", color=OTHERS[number], markersize=4, label=kind)
        for place, text in zip(zip(x, y), values):
            panel.annotate("" if kind in ("none", "several") else text, place, (4, 4), textcoords="offset points",
                           fontsize=7)  # fmt: skip
    panel.set(xlabel="negatives found, % of those wanted", ylabel="of them relevant in truth, %", ylim=(0, None))
    panel.legend(frameon=False, fontsize=8)
    plain(panel, "both")
