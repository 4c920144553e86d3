"""Text views: switched case that a seed decides, negation by rules, and what they make of a dataset."""

import subprocess
import sys

import pytest
from datasets import Dataset

from fastcse.errors import InputError
from fastcse.training.recipes.views import apply_view, negate, switch_case, with_negations, with_switched_case

TEXT = "The quick brown fox jumps over the lazy dog, and nobody saw it happen in Berlin"


def test_nothing_but_the_case_of_first_letters_changes():
    made = switch_case(TEXT, rate=0.5, seed=1)
    assert made != TEXT
    assert made.lower() == TEXT.lower()
    assert [w[1:] for w in made.split(" ")] == [w[1:] for w in TEXT.split(" ")]
    assert switch_case(TEXT, rate=0.0, seed=1) == TEXT
    for text, switched in (
        ("", ""),
        ("  two  spaces\tand a tab ", "  Two  Spaces\tAnd A Tab "),
        ('"quoted" (word) 42 4th', '"Quoted" (Word) 42 4Th'),
        ("ßtraße émile 你好", "ßTraße Émile 你好"),
        (TEXT, " ".join(w[0].swapcase() + w[1:] for w in TEXT.split(" "))),
    ):
        assert switch_case(text, rate=1.0, seed=0) == switched


def test_the_rate_is_the_share_of_words():
    text = " ".join(["word"] * 40_000)
    share = switch_case(text, rate=0.05, seed=3).count("W") / 40_000
    assert abs(share - 0.05) < 4 * (0.05 * 0.95 / 40_000) ** 0.5


def test_it_is_a_function_of_text_seed_epoch_and_index():
    arguments = [dict(seed=1), dict(seed=2), dict(seed=1, epoch=1), dict(seed=1, index=1)]
    made = [switch_case(TEXT, rate=0.5, **a) for a in arguments]
    assert len(set(made)) == 4
    assert made == [switch_case(TEXT, rate=0.5, **a) for a in arguments]
    code = f"from fastcse.training.recipes.views import switch_case; print(switch_case({TEXT!r}, rate=0.5, seed=1))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.rstrip("\n") == made[0]


NEGATED = [
    ("The dog is not old.", "The dog is old."),
    ("Not one of them came.", "one of them came."),
    ("He never sleeps.", "He sleeps."),
    ("It isn't here, and they aren't either.", "It is here, and they aren't either."),
    ("It isn’t here.", "It is here."),
    ("Can't we go?", "Can we go?"),
    ("They won't come.", "They will come."),
    ("I cannot see.", "I can see."),
    ("She can swim.", "She can not swim."),
    ("THE DOG IS OLD", "THE DOG IS not OLD"),
    ("Is he old?", "Is he not old?"),
    ("He has written a book.", "He has not written a book."),
    ("He had walked home.", "He had not walked home."),
    ("He has a dog.", "It is not true that he has a dog."),
    ("He has red hair.", "It is not true that he has red hair."),
    ("The dog runs.", "It is not true that the dog runs."),
    ("Berlin lies in Prussia.", "It is not true that Berlin lies in Prussia."),
    ("This island stays.", "It is not true that this island stays."),
    ("A man notices it.", "It is not true that a man notices it."),
    ("Yes, it was", "Yes, it was not"),
    ("Had", "It is not true that Had"),
    ("42", "It is not true that 42"),
]


def test_the_rules_of_negation():
    assert [negate(text) for text, _ in NEGATED] == [negated for _, negated in NEGATED]
    for text in (TEXT, "do", "not", "He is.", " lead", "", "don't"):
        assert negate(text) != text


def test_switched_case_makes_positives():
    corpus = Dataset.from_dict({"anchor": [TEXT, TEXT, "b c"]})
    made = with_switched_case(corpus, rate=0.5, seed=7)
    assert made.column_names == ["anchor", "positive"]
    assert made["anchor"][:] == corpus["anchor"][:]
    assert made["positive"][:] == [switch_case(t, rate=0.5, seed=7, index=i) for i, t in enumerate(corpus["anchor"])]
    assert made["positive"][0] != made["positive"][1], "equal texts draw apart"
    again = with_switched_case(corpus, rate=0.5, seed=7, epoch=1)
    assert again["positive"][0] != made["positive"][0]
    pairs = Dataset.from_dict({"anchor": ["a"], "negative": ["n"], "label": [3], "positive": ["p q"]})
    made = with_switched_case(pairs, rate=1.0, seed=7)
    assert made[0] == {"anchor": "a", "positive": "P Q", "negative": "n", "label": 3}
    assert made.column_names == ["anchor", "positive", "negative", "label"]


def test_negations_make_negatives():
    made = with_negations(Dataset.from_dict({"anchor": ["It is.", "The dog runs."]}))
    assert made.column_names == ["anchor", "positive", "negative"]
    assert made["positive"][:] == made["anchor"][:]
    assert made["negative"][:] == ["It is not.", "It is not true that the dog runs."]
    pairs = Dataset.from_dict({"positive": ["p"], "anchor": ["a"]})
    assert with_negations(pairs)[0] == {"anchor": "a", "positive": "p", "negative": "It is not true that a"}


def test_a_view_by_name():
    corpus = Dataset.from_dict({"anchor": ["it is", "b c"]})
    assert apply_view(corpus, "none") is corpus
    assert apply_view(corpus, "negation")["negative"][:] == ["it is not", "It is not true that b c"]
    switched = apply_view(corpus, "case-switch", rate=1.0, seed=1, epoch=2)
    assert switched["positive"][:] == ["It Is", "B C"]


@pytest.mark.parametrize(
    ("columns", "view", "rate", "message"),
    [
        ({"text": ["a"]}, "negation", 0.0, "anchor, got text"),
        ({"text": ["a"]}, "case-switch", 0.0, "anchor, got text"),
        ({"anchor": ["a"], "negative_2": ["b"]}, "negation", 0.0, "negative_2"),
        ({"anchor": ["a"]}, "upper", 0.0, "'upper'.*case-switch or negation"),
        *(({"anchor": ["a"]}, "case-switch", rate, f"rate.*{rate}") for rate in (-0.1, 1.1, float("nan"))),
    ],
)
def test_mistakes_are_named(columns, view, rate, message):
    with pytest.raises(InputError, match=message):
        apply_view(Dataset.from_dict(columns), view, rate=rate)
    if rate:
        with pytest.raises(ValueError, match=message):
            switch_case(TEXT, rate=rate, seed=0)
