"""Logit transforms: what is computed for a pair, apart from how pairs are visited.

A transform turns a similarity s into a logit, x = f(s) / temperature, with its derivative df. Functions of scalars,
written with arithmetic and `root` only, so that the same source runs on a float, on a tensor and inside a Triton tile;
a comparison counts as 0 or 1. The C++ twin of `name` is `csrc/fastcse/transforms/<name>.hpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def root(x):
    """Square root of x >= 0. Triton has no power: `kernels.tile.device_fn` puts its own root in this one's place."""
    return x**0.5


@dataclass(frozen=True)
class LogitTransform:
    """One logit map: the negatives' f and df, the positive's, and the range they keep to.

    Args:
        name:        key of the registry, and file name of the C++ twin.
        f, df:       (s, margin) -> value and derivative for a negative; no temperature in it. Written with `def`:
                     Triton compiles them from their source.
        f_positive, df_positive: the same for the positive.
        bounds:      (s_max, margin) -> (low, high) of f and f_positive on [-s_max, s_max]; `low` may be too low,
                     `high` too high.
        autograd_f, autograd_f_positive: what the reference differentiates, where df is deliberately not the
                                         derivative of f.
        source:      where the formula stands.
    """

    name: str
    f: Callable
    df: Callable
    f_positive: Callable
    df_positive: Callable
    bounds: Callable
    source: str
    autograd_f: Callable | None = None
    autograd_f_positive: Callable | None = None

    def differentiable(self) -> tuple[Callable, Callable]:
        """(negative, positive) maps whose autograd derivative is df and df_positive."""
        return self.autograd_f or self.f, self.autograd_f_positive or self.f_positive


_registry: dict[str, LogitTransform] = {}


def register(transform: LogitTransform) -> LogitTransform:
    """Adds a transform; a loss in `losses/` does this once, at import."""
    if _registry.get(transform.name, transform) != transform:
        taken = _registry[transform.name].source
        raise ValueError(f"a transform named {transform.name!r} is registered already, from {taken}")
    _registry[transform.name] = transform
    return transform


def get(name: str) -> LogitTransform:
    """The transform called `name`."""
    if name not in _registry:
        raise ValueError(f"unknown transform {name!r}; registered are {names()}")
    return _registry[name]


def names() -> list[str]:
    """Names of all registered transforms, sorted."""
    return sorted(_registry)
