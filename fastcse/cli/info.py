"""`fastcse info`: what is installed, and which backends run here."""

from __future__ import annotations

import platform
from typing import Any

from rich.table import Table

from .console import Json, one_sentence_errors, show

PACKAGES = ("torch", "triton", "numpy", "transformers", "sentence-transformers", "faiss-cpu")


@one_sentence_errors
def info(as_json: Json = False) -> None:
    """Show versions, the processor, the GPU, and every backend with the reason it runs or does not."""
    facts = gather()
    show(facts, as_json, _machine_table(facts), _backend_table(facts["backends"]))


def gather() -> dict[str, Any]:
    """The facts that `fastcse info --json` prints."""
    import torch

    from ..bench.environment import cpu_name, version
    from ..ops.dispatch import backends

    return {
        "fastcse": fastcse_version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "cpu": {
            "model": cpu_name(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "gpu": _gpus(),
        "backends": {
            name: {"available": status.available, "reason": status.reason} for name, status in backends().items()
        },
    }


def fastcse_version() -> str:
    from .. import __version__

    return __version__


def _gpus() -> list[dict[str, Any]]:
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {
            "name": gpu.name,
            "capability": f"sm_{gpu.major}{gpu.minor}",
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "multiprocessors": gpu.multi_processor_count,
        }
        for gpu in found
    ]


def _machine_table(facts: dict[str, Any]) -> Table:
    table = Table(title=f"fastcse {facts['fastcse']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("python", f"{facts['python']} on {facts['system']}")
    for name, version in facts["packages"].items():
        table.add_row(name, version or "[dim]not installed[/dim]")
    cpu = facts["cpu"]
    table.add_row("cpu", f"{cpu['model']}, {cpu['capability']}, {cpu['threads']} thread(s)")
    for gpu in facts["gpu"]:
        table.add_row("gpu", f"{gpu['name']}, {gpu['capability']}, {gpu['memory_gib']} GiB")
    if not facts["gpu"]:
        table.add_row("gpu", "none that torch can use")
    return table


def _backend_table(backends: dict[str, Any]) -> Table:
    table = Table(title="backends", title_justify="left")
    for column in ("backend", "runs here", "why"):
        table.add_column(column)
    for name, status in backends.items():
        mark = "[green]yes[/green]" if status["available"] else "[red]no[/red]"
        table.add_row(name, mark, status["reason"] or "-")
    return table
