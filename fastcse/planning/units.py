"""Bytes and seconds as one reads them."""

from __future__ import annotations

SPANS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3))


def gigabytes(size: float) -> str:
    """Bytes in units of 1e9; three digits where there are few.

    Example:
        >>> gigabytes(6.34e9), gigabytes(1.544e12)
        ('6.34', '1,544')
    """
    value = size / 1e9
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}" if value else "0"


def duration(seconds: float) -> str:
    """Seconds in the unit that one would say.

    Example:
        >>> duration(0.127), duration(100.0), duration(40000.0)
        ('127 ms', '100 s', '11.1 h')
    """
    for unit, size in SPANS:
        if seconds >= (2 * size if size > 1 else size):
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"
