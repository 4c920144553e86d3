"""The compiled module, or why it is not there."""

from __future__ import annotations

try:
    from .. import _C  # type: ignore[attr-defined]

    reason = f"C++ module, {_C.isa()}"
except ImportError as error:  # a package without the module works: ops.py offers the other backends and says so
    _C = None
    reason = (
        f"the C++ module is not built ({error}); "
        "`pip install --force-reinstall --no-deps fastcse` with a C++17 compiler builds it"
    )

available = _C is not None
