"""Which Triton kernels ran, and with which flags."""

import importlib
import pkgutil
from contextlib import contextmanager
from itertools import combinations

from fastcse import kernels


def every_kernel():
    """The kernels that the host can launch, by name."""
    modules = [importlib.import_module(f"fastcse.kernels.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    return {name: x for m in modules for name, x in vars(m).items() if name.endswith("_kernel")}


@contextmanager
def recorded():
    """[(kernel, its keyword arguments)] of every launch inside."""
    kind, seen = type(every_kernel()["sweep_kernel"]), []
    run = kind.run

    def spy(self, *args, grid, warmup, **options):
        seen.append((self.fn.__name__, options))
        return run(self, *args, grid=grid, warmup=warmup, **options)

    kind.run = spy
    try:
        yield seen
    finally:
        kind.run = run


def pairs(values):
    """Every pair of (name, value) of one dictionary."""
    return set(combinations(sorted((name, repr(value)) for name, value in values.items()), 2))


def covering(choices):
    """Few combinations, by name, of lists of values, in which every pair of two values occurs; picked greedily."""
    names = sorted(choices)
    missing = {((a, repr(x)), (b, repr(y))) for a, b in combinations(names, 2) for x in choices[a] for y in choices[b]}
    made = []
    while missing:
        (a, x), (b, y) = min(missing)
        picked = {a: x, b: y}
        for name in names:
            if name not in picked:
                options = {repr(v) for v in choices[name]}
                picked[name] = max(
                    sorted(options),
                    key=lambda v: len({tuple(sorted(((name, v), other))) for other in picked.items()} & missing),
                )
        made.append({name: next(v for v in choices[name] if repr(v) == picked[name]) for name in names})
        missing -= pairs(made[-1])
    return made
