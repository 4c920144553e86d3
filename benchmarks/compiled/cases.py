"""Every kernel in every form that the launchers ask for, with types instead of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton

from fastcse.kernels import (
    configs,
    kmeans,
    kmeans_assign,
    pairwise,
    quadruplet,
    rows,
    topk_scores,
    topk_search,
    topk_select,
)
from fastcse.kernels.sweep import ROWS as SUMMED_ROWS
from fastcse.kernels.sweep import TILES, add_sums_kernel
from fastcse.kernels.tile import device_fn
from fastcse.losses.focal import DETACHED, FOCAL
from fastcse.losses.infonce import SCALED
from fastcse.transforms import LogitTransform

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
ROWS = ("A", "C", "X")
# Parameters that are neither rows nor pointers to float32; what a case says of its own goes first.
NAMED = {
    **dict.fromkeys(
        ("N", "M", "D", "K", "SIZE", "groups", "weighted_rows", "TILES_M", "columns", "segments", "wanted"), "i32"
    ),
    **dict.fromkeys(("margin", "own_log_weight", "shortest", "offset", "factor", "w1", "w2", "m1", "m2", "by"), "fp32"),
    **dict.fromkeys(("length", "CEILING"), "fp32"),
    **dict.fromkeys(("OWN", "ROW_ID", "COL_ID", "INDEX", "ORDER", "STARTS", "COLUMN"), "*i64"),
    **dict.fromkeys(("STATS_I", "AT", "LOWEST", "GROUPS"), "*i32"),
    "per_segment": "i32",
}
FLAGS = ("STORE", "WEIGHTED", "F_SUM", "STATS", "IDS", "BOTH", "GATED", "LEAVE_OWN_OUT", "OWN_WEIGHT")
# form -> kind of configuration, transform, flags that are set
SWEEPS: dict[str, tuple[str, LogitTransform, str]] = {
    "gradients": ("gradients", FOCAL, "STORE LEAVE_OWN_OUT"),
    "sums": ("sums", FOCAL, "LEAVE_OWN_OUT"),
    "scaled": ("gradients", SCALED, "STORE LEAVE_OWN_OUT"),
    "detached": ("gradients", DETACHED, "STORE LEAVE_OWN_OUT"),
    "gated": ("sums", FOCAL, "GATED LEAVE_OWN_OUT"),
    "statistics": ("busy", FOCAL, "STORE STATS LEAVE_OWN_OUT"),
    "ids": ("busy", FOCAL, "STORE IDS LEAVE_OWN_OUT"),
    "statistics and ids": ("busy", FOCAL, "STORE STATS IDS LEAVE_OWN_OUT"),
    "learned temperature": ("busy", FOCAL, "STORE F_SUM LEAVE_OWN_OUT"),
    "weighted block": ("gradients", FOCAL, "STORE OWN_WEIGHT"),
    "both directions: sums": ("busy", FOCAL, "BOTH LEAVE_OWN_OUT"),
    "both directions": ("busy", FOCAL, "STORE BOTH WEIGHTED LEAVE_OWN_OUT"),
}


class Case(NamedTuple):
    """A kernel with one choice of its constants, and its parameters' types by name. `warps` counts where there is no
    tile."""

    kernel: str
    form: str
    dtype: torch.dtype
    function: triton.JITFunction
    constants: dict[str, Any]
    types: dict[str, str] = {}  # noqa: RUF012 - never written
    config: configs.TileConfig | None = None
    warps: int = 4

    def signature(self) -> dict[str, str]:
        """Type of every parameter, "constexpr" for constants."""
        known = {**dict.fromkeys(ROWS, f"*{TYPES[self.dtype]}"), **NAMED, **self.types}
        known |= dict.fromkeys(self.constants, "constexpr")
        return {name: known.get(name, "i32" if name.startswith("stride") else "*fp32")
                for name in self.function.arg_names}  # fmt: skip


def cases(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    """What runs on this architecture for rows of this type: the defaults and what was tuned, by width."""
    seen = set()
    for form, (kind, transform, flags) in SWEEPS.items():
        for config in _configs(dtype, arch, kind):
            if (form, config) not in seen:
                seen.add((form, config))
                yield _sweep(form, dtype, config, transform, flags.split())
    plain = configs.SINGLE if dtype == torch.float32 else configs.HALF
    narrow = configs.narrow(plain)
    masks = {"F": device_fn(FOCAL.f), "IDS": True, "LEAVE_OWN_OUT": True, "OWN_WEIGHT": False}
    yield Case("largest", "", dtype, pairwise.largest_kernel, _tile(narrow) | masks, config=narrow)
    yield Case("similarity", "", dtype, pairwise.similarity_kernel, _tile(plain), config=plain)
    yield from _search(dtype, arch)
    yield from _row_wise(dtype)
    yield from _k_means(dtype, arch)


def _configs(dtype: torch.dtype, arch: int, kind: str) -> Iterator[configs.TileConfig]:
    """The plain form for rows that no descriptor describes, and what the table holds for others."""
    capability = divmod(arch, 10)
    default = configs.default_config(capability, dtype, kind)
    yield default
    yield configs.plain(default, dtype)
    for d in (384, 768, 1024):
        if tuned := configs.tuned_config(capability, dtype, d, kind):
            yield tuned


def _tile(config: configs.TileConfig) -> dict[str, Any]:
    """Constants of a tile, in the plain or the persistent form."""
    sides = {"BLOCK_N": config.block_n, "BLOCK_M": config.block_m, "BLOCK_D": config.block_d, "GROUP": config.group}
    form = {"FLATTEN": config.flatten} if config.programs else {"EVEN_D": True}
    return {**sides, **form, "RAISE": False, "PRECISION": "tf32"}


def _descriptor(dtype: torch.dtype | str, rows: int, columns: int) -> str:
    return f"tensordesc<{TYPES.get(dtype, dtype)}[{rows},{columns}]>"


def _operands(dtype: torch.dtype, config: configs.TileConfig, first: str) -> dict[str, str]:
    """Both operands as descriptors, where the form is persistent."""
    if not config.programs:
        return {}
    sides = {first: config.block_n, "C": config.block_m}
    return {name: _descriptor(dtype, side, config.block_d) for name, side in sides.items()}


def _sweep(
    form: str, dtype: torch.dtype, config: configs.TileConfig, transform: LogitTransform, flags: list[str]
) -> Case:
    """A sweep over rows of `dtype` in the form that `config` asks for."""
    maps = {"F": device_fn(transform.f), "DF": device_fn(transform.df)}
    constants = {**_tile(config), **{name: name in flags for name in FLAGS}, "PARTS": config.parts, **maps}
    weight = "fp32" if dtype == torch.float32 else "bf16"
    if not config.programs:
        return Case("sweep", form, dtype, pairwise.sweep_kernel, constants, {"E": f"*{weight}"}, config)
    stored = _descriptor(weight if "STORE" in flags else dtype, config.block_n, config.block_m // config.parts)
    types = {**_operands(dtype, config, "A"), "E": stored}
    return Case("persistent sweep", form, dtype, pairwise.persistent_sweep_kernel, constants, types, config)


def _search(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    """Top-k: scores by pointers and by descriptors, plain, with ids and with bounds, and the selection of 32 and more
    of 131,072 columns."""
    plain = configs.plain(configs.default_config(divmod(arch, 10), dtype, "busy"), dtype)
    described = [config for config in _configs(dtype, arch, "sums") if config.programs]
    stored, bits = ("fp32", 32) if dtype == torch.float32 else ("bf16", 16)
    forms = {"": {}, "ids": {"IDS": True}, "bounds": {"BOUNDED": True}, "wide": {"SPAN": topk_scores.SPANS[-1]}}
    for config, (form, flags) in itertools.product(dict.fromkeys([plain, *described]), forms.items()):
        span = {"SPAN": topk_scores.SPANS[0], "PART": topk_scores.PART}
        span |= {"IDS": False, "BOUNDED": False, "CUTS": False, **flags}
        config = config._replace(block_m=max(config.block_m, span["SPAN"]))
        types, function = {"S": f"*{stored}", "MAXIMA": f"*{stored}"}, topk_scores.scores_kernel
        if config.programs:
            function = topk_scores.persistent_scores_kernel
            types |= {**_operands(dtype, config, "A"), "S": _descriptor(stored, config.block_n, topk_scores.PART)}
        yield Case("top-k scores", form, dtype, function, _tile(config) | span, types, config)
    counted = {"BITS": bits, "MASK": 2 ** (bits - 1) - 1}
    types = dict.fromkeys(("S", "MAXIMA"), f"*i{bits}")
    for held in (2048, topk_select.MOST_HELD):
        constants, warps = {"BLOCK": held, **counted}, topk_select.warps(held)
        yield Case("top-k groups", str(held), dtype, topk_select.select_groups_kernel, constants, types, warps=warps)
    for held in (32, topk_select.MOST_HELD // topk_scores.SPANS[0]):
        constants = {"BLOCK": held, "SPAN": topk_scores.SPANS[0], **counted}
        warps = topk_select.warps(held * topk_scores.SPANS[0])
        yield Case("top-k columns", str(held), dtype, topk_select.select_columns_kernel, constants, types, warps=warps)


def _row_wise(dtype: torch.dtype) -> Iterator[Case]:
    """Kernels of one row a program, of rows of 768 where the width is a constant."""
    positive = {"F_POSITIVE": device_fn(FOCAL.f_positive)}
    pull = {"BLOCK": 256, "HAS_INVERSE": True, "DF_POSITIVE": device_fn(FOCAL.df_positive), **positive}
    finish = {"BLOCK_D": 1024, "HAS_FACTOR": True, "HAS_WEIGHT": True, "HAS_SCALE": True}
    block = {"BLOCK_D": rows.launch_options(768)["BLOCK_D"]}
    row = dict.fromkeys(("P", "B", "DA", "DP", "DB", "DC", "BASE", "OUT"), f"*{TYPES[dtype]}")
    for name, kernel, constants, types in (
        ("inverse_norms", rows.inverse_norms_kernel, {"BLOCK_D": 1024}, {}),
        ("top-k rescore", topk_search.rescore_kernel, {"DISTANCE": False, "BLOCK_K": 16, "BLOCK_D": 128}, {}),
        ("open_rows", rows.positive_logits_kernel, {"BLOCK_D": 1024, "BY_ROW": False, **positive}, {}),
        ("add_sums", add_sums_kernel, {"E": True, "EF": True, "BLOCK_N": SUMMED_ROWS, "BLOCK_T": TILES}, {}),
        ("scale_rows", rows.scale_rows_kernel, {"BLOCK_D": 1024}, {"OUT": "*bf16"}),
        ("close_rows", rows.row_loss_kernel, {"BLOCK": 256}, {}),
        ("pull_rows", rows.positive_gradient_kernel, pull, {}),
        ("finish_rows", rows.project_gradient_kernel, finish, {}),
        ("candidate gradient", quadruplet.candidate_gradient_kernel, {"NORMALIZE": True, **block}, row),
        ("step_rows", quadruplet.step_rows_kernel, {"HAS_RADIUS": True, "KIND": 1, **block}, row),
        ("scale", quadruplet.scale_kernel, {"BLOCK": 1024}, row),
    ):
        yield Case(name, "", dtype, kernel, constants, types)
    plain = {"HAS_INDEX": False, "CLASSIC": False, "NORMALIZE": True, "HAS_UPSTREAM": False, "HAS_PULL": False, **block}
    forward, full = ({**plain, **dict.fromkeys([f"GRAD_{x}" for x in "APBC"], wanted)} for wanted in (False, True))
    # The candidates' gradient is made by a kernel of its own, from what this one writes into PULL.
    indexed = {"HAS_INDEX": True, "GRAD_B": False, "HAS_PULL": True}
    for form, constants in (
        ("forward", forward),
        ("four gradients", full),
        ("index", full | indexed),
        ("classic, by row", full | {"CLASSIC": True, "HAS_UPSTREAM": True}),
    ):
        yield Case("quadruplet", form, dtype, quadruplet.quadruplet_kernel, constants, row, warps=1)


def _k_means(dtype: torch.dtype, arch: int) -> Iterator[Case]:
    """K-means: nearest centroids, one and two, of float32 and of the points' own type, in the tiles of the sums; the
    values of points of 768; and the sums of clusters."""
    seen = set()
    for parts in {kmeans.parts_of(dtype, wide, d) for wide in (torch.float32, dtype) for d in (128, 768)}:
        for config in _configs(dtype, arch, "sums"):
            config = kmeans.fitting(config, parts, dtype.itemsize)
            for two in (False, True):
                if (config, parts, two) not in seen:
                    seen.add((config, parts, two))
                    yield _assign(dtype, config, parts, two)
    settle = {"TWO": False, "DISTANCE": True, **kmeans.settling(768)}
    warps = settle.pop("num_warps")
    yield Case("assign values", "", dtype, kmeans_assign.settle_kernel, settle, {"C": "*fp32"}, warps=warps)
    for form, scaled in (("", False), ("unit rows", True)):
        block = {"HAS_SCALE": scaled, "BLOCK_D": kmeans.COLUMNS}
        yield Case("cluster_sums", form, dtype, kmeans.cluster_sums_kernel, block, warps=1)


def _assign(dtype: torch.dtype, config: configs.TileConfig, parts: int, two: bool) -> Case:
    """Ranks of centroids in `parts` parts, of which the report calls two or more the split ones."""
    form = f"nearest{' two' if two else ''}{', split' if parts > 1 else ''}"
    constants = {**_tile(config), "TWO": two, "PARTS": parts, "WIDTH": kmeans_assign.WIDTH}
    del constants["GROUP"]
    function = kmeans_assign.persistent_assign_kernel if config.programs else kmeans_assign.assign_kernel
    return Case("assign", form, dtype, function, constants, _operands(dtype, config, "X"), config)
