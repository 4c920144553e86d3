"""Modules and names of the last release; such a path works for one release more, and warns."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

# Of `fastcse` itself.
RENAMED = dict.fromkeys(("ClusterNSStats", "HSimCSEStats", "SSCLStats", "SoftNegativeStats"), "ContrastiveStats")


def renamed(name: str) -> Any:
    """What `fastcse.name` is called now: the package's `__getattr__`."""
    if name not in RENAMED:
        raise AttributeError(f"module 'fastcse' has no attribute {name!r}")
    warnings.warn(f"fastcse.{name} is fastcse.{RENAMED[name]} now", DeprecationWarning, stacklevel=2)
    return getattr(sys.modules["fastcse"], RENAMED[name])


def keep_paths(package: str, moved: Mapping[str, str], names: Mapping[str, str] | None = None) -> None:
    """Let `import package.old` and `from package.old import name` work.

    Args:
        package: `__name__` of the package that had the modules.
        moved:   the name of each in the package, and the full name of the module that has its content now.
        names:   of what was renamed too: the former name, and the present one.
    """
    for old, new in moved.items():
        module = _Moved(f"{package}.{old}", f"Moved to {new}.")
        vars(module).update(_new=new, _names=names or {})
        sys.modules[module.__name__] = module
        setattr(sys.modules[package], old, module)


class _Moved(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{self.__name__} has no {name}")
        present = self._names.get(name, name)
        value = getattr(importlib.import_module(self._new), present)
        warnings.warn(f"{self.__name__}.{name} is {self._new}.{present} now", DeprecationWarning, stacklevel=2)
        setattr(self, name, value)  # the next look-up does not warn again
        return value
