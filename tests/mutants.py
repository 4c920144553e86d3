"""Faults that a developer could make, put into a copy of the sources one at a time: does a test see each?

    python tests/mutants.py [NAME ...] [--lane test | quick | FILE ...] [--tree FOLDER] [--tsv FILE]

Prints a line a fault: the first test that fails, SURVIVED, or "stale" where its snippet no longer occurs exactly once
in fastcse/ or csrc/. A snippet is found by its text wherever it is, so that a moved file changes nothing here. Lane
"test" runs the files that a fault names, "quick" all of tests/quick, both without what is marked `whole`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # of one fault's tests: a hang is a fault that is seen


class Fault(NamedTuple):
    """`old` becomes `new`; `tests` are files of tests/ by their names, and pytest's options."""

    name: str
    old: str
    new: str
    tests: str


FAST = "-k 'not triton'"
# fmt: off
FAULTS = [Fault(*row) for row in (
    # engine
    ("engine-shared-positives", "(p.of_positives(height) - upstream) * torch.exp", "0.0 * torch.exp",
     f"test_blocks {FAST}"),
    ("engine-float16-mean", "return rows.dtype != torch.float16", "return True", f"test_autograd {FAST}"),
    ("engine-no-dither", "= 0.3148", "= 0.0", f"test_range test_accuracy test_vectors {FAST}"),
    ("engine-underflown-sums", "SMALLEST_SUM = 1e-30", "SMALLEST_SUM = 0.0", "test_range"),
    ("engine-ring-ties", "(column < whole.hardest_col[rows])", "(column > whole.hardest_col[rows])",
     "test_distributed -k lowest_column"),
    ("engine-column-sum", "others + (p.of_positives(together) - e)", "others", f"test_blocks test_accuracy {FAST}"),
    ("engine-last-chunk-only", "accumulate_transposed(dc, e, scaled, rows.start > 0)",
     "accumulate_transposed(dc, e, scaled, False)", "test_workspace"),
    ("engine-bound-without-weight", "x_max + max(block.own_log_weight, 0.0)", "x_max", "test_range -k own"),
    ("engine-weights-in-range", "or any(block.weighted for block in self.blocks)", "", f"test_range {FAST}"),
    ("engine-ring-temperature", "[dc], d_inv_temperature.sum()", "[dc], d_inv_temperature.mean()", "test_ranks"),
    # Triton kernels, in the interpreter
    ("kernels-ties", "stats_i, torch.iinfo(torch.int32).max).amin(0)", "stats_i, -1).amax(0)", "test_stats -k triton"),
    ("kernels-partial-sums", "range(0, TILES_M, BLOCK_T)", "range(0, TILES_M, 2 * BLOCK_T)", "test_range"),
    ("kernels-workspace", "(max_workspace_bytes or DEFAULT_WORKSPACE) // width", "DEFAULT_WORKSPACE // width",
     "test_workspace"),
    ("kernels-ids", 'row_id[:, None] == col_id[None, :], -float("inf"), bias)',
     "row_id[:, None] == col_id[None, :], 0.0, bias)", "test_blocks test_forms -k triton"),
    ("kernels-topk-trusts-products", "~(kth > reachable)", "~(kth > following)", "test_search"),
    ("kernels-projection", "tl.sum(g * x * scale, 0) * scale * x", "tl.sum(g * x * scale, 0) * x",
     "test_vectors test_autograd test_kernels -k 'triton or kernel'"),
    ("kernels-assign-ties", "place = tl.min(tl.where(best == top[:, None], column, last), 1)\n    wanted",
     "place = tl.max(tl.where(best == top[:, None], column, -1), 1)\n    wanted", "test_assign -k triton"),
    # C++
    ("csrc-first-equal-id-only", "same_id = next_id(stop + 1);", "same_id = t.cols;",
     f"test_native test_blocks {FAST}"),
    ("csrc-assign-no-slack", "best_rank(a, dot, lanes) - a.slack[i]", "best_rank(a, dot, lanes)", "test_search"),
    ("csrc-shift", "f * t.inv_temperature + (bias - t.row_shift[row])",
     "(f * t.inv_temperature + bias) - t.row_shift[row]", f"test_range {FAST}"),
    ("csrc-norm-range", "return square < 1e-30f || std::isinf(square);", "return square < 0;", "test_native -k far"),
    ("csrc-topk-ties", "x.score == y.score && x.column < y.column", "x.score == y.score && x.column > y.column",
     "test_search"),
    ("csrc-sum-without-positive", "1 / (sum[i] + std::exp(logit[i] - shift[i]))", "1 / sum[i]",
     f"test_vectors {FAST}"),
    ("csrc-angular-sign", "m.cosine - inside * m.sine", "m.cosine + inside * m.sine", f"test_angular {FAST}"),
    # losses and ops
    ("losses-accuracy-ties", '(s["positive_similarity"] > s["hardest_overall"])',
     '(s["positive_similarity"] >= s["hardest_overall"])', f"test_stats {FAST}"),
    ("losses-clusterns-pairs", "last - first - 1, 0)", "last - first, 0)", f"test_clusterns {FAST}"),
    ("losses-sncse-swapped", "d = soft - reference.row_similarity(anchor, own)",
     "d = reference.row_similarity(anchor, own) - soft", "test_soft_negative"),
    ("losses-hsimcse-positive", "anchor.shape[0]] if positive is None else candidate.detach()[positive]",
     "anchor.shape[0]]", f"test_hsimcse {FAST}"),
    ("losses-sscl-anchors-twice", "for rows in (everyone, candidate) for part",
     "for rows in (everyone, everyone) for part", "test_sscl"),
    ("losses-queue-place", "self._next = (self._next + count) % self.size",
     "self._next = (self._next + min(count, self.size)) % self.size", "test_negative_queue"),
    ("losses-adversarial-radius", 'radius = step if mode == "raw" else step *', "radius = step *", "test_adversarial"),
    ("ops-hardest-own", "last.masked_fill(last == own, -1)", "last", f"test_hardest {FAST}"),
    ("ops-bound-excluded", "(score <= q.most[:, None])", "(score < q.most[:, None])",
     f"test_topk test_search {FAST}"),
    # mining and the index
    ("mining-signed-margin", "positive.abs() * self.relative_margin", "positive * self.relative_margin",
     "test_mining"),
    ("mining-window-short", "self.depth = self.end + self.positives.most",
     "self.depth = self.end + self.positives.most - 1", "test_mining"),
    ("mining-shard-type", "rows.ndim == 2 and rows.dtype == dtype and", "rows.ndim == 2 and", "test_mining_texts"),
    ("mining-seed", 'Generator("cpu").manual_seed(options.seed)', 'Generator("cpu")', "test_mining"),
    ("mining-rank-off-by-one", "(ids >= 0).cumsum(1) > self.depth", "(ids >= 0).cumsum(1) >= self.depth",
     "test_mining"),
    ("mining-stale-cache", "yield memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())",
     'yield b""', "test_mining_texts"),
    ("index-ties", "ids, order = ids.sort(dim=1, stable=True)", "ids, order = ids.sort(dim=1, descending=True)",
     "test_search"),
    ("index-unchecked-file", "if verify and", "if not verify and", "test_index_storage"),
    ("index-stale-faiss", "self._faiss = FaissIndex(self.kind, self.metric, rows, self._given)", "pass", "test_index"),
    ("index-absent-rows-count", " * there[:, :, None]", "", "test_index test_corpus_negatives"),
    # clustering and processes
    ("clustering-rehoused-sign", "torch.where(empty[:, None], -rows, 0.0)", "torch.where(empty[:, None], rows, 0.0)",
     "test_kmeans"),
    ("clustering-online-rate", "torch.lerp(self.centroids, new, self.rate)",
     "torch.lerp(new, self.centroids, self.rate)", "test_online_kmeans"),
    ("clustering-seed", " if self.seed is None else self.seed\n", "\n", "test_kmeans"),
    ("distributed-uneven-ranks", "return counts[self.rank] * self.ranks / sum(counts)", "return 1.0",
     "test_distributed"),
    ("distributed-temperature", ".mean(0).reshape(x.shape)", "[0].reshape(x.shape)", "test_distributed"),
    ("distributed-simcse-value", " + value.detach() * (1 - 1 / exchange.ranks)", "", "test_distributed"),
    # training and evaluation
    ("training-momentum-swapped", "for n in moving], 1.0 - kept)", "for n in moving], kept)", "test_recipe_queue"),
    ("training-bank-in-evaluation", "self.encoder.training = True", "pass", "test_bank"),
    ("training-patience", "callback_states_from_checkpoint=True", "callback_states_from_checkpoint=False",
     "test_training -k patience"),
    ("training-dropout-alike", "torch.manual_seed(seed * state.num_processes + state.process_index)",
     "torch.manual_seed(seed)", "test_processes"),
    ("training-checkpoint-order", "key=step_of", "key=lambda path: path.name", "test_processes -k disk"),
    ("training-marker-before-state", "for name, save in self.saved_too.items():", "for name, save in ():",
     "test_training -k killed"),
    ("training-stale-bank", 'or self.negatives.refresh == "write-through":', "or False:", "test_runs -k bank"),
    ("training-infinite-loss", 'if not math.isfinite(logs["loss"]):', 'if math.isnan(logs["loss"]):',
     "test_training -k finite"),
    ("training-view-epoch", 'f"{seed}/{epoch}/{index}/{text}"', 'f"{seed}/{index}/{text}"', "test_recipe_views"),
    ("training-mined-columns", "NEGATIVE.fullmatch(name)", "NEGATIVE.match(name)", "test_text"),
    ("evaluation-close-pairs", "torch.tensor(pairs.score) > CLOSE", "torch.tensor(pairs.score) >= CLOSE",
     "test_evaluation"),
    # integrations
    ("integrations-accumulation", "return loss / self.steps if torch.is_grad_enabled() else loss", "return loss",
     "test_integrations_hf_trainer"),
    ("integrations-gist-bar", " + ROUNDING * torch.finfo(positive.dtype).eps", "",
     "test_integrations_sentence_transformers"),
    ("integrations-hardness", "r.log_sum(c.query, blocks, c.own, r.scale + r.hardness)",
     "r.log_sum(c.query, blocks, c.own, r.scale)", "test_integrations_sentence_transformers -k pair_of_options"),
    # commands and benchmarks
    ("cli-exit-code", "raise typer.Exit(2) from None", "raise typer.Exit(0) from None", "test_cli"),
    ("files-not-atomic", "os.fsync(file.fileno())\n        os.replace(part, path)",
     "os.fsync(file.fileno())\n        path.write_bytes(part.read_bytes())", "test_files"),
    ("bench-order", "runs if round_ % 2 == 0 else reversed(runs)", "runs", "test_bench"),
    ("bench-symmetric-half", "a.grad, c.grad = a.grad / 2, c.grad / 2", "pass", "test_operations"),
    ("bench-memory", "(taken - outputs) / MIB", "taken / MIB", "test_bench"),
)]
# fmt: on


def sources(tree: Path) -> list[Path]:
    found = (path for folder in ("fastcse", "csrc") for path in (tree / folder).rglob("*"))
    return [path for path in found if path.suffix in (".py", ".cpp", ".hpp")]


def where(tree: Path, snippet: str) -> Path | None:
    """The one file that holds the snippet once."""
    found = [path for path in sources(tree) for _ in range(path.read_text(encoding="utf-8").count(snippet))]
    return found[0] if len(found) == 1 else None


def build(tree: Path) -> None:
    """The C++ module, into the tree."""
    import pybind11

    out = tree / "build" / "mutant"
    configure = [
        "cmake", "-G", "Ninja", "-S", str(tree), "-B", str(out), f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tree / 'fastcse'}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(out)]):
        subprocess.run(command, check=True, capture_output=True)


def files(tree: Path, tests: str) -> list[str]:
    """pytest's arguments: files of tests/ by their names, wherever they are."""
    found = []
    for word in shlex.split(tests):
        matching = [str(path) for path in (tree / "tests").rglob(f"{word}.py")]
        found += matching or ([word] if not word.startswith("test_") else [])
    return found


def run(tree: Path, arguments: list[str]) -> str:
    """The first test that fails, or SURVIVED."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=tree, env=environment, **options) as process:
        try:
            output = process.communicate(timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # processes that a test has started, too
            return f"tests that ran longer than {SECONDS} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
    if failed:
        return failed[1].rpartition("/")[2]
    return "SURVIVED" if process.returncode == 0 else f"pytest ended with {process.returncode}: {output[-200:]!r}"


def try_fault(fault: Fault, tree: Path, lane: list[str]) -> str:
    path = where(tree, fault.old)
    if path is None:
        return "stale"
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "tree"
        skip = shutil.ignore_patterns(".git", ".venv", "build", "results", "__pycache__", ".*_cache")
        shutil.copytree(tree, copy, ignore=skip)
        faulty = copy / path.relative_to(tree)
        faulty.write_text(faulty.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
        if path.is_relative_to(tree / "csrc"):
            build(copy)
        if lane in (["quick"], ["test"]):
            lane = [*(["tests/quick"] if lane == ["quick"] else files(copy, fault.tests)), "-m", "not whole"]
        return run(copy, lane)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of faults; all if none")
    parser.add_argument("--lane", nargs="+", default=["test"])
    parser.add_argument("--tree", type=Path, default=ROOT, help="the sources and their tests")
    parser.add_argument("--tsv", type=Path, help="append the results to this file")
    given = parser.parse_args()
    unknown = set(given.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no fault is called {', '.join(sorted(unknown))}")
    for fault in FAULTS:
        if given.names and fault.name not in given.names:
            continue
        start = time.monotonic()
        outcome = try_fault(fault, given.tree.resolve(), given.lane)
        line = f"{fault.name}\t{outcome}\t{time.monotonic() - start:.0f}"
        print(line, flush=True)
        if given.tsv is not None:
            with given.tsv.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
