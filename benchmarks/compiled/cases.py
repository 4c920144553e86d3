"""Every kernel in every form that the launchers ask for, with types instead of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton

from fastcse.kernels import (
    configs,
    kmeans,
    kmeans_assign,
    kmeans_split,
    pairwise,
    quadruplet,
    rows,
    topk_scores,
    topk_select,
)
from fastcse.kernels.sweep import ROWS, TILES, add_sums_kernel
from fastcse.kernels.tile import device_fn
from fastcse.kernels.topk_search import rescore_kernel
from fastcse.losses.focal import DETACHED, FOCAL
from fastcse.losses.infonce import SCALED
from fastcse.transforms import LogitTransform

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
OTHERS = {"N": "i32", "M": "i32", "D": "i32", "margin": "fp32", "own_log_weight": "fp32", "shortest": "fp32",
          "offset": "fp32", "groups": "i32", "K": "i32", "pulled": "i32", "TILES_M": "i32"}  # fmt: skip
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
    "both directions": ("busy", FOCAL, {"BOTH": True, "WEIGHTED": True}),
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
    flags = {"STORE": True, "WEIGHTED": False, "F_SUM": False, "STATS": False, "IDS": False, "BOTH": False,
             "GATED": False, "LEAVE_OWN_OUT": True, "OWN_WEIGHT": False, **(flags or {})}  # fmt: skip
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
    yield from _search_cases(dtype, arch)


def _search_cases(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    """Top-k: scores by pointers and by descriptors, plain, with ids and with bounds, and the selection of 32 and more
    of 131,072 columns."""
    plain = configs.plain(configs.default_config(divmod(arch, 10), dtype, "busy"), dtype)
    described = [config for config in _configs(dtype, arch, "sums") if config.programs]
    stored = "fp32" if dtype == torch.float32 else "bf16"
    forms = {"": {}, "ids": {"IDS": True}, "bounds": {"BOUNDED": True}, "wide": {"SPAN": topk_scores.SPANS[-1]}}
    for config, (form, flags) in itertools.product(dict.fromkeys([plain, *described]), forms.items()):
        constants = {**_tile(config), "IDS": False, "BOUNDED": False, "SPAN": topk_scores.SPANS[0],
                         "PART": topk_scores.PART, "CUTS": False, **flags}  # fmt: skip
        config = config._replace(block_m=max(config.block_m, constants["SPAN"]))
        constants["BLOCK_M"] = config.block_m
        types = {**_rows(dtype), "S": f"*{stored}", "MAXIMA": f"*{stored}"}
        function = topk_scores.scores_kernel
        if config.programs:
            del constants["EVEN_D"]
            constants["FLATTEN"], function = config.flatten, topk_scores.persistent_scores_kernel
            types |= {"A": _described(dtype, config.block_n, config), "C": _described(dtype, config.block_m, config),
                          "S": f"tensordesc<{stored}[{config.block_n},{topk_scores.PART}]>"}  # fmt: skip
        yield Case("top-k scores", form, dtype, function, constants, types, config)
    bits = 32 if dtype == torch.float32 else 16
    counted = {"BITS": bits, "MASK": 2 ** (bits - 1) - 1}
    types = {**dict.fromkeys(("S", "MAXIMA"), f"*i{bits}"), "GROUPS": "*i32", "COLUMN": "*i64", "wanted": "i32"}
    groups, columns = topk_select.select_groups_kernel, topk_select.select_columns_kernel
    for held in (2048, topk_select.MOST_HELD):
        constants, warps = {"BLOCK": held, **counted}, topk_select.warps(held)
        yield Case("top-k groups", str(held), dtype, groups, constants, types, warps=warps)
    for held in (32, topk_select.MOST_HELD // topk_scores.SPANS[0]):
        constants = {"BLOCK": held, "SPAN": topk_scores.SPANS[0], **counted}
        warps = topk_select.warps(held * topk_scores.SPANS[0])
        yield Case("top-k columns", str(held), dtype, columns, constants, types, warps=warps)


def _row_cases(dtype: torch.dtype) -> Iterator[Case]:
    positive = {"F_POSITIVE": device_fn(FOCAL.f_positive)}
    pull = {"BLOCK": 256, "HAS_INVERSE": True, "DF_POSITIVE": device_fn(FOCAL.df_positive), **positive}
    finish = {"BLOCK_D": 1024, "HAS_FACTOR": True, "HAS_PULL": True, "HAS_SCALE": True}
    for name, kernel, constants in (
        ("inverse_norms", rows.inverse_norms_kernel, {"BLOCK_D": 1024}),
        ("top-k rescore", rescore_kernel, {"DISTANCE": False, "BLOCK_K": 16, "BLOCK_D": 128}),
        ("open_rows", rows.open_rows_kernel, {"BLOCK_D": 1024, "BY_ROW": False, **positive}),
        ("add_sums", add_sums_kernel, {"E": True, "EF": True, "BLOCK_N": ROWS, "BLOCK_T": TILES}),
        ("scale_rows", rows.scale_rows_kernel, {"BLOCK_D": 1024}),
        ("close_rows", rows.close_rows_kernel, {"BLOCK": 256}),
        ("pull_rows", rows.pull_rows_kernel, pull),
        ("finish_rows", rows.finish_rows_kernel, finish),
    ):
        types = {**_rows(dtype), "by": "fp32", "CEILING": "fp32", **({"OUT": "*bf16"} if name == "scale_rows" else {})}
        yield Case(name, "", dtype, kernel, constants, types)


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
        yield Case("quadruplet", form, dtype, quadruplet.quadruplet_kernel, constants, types, warps=1)
    normalize = {"NORMALIZE": True, **block}
    yield Case("candidate gradient", "", dtype, quadruplet.candidate_gradient_kernel, normalize, types)
    step = {"HAS_RADIUS": True, "KIND": 1, **block}
    yield Case("step_rows", "", dtype, quadruplet.step_rows_kernel, step, types)
    yield Case("scale", "", dtype, quadruplet.scale_kernel, {"BLOCK": 1024}, types)


def _cluster_cases(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    """K-means: nearest centroids, one and two, of float32 and of the points' own type, in the tiles of the sums; the
    settling of points of 768; and the sums of kmeans."""
    seen = set()
    for parts in {kmeans_split.parts_of(dtype, wide, d) for wide in (torch.float32, dtype) for d in (128, 768)}:
        for config in _configs(dtype, arch, "sums"):
            config = kmeans_split.fitting(config, parts, dtype.itemsize)
            for two in (False, True):
                if (config, parts, two) not in seen:
                    seen.add((config, parts, two))
                    yield _assign_case(dtype, config, parts, two)
    settle = {"TWO": False, "DISTANCE": True, **kmeans.settling(768)}
    warps = settle.pop("num_warps")
    types = {**_rows(dtype), "C": "*fp32", "AT": "*i32", "LOWEST": "*i32", "segments": "i32"}
    yield Case("assign values", "", dtype, kmeans_assign.settle_kernel, settle, types, warps=warps)
    for form, scaled in (("", False), ("unit rows", True)):
        block = {"HAS_SCALE": scaled, "BLOCK_D": kmeans.COLUMNS}
        yield Case("cluster_sums", form, dtype, kmeans.cluster_sums_kernel, block, _rows(dtype), warps=1)


def _assign_case(dtype: torch.dtype, config: configs.TileConfig, parts: int, two: bool) -> Case:
    """Ranks of centroids in `parts` parts, of which the report calls two or more the split ones."""
    form = f"nearest{' two' if two else ''}{', split' if parts > 1 else ''}"
    constants = {**_tile(config), "TWO": two, "PARTS": parts, "WIDTH": kmeans_assign.WIDTH}
    del constants["GROUP"]
    sizes = {"AT": "*i32", **dict.fromkeys(("columns", "segments", "per_segment"), "i32")}
    if config.programs == 0:
        return Case("assign", form, dtype, kmeans_assign.assign_kernel, constants, {**_rows(dtype), **sizes}, config)
    del constants["EVEN_D"]
    constants["FLATTEN"] = config.flatten
    described = {"X": _described(dtype, config.block_n, config), "C": _described(dtype, config.block_m, config)}
    types = {**described, **sizes}
    return Case("assign", form, dtype, kmeans_assign.persistent_assign_kernel, constants, types, config)


def _described(dtype: torch.dtype, rows: int, config: configs.TileConfig) -> str:
    return f"tensordesc<{TYPES[dtype]}[{rows},{config.block_d}]>"
