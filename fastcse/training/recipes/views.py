"""Second views of a sentence that are made from its text: switched case (CARDS) and negation (SNCSE)."""

from __future__ import annotations

import random
import re

from datasets import Dataset

from ...errors import InputError
from ..options import NONE, VIEWS

COLUMNS = ("anchor", "positive", "negative")

_WORD = re.compile(r"\S+")
_TOKEN = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?")
_PERFECT = frozenset({"have", "has", "had"})
_CONTRACTED = {"can't": "can", "cannot": "can", "won't": "will", "shan't": "shall"}
_AUXILIARY = frozenset({
    "am", "is", "are", "was", "were", "can", "could", "will", "would", "shall", "should", "may", "might", "must", "do",
    "does", "did",
})  # fmt: skip
_PARTICIPLES = frozenset({
    "been", "become", "begun", "broken", "brought", "built", "come", "done", "found", "given", "gone", "got", "held",
    "kept", "known", "left", "lost", "made", "met", "paid", "put", "read", "run", "said", "seen", "sent", "set",
    "shown", "sold", "spoken", "stood", "taken", "taught", "thought", "told", "won", "written",
})  # fmt: skip
# First words that are written small inside a sentence; any other may be a name.
_SMALL = frozenset({
    "the", "a", "an", "this", "that", "these", "those", "he", "she", "it", "we", "you", "they", "there", "his", "her",
    "its", "our", "your", "their", "my", "some", "many", "most", "all", "in", "on", "at", "by", "for", "from", "with",
    "after", "before", "when", "while", "if", "as", "two", "three",
})  # fmt: skip


def switch_case(text: str, *, rate: float, seed: int, index: int = 0, epoch: int = 0) -> str:
    """`text` with the case of the first letter of some words flipped, each word with probability `rate` (CARDS).

    The same arguments give the same text, in any process. It is another view only for a tokenizer that tells case
    apart: RoBERTa's does, uncased BERT's does not.

    Raises:
        ValueError: a rate outside 0 to 1.

    Source: alibaba/SimCSE-with-CARDS (SIGIR 2022); rate 0.05 for base models, 0.1 for large ones.

    Example:
        >>> switch_case("a dog runs home", rate=1.0, seed=0)
        'A Dog Runs Home'
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be from 0 to 1, got {rate}")
    # Seeding with text hashes it by SHA-512: unlike `hash`, the same everywhere.
    draw = random.Random(f"{seed}/{epoch}/{index}/{text}")
    return _WORD.sub(lambda word: _flipped(word[0]) if draw.random() < rate else word[0], text)


def _flipped(word: str) -> str:
    for place, letter in enumerate(word):
        # Some letters have no single letter as their other case.
        if letter.isalpha() and len(letter.swapcase()) == 1:
            return word[:place] + letter.swapcase() + word[place + 1 :]
    return word


def negate(text: str) -> str:
    """`text` with its meaning turned and nearly all of its words kept: a soft negative (SNCSE), by rules on words.

    The first rule that fits:

    1. A negation goes: "not" or "never" is left out, "isn't" becomes "is", "can't" "can", "won't" "will".
    2. After the first auxiliary (a form of be or do, a modal, have before a participle) comes "not"; in a question,
       after the word behind it.
    3. Otherwise "It is not true that " comes in front, with a first word like "The" written small.

    The paper parses dependencies to negate the verb of the main clause, and supports it with "do". Here no verb but an
    auxiliary is found, and the first auxiliary may stand in a subordinate clause.

    Source: Wang et al. (SNCSE), arXiv:2201.05979; the rules are this library's own.

    Example:
        >>> negate("The dog is not old.")
        'The dog is old.'
        >>> negate("She can swim.")
        'She can not swim.'
        >>> negate("The dog runs.")
        'It is not true that the dog runs.'
    """
    for rule in (_without_negation, _after_auxiliary):
        if (negated := rule(text)) is not None:
            return negated
    first = _WORD.search(text)
    if first is not None and first[0].lower().rstrip(",") in _SMALL:
        text = text[: first.start()] + first[0][0].lower() + text[first.start() + 1 :]
    return f"It is not true that {text.lstrip()}"


def _without_negation(text: str) -> str | None:
    for token in _TOKEN.finditer(text):
        word = token[0].lower().replace("’", "'")
        rest = text[token.end() :]
        if word in ("not", "never"):
            kept = text[: token.start()]
            return kept.rstrip() + rest if kept.strip() else rest.lstrip()
        if word in _CONTRACTED or word.endswith("n't"):
            positive = _CONTRACTED.get(word, word[:-3])
            return text[: token.start()] + _cased_like(positive, token[0]) + rest
    return None


def _cased_like(word: str, model: str) -> str:
    return word.capitalize() if model[0].isupper() else word


def _after_auxiliary(text: str) -> str | None:
    tokens = list(_TOKEN.finditer(text))
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else None
        if not _is_auxiliary(token[0], following):
            continue
        # A question begins with it: "Is he old?" turns into "Is he not old?".
        stop = following if place == 0 and following is not None else token
        return f"{text[: stop.end()]} not{text[stop.end() :]}"
    return None


def _is_auxiliary(word: str, following: re.Match | None) -> bool:
    word = word.lower()
    if word not in _PERFECT or following is None:
        return word in _AUXILIARY
    participle = following[0].lower()
    return participle in _PARTICIPLES or (len(participle) > 4 and participle.endswith("ed"))


def with_switched_case(dataset: Dataset, *, rate: float, seed: int, epoch: int = 0) -> Dataset:
    """`dataset` whose positives have switched case: of its own column `positive`, or of its anchors where it has none.

    Each epoch draws anew, each row by its own number; other columns stay.

    Raises:
        InputError: no column anchor, or a rate outside 0 to 1.
    """
    texts = _positives(dataset, "case-switch")
    if not 0 <= rate <= 1:
        raise InputError(f"the rate of view case-switch is {rate}: expected 0 to 1")
    made = [switch_case(text, rate=rate, seed=seed, index=i, epoch=epoch) for i, text in enumerate(texts)]
    return _with_column(dataset, "positive", made)


def with_negations(dataset: Dataset) -> Dataset:
    """`dataset` with the negation of each anchor as its column `negative`; without positives, the anchors are them.

    Raises:
        InputError: no column anchor, or a negative that is there already.
    """
    dataset = _with_column(dataset, "positive", _positives(dataset, "negation"))
    taken = [name for name in dataset.column_names if name.startswith("negative")]
    if taken:
        raise InputError(f"view negation makes the column negative, but the text has {', '.join(taken)} already")
    return _with_column(dataset, "negative", [negate(text) for text in dataset["anchor"][:]])


def _positives(dataset: Dataset, view: str) -> list[str]:
    """The texts that a positive is made of: the positives, or the anchors where there are none."""
    if "anchor" not in dataset.column_names:
        raise InputError(f"view {view} needs a column anchor, got {', '.join(dataset.column_names)}")
    return dataset["positive" if "positive" in dataset.column_names else "anchor"][:]


def _with_column(dataset: Dataset, name: str, values: list[str]) -> Dataset:
    """The dataset with the column set, and the text columns in the order that the losses expect."""
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    dataset = dataset.add_column(name, values)
    first = [column for column in COLUMNS if column in dataset.column_names]
    return dataset.select_columns([*first, *(column for column in dataset.column_names if column not in first)])


def apply_view(dataset: Dataset, view: str, *, rate: float = 0.0, seed: int = 42, epoch: int = 0) -> Dataset:
    """`dataset` with the view of a recipe: a name of `VIEWS`, or "none", which changes nothing.

    Raises:
        InputError: an unknown view, and what the view itself refuses.
    """
    if view == "case-switch":
        return with_switched_case(dataset, rate=rate, seed=seed, epoch=epoch)
    if view == "negation":
        return with_negations(dataset)
    if view != NONE:
        raise InputError(f"view {view!r} is unknown: expected {' or '.join(VIEWS)}")
    return dataset
