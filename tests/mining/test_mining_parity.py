"""mine_hard_negatives beside sentence-transformers' own miner, option by option, and every difference there is."""

import csv
import gzip
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives as theirs
from tiny_encoder import sentences

from fastcse import mine_hard_negatives as ours

SCIFACT = Path(__file__).parents[3] / "shared" / "data" / "scifact"
FORMATS = ["triplet", "n-tuple", "labeled-pair", "labeled-list"]


class WordVectors:
    """An embedding model: the sum of a random vector for each word, as the peer wants one to be."""

    device = torch.device("cpu")

    def __init__(self, similarity="cosine", width=64):
        self.similarity_fn_name, self.width, self.known = similarity, width, {}
        like = SentenceTransformer(modules=[torch.nn.Identity()], similarity_fn_name=similarity, device="cpu")
        self.similarity, self.similarity_pairwise = like.similarity, like.similarity_pairwise

    def word(self, word):
        if word not in self.known:
            self.known[word] = np.random.default_rng(zlib.crc32(word.encode())).standard_normal(self.width)
        return self.known[word]

    def text(self, text):
        if (text,) not in self.known:
            # Weighed by place, so that texts of the same words do not tie.
            self.known[text,] = sum((1 + i / 500) * self.word(word) for i, word in enumerate(text.lower().split()))
        return self.known[text,]

    def encode(self, texts, **options):
        rows = np.array([self.text(text) for text in texts], dtype=np.float32)
        if options.get("normalize_embeddings"):
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    encode_query = encode_document = encode

    def get_embedding_dimension(self):
        return self.width


def read(name):
    with gzip.open(SCIFACT / f"scifact.{name}.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        csv.field_size_limit(sys.maxsize)
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def scifact():
    """300 pairs of claims and abstracts, some claims with several, and 600 abstracts."""
    if not SCIFACT.exists():
        pytest.skip("needs ../shared/data/scifact, which is not in the repository")
    text = {row["doc_id"]: f"{row['title']} {row['text']}" for row in read("corpus")}
    claim = {row["query_id"]: row["text"] for row in read("queries")}
    judged = [row for row in read("qrels") if row["split"] == "train" and row["relevance"] == "1"][:300]
    data = Dataset.from_dict(
        {"claim": [claim[r["query_id"]] for r in judged], "paper": [text[r["doc_id"]] for r in judged]}
    )
    assert len(set(data["claim"])) < 300
    return data, list(text.values())[:600], WordVectors()


def synthetic(count=120, texts=80, seed=0):
    """Pairs at random, so that positives score below zero as often as above."""
    generator = torch.Generator().manual_seed(seed)
    anchors, others = sentences(60, seed=seed), sentences(texts, seed=seed + 1, words=8)
    query = torch.randint(60, (count,), generator=generator).tolist()
    row = torch.randint(texts, (count,), generator=generator).tolist()
    seen = dict.fromkeys(zip(query, row))
    return Dataset.from_dict({"a": [anchors[i] for i, _ in seen], "b": [others[j] for _, j in seen]}), others


def split(dataset):
    """The texts, row by row, and the scores."""
    score = [name for name in dataset.column_names if name in ("score", "scores")]
    flat = [x for name in score for row in dataset[name] for x in np.atleast_1d(row)]
    return dataset.remove_columns(score).to_list(), np.array(flat)


def assert_same(got, expected):
    assert got.column_names == expected.column_names
    assert got.features == expected.features
    (texts, scores), (their_texts, their_scores) = split(got), split(expected)
    assert texts == their_texts
    np.testing.assert_allclose(scores, their_scores, rtol=0, atol=1e-6)


def both(data, model, **options):
    return tuple(mine(data, model, verbose=False, **options) for mine in (ours, theirs))


# With range_max where a margin leaves some too few in the default window, which only sentence-transformers keeps to.
OPTIONS = {
    "default": {},
    "one": {"num_negatives": 1},
    "range_min": {"range_min": 7},
    "range": {"range_min": 3, "range_max": 12, "num_negatives": 9},
    "max_score": {"max_score": 0.45, "range_max": 40},
    "min_score": {"min_score": 0.4},
    "scores": {"max_score": 0.5, "min_score": 0.3, "range_max": 90, "num_negatives": 5},
    "absolute_margin": {"absolute_margin": 0.03, "range_max": 70},
    "absolute_margin 0": {"absolute_margin": 0, "range_max": 50},
    "relative_margin": {"relative_margin": 0.05, "range_max": 300, "num_negatives": 10},
    "all": {
        "absolute_margin": 0.01, "relative_margin": 0.04, "max_score": 0.5, "min_score": 0.1, "range_min": 2,
        "range_max": 75,
    },
    "random of as many": {"sampling_strategy": "random", "range_min": 2, "range_max": 6, "num_negatives": 4},
}  # fmt: skip
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
# Rows are made of what was mined, whatever mined it: each option in one format, and all formats, with scores and
# without, of one whose anchors are left with fewer negatives than others.
IN_FORMATS = {(name, FORMATS[i % 4], True) for i, name in enumerate(OPTIONS)}
IN_FORMATS |= {("relative_margin", output_format, scored) for output_format in FORMATS for scored in (True, False)}


@pytest.mark.parametrize(("name", "output_format", "scored"), sorted(IN_FORMATS))
def test_the_same_rows_of_scifact(scifact, name, output_format, scored):
    data, corpus, model = scifact
    options = {"output_format": output_format, "output_scores": scored} | OPTIONS[name]
    got, expected = both(data, model, corpus=corpus, **options)
    assert len(expected) > 10
    assert_same(got, expected)


@every_option
def test_the_same_rows_where_scores_are_negative(options):
    data, _ = synthetic()
    model = Random()
    lower = {"max_score": 0.15, "min_score": -0.3}
    options = {name: lower.get(name, value) for name, value in options.items()}
    options |= {"range_max": 80} if "margin" in str(options) else {}
    got, expected = both(data, model, output_scores=True, **options)
    assert min(row[0] for row in expected["scores"]) < -0.1
    assert_same(got, expected)


class Random(WordVectors):
    """No two texts have to do with one another."""

    def encode(self, texts, **options):
        return np.stack([self.word(text) / np.linalg.norm(self.word(text)) for text in texts]).astype(np.float32)

    encode_query = encode_document = encode


def test_the_same_of_other_columns_another_similarity_and_of_faiss(scifact):
    data, corpus, model = scifact
    options = {"include_positives": True, "output_format": "n-tuple", "output_scores": True, "num_negatives": 8}
    got, expected = both(data, model, corpus=corpus, **options)
    assert any(row["paper"] == row[f"negative_{i}"] for row in expected for i in range(1, 9))
    assert_same(got, expected)
    third = data.add_column("third", [str(i) for i in range(len(data))])
    assert_same(*both(third, model, anchor_column_name="paper", positive_column_name="claim"))
    options = {"corpus": corpus, "relative_margin": 0.02, "range_max": 40, "output_scores": True}
    got, expected = both(data, WordVectors("euclidean"), min_score=-1.1, **options)
    assert max(row[1] for row in expected["scores"]) < 0
    assert_same(got, expected)
    options["verbose"] = False
    assert_same(ours(data, model, index="flat", **options), theirs(data, model, use_faiss=True, **options))


class Overlap:
    """A model of pairs: the share of words in common, and a little of the text to tell equals apart."""

    def predict(self, pairs, batch_size=32, convert_to_tensor=True, pool=None):
        def score(a, b):
            a, b = set(a.split()), set(b.split())
            return len(a & b) / len(a | b) + zlib.crc32(repr((sorted(a), sorted(b))).encode()) / 2**36

        return torch.tensor([score(*pair) for pair in pairs])


@pytest.mark.parametrize(
    "options",
    [
        {"relative_margin": 0.1, "range_max": 20},
        {"max_score": 0.04, "min_score": 0.01, "range_max": 20, "range_min": 2},
        {"min_score": 0.02, "num_negatives": 1, "range_max": 11},
        {"absolute_margin": 0.01, "range_max": 15, "include_positives": True, "output_format": "n-tuple"},
    ],
    ids=str,
)
def test_a_cross_encoder(scifact, options):
    data, corpus, model = scifact
    data = data.select(range(60))
    got, expected = both(data, model, corpus=corpus, cross_encoder=Overlap(), output_scores=True, **options)
    assert len(expected) > 10
    assert_same(got, expected)


def test_a_real_encoder_with_prompts(encoder):
    encoder.prompts = {"question": "is the "}
    data, others = synthetic(count=60)
    options = {"corpus": others, "query_prompt_name": "question", "corpus_prompt": "a big ", "output_scores": True}
    got, expected = both(data, encoder, **options)
    assert_same(got, expected)
    plain = ours(data, encoder, corpus=others, output_scores=True, verbose=False)
    assert split(got)[1] != pytest.approx(split(plain)[1])


# ---------------------------------------------------------------- the differences


def test_difference_windows_widen_also_for_a_cross_encoder(scifact):
    data, corpus, model = scifact
    options = {"corpus": corpus, "relative_margin": 0.08, "num_negatives": 2}
    got, expected = both(data, model, **options)
    assert len(got) > len(expected) > 0
    assert {tuple(row.values()) for row in got} >= {tuple(row.values()) for row in expected}
    assert_same(got, theirs(data, model, verbose=False, range_max=900, **options))
    options = {"corpus": corpus, "cross_encoder": Overlap(), "output_scores": True}
    got, expected = both(data.select(range(40)), model, **options)
    assert_same(got, theirs(data.select(range(40)), model, verbose=False, min_score=-1, **options))
    assert split(got)[0] != split(expected)[0]


def test_difference_an_anchor_is_not_its_own_negative_and_a_repeated_pair_counts_once():
    data, others = synthetic()
    got, expected = both(data, Random(), corpus=[*others, *data["a"]])
    assert any(row["a"] == row["negative"] for row in expected)
    assert not any(row["a"] == row["negative"] for row in got)
    assert len(ours(data, Random(), corpus=others, verbose=False)) == len(got)
    again = Dataset.from_dict({name: [*data[name], *data[name]] for name in data.column_names})
    assert_same(ours(again, Random(), verbose=False), ours(data, Random(), verbose=False))
    assert_same(*both(again, Random()))


class Tied(WordVectors):
    def encode(self, texts, **options):
        return np.array([[1.0, 0.0] if text.endswith("x") else [0.6, 0.8] for text in texts], dtype=np.float32)

    encode_query = encode_document = encode


def test_difference_ties_go_to_the_first_text():
    data = Dataset.from_dict({"q": ["word", "other"], "p": ["one", "two"]})
    options = {"corpus": [f"{word} x" for word in "abcdefghij"], "max_score": 0.9, "range_max": 20}
    got, expected = both(data, Tied(width=2), output_scores=True, **options)
    assert got["negative"] == ["a x", "b x", "c x"] * 2
    np.testing.assert_allclose(got["scores"], expected["scores"], atol=1e-6)
