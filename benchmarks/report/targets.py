"""What is wanted, as one list, beside what was measured; and what a roofline expects of a GPU."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

from .tables import NOT_MEASURED, OURS, markdown

LARGE, MILLION, ONE_WAY, MODEL_ARCH = 16384, 1 << 20, ("focal", "infonce"), "90"
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}  # other results are held to nothing


class Target(NamedTuple):
    """A number of some results, and its bound; the worst of them counts.

    `pick` has labels of the results, each with a value or the values that it may have. The number is a field of
    fastcse's row, or the time of `peer` over fastcse's; of an objective, the time of `part` over InfoNCE's.
    """

    section: str
    device: str
    name: str
    bound: str  # "<= 1.2 x"
    pick: dict[str, Any]
    field: str = ""
    factor: float = 1.0
    peer: str = ""
    part: str = ""
    model: str = ""  # column of the roofline, for the same sizes
    only: str = ""  # part of the name of the GPU that the bound was set for

    def meets(self, value: float) -> bool:
        """Whether a number is within the bound; NaN never is."""
        sign, wanted, *_ = self.bound.split()
        return (operator.le if sign == "<=" else operator.ge)(value, float(wanted))

    def shown(self, value: float) -> str:
        """A number with the bound's unit."""
        text = f"{value:.1e}" if abs(value) < 0.01 else f"{value:#.3g}".rstrip(".")
        return " ".join([text, *self.bound.split()[2:]])

    def picks(self, result: dict[str, Any]) -> bool:
        """Whether a result is one that the target speaks of."""
        where = {"device": self.device, "dtype": DTYPES[self.device]} | result  # objectives name neither
        if (where["device"].partition(":")[0], where["dtype"]) != (self.device, DTYPES[self.device]):
            return False
        return all(
            result.get(key) in (wanted if isinstance(wanted, tuple | range) else (wanted,))
            for key, wanted in self.pick.items()
        )

    def value(self, result: dict[str, Any]) -> float | str:
        """The number of a result, or why it has none."""
        if self.part:
            return next((row["to_infonce"] for row in result["rows"] if row["part"] == self.part), NOT_MEASURED)
        rows = {row["provider"]: row for row in result["rows"]}
        ours = rows.get(OURS, {"status": "absent"})
        if self.peer and rows.get(self.peer, {}).get("status", "measured") != "measured":
            return rows[self.peer]["status"]
        if ours["status"] != "measured" or (self.peer and self.peer not in rows):
            return NOT_MEASURED
        if self.peer:
            return rows[self.peer]["ms"] / ours["ms"]
        number = ours.get(self.field)
        # Older files have NaN as text.
        return NOT_MEASURED if number is None else float(number) * self.factor


def least(number: int) -> range:
    """That many or more."""
    return range(number, 1 << 40)


def _loss(name: str, bound: str, pick: dict[str, Any], **value: Any) -> Target:
    return Target("loss", "cuda", name, bound, {"mode": "full", **pick}, **value)


def _rows(device: str, op: str, name: str, bound: str, **value: Any) -> Target:
    # Where fewer rows stay in a cache, bandwidth is not the limit.
    mode = "forward" if op == "adversarial" else "full"
    return Target("rows", device, f"{op}: {name}", bound, {"op": op, "mode": mode, "n": least(65536)}, **value)


def _kmeans(device: str, what: str, name: str, bound: str, **value: Any) -> Target:
    # Of fewer points and centroids, what is done once per call counts.
    pick = {"what": what, "metric": "euclidean", "n": least(100_000), "m": least(1024)} | value.pop("pick", {})
    return Target("kmeans", device, f"{what}: {name}", bound, pick, **value)


WIDTHS = {384: "<= 1.35 x", 768: "<= 1.2 x", 1024: "<= 1.2 x"}
PEERS = {"QuACK": 1, "eager": 2, "Cut Cross-Entropy exact": 3, "Liger Triton": 4, "Inf-CL": 15,
         "sentence-transformers cached": 40}  # fmt: skip
BOTH = "focal and infonce, N >= 16384"
STEP = {"loss": ONE_WAY, "n": MILLION, "d": 768}
OPS = ("quadruplet", "normalize", "adversarial")
STAGE, THEIRS = "cached loss stage", "sentence-transformers cached"
TARGETS = (
    *(_loss(f"{BOTH}, D = {d}: time / three bare products", bound, {"loss": ONE_WAY, "n": least(LARGE), "d": d},
            field="to_products", model="ratio") for d, bound in WIDTHS.items()),
    *(_loss(f"{BOTH}, D = {d}: TFLOP/s at 6 N^2 D, H100", ">= 640", {"loss": ONE_WAY, "n": least(LARGE), "d": d},
            field="tflops", model="tflops", only="H100") for d in (768, 1024)),
    *(_loss(f"infonce, N = 65536, D = 768: time of {peer} / fastcse", f">= {times} x",
            {"loss": "infonce", "n": 65536, "d": 768}, peer=peer) for peer, times in PEERS.items()),
    _loss(f"one step at {MILLION:,} x {MILLION:,}, D = 768, H100: seconds", "<= 8.5 s", STEP,
          field="ms", factor=1e-3, model="total_ms", only="H100"),
    _loss("the same: GiB beyond inputs and gradients", "<= 4 GiB", STEP, field="extra_mib", factor=1 / 1024),
    _loss("relative gradient error, whatever was measured", "<= 0.002", {}, field="gradient_error"),
    *(target for op in OPS for target in (
        _rows("cpu", op, "time of eager / fastcse", ">= 4 x", peer="eager"),
        _rows("cpu", op, "time / one copy", "<= 1.5 x", field="to_products"))),
    *(_rows("cuda", op, "of the copy's bandwidth", ">= 80 %", field="of_copy", factor=100) for op in OPS),
    _kmeans("cpu", "iteration", "time of FAISS / fastcse", ">= 1 x", peer="FAISS"),
    _kmeans("cpu", "iteration", "time of scikit-learn / fastcse", ">= 3 x", peer="scikit-learn"),
    _kmeans("cpu", "iteration", "MiB beyond points, labels and centroids", "<= 64 MiB", field="extra_mib"),
    _kmeans("cuda", "assignment", "TFLOP/s, D = 768", ">= 500", pick={"d": 768}, field="tflops"),
    *(_kmeans("cuda", what, f"time of {peer} / fastcse", ">= 1 x", peer=peer)
      for peer in ("flash-kmeans", "FlashLib", "torch chunked") for what in ("assignment", "iteration")),
    *(Target("train", "cpu", f"loss stage, mini-batch {size}: time of {THEIRS} / fastcse", ">= 3 x",
             {"operation": STAGE, "mini_batch": size, "n": least(4096)}, peer=THEIRS) for size in (64, 32)),
    Target("hsimcse", "cpu", "hsimcse, its positive given: time / infonce", "<= 1.15 x", {"n": least(4096)},
           part="hinge alone"),
    Target("clusterns", "cpu", "clusterns, whole: time / infonce", "<= 1.25 x", {"n": least(4096)}, part="whole"),
)  # fmt: skip
SIZES = {"loss": "", "rows": ", N >= 65536", "kmeans": ", euclidean, N >= 100000, K >= 1024", "train": ", N >= 4096",
         "hsimcse": ", N >= 4096", "clusterns": ", N >= 4096"}  # fmt: skip


def target_table(sections: tuple[str, ...], documents: list[dict[str, Any]], roofline: list[dict[str, str]]) -> str:
    """Every target of these sections, with the worst of what each machine reached; the model's number apart."""
    targets = [target for target in TARGETS if target.section in sections]
    modelled = any(target.model for target in targets)
    rows = []
    for target in targets:
        measured = [found for document in documents if (found := reached(target, document)) is not None]
        place = "CPU, float32" if target.device == "cpu" else "GPU, bfloat16"
        cells = [f"{place}, {target.name}", target.bound, "; ".join(measured) or NOT_MEASURED]
        rows.append([*cells, expected(target, roofline)] if modelled else cells)
    head = [f"target{SIZES[sections[0]]}", "wanted", "measured", *(["roofline model, sm_90"] if modelled else [])]
    return markdown(head, rows)


def reached(target: Target, document: dict[str, Any]) -> str | None:
    """The worst of a document's results that the target speaks of, and whether that is enough; None where the document
    is of another device."""
    gpu = document["machine"].get("gpu", "")
    if bool(gpu) != (target.device == "cuda"):
        return None
    values = [target.value(result) for result in document["results"] if target.picks(result)]
    numbers = [value for value in values if not isinstance(value, str)]
    if not numbers:
        text = values[0] if values else NOT_MEASURED
    else:
        # NaN is the worst there is, and neither max nor min is sure to keep it.
        worst = next((x for x in numbers if x != x), (max if target.bound[0] == "<" else min)(numbers))
        verdict = f"set for {target.only}" if target.only not in gpu else "met" if target.meets(worst) else "missed"
        text = f"{target.shown(worst)} ({verdict})"
    return f"{text}, {gpu}" if gpu else text


def expected(target: Target, roofline: list[dict[str, str]]) -> str:
    """The model's numbers over the compiled forms and sizes, from the lowest to the highest."""
    if not target.model:
        return ""
    sizes = target.pick["n"] if isinstance(target.pick["n"], range) else least(target.pick["n"])
    lines = [line for line in roofline if line["arch"] == MODEL_ARCH and int(line["d"]) == target.pick["d"]]
    found = [float(line[target.model]) * target.factor for line in lines if int(line["n"]) in sizes]
    if not found:
        return "not computed"
    return " to ".join(dict.fromkeys(target.shown(value) for value in (min(found), max(found))))


def model_table(roofline: list[dict[str, str]]) -> str:
    """The roofline's lines for Hopper."""
    lines = [line for line in roofline if line["arch"] == MODEL_ARCH]
    if not lines:
        return "Not computed (`make compiled`)."
    keys = ("tile", "programs_per_sm", "n", "d", "total_ms", "ratio", "tflops", "wanted", "reachable")
    alike: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        alike.setdefault(tuple(line[key] for key in keys), []).append(line["form"])
    forms = dict.fromkeys(form for names in alike.values() for form in names)
    rows = [["all" if len(names) == len(forms) else "; ".join(names), *cells[:-1],
             "yes" if cells[-1] == "True" else "no"] for cells, names in alike.items()]  # fmt: skip
    head = ["form", "tile", "programs / SM", "N", "D", "total ms", "/ bare products", "TFLOP/s", "wanted", "reachable"]
    return f"Compiled forms: {'; '.join(forms)}.\n\n" + markdown(head, rows, left=2)
