"""The table of STS scores after training, from what benchmarks/studies/sts.py wrote."""

from __future__ import annotations

import statistics

from .files import table

COLUMNS = {"dev_before": ("STS-B dev before", 2), "dev": ("STS-B dev", 2), "test": ("STS-B test", 2),
           "alignment": ("alignment", 3), "uniformity": ("uniformity", 2)}  # fmt: skip


def sts_table(report: dict | None) -> str:
    """Mean and spread over seeds."""
    if report is None:
        return "STS after training: not measured (`python -m benchmarks.studies.sts`)."
    rows, more = [], sorted({name for run in report["runs"] for name in run.get("more", {})})
    for name in sorted({run["objective"] for run in report["runs"]}, key=in_order):
        runs = [run for run in report["runs"] if run["objective"] == name]
        cells = [spread([run[key] for run in runs], digits) for key, (_, digits) in COLUMNS.items()]
        rows.append(
            [
                shown(name),
                ", ".join(map(str, sorted(run["seed"] for run in runs))),
                *cells,
                *(_further(runs, one) for one in more),
            ]
        )
    head = ["objective", "seeds", *(label for label, _ in COLUMNS.values()), *map(_label, more)]
    return f"{report['what']} `{report['command']}`.\n\n" + table(head, rows, left=2)


def in_order(objective: str) -> tuple[str, int]:
    """By name, then by the size of a step."""
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


def _further(runs: list[dict], name: str) -> str:
    """The score on a further set, of the runs that were scored on it."""
    scores = [run["more"][name] for run in runs if name in run.get("more", {})]
    if not scores:
        return "-"
    return spread(scores, 2) + ("" if len(scores) == len(runs) else f" ({len(scores)} of {len(runs)} seeds)")


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation, or one number where all are equal."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
