"""Every kernel in every form that the launchers ask for, with types instead of arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton

from fastcse.kernels import clusters, configs, nearest, pairwise, quadruplet, rows
from fastcse.kernels.tile import device_fn
from fastcse.losses.focal import DETACHED, FOCAL
from fastcse.losses.infonce import SCALED
from fastcse.transforms import LogitTransform

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
OTHERS = {"N": "i32", "M": "i32", "D": "i32", "margin": "fp32", "own_log_weight": "fp32", "shortest": "fp32",
          "offset": "fp32", "groups": "i32", "K": "i32"}  # fmt: skip
# Of the quadruplets and the steps, whose names mean something else elsewhere.
SCALARS = dict.fromkeys(("factor", "w1", "w2", "m1", "m2", "by", "length"), "fp32")
INDICES = {"OWN": "*i64", "ROW_ID": "*i64", "COL_ID": "*i64", "STATS_I": "*i32", "INDEX": "*i64", "ORDER": "*i64",
           "STARTS": "*i64", "SIZE": "i32"}  # fmt: skip
# form -> kind of configuration, transform, what differs from a sweep that stores gradient weights and nothing else
SWEEPS: dict[str, tuple[str, LogitTransform, dict]] = {
    "gradients": ("gradients", FOCAL, {}),
    "sums": ("sums", FOCAL, {"STORE": False}),
    "scaled": ("gradients", SCALED, {}),
    "detached": ("gradients", DETACHED, {}),
    "gated": ("sums", FOCAL, {"STORE": False, "GATED": True}),
    "statistics": ("busy", FOCAL, {"STATS": True}),
    "ids": ("busy", FOCAL, {"IDS": True}),
    "statistics and ids": ("busy", FOCAL, {"STATS": True, "IDS": True}),
    "learned temperature": ("busy", FOCAL, {"F_SUM": True}),
    "weighted block": ("gradients", FOCAL, {"LEAVE_OWN_OUT": False, "OWN_WEIGHT": True}),
    "both directions: sums": ("busy", FOCAL, {"BOTH": True, "STORE": False}),
    "both directions": ("busy", FOCAL, {"BOTH": True}),
}


class Case(NamedTuple):
    """A kernel with one choice of its constants, and its parameters' types by name. `warps` counts where there is no
    tile."""

    kernel: str
    form: str
    dtype: torch.dtype
    function: triton.JITFunction
    constants: dict
    types: dict[str, str]
    config: configs.TileConfig | None = None
    warps: int = 4

    def signature(self) -> dict[str, str]:
        """Type of every parameter, "constexpr" for constants."""
        return {name: self._type(name) for name in self.function.arg_names}

    def _type(self, name: str) -> str:
        if name in self.constants:
            return "constexpr"
        if name.startswith("stride"):
            return "i32"
        return self.types.get(name) or OTHERS.get(name) or INDICES.get(name, "*fp32")


def cases(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    """What runs on this architecture for rows of this type: the defaults and what was tuned, by width."""
    seen = set()
    for form, (kind, transform, flags) in SWEEPS.items():
        for config in _configs(dtype, arch, kind):
            if (form, config) not in seen:
                seen.add((form, config))
                yield sweep_case(form, dtype, config, transform, flags)
    yield from _pair_cases(dtype, arch)
    yield from _row_cases(dtype)
    yield from _quadruplet_cases(dtype)
    yield from _cluster_cases(dtype, arch)


def _configs(dtype: torch.dtype, arch: int, kind: str) -> Iterator[configs.TileConfig]:
    """The plain form for rows that no descriptor describes, and what the table holds for others."""
    capability = divmod(arch, 10)
    default = configs.default_config(capability, dtype, kind)
    yield default
    yield configs.plain(default, dtype)
    for d in (384, 768, 1024):
        if tuned := configs.tuned_config(capability, dtype, d, kind):
            yield tuned


def sweep_case(
    form: str,
    dtype: torch.dtype,
    config: configs.TileConfig,
    transform: LogitTransform = FOCAL,
    flags: dict | None = None,
) -> Case:
    """A sweep over rows of `dtype` in the form that `config` asks for."""
    flags = {"STORE": True, "F_SUM": False, "STATS": False, "IDS": False, "BOTH": False, "GATED": False,
             "LEAVE_OWN_OUT": True, "OWN_WEIGHT": False, **(flags or {})}  # fmt: skip
    constants = {**_tile(config), **flags, "PARTS": config.parts, "F": device_fn(transform.f),
                 "DF": device_fn(transform.df)}  # fmt: skip
    weight = "fp32" if dtype == torch.float32 else "bf16"
    if config.programs == 0:
        types = {**_rows(dtype), "E": f"*{weight}"}
        return Case("sweep", form, dtype, pairwise.sweep_kernel, constants, types, config)
    del constants["EVEN_D"]
    constants["FLATTEN"] = config.flatten
    row, part = TYPES[dtype], config.block_m // config.parts
    types = {
        "A": f"tensordesc<{row}[{config.block_n},{config.block_d}]>",
        "C": f"tensordesc<{row}[{config.block_m},{config.block_d}]>",
        "E": f"tensordesc<{weight if flags['STORE'] else row}[{config.block_n},{part}]>",
    }
    return Case("persistent sweep", form, dtype, pairwise.persistent_sweep_kernel, constants, types, config)


def _rows(dtype: torch.dtype) -> dict[str, str]:
    return {name: f"*{TYPES[dtype]}" for name in ("A", "C", "X")}


def _tile(config: configs.TileConfig) -> dict:
    sides = {"BLOCK_N": config.block_n, "BLOCK_M": config.block_m, "BLOCK_D": config.block_d, "GROUP": config.group}
    return {**sides, "EVEN_D": True, "RAISE": False, "PRECISION": "tf32"}


def _pair_cases(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    plain = configs.SINGLE if dtype == torch.float32 else configs.HALF
    narrow = configs.narrow(plain)
    masks = {"F": device_fn(FOCAL.f), "IDS": True, "LEAVE_OWN_OUT": True, "OWN_WEIGHT": False}
    yield Case("largest", "", dtype, pairwise.largest_kernel, {**_tile(narrow), **masks}, _rows(dtype), narrow)
    yield Case("similarity", "", dtype, pairwise.similarity_kernel, _tile(plain), _rows(dtype), plain)
    search = configs.default_config(divmod(arch, 10), dtype, "busy")
    search = search._replace(block_m=max(search.block_m, nearest.SPAN))
    scores = {**_rows(dtype), "S": "*fp32" if dtype == torch.float32 else "*bf16"}
    for form, ids in (("", False), ("ids", True)):
        constants = {**_tile(search), "IDS": ids, "SPAN": nearest.SPAN, "CUTS": False}
        yield Case("top-k scores", form, dtype, nearest.scores_kernel, constants, scores, search)


def _row_cases(dtype: torch.dtype) -> Iterator[Case]:
    positive = {"F_POSITIVE": device_fn(FOCAL.f_positive)}
    pull = {"BLOCK": 256, "HAS_INVERSE": True, "DF_POSITIVE": device_fn(FOCAL.df_positive), **positive}
    finish = {"BLOCK_D": 1024, "HAS_FACTOR": True, "HAS_PULL": True, "HAS_SCALE": True}
    for name, kernel, constants in (
        ("inverse_norms", rows.inverse_norms_kernel, {"BLOCK_D": 1024}),
        ("top-k rescore", nearest.rescore_kernel, {"DISTANCE": False, "BLOCK_K": 16, "BLOCK_D": 128}),
        ("open_rows", rows.open_rows_kernel, {"BLOCK_D": 1024, **positive}),
        ("close_rows", rows.close_rows_kernel, {"BLOCK": 256}),
        ("pull_rows", rows.pull_rows_kernel, pull),
        ("finish_rows", rows.finish_rows_kernel, finish),
    ):
        yield Case(name, "", dtype, kernel, constants, _rows(dtype))


def _quadruplet_cases(dtype: torch.dtype) -> Iterator[Case]:
    """The quadruplet's passes, steps and factors of rows of 768."""
    row = f"*{TYPES[dtype]}"
    types = {**dict.fromkeys(("A", "P", "B", "C", "DA", "DP", "DB", "DC", "BASE", "X", "OUT"), row), **SCALARS}
    grads = [f"GRAD_{x}" for x in "APBC"]
    block = {"BLOCK_D": rows.launch_options(768)["BLOCK_D"]}
    plain = {"HAS_INDEX": False, "CLASSIC": False, "NORMALIZE": True, "HAS_UPSTREAM": False, "HAS_PULL": False, **block}
    forward = {**plain, **dict.fromkeys(grads, False)}
    full = {**plain, **dict.fromkeys(grads, True)}
    # The candidates' gradient is made by a kernel of its own, from what this one writes into PULL.
    indexed = {**full, "HAS_INDEX": True, "GRAD_B": False, "HAS_PULL": True}
    for form, constants in (("forward", forward), ("four gradients", full), ("index", indexed),
                            ("classic, by row", {**full, "CLASSIC": True, "HAS_UPSTREAM": True})):  # fmt: skip
        yield Case("quadruplet", form, dtype, quadruplet.quadruplet_kernel, constants, types)
    normalize = {"NORMALIZE": True, **block}
    yield Case("candidate gradient", "", dtype, quadruplet.candidate_gradient_kernel, normalize, types)
    step = {"HAS_RADIUS": True, "KIND": 1, **block}
    yield Case("step_rows", "", dtype, quadruplet.step_rows_kernel, step, types)
    yield Case("scale", "", dtype, quadruplet.scale_kernel, {"BLOCK": 4096}, types)


def _cluster_cases(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    """K-means: nearest centroids, one and two, in the tiles of the sums, and the sums of clusters."""
    tiles = {configs.plain(config, dtype) for config in _configs(dtype, arch, "sums")}
    types = _rows(dtype)
    for config in sorted(tiles):
        constants = {name: value for name, value in _tile(config).items() if name != "GROUP"}
        for form, two in (("nearest", False), ("nearest two", True)):
            yield Case("assign", form, dtype, clusters.assign_kernel, {**constants, "TWO": two}, types, config)
    # Two columns at most, of squared distances.
    rescore = {"DISTANCE": True, "BLOCK_K": 2, "BLOCK_D": clusters.COLUMNS}
    yield Case("assign values", "", dtype, nearest.rescore_kernel, rescore, types)
    for form, scaled in (("", False), ("unit rows", True)):
        block = {"HAS_SCALE": scaled, "BLOCK_D": clusters.COLUMNS}
        yield Case("cluster_sums", form, dtype, clusters.cluster_sums_kernel, block, types, warps=1)
