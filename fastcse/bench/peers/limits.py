"""Limits that several peers share; each raises Unsuitable."""

from __future__ import annotations

import torch

from ..problem import LossProblem
from .peer import need


def need_cuda(problem: LossProblem) -> None:
    """CUDA tensors only."""
    need(problem.device.startswith("cuda"), "runs on CUDA only")


def need_hopper(problem: LossProblem) -> None:
    """Compute capability 9.0 and bfloat16, for kernels written for nothing else."""
    need_cuda(problem)
    capability = torch.cuda.get_device_capability(problem.device)
    need(capability == (9, 0), f"runs on compute capability 9.0 only, this is {'.'.join(map(str, capability))}")
    need(problem.dtype == "bfloat16", f"computes bfloat16 only, not {problem.dtype}")


def need_half(problem: LossProblem) -> None:
    """bfloat16 or float16."""
    need(problem.dtype != "float32", "computes bfloat16 and float16 only")
