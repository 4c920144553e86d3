"""`fastcse info`: what is installed, and which backends run here."""

from __future__ import annotations

import platform
from typing import Any

from rich.table import Table

from .console import Json, facts_table, one_sentence_errors, show, table

PACKAGES = ("torch", "triton", "numpy", "transformers", "sentence-transformers", "faiss-cpu")


@one_sentence_errors
def info(as_json: Json = False) -> None:
    """Show versions, the processor, the GPU, and every backend with the reason it runs or does not."""
    found = gather()
    show(found, as_json, _machine(found), _backends(found["backends"]))


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
        "backends": {name: status._asdict() for name, status in backends().items()},
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


def _machine(found: dict[str, Any]) -> Table:
    cpu, packages = found["cpu"], found["packages"].items()
    gpus = [f"{gpu['name']}, {gpu['capability']}, {gpu['memory_gib']} GiB" for gpu in found["gpu"]]
    facts = {
        "python": f"{found['python']} on {found['system']}",
        **{name: version or "not installed" for name, version in packages},
        "cpu": f"{cpu['model']}, {cpu['capability']}, {cpu['threads']} thread(s)",
        "gpu": "\n".join(gpus) or "none that torch can use",
    }
    return facts_table(facts, f"fastcse {found['fastcse']}")


def _backends(backends: dict[str, Any]) -> Table:
    marks = {True: "[green]yes[/green]", False: "[red]no[/red]"}
    rows = ((name, marks[status["available"]], status["reason"] or "-") for name, status in backends.items())
    return table("backends", ("backend", "runs here", "why"), rows)
