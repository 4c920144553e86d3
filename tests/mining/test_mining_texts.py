"""mine_hard_negatives and encode_texts: texts that come twice, models of every kind, the cache, what is refused."""

import io
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import CrossEncoder
from tiny_encoder import WIDTH, sentences
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fastcse import mine_hard_negatives
from fastcse.encoding import encode_texts
from fastcse.mining import formats

ANCHORS, OTHERS, MORE = sentences(30), sentences(40, seed=1, words=8), sentences(25, seed=2, words=7)


@pytest.fixture
def data():
    """30 anchors; the first has three positives, one of them listed twice."""
    pairs = [*zip(ANCHORS, OTHERS), (ANCHORS[0], OTHERS[35]), (ANCHORS[0], OTHERS[7]), (ANCHORS[0], OTHERS[35])]
    return Dataset.from_dict({"question": [a for a, _ in pairs], "answer": [p for _, p in pairs]})


class Vectors:
    """Somebody else's model: lists of numbers, and no arguments."""

    def __init__(self, width=16):
        self.width, self.asked = width, []

    def encode(self, texts):
        self.asked.append(list(texts))
        rows = [np.random.default_rng(sum(text.encode()) + len(text)).standard_normal(self.width) for text in texts]
        return [row.tolist() for row in rows]


def quiet(*arguments, **options):
    return mine_hard_negatives(*arguments, verbose=False, **options)


# ---------------------------------------------------------------- texts


def test_every_anchor_gets_near_texts_that_are_not_its_positives(data):
    model = Vectors()
    mined = quiet(data, model, corpus=[*MORE, OTHERS[3], *[MORE[0]] * 3], num_negatives=4)
    asked = [text for texts in model.asked for text in texts]
    assert len(asked) == len(set(asked)) == 86  # equal texts are one candidate, encoded once
    assert mined.column_names == ["question", "answer", "negative"]
    own = {(row["question"], row["answer"]) for row in data}
    assert {(row["question"], row["answer"]) for row in mined} == own
    found = [(row["question"], row["answer"], row["negative"]) for row in mined]
    assert len(found) == len(set(found)) == 4 * 32
    assert not {(row["question"], row["negative"]) for row in mined} & own
    assert {*mined["negative"]} <= {*MORE, *data["answer"]}
    assert list(dict.fromkeys(mined["question"])) == ANCHORS
    assert list(dict.fromkeys(mined["answer"][:12])) == [OTHERS[0], OTHERS[35], OTHERS[7]]


def test_an_anchor_is_no_negative_of_itself(data):
    mined = quiet(data, Vectors(), corpus=[*ANCHORS, *MORE])
    assert not [row for row in mined if row["question"] == row["negative"]]
    assert {*mined["negative"]} & {*ANCHORS}
    assert len(mined) == 3 * 32
    same = Dataset.from_dict({"a": MORE, "b": MORE})  # each its own positive
    with pytest.warns(UserWarning, match="include_positives needs output_format 'n-tuple'.*'triplet'"):
        ranked = quiet(same, Vectors(), include_positives=True, num_negatives=2)
    assert ranked.column_names == ["a", "b", "negative_1", "negative_2"]
    assert ranked["negative_1"] == ranked["a"]


def test_datasets_shuffled_streamed_and_with_other_columns(data):
    expected = quiet(data, Vectors()).to_list()
    key = lambda row: tuple(row.values())  # noqa: E731
    shuffled = quiet(data.shuffle(seed=1), Vectors()).to_list()
    assert shuffled != expected
    assert sorted(shuffled, key=key) == sorted(expected, key=key)
    streamed = IterableDataset.from_generator(lambda: iter(data.to_list()))
    assert quiet(streamed, Vectors()).to_list() == expected
    wide = data.add_column("id", list(range(len(data)))).select_columns(["id", "answer", "question"])
    named = quiet(wide, Vectors(), anchor_column_name="question", positive_column_name="answer")
    assert named.to_list() == expected


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda d: d.select([]), {}, "dataset must have at least one row, got 0"),
        (lambda d: d.select_columns(["answer"]), {}, "dataset must have two columns, anchor and positive, got answer"),
        (None, {"anchor_column_name": "query"},
         "anchor_column_name must be one of the columns question, answer, got 'query'"),
        (None, {"positive_column_name": "question"}, "must be two columns, got 'question' for both"),
        (lambda d: d.add_column("n", [1] * len(d)), {"positive_column_name": "n"},
         "dataset column 'n' must hold texts, got int64"),
        (lambda d: Dataset.from_dict({"a": ["x", None], "b": ["y", "z"]}), {},
         "column 'a' must hold a text in every row, got none in 1 of 2"),
        (None, {"corpus": ["x", 3]}, "corpus must hold texts"),
        (None, {"output_format": "pairs"}, "output_format must be one of .*'n-tuple'.*, got 'pairs'"),
        (lambda d: d.rename_column("answer", "negative"), {},
         "adds columns named .*, but the dataset has 'negative' already"),
        (lambda d: d.rename_column("answer", "negative_2"), {"output_format": "n-tuple"}, "has 'negative_2' already"),
        (None, {"num_negatives": 0}, "num_negatives is 0: expected at least 1"),
        (None, {"index": "annoy"}, "index must be one of .*'hnsw'.*, got 'annoy'"),
        (None, {"index": "flat", "backend": "cpp"}, "backend 'cpp' is for kind 'exact', got kind 'flat'"),
        (None, {"batch_size": 0}, "batch_size is 0: expected at least 1"),
        (None, {"query_prompt": "q: "}, "prompt is 'q: ', but Vectors takes no prompt"),
        (None, {"query_embeddings": torch.zeros(30, 4)},
         "query_embeddings must have 33 rows, one for each text, got 30"),
        (None, {"corpus": ["x", "y"], "corpus_embeddings": torch.zeros(33, 4)},
         "corpus_embeddings must have 35 rows, one for each text, got 33"),
        (None, {"corpus": OTHERS, "corpus_embeddings": torch.zeros(30, 4)},
         "corpus_embeddings must have 73 or 40 rows"),
    ],
    ids=range(18),
)  # fmt: skip
def test_one_sentence_names_what_is_wrong(data, change, options, says):
    model = Vectors()
    with pytest.raises(ValueError, match=says):
        quiet(change(data) if change else data, model, **options)
    assert not model.asked


# ---------------------------------------------------------------- models and embeddings


def test_a_model_that_compares_otherwise_is_refused(data, encoder):
    encoder.similarity_fn_name = "manhattan"
    with pytest.raises(ValueError, match="by one of cosine, dot, euclidean, got similarity_fn_name='manhattan'"):
        quiet(data, encoder)
    with pytest.raises(ValueError, match="model must have encode, encode_query or encode_document, got object"):
        quiet(data, object())


def test_queries_and_documents_are_encoded_by_their_own_functions(data):
    class Two(Vectors):
        def encode_query(self, texts, prompt=None):
            return self.encode([f"{prompt}{text}" for text in texts])

        def encode_document(self, texts, prompt_name=None):
            return self.encode([f"{prompt_name}:{text}" for text in texts])

    model = Two()
    quiet(data, model, query_prompt="ask ", corpus_prompt_name="doc")
    starts = {text.split(" ")[0].split(":")[0] for texts in model.asked for text in texts}
    assert starts == {"ask", "doc"}


def test_embeddings_that_are_there_already(data):
    corpus = [*MORE, OTHERS[3], MORE[0]]
    expected = quiet(data, Vectors(), corpus=corpus, output_scores=True).to_list()
    rows = {"query_embeddings": data["question"], "corpus_embeddings": [*corpus, *data["answer"]]}
    rows = {name: np.array(Vectors().encode(texts), dtype=np.float32) for name, texts in rows.items()}
    assert quiet(data, None, corpus=corpus, output_scores=True, **rows).to_list() == expected
    half = quiet(data, Vectors(), corpus=corpus, output_scores=True, query_embeddings=rows["query_embeddings"])
    assert half.to_list() == expected
    # A corpus with all positives needs no rows for them again.
    whole = [*corpus, *data["answer"]]
    assert quiet(data, None, corpus=whole, output_scores=True, **rows).to_list() == expected


@pytest.mark.parametrize("index", ["exact", "flat", "ivf", "hnsw"])
def test_every_kind_of_index(data, index):
    expected = quiet(data, Vectors(), corpus=MORE, relative_margin=0.1).to_list()
    assert quiet(data, Vectors(), corpus=MORE, relative_margin=0.1, index=index).to_list() == expected


def test_a_cross_encoder_scores_pairs_in_large_batches(data, encoder, tmp_path, encoder_path):
    bert = f"{encoder_path}/../bert"
    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    cross_encoder, asked = CrossEncoder(str(tmp_path), device="cpu", max_length=64), []
    predict = cross_encoder.predict

    def counted(pairs, **options):
        asked.append(len(pairs))
        return predict(pairs, **options)

    cross_encoder.predict = counted
    mined = quiet(data, encoder, cross_encoder=cross_encoder, range_max=8, num_negatives=2, output_scores=True)
    assert len(asked) == 2
    rows = [(row["question"], row["answer"], row["negative"]) for row in mined]
    positive, negative = (predict([(row[0], row[k]) for row in rows]) for k in (1, 2))
    np.testing.assert_allclose(np.array(mined["scores"]), np.stack([positive, negative], 1), atol=1e-5)


# ---------------------------------------------------------------- what comes out


def test_the_table_is_on_stderr_and_stdout_stays_empty(data, capfd):
    mine_hard_negatives(data, Vectors(), max_score=0.9)
    out, err = capfd.readouterr()
    assert out == ""
    for word in ("encode query", "encode corpus", "search", "max_score", "median"):
        assert word in err
    quiet(data, Vectors(), max_score=0.9)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("output_format", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
@pytest.mark.parametrize("scored", [False, True])
def test_tables_without_negatives_in_pieces_and_on_the_disk(data, output_format, scored, monkeypatch, tmp_path):
    options = {"output_format": output_format, "output_scores": scored}
    some = quiet(data, Vectors(), **options)
    none = quiet(data, Vectors(), max_score=-1, **options)
    assert none.features == some.features
    assert len(none) == (32 if output_format == "labeled-pair" else 0)
    some.save_to_disk(tmp_path / "mined")
    assert Dataset.load_from_disk(str(tmp_path / "mined")).to_list() == some.to_list()
    for name, value in (("ROWS_AT_ONCE", 7), ("STRING_BYTES", 100)):
        monkeypatch.setattr(formats, name, value)
        assert quiet(data, Vectors(), **options).to_list() == some.to_list()


# ---------------------------------------------------------------- encoding and its cache


def counted(model):
    """How many texts the model encodes from now on."""
    asked, encode = [], model.encode

    def encode_and_count(inputs, **options):
        asked.extend(inputs)
        return encode(inputs, **options)

    model.encode = encode_and_count
    return asked


def shards(folder):
    return sorted(folder.glob("*/*.npy"))


def cached(model, folder, texts=MORE, **options):
    return encode_texts(model, texts, cache_folder=folder, shard_rows=10, progress=False, **options)


def test_rows_are_the_models_in_the_order_of_the_texts(encoder):
    texts = [*MORE, MORE[3], "a", MORE[0]]
    expected = torch.from_numpy(encoder.encode(texts))
    asked = counted(encoder)
    for kind in ("query", "document"):
        asked.clear()
        got = encode_texts(encoder, texts, kind=kind, batch_size=4, progress=False, shard_rows=7)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert sorted(asked) == sorted({*texts})  # equal ones once
    half = encode_texts(encoder, texts, dtype=torch.float16, progress=False)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=1e-2, atol=1e-2)
    for training in (True, False):  # which a model stays in
        encoder.train(training)
        encode_texts(encoder, MORE[:3], progress=False)
        assert {module.training for module in encoder.modules()} == {training}


def test_a_second_run_encodes_nothing(encoder, tmp_path):
    first = cached(encoder, tmp_path)
    names = [f"rows-{a:010d}-{b:010d}.npy" for a, b in ((0, 10), (10, 20), (20, 25))]
    assert [path.name for path in shards(tmp_path)] == names
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name]
    asked = counted(encoder)
    assert torch.equal(cached(encoder, tmp_path), first)
    assert not asked


PROMPTED = {"prompt": {"prompt": "the "}, "prompt name": {"prompt_name": "q"}, "kind": {"kind": "query"},
            "dtype": {"dtype": torch.float16}}  # fmt: skip
TEXTS = {"texts": [*MORE[:-1], "a new one"], "order": MORE[::-1]}


@pytest.mark.parametrize("change", ["weights", "default prompt", "length", "pooling", *PROMPTED, *TEXTS])
def test_whatever_decides_the_rows_makes_another_entry(encoder, tmp_path, change):
    encoder.prompts = {"p": "the ", "q": "a "}
    encode_texts(encoder, MORE, cache_folder=tmp_path, progress=False)
    texts, options = TEXTS.get(change, MORE), PROMPTED.get(change, {})
    if change == "weights":  # trained further under the same name
        with torch.no_grad():
            next(encoder.parameters())[0, 0] += 1e-3
    elif change == "default prompt":
        encoder.prompts["document"] = "old "
    elif change == "length":
        encoder.max_seq_length = 5
    elif change == "pooling":
        encoder[1] = type(encoder[1])(WIDTH, "cls")
    asked = counted(encoder)
    got = encode_texts(encoder, texts, cache_folder=tmp_path, progress=False, **options)
    assert (len(asked), len(shards(tmp_path))) == (len(MORE), 2)
    assert torch.equal(got, encode_texts(encoder, texts, progress=False, **options))


def test_prompts_of_the_miner_reach_the_cache(data, encoder, tmp_path):
    options = {"cache_folder": str(tmp_path), "output_scores": True}
    plain, asked = quiet(data, encoder, **options), counted(encoder)
    assert quiet(data, encoder, **options).to_list() == plain.to_list()
    assert not asked
    assert quiet(data, encoder, query_prompt="big ", **options)["scores"] != plain["scores"]
    assert {*asked} == {*ANCHORS}


class Stop(Exception):
    pass


@pytest.mark.parametrize("end", [Stop, math.nan])
def test_a_run_that_ends_early_keeps_its_shards_and_continues(encoder, tmp_path, end):
    whole, encode = encode_texts(encoder, MORE, progress=False, shard_rows=10), encoder.encode

    def failing(inputs, **options):
        if MORE[12] in inputs and end is Stop:
            raise Stop
        return encode(inputs, **options) * (end if MORE[12] in inputs else 1)

    encoder.encode = failing
    says = None if end is Stop else "model must give finite rows, got NaN or infinity for text 10, "
    with pytest.raises(Stop if end is Stop else ValueError, match=says):
        cached(encoder, tmp_path)
    assert len(shards(tmp_path)) == 1
    encoder.encode = encode
    again = counted(encoder)
    assert torch.equal(cached(encoder, tmp_path), whole)
    assert {*again} == {*MORE[10:]}


DAMAGE = {
    "cut short": lambda b: b[:-40], "only a header": lambda b: b[:60], "empty": lambda b: b"",
    "no array": lambda b: b"x" * len(b),
}  # fmt: skip
WRONG = {
    "fewer rows": lambda x: x[:-1], "another type": lambda x: x.astype(np.float16),
    "pickle": lambda x: np.array([{}]), "wider": lambda x: np.hstack([x, x]),
}  # fmt: skip
# The first shard says how wide rows are.
DAMAGED = [(name, which) for name in (*DAMAGE, *WRONG) for which in (0, 1) if (name, which) != ("wider", 0)]


@pytest.mark.parametrize(("damage", "which"), DAMAGED)
def test_a_damaged_shard_is_made_again(encoder, tmp_path, damage, which):
    whole = cached(encoder, tmp_path)
    path = shards(tmp_path)[which]
    if damage in DAMAGE:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    else:
        np.save(path, WRONG[damage](np.load(path)), allow_pickle=True)
    asked = counted(encoder)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged and is made again"):
        again = cached(encoder, tmp_path)
    assert {*asked} == {*MORE[10 * which : 10 * which + 10]}
    assert torch.equal(again, whole)
    assert torch.equal(torch.from_numpy(np.load(path)), whole[10 * which : 10 * which + 10])


def test_a_model_that_cannot_be_told_apart_has_no_cache(tmp_path):
    says = "by its weights or its revision, got Vectors without either: leave cache_folder"
    with pytest.raises(ValueError, match=says):
        cached(Vectors(), tmp_path)
    known, asked = Vectors(), []
    for known.revision in ("1a2b", "1a2b", "3c4d"):
        known.asked.clear()
        cached(known, tmp_path)
        asked.append(bool(known.asked))
    assert asked == [True, False, True]


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (Vectors(), {"texts": []}, "texts must have at least 1 texts"),
        (Vectors(), {"texts": ["a", 3]}, "texts must be strings, got int at 1"),
        (Vectors(), {"kind": "passage"}, r"kind must be one of \('query', 'document'\), got 'passage'"),
        (Vectors(), {"dtype": torch.int8}, "dtype must be one of .*, got torch.int8"),
        (Vectors(), {"shard_rows": 0}, "shard_rows must be a whole number from 1, got 0"),
        (type("Short", (), {"encode": lambda self, texts: np.zeros((1, 4))})(), {},
         r"model must give rows of shape \(25, 4\) for 25 texts, got \(1, 4\)"),
    ],
    ids=range(6),
)  # fmt: skip
def test_encoding_says_what_is_wrong(model, options, says):
    with pytest.raises(ValueError, match=says):
        encode_texts(model, options.pop("texts", MORE), progress=False, **options)


def test_the_bar_counts_texts_also_those_that_were_there(encoder, tmp_path, monkeypatch):
    import tqdm.auto

    bars = []

    class Kept(tqdm.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, file=io.StringIO(), **options)
            bars.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Kept)
    for _ in range(2):
        encode_texts(encoder, [*MORE, MORE[0]], cache_folder=tmp_path, shard_rows=10)
    assert [(bar.n, bar.total, bar.desc) for bar in bars] == [(26, 26, "encode corpus")] * 2
