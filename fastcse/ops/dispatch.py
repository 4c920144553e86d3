"""Which backend runs, and why the others do not: one table, answered aloud."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import native
from ..errors import OptionError
from ..native import extension

NAMES = ("triton", "cpp", "reference")
_last: str | None = None
_announced: set[str] = set()


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and why or why not."""

    available: bool
    reason: str


def _triton_status() -> BackendStatus:
    if find_spec("triton") is None:
        return BackendStatus(False, "triton is not installed; `pip install triton` (Linux) brings it")
    if interpreting():
        return BackendStatus(True, "Triton's interpreter, on CPU tensors: for tests, slow")
    if not torch.cuda.is_available():
        return BackendStatus(False, "no CUDA device; a GPU, and a torch built for it (`pip install torch`), are needed")
    return BackendStatus(True, f"Triton on {torch.cuda.get_device_name()}")


def interpreting() -> bool:
    """Whether Triton was told to interpret its kernels (TRITON_INTERPRET=1 before import)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def backends() -> dict[str, BackendStatus]:
    """Every backend with its state here.

    Example:
        >>> fastcse.backends()["reference"].available
        True
    """
    return {name: _status(name) for name in NAMES}


def check_backend(name: str | None) -> None:
    """An OptionError unless `name` is None or a backend that runs here."""
    if name is None:
        return
    status = backends()
    if name not in status:
        raise OptionError("backend", f" {name!r} is unknown: expected {', '.join(status)}")
    if not status[name].available:
        raise OptionError("backend", f" {name!r} cannot run here: {status[name].reason}")


def _status(name: str) -> BackendStatus:
    if name == "triton":
        return _triton_status()
    if name == "cpp":
        return BackendStatus(extension.available, extension.reason)
    return BackendStatus(True, "plain torch")


# What is installed does not change while a program runs, so torch.compile may take the answers for constants. This is
# what torch.compiler.assume_constant_result does, without importing torch._dynamo (seconds, and it patches torch).
_status._dynamo_marked_constant = True
interpreting._dynamo_marked_constant = True


def last_backend() -> str | None:
    """The backend that ran last in this process: "triton", "cpp", "reference", or None before the first call.

    Example:
        >>> _ = fastcse.infonce_loss(torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
        >>> fastcse.last_backend()
        'reference'
    """
    return _last


def record(name: str) -> None:
    """Notes that `name` ran."""
    global _last
    _last = name


def choose_backend(anchor: Tensor, backend: str | None, name: str = "anchor") -> str:
    """The backend an op will use for these tensors. A forced one that cannot run is an error; a fallback is announced
    once. `name` is what the caller calls `anchor`.
    """
    if backend is not None:
        return _forced(backend, anchor, name)
    if anchor.dtype == torch.float64:
        return "reference"
    if anchor.is_cuda:
        return "triton" if _status("triton").available else _fall_back("triton")
    if anchor.device.type != "cpu":
        return "reference"
    return "cpp" if extension.available else _fall_back("cpp")


def _forced(backend: str, anchor: Tensor, name: str) -> str:
    if backend not in NAMES:
        raise ValueError(f"backend must be one of {NAMES} or None, got {backend!r}")
    if backend == "reference":
        return backend
    status = _status(backend)
    if not status.available:
        raise RuntimeError(f"backend {backend!r} cannot run here: {status.reason}")
    if anchor.dtype == torch.float64:
        raise ValueError(
            f"backend {backend!r} takes float32, float16 or bfloat16, got {name} of {anchor.dtype}; "
            "float64 runs on 'reference'"
        )
    needed = "cpu" if backend == "cpp" or interpreting() else "cuda"
    if anchor.device.type != needed:
        raise ValueError(f"backend {backend!r} takes tensors on {needed!r}, got {name} on {anchor.device.type!r}")
    return backend


def _fall_back(missing: str) -> str:
    if missing not in _announced and not torch.compiler.is_compiling():
        _announced.add(missing)
        warnings.warn(
            f"fastcse runs the slower 'reference' backend: {_status(missing).reason}", RuntimeWarning, stacklevel=5
        )
    return "reference"


def launchers(name: str) -> ModuleType:
    """The module of launchers behind a fused backend's name."""
    if name == "cpp":
        return native
    from .. import kernels  # only here: importing triton takes a second that CPU users need not wait for

    return kernels
