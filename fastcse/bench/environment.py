"""Where numbers are from: processor, GPU, versions and commit, in every result file."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..ops.dispatch import backends

PACKAGES = (
    "torch", "triton", "sentence-transformers", "open_clip_torch", "pytorch-metric-learning", "gradcache",
    "liger-kernel", "cut-cross-entropy", "inf-cl", "quack-kernels", "faiss-cpu", "faiss-gpu-cuvs", "flashlib",
    "cuvs-cu12", "scikit-learn", "flash-kmeans", "fastkmeans", "fast-pytorch-kmeans", "datasets",
)  # fmt: skip


def environment(device: str) -> dict[str, Any]:
    """Processor, GPU, driver, versions, commit and time."""
    from .. import __version__

    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cpp": backends()["cpp"].reason,
        "python": platform.python_version(),
        "fastcse": __version__,
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: found for name in PACKAGES if (found := version(name))},
    }
    if torch.device(device).type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
        facts |= {"gpu": gpu.name, "capability": f"sm_{gpu.major}{gpu.minor}", "cuda": torch.version.cuda}
        facts |= {"driver": driver, "multiprocessors": gpu.multi_processor_count}
    return facts


def version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's own name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that this package's checkout stands on; empty for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    git = ("git", "-C", str(root))
    # The files that a benchmark writes do not make its code another one.
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return _output(*git, "rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
