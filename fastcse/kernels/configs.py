"""Which tile, and which form of the sweep, for an architecture, a width and a type: a table, not a search at run time.

`tuned.json` beside this file holds what a search on a device found (`make gpu` writes it); where it has nothing, the
defaults below hold. They are chosen from compiled code and a roofline alone (benchmarks/results/compiled.csv). Of the
"busy" kind 128 x 128 was 5 to 8% faster at D = 768 and 1024 than the entries in use, 128 x 64, but two forms spill.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton

TUNED = Path(__file__).with_name("tuned.json")


class TileConfig(NamedTuple):
    """Sizes of a tile and of the launch.

    `parts`: pieces that the epilogue is cut into. `programs`: 0 for one program a tile; otherwise that many programs a
    multiprocessor walk over all tiles, with operands through tensor descriptors (sm_90 and later).
    """

    block_n: int
    block_m: int
    block_d: int
    group: int
    num_warps: int
    num_stages: int
    parts: int = 1
    programs: int = 0
    flatten: bool = True


# Without descriptors: 8 warps and an epilogue in eighths take at most 128 registers for sums and gradient weights, so
# that two programs share a multiprocessor and one takes exponentials while the other multiplies.
HALF = TileConfig(128, 128, 64, 8, 8, 3, parts=8)
# float32 on sm_100 spilled 8 bytes at 128 columns.
SINGLE = TileConfig(128, 64, 32, 8, 8, 3, parts=4)
# With them: two programs of 4 warps. By-products need a few registers more than there are and stay with the form above.
HALF_DESCRIBED = TileConfig(128, 128, 64, 8, 4, 3, parts=8, programs=2)
SINGLE_DESCRIBED = TileConfig(128, 128, 32, 8, 4, 3, parts=8, programs=2)
INTERPRETED = TileConfig(32, 32, 32, 2, 4, 1, parts=2)
# Every tile's sides divide this one: memory with room for whole tiles of it has room for any.
LARGEST_TILE = 256
# What a sweep does beside its products, from least to most; each is tuned apart.
KINDS = ("sums", "gradients", "busy")
_pinned: list[TileConfig] = []


def tile_config(dtype: torch.dtype, d: int, kind: str, device: torch.device, described: bool) -> TileConfig:
    """The tile for rows of `dtype` and width `d` on this device. `kind` is one of KINDS: sums alone, sums and gradient
    weights, or by-products too. `described`: whether tensor descriptors can describe the rows.
    """
    if _pinned:
        return _pinned[-1] if described else plain(_pinned[-1], dtype)
    if triton.knobs.runtime.interpret:
        return INTERPRETED._replace(programs=int(described))
    capability = torch.cuda.get_device_capability(device)
    config = tuned_config(capability, dtype, d, kind) or default_config(capability, dtype, kind)
    return config if described else plain(config, dtype)


@contextlib.contextmanager
def pinned(config: TileConfig) -> Iterator[None]:
    """Every sweep inside runs with `config`: for the search, and for tests of one form."""
    _pinned.append(config)
    try:
        yield
    finally:
        _pinned.pop()


def default_config(capability: tuple[int, int], dtype: torch.dtype, kind: str) -> TileConfig:
    """What holds where nothing was tuned."""
    single = dtype == torch.float32
    if capability >= (9, 0) and kind != "busy":
        config = SINGLE_DESCRIBED if single else HALF_DESCRIBED
        # Flattened for sm_100, Triton 3.7 holds the loop to 168 registers, and it spills 8 to 16 bytes.
        return config._replace(flatten=capability < (10, 0))
    config = SINGLE if single else HALF
    # On sm_80 a form with by-products spilled 8 bytes at 128 columns.
    return narrow(config) if capability < (9, 0) and kind == "busy" else config


def narrow(config: TileConfig) -> TileConfig:
    """Half as many columns, for an epilogue that keeps more alive."""
    return config._replace(block_m=config.block_m // 2, parts=max(1, config.parts // 2))


def plain(config: TileConfig, dtype: torch.dtype) -> TileConfig:
    """`config` if it does without descriptors, otherwise the default that does."""
    if config.programs == 0:
        return config
    if triton.knobs.runtime.interpret:
        return INTERPRETED
    return SINGLE if dtype == torch.float32 else HALF


def tuned_config(capability: tuple[int, int], dtype: torch.dtype, d: int, kind: str) -> TileConfig | None:
    """The winner of the search at the width nearest to `d` (by ratio), or None if this device was never searched."""
    by_width = _tuned().get(f"sm_{capability[0]}{capability[1]}", {}).get(str(dtype).removeprefix("torch."), {})
    found = {int(width): kinds[kind] for width, kinds in by_width.items() if kind in kinds}
    if not found:
        return None
    nearest = min(found, key=lambda width: max(width, d) / min(width, d))
    return TileConfig(**found[nearest])


@functools.cache
def _tuned() -> dict:
    return json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}
