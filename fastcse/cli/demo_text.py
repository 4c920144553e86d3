"""The demo's text: docstrings of installed packages, each a summary line and the text under it, split into train and
held-out pairs that share no module and no passage.

The source is parsed, never imported, so nothing of it runs and a broken or absent dependency does not matter.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import random
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

STDLIB = "stdlib"
PACKAGES = (STDLIB, "torch", "transformers", "numpy", "scipy", "sympy")
# Test suites and the interpreter's own toys hold docstrings that describe nothing.
SKIPPED = {"test", "tests", "testing", "_testing", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
SKIPPED |= {"site-packages", "__pycache__"}
# transformers writes many model files out of others, docstrings included.
GENERATED, GENERATED_WITHIN = b"automatically generated", 2000
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SUMMARY_WORDS = (4, 40)
REST_WORDS = (8, 4000)
REST_CHARACTERS = 600  # the encoder reads its first 48 tokens or so; more would only cost time
HELD_OUT_SHARE = 0.15  # of the pairs of each package, before sampling
SHINGLE_WORDS = 5
SHARED = 0.3  # of its shingles: a training text that shares this much with a held-out text is dropped


@dataclass(frozen=True)
class Pair:
    """One docstring: its summary line, the text under it, and the module it comes from."""

    summary: str
    rest: str
    package: str
    module: str  # dotted, from the package down


def collect_pairs(packages: tuple[str, ...] = PACKAGES) -> list[Pair]:
    """Every usable docstring of the packages that are installed, in the order of their files, without duplicates.

    Two docstrings are the same if their summaries or their rests have the same letters and digits: then only the first
    is kept, wherever they come from, so that no text can be in both the train and the held-out part.
    """
    files = [(package, root, path) for package in packages for root in _roots(package) for path in _sources(root)]
    pairs, seen = [], set()
    for package, root, path in tqdm(files, desc="read docstrings", unit=" files", dynamic_ncols=True):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for summary, rest in _documented(path):
            keys = {_key(summary), _key(rest)}
            if not keys & seen:
                seen |= keys
                pairs.append(Pair(summary, rest, package, module))
    return pairs


def _roots(package: str) -> list[Path]:
    if package == STDLIB:
        return [Path(sysconfig.get_path("stdlib"))]
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def _sources(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*.py")) if not SKIPPED & set(path.relative_to(root).parts))


def _documented(path: Path) -> Iterator[tuple[str, str]]:
    """(summary, rest) of each docstring of a file that can be used; nothing for a file that does not parse."""
    try:
        source = path.read_bytes()
        if GENERATED in source[:GENERATED_WITHIN]:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for node in _definitions(tree):
        text = ast.get_docstring(node)
        parts = split_docstring(text) if text else None
        if parts:
            yield parts


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """The node and every definition inside its statements; expressions, most of a tree, are not entered."""
    if isinstance(node, DEFINITIONS):
        yield node
    for child in (*getattr(node, "body", ()), *getattr(node, "orelse", ()), *getattr(node, "handlers", ())):
        yield from _definitions(child)


def split_docstring(text: str) -> tuple[str, str] | None:
    r"""(summary, rest) in plain prose, or None where either is too short or the docstring is a template.

    Example:
        >>> split_docstring("Return the mean of x.\n\nThe mean is the sum of the items divided by their number.")
        ('Return the mean of x.', 'The mean is the sum of the items divided by their number.')
    """
    summary, _, rest = text.strip().partition("\n\n")
    summary, rest = _prose(summary), _prose(rest)[:REST_CHARACTERS]
    fits = _within(summary, SUMMARY_WORDS) and _within(rest, REST_WORDS)
    return (summary, rest) if fits and "{{" not in text else None


def _prose(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`<]+)(?:<[^>]*>)?`", r"\1", text)  # :class:`~torch.Tensor`
    text = re.sub(r"\[`~?([^`\]]+)`\](?:\([^)]*\))?", r"\1", text)  # [`~Trainer.train`](link)
    text = re.sub(r"^\s*(?:>>>|\.\.\.).*$", " ", text, flags=re.MULTILINE)  # examples are code, not text
    text = re.sub(r"[`*=~^_-]{2,}|`", " ", text)  # rules and markup
    return " ".join(text.split())


def _within(text: str, words: tuple[int, int]) -> bool:
    count = len(re.findall(r"[A-Za-z]{2,}", text))
    return words[0] <= count <= words[1]


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@dataclass(frozen=True)
class Split:
    """`train` and `held_out` share no module group and no passage; `dropped` is how many pairs that cost."""

    train: list[Pair]
    held_out: list[Pair]
    dropped: int


def split_pairs(pairs: list[Pair], *, held_out: int, seed: int) -> Split:
    """Hold out whole module groups of every package, then sample `held_out` pairs of them.

    A group is a package and the first part of the module's name: `torch.nn`, `scipy.stats`, `stdlib.asyncio`. Groups
    are taken in the order of a hash of their name and the seed, so the split does not depend on what else is installed.
    A group with more than half of its package's pairs is always trained on.
    """
    chosen = _held_out_groups(pairs, seed)
    outside = [pair for pair in pairs if group(pair) in chosen]
    if len(outside) > held_out:
        outside = random.Random(seed).sample(outside, held_out)
    inside = [pair for pair in pairs if group(pair) not in chosen]
    train = without_copies(inside, outside)
    return Split(train, outside, len(inside) - len(train))


def group(pair: Pair) -> str:
    """What is held out together. A leading underscore is dropped, so that `_pydecimal` goes with `pydecimal`."""
    return f"{pair.package}.{pair.module.partition('.')[0].lstrip('_')}"


def _held_out_groups(pairs: list[Pair], seed: int) -> set[str]:
    sizes = {package: Counter() for package in dict.fromkeys(pair.package for pair in pairs)}
    for pair in pairs:
        sizes[pair.package][group(pair)] += 1
    chosen = set()
    for counts in sizes.values():
        total, taken = counts.total(), 0
        for name in sorted(counts, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
            if taken >= HELD_OUT_SHARE * total:
                break
            if counts[name] <= total / 2:
                chosen.add(name)
                taken += counts[name]
    return chosen


def without_copies(train: list[Pair], held_out: list[Pair]) -> list[Pair]:
    """`train` without the pairs whose summary or rest repeats passages of a held-out text."""
    owners = defaultdict(set)
    for i, text in enumerate(text for pair in held_out for text in (pair.summary, pair.rest)):
        for shingle in shingles(text):
            owners[shingle].add(i)
    return [pair for pair in train if not any(_repeats(text, owners) for text in (pair.summary, pair.rest))]


def _repeats(text: str, owners: dict[tuple[str, ...], set[int]]) -> bool:
    own = shingles(text)
    shared = Counter(owner for shingle in own for owner in owners.get(shingle, ()))
    return bool(shared) and max(shared.values()) >= SHARED * len(own)


def shingles(text: str) -> set[tuple[str, ...]]:
    """The runs of five words of a text, letter case and punctuation aside; a shorter text is one run."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    runs = max(1, len(words) - SHINGLE_WORDS + 1)
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(runs)}
