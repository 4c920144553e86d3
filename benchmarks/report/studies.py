"""Tables of the studies: objectives, retrieval and STS."""

from __future__ import annotations

import statistics
from typing import Any

from .tables import NOT_MEASURED, markdown, number, spread, where

COMMANDS = {"objectives": "make objectives", "retrieval": "python -m benchmarks.studies.retrieval",
            "sts": "python -m benchmarks.studies.sts"}  # fmt: skip
SCORES = {"ndcg_at_10": "nDCG@10", "recall_at_100": "recall@100"}
NEGATIVES = {"in-batch": "in-batch alone", "random": "and one random", "mined": "and one mined"}
STS = {"dev_before": ("STS-B dev before", 2), "dev": ("STS-B dev", 2), "test": ("STS-B test", 2),
       "alignment": ("alignment", 3), "uniformity": ("uniformity", 2)}  # fmt: skip
Report = dict[str, Any]


def not_measured(what: str, study: str) -> str:
    return f"{what}: {NOT_MEASURED} (`{COMMANDS[study]}`)."


def objective_table(report: Report | None, name: str) -> str:
    """Every part of one objective at every size, and its time over InfoNCE's."""
    if report is None:
        return not_measured(name, "objectives")
    rows = []
    for result in report["results"]:
        of = f"{result['bank']} texts" if "bank" in result else f"{result['clusters']} clusters"
        for row in result["rows"]:
            times = [f"{row['ms']:.4g}", f"{row['ms_20']:.4g} - {row['ms_80']:.4g}", f"{row['to_infonce']:.2f}"]
            error = number(row.get("gradient_error"), ".1e", "")
            rows.append([row["part"], str(result["n"]), str(result["d"]), of, *times, error])
    head = [f"{name}, part", "N", "D", "of", "ms", "20% - 80%", "/ infonce", "gradient error"]
    return f"{where(report['machine'], report['command'])}\n\n{markdown(head, rows)}"


def scifact_table(report: Report | None) -> str:
    """Before, and after training with each kind of negatives: mean and spread over seeds, and the gain."""
    found = (report or {}).get("scifact")
    if found is None:
        return not_measured("SciFact", "retrieval")
    before, s = found["before"], found["settings"]
    rows = [["untrained", "", *(f"{before[key]:.4f}" for key in SCORES), "", ""]]
    for method, runs in by_method(found["runs"]).items():
        gain = statistics.mean(run["ndcg_at_10"] for run in runs) - before["ndcg_at_10"]
        seeds, pairs = (", ".join(dict.fromkeys(str(run[key]) for run in runs)) for key in ("seed", "pairs"))
        means = [spread([run[key] for run in runs], 4) for key in SCORES]
        rows.append([NEGATIVES[method], seeds, *means, f"{gain:+.4f}", pairs])
    head = ["negatives", "seeds", *SCORES.values(), "nDCG@10 gained", "pairs"]
    how = (
        f"Batches of {s['batch_size']}, {s['epochs']} epoch, learning rate {s['lr']:g}, temperature "
        f"{s['temperature']:g}, texts cut to {s['train_tokens']} tokens in training and {s['score_tokens']} in "
        f"scoring; mined at {s['mining_rows']['tokens']} tokens with relative margin "
        f"{s['filters']['relative_margin']:g}."
    )
    what = f"{found['what']}; mean ± standard deviation over seeds. {how} {_where(report)}"
    return f"{what}\n\n{markdown(head, rows, 2)}"


def by_method(runs: list[Report]) -> dict[str, list[Report]]:
    """The runs of each kind of negatives, by seed."""
    ordered = sorted(runs, key=lambda run: run["seed"])
    return {name: found for name in NEGATIVES if (found := [run for run in ordered if run["method"] == name])}


def vaswani_table(report: Report | None) -> str:
    """Each setting of the filters: the negatives that it leaves, and how many of them are relevant."""
    found = (report or {}).get("vaswani")
    if found is None:
        return not_measured("Vaswani", "retrieval")
    s, rows = found["settings"], []
    for row in found["rows"]:
        mined, false = row["negatives"], row["false"]
        share = f"{false / mined:.1%}" if mined else "-"
        fewer = f"{row['short_queries'] / row['queries']:.0%}"
        rows.append([row["filters"], str(mined), f"{mined / row['wanted']:.0%}", str(false), share, fewer])
    head = ["filters", "negatives", "of those wanted", "false", "share false", "queries with fewer"]
    ranks = f"The {s['negatives']} best of the first {s['range_max']} ranks"
    how = f"{ranks}, {len(s['draws'])} draws of the known document, all added up."
    return f"{found['what']}. {how} {_where(report)}\n\n{markdown(head, rows)}"


def _where(report: Report) -> str:
    facts = report["machine"]
    return f"{facts['cpu']}; torch {facts['versions']['torch']}, commit {facts['commit']}; `{report['command']}`."


def sts_table(report: Report | None) -> str:
    """Scores after training, mean and spread over seeds."""
    if report is None:
        return not_measured("STS after training", "sts")
    rows, more = [], sorted({name for run in report["runs"] for name in run.get("more", {})})
    for name, runs in by_objective(report).items():
        seeds = ", ".join(map(str, sorted(run["seed"] for run in runs)))
        cells = [spread([run[key] for run in runs], digits) for key, (_, digits) in STS.items()]
        rows.append([shown(name), seeds, *cells, *(_further(runs, one) for one in more)])
    head = ["objective", "seeds", *(label for label, _ in STS.values()), *map(_label, more)]
    return f"{report['what']} `{report['command']}`.\n\n{markdown(head, rows, left=2)}"


def by_objective(report: Report) -> dict[str, list[Report]]:
    """The runs of each objective, by name, then by the size of a step."""
    names = sorted({run["objective"] for run in report["runs"]}, key=in_order)
    return {name: [run for run in report["runs"] if run["objective"] == name] for name in names}


def in_order(objective: str) -> tuple[str, int]:
    name, *options = objective.split()
    return name, int(dict(zip(options[::2], options[1::2])).get("--batch-size", 0))


def shown(objective: str) -> str:
    """An objective as it is named in tables and figures: of its options the steps and their size."""
    name, *options = objective.split()
    given = dict(zip(options[::2], options[1::2]))
    size, steps = (given.get(f"--{key}") for key in ("batch-size", "max-steps"))
    if not (size and steps):
        return objective
    return f"{name}, {int(steps):,} step{'s' if steps != '1' else ''} of {int(size):,}"


def _label(name: str) -> str:
    """`sts15.apart` holds the pairs of STS15 that STS-B lacks."""
    name, _, apart = name.partition(".")
    return f"{name.upper()}{', not in STS-B' if apart else ''}"


def _further(runs: list[Report], name: str) -> str:
    """The score on a further set, of the runs that were scored on it."""
    scores = [run["more"][name] for run in runs if name in run.get("more", {})]
    if not scores:
        return "-"
    return spread(scores, 2) + ("" if len(scores) == len(runs) else f" ({len(scores)} of {len(runs)} seeds)")
