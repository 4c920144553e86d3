"""Train and held-out pairs: whole modules on one side or the other, and no text that is on both."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from .docstrings import Pair

HELD_OUT_SHARE = 0.15  # of the pairs of each package, before sampling
SHINGLE_WORDS = 5
SHARED = 0.3  # of its shingles: a training text that shares this much with a held-out text is dropped


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
