"""Text of runs: a corpus, pairs, mined negatives joined to them, and what fills a batch."""

import gzip
import json

import pytest
from datasets import Dataset
from tiny_encoder import sentences

from fastcse import CorpusIndex
from fastcse.errors import InputError
from fastcse.training.data import add_hard_negatives, check_fills_a_batch, read_corpus, read_pairs

PAIRS = "q1\tp1\nq2\tp2\nq1\tp3\nq4\tp4\n"


@pytest.fixture
def write(tmp_path):
    """Writes a file of text, or of rows as JSON lines, and returns its path; `.gz` is packed."""

    def go(name, content):
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return go


def triplet(anchor, positive, negative, **more):
    return {"anchor": anchor, "positive": positive, "negative": negative, **more}


TRIPLETS = [
    triplet("q1", "p1", "n1", scores=[0.9, 0.5]), triplet("q1", "p1", "n2", scores=[0.9, 0.4]),
    triplet("q1", "p3", "n3", scores=[0.8, 0.5]), triplet("q2", "p2", "n1", scores=[0.7, 0.1]),
]  # fmt: skip
TABLE = "scores\tnegative\tanchor\tpositive\n" + "".join(
    f"{row['scores']}\t{row['negative']}\t{row['anchor']}\t{row['positive']}\n" for row in TRIPLETS
)


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.jsonl", TRIPLETS), ("m.jsonl.gz", TRIPLETS), ("m.tsv", TABLE), ("m.tsv.gz", TABLE), ("mined", TABLE)],
)
def test_a_pair_becomes_a_row_for_each_of_its_triplets(write, name, content):
    dataset, notes = add_hard_negatives(read_pairs(write("pairs.tsv", PAIRS)), write(name, content))
    assert dataset.to_dict() == {
        "anchor": ["q1", "q1", "q2", "q1"],
        "positive": ["p1", "p1", "p2", "p3"],
        "negative": ["n1", "n2", "n1", "n3"],
    }
    assert notes == ["1 of 4 pairs have no mined negatives and are left out"]


def test_a_tuple_of_negatives_is_one_row(write):
    mined = [
        {"anchor": " q2 ", "positive": "p2", "negative_1": "n1", "negative_2": "n2", "negative_score": 0.5},
        {"anchor": "elsewhere", "positive": "p2", "negative_1": "n1", "negative_2": "n2"},
    ]
    dataset, notes = add_hard_negatives(read_pairs(write("pairs.tsv", PAIRS)), write("m.jsonl", mined))
    assert dataset.to_dict() == {"anchor": ["q2"], "positive": ["p2"], "negative_1": ["n1"], "negative_2": ["n2"]}
    assert notes == [
        "3 of 4 pairs have no mined negatives and are left out",
        "1 of 2 mined rows belong to none of the pairs and are not used",
    ]


def test_negatives_of_the_pairs_file_stay(write):
    pairs = read_pairs(write("pairs.tsv", "q1\tp1\tx1\nq2\tp2\tx2\n"))
    dataset, _ = add_hard_negatives(pairs, write("m.jsonl", TRIPLETS))
    assert dataset.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert dataset["negative_1"][:] == ["x1", "x1", "x2"]
    assert dataset["negative_2"][:] == ["n1", "n2", "n1"]


@pytest.mark.parametrize("given", [True, False], ids=["with-positive", "without"])
def test_a_sentence_of_a_corpus_is_its_own_positive(write, given):
    mined = [{"anchor": f"s{i}", "negative": "n", **({"positive": f"s{i}"} if given else {})} for i in (1, 2, 2)]
    corpus = read_corpus(write("corpus.txt", "s1\ns2\ns3\n"))
    dataset, notes = add_hard_negatives(corpus, write("m.jsonl", mined))
    assert dataset.to_dict() == {"anchor": ["s1", "s2"], "positive": ["s1", "s2"], "negative": ["n", "n"]}
    assert notes == ["1 of 3 sentences have no mined negatives and are left out"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"anchor": "a", "positive": "p", "label": 1}], "line 1 has the columns anchor, positive, label: expected"),
        ("anchor\tnegative\na\tn\n", "line 1 has the columns anchor, negative: expected anchor, positive, and"),
        ("q1\tp1\tn1\n", "line 1 has the columns q1, p1, n1: expected anchor, positive, and negative"),
        ([TRIPLETS[0], triplet("a", "p", None)], r"line 2 has negative null: expected text"),
        ([TRIPLETS[0], triplet("a", " ", "n")], r"line 2 has positive \" \": expected text"),
        ([TRIPLETS[0], {"anchor": "a", "positive": "p"}], "line 2 has negative null: expected text"),
        ([TRIPLETS[0], triplet("a", "p", "\ud800")], "line 2 has negative .*: half of a surrogate pair"),
        ('{"anchor": "q1", "positive": "p1", "negative": "n1"}\n\n{"anchor": "q2', "line 3 is not JSON: Unterminated"),
        ('{"anchor": "q1", "positive": "p1", "negative": "n1"}\n[1]\n', r"line 2 is list '\[1\]': expected a JSON obj"),
        (TABLE + "x\ty\n", "line 6 has 2 columns where the first line has 4"),
        (TABLE + "\nx\t\ta\tp\n", "line 7 has an empty cell: expected text in column 2"),
        ([TRIPLETS[0], triplet("a", "p", "p")], "line 2 has its own positive 'p' as a negative"),
        ([triplet("a", "p", "a")], "line 1 has its own anchor 'a' as a negative"),
        ([triplet("a", "p", "n")], "has a negative for none of the 4 pairs: expected the file that fastcse mine wrote"),
        ("", "is empty: expected text"),
    ],
)
def test_a_damaged_file_is_one_sentence(write, content, says):
    with pytest.raises(InputError, match=says) as caught:
        add_hard_negatives(read_pairs(write("pairs.tsv", PAIRS)), write("m.jsonl", content))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--hard-negatives '")


def test_rows_that_share_a_negative_do_not_fill_a_batch():
    names, other = sentences(6), sentences(6, seed=1)
    shared = Dataset.from_dict({"anchor": names, "positive": other, "negative": ["one hub"] * 6})
    with pytest.raises(InputError, match="--batch-size 2 is more than the 1 rows of --pairs 'p' that share no text"):
        check_fills_a_batch(shared, 2, "p", "--pairs")
    check_fills_a_batch(shared.remove_columns("negative"), 6, "p", "--pairs")


def test_a_corpus_is_a_text_a_line(write):
    assert read_corpus(write("corpus.txt.gz", "\n\n".join(sentences(24))))["anchor"][:] == sentences(24)
    for name in ("c.jsonl", "c.json", "c.csv", "c.TSV", "c.parquet", "c.jsonl.gz"):
        path = write(name, '{"_id": 1, "text": "a dog"}\n')
        with pytest.raises(InputError, match=rf"^--bank '.*{name}' is a \.\w+ file: expected plain text, one text a "):
            read_corpus(path, "--bank")
        with pytest.raises(ValueError, match=rf"^texts_or_path '.*{name}' is a \.\w+ file"):
            CorpusIndex.from_texts(None, path)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a\tb\nc\td\n", {"anchor": ["a", "c"], "positive": ["b", "d"]}),
        ("a\tb\tx\n\nc\td\ty\n", {"anchor": ["a", "c"], "positive": ["b", "d"], "negative": ["x", "y"]}),
        ("source\tpositive\tanchor\nweb\tb\ta\n", {"anchor": ["a"], "positive": ["b"]}),
        ("\ufeffanchor\tpositive\na dog\ta cat\n", {"anchor": ["a dog"], "positive": ["a cat"]}),
        (
            "anchor\tpositive\tnegative_1\tnegative_2\na\tb\tx\ty\n",
            {"anchor": ["a"], "positive": ["b"], "negative_1": ["x"], "negative_2": ["y"]},
        ),
        ("a\n", "has 1 columns: expected 2 or 3"),
        ("a\tb\tc\td\n", "has 4 columns: expected 2 or 3"),
        ("a\tb\nc\n", "line 2 has 1 columns where the first line has 2"),
        ("a\tb\nc\t \n", "line 2 has an empty cell: expected text in column 2"),
    ],
)
def test_pairs_by_place_or_by_name(write, text, columns):
    if isinstance(columns, dict):
        assert read_pairs(write("p.tsv", text)).to_dict() == columns
    else:
        with pytest.raises(InputError, match=columns):
            read_pairs(write("p.tsv", text))
