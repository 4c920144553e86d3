"""Sentence pairs out of the docstrings of installed packages: the summary line, and what it summarises.

The source is parsed, never imported, so nothing of it runs and a broken or absent dependency does not matter.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import warnings
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
