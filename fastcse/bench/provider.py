"""Who computes an operation: fastcse, what one writes by hand, and other packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Case


class Unsupported(Exception):
    """This provider does not compute this case; the text says why."""


def nothing_lacks() -> None:
    """Every installed module is complete."""


@dataclass(frozen=True)
class Provider:
    """A way to compute an operation.

    `make(case, *inputs)` gives the call that is timed, or of a loss, which has no inputs, the function of anchors and
    candidates; what is needed once per input is made before, and `note` says so, as it says what else differs. `make`
    raises Unsupported where its limits are passed; it is a function of a module, so that another process finds it.

    `variants` of the operation are computed, all where it is empty. `modules` must be importable, `install` says how to
    get them, and `lacks` what an installed one does not have. `configs` are the sizes of a chunk or a tile, or ways to
    write it: `make` then takes one as its last argument, and the fastest for a case is the one that is reported.
    `rounded`: scores have the type of the rows, and ties are wider by that.
    """

    name: str
    make: Callable[..., Any]
    variants: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    install: str = ""
    note: str = ""
    configs: tuple[int | str, ...] = ()
    lacks: Callable[[], str | None] = nothing_lacks
    rounded: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        be = "is" if len(absent) == 1 else "are"
        return f"{', '.join(absent)} {be} not installed: {self.install}" if absent else self.lacks()

    def build(self, case: Case, *inputs, config: int | str | None = None) -> Callable:
        """What `make` gives for this case; raises Unsupported."""
        computed = not self.variants or case.variant in self.variants
        need(computed, f"computes {' and '.join(self.variants)}, not {case.variant}")
        return self.make(case, *inputs, *(() if config is None else (config,)))


def named(*providers: Provider) -> dict[str, Provider]:
    """Name -> provider."""
    return {provider.name: provider for provider in providers}


def need(condition: bool, reason: str) -> None:
    """Raise Unsupported with the reason where the condition does not hold."""
    if not condition:
        raise Unsupported(reason)


def need_cuda(case: Case) -> None:
    """CUDA tensors only."""
    need(case.device.startswith("cuda"), "runs on CUDA only")


def need_hopper(case: Case) -> None:
    """Compute capability 9.0 and bfloat16, for kernels written for nothing else."""
    need_cuda(case)
    capability = torch.cuda.get_device_capability(case.device)
    need(capability == (9, 0), f"runs on compute capability 9.0 only, this is {'.'.join(map(str, capability))}")
    need(case.dtype == "bfloat16", f"computes bfloat16 only, not {case.dtype}")


def need_half(case: Case) -> None:
    """bfloat16 or float16."""
    need(case.dtype != "float32", "computes bfloat16 and float16 only")


def need_numpy(case: Case) -> None:
    """float32 on the CPU."""
    need(not case.device.startswith("cuda"), "runs on the CPU only")
    need(case.dtype == "float32", f"computes float32 only, not {case.dtype}")


def unit(x: Tensor, temperature: float = 1.0) -> Tensor:
    """(R, D) rows of length 1 / temperature, in the dtype of x."""
    # In float32, rounded once: a norm rounded to bfloat16 would move every similarity of its row by up to 0.4%, and
    # the peer would be blamed for it.
    rows = F.normalize(x.float(), dim=-1)
    return (rows if temperature == 1.0 else rows / temperature).to(x.dtype)
