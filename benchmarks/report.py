"""Turns the result files into the README's tables and figure: `make report`. Nothing there is typed by hand.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLOURS = {"fastcse": "#0b6e4f", "eager": "#c1666b", "torch.compile": "#d4a373", "three products": "#8d99ae"}


def load(name: str) -> dict | None:
    """A result file, or None if it was never made."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def loss_table(report: dict | None) -> str:
    """Markdown: every size and provider."""
    if report is None:
        return "Loss on the CPU: not measured (`make bench`)."
    where = report["machine"]
    lines = [
        f"CPU, float32, forward + backward of the focal loss; {where['cpu']}, {where['threads']} threads, torch "
        f"{where['torch']}, commit {where['commit']}; `{report['command']}`.",
        "",
        "| N | D | provider | ms | x three products | loss error | gradient error | MiB beyond inputs and gradients |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in report["results"]:
        for name, row in result["providers"].items():
            cells = [f"{row[k]:.1e}" if row[k] is not None else "" for k in ("loss_error", "gradient_error")]
            memory = "" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
            cells = [f"{row['ms']:.4g}", f"{row['to_products']:.2f}", *cells, memory]
            lines.append(f"| {result['n']} | {result['d']} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sts_table(report: dict | None) -> str:
    """Markdown: mean and spread over seeds."""
    if report is None:
        return "STS after training: not measured."
    lines = [report["what"] + f" `{report['command']}`.", "",
             "| objective | seeds | STS-B dev before | STS-B dev | STS-B test | alignment | uniformity |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name in sorted({run["objective"] for run in report["runs"]}):
        runs = [run for run in report["runs"] if run["objective"] == name]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        cells = [_spread([run[key] for run in runs], digits) for key, digits in
                 (("dev_before", 2), ("dev", 2), ("test", 2), ("alignment", 3), ("uniformity", 2))]  # fmt: skip
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def loss_figure(report: dict) -> None:
    """Time as a ratio to the limit, and memory, against N."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    results = report["results"]
    n = [r["n"] for r in results]
    for name, colour in COLOURS.items():
        left.plot(n, [r["providers"][name]["to_products"] for r in results], "o-", color=colour, label=name)
    left.set(xscale="log", yscale="log", xlabel="batch N", ylabel="time / time of three bare products")
    left.set_title("forward + backward, D = 768 (384 at N = 64)", fontsize=10)
    left.set_xticks(n, [str(x) for x in n])
    left.set_yticks([1, 1.5, 2, 3, 5], ["1", "1.5", "2", "3", "5"])
    left.minorticks_off()
    left.legend(frameon=False, fontsize=9)
    largest = results[-1]
    names = [name for name in COLOURS if name != "three products"]
    mib = [largest["providers"][name]["extra_mib"] or 0 for name in names]
    bars = right.barh(names, mib, color=[COLOURS[name] for name in names])
    right.bar_label(bars, [f"{x:.0f} MiB" for x in mib], padding=4, fontsize=9)
    right.set(xlabel="MiB beyond inputs and gradients", xlim=(0, 1.18 * max(mib)))
    right.invert_yaxis()
    right.set_title(f"peak memory, N = {largest['n']}, D = {largest['d']}", fontsize=10)
    for axis in (left, right):
        axis.set_axisbelow(True)
        axis.grid(alpha=0.3, axis="both" if axis is left else "x")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Focal InfoNCE on the CPU, float32 ({report['machine']['threads']} threads)", fontsize=11)
    figure.savefig(RESULTS / "loss_cpu.png", dpi=130)


def main() -> None:
    loss, sts = load("loss_cpu.json"), load("sts.json")
    if loss:
        loss_figure(loss)
    gpu = "GPU: not measured. The kernels compile for sm_80, sm_90 and sm_100 (`benchmarks/results/compiled.csv`)."
    text = "\n\n".join([loss_table(loss), gpu, sts_table(sts)])
    readme = ROOT / "README.md"
    page = readme.read_text()
    page = re.sub(
        r"(<!-- results -->\n).*(<!-- end of results -->)", lambda m: m[1] + text + "\n" + m[2], page, flags=re.S
    )
    readme.write_text(page)


if __name__ == "__main__":
    main()
