"""mine_hard_negatives and encode_texts: texts that come twice, models of every kind, the cache, what is refused."""

import io
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny_encoder import WIDTH, sentences, write_tiny_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fastcse import mine_hard_negatives
from fastcse.encoding import encode_texts

ANCHORS, OTHERS, MORE = sentences(30), sentences(40, seed=1, words=8), sentences(25, seed=2, words=7)


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(encoder_path):
    return SentenceTransformer(encoder_path, device="cpu")


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
    mined = quiet(data, Vectors(), corpus=[*MORE, OTHERS[3], MORE[0]], num_negatives=4)
    assert mined.column_names == ["question", "answer", "negative"]
    assert len(mined) == 4 * 32
    own = {(row["question"], row["answer"]) for row in data}
    assert {(row["question"], row["answer"]) for row in mined} == own
    assert not {(row["question"], row["negative"]) for row in mined} & own
    assert {*mined["negative"]} <= {*MORE, *data["answer"]}
    assert list(dict.fromkeys(mined["question"])) == ANCHORS
    assert list(dict.fromkeys(mined["answer"][:12])) == [OTHERS[0], OTHERS[35], OTHERS[7]]


def test_equal_texts_are_one_candidate_and_are_encoded_once(data):
    model = Vectors()
    mined = quiet(data, model, corpus=[MORE[0]] * 3 + MORE, num_negatives=60, output_format="labeled-list")
    asked = [text for texts in model.asked for text in texts]
    assert len(asked) == len(set(asked)) == 30 + 32 + 25 - 1
    for texts in mined["answer"]:
        assert len(texts) == len(set(texts))


def test_an_anchor_is_no_negative_of_itself(data):
    corpus = [*ANCHORS, *MORE]
    mined = quiet(data, Vectors(), corpus=corpus, num_negatives=3)
    assert not [row for row in mined if row["question"] == row["negative"]]
    assert {*mined["negative"]} & {*ANCHORS}
    assert len(mined) == 3 * 32
    same = Dataset.from_dict({"a": MORE, "b": MORE})  # each its own positive
    ranked = quiet(same, Vectors(), include_positives=True, output_format="n-tuple", num_negatives=2)
    assert ranked["negative_1"] == ranked["a"]


def test_rows_of_a_shuffled_or_streamed_dataset(data):
    expected = quiet(data, Vectors()).to_list()
    key = lambda row: tuple(row.values())  # noqa: E731
    shuffled = quiet(data.shuffle(seed=1), Vectors()).to_list()
    assert shuffled != expected
    assert sorted(shuffled, key=key) == sorted(expected, key=key)
    streamed = IterableDataset.from_generator(lambda: iter(data.to_list()))
    assert quiet(streamed, Vectors()).to_list() == expected


def test_columns_by_name_and_others_beside_them(data):
    wide = data.add_column("id", list(range(len(data)))).select_columns(["id", "answer", "question"])
    mined = quiet(wide, Vectors(), anchor_column_name="question", positive_column_name="answer")
    assert mined.to_list() == quiet(data, Vectors()).to_list()


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
    ],
    ids=range(15),
)  # fmt: skip
def test_one_sentence_names_what_is_wrong(data, change, options, says):
    model = Vectors()
    with pytest.raises(ValueError, match=says):
        quiet(change(data) if change else data, model, **options)
    assert not model.asked


# ---------------------------------------------------------------- models and embeddings


def test_a_model_that_compares_otherwise_is_refused(data, model):
    model.similarity_fn_name = "manhattan"
    with pytest.raises(ValueError, match="by one of cosine, dot, euclidean, got similarity_fn_name='manhattan'"):
        quiet(data, model)
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


def test_embeddings_of_another_number_are_refused(data):
    with pytest.raises(ValueError, match="query_embeddings must have 33 rows, one for each text, got 30"):
        quiet(data, None, query_embeddings=torch.zeros(30, 4))
    with pytest.raises(ValueError, match="corpus_embeddings must have 35 rows, one for each text, got 33"):
        quiet(data, None, corpus=["x", "y"], query_embeddings=torch.zeros(33, 4), corpus_embeddings=torch.zeros(33, 4))
    with pytest.raises(ValueError, match="corpus_embeddings must have 66 or 33 rows"):
        quiet(data, None, corpus=data["answer"], corpus_embeddings=torch.zeros(30, 4))


@pytest.mark.parametrize("index", ["exact", "flat", "ivf", "hnsw"])
def test_every_kind_of_index(data, index):
    if index != "exact":
        pytest.importorskip("faiss", reason="the mining extra is not installed")
    expected = quiet(data, Vectors(), corpus=MORE, relative_margin=0.1).to_list()
    assert quiet(data, Vectors(), corpus=MORE, relative_margin=0.1, index=index).to_list() == expected


def test_a_cross_encoder_scores_pairs_in_large_batches(data, model, tmp_path, encoder_path):
    bert = f"{encoder_path}/../bert"
    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    cross_encoder, asked = CrossEncoder(str(tmp_path), device="cpu", max_length=64), []
    predict = cross_encoder.predict

    def counted(pairs, **options):
        asked.append(len(pairs))
        return predict(pairs, **options)

    cross_encoder.predict = counted
    mined = quiet(data, model, cross_encoder=cross_encoder, range_max=8, num_negatives=2, output_scores=True)
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


def test_positives_among_the_candidates_make_tuples(data):
    with pytest.warns(UserWarning, match="include_positives needs output_format 'n-tuple'.*'triplet'"):
        mined = quiet(data, Vectors(), include_positives=True, num_negatives=5)
    assert mined.column_names == ["question", "answer", *(f"negative_{i}" for i in range(1, 6))]


@pytest.mark.parametrize("output_format", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
@pytest.mark.parametrize("scored", [False, True])
def test_no_negatives_at_all_is_a_table_without_them(data, output_format, scored):
    some = quiet(data, Vectors(), output_format=output_format, output_scores=scored)
    none = quiet(data, Vectors(), output_format=output_format, output_scores=scored, max_score=-1)
    assert none.features == some.features
    assert len(none) == (32 if output_format == "labeled-pair" else 0)


def test_texts_are_taken_in_pieces(data, monkeypatch):
    from fastcse.mining import formats

    formats_of = ["triplet", "n-tuple", "labeled-pair", "labeled-list"]
    whole = [quiet(data, Vectors(), output_format=name, output_scores=True).to_list() for name in formats_of]
    monkeypatch.setattr(formats, "ROWS_AT_ONCE", 7)
    parts = [quiet(data, Vectors(), output_format=name, output_scores=True).to_list() for name in formats_of]
    assert parts == whole
    monkeypatch.setattr(formats, "STRING_BYTES", 100)
    assert [quiet(data, Vectors(), output_format=name, output_scores=True).to_list() for name in formats_of] == whole


def test_a_result_is_saved_and_read_again(data, tmp_path):
    mined = quiet(data, Vectors(), output_format="labeled-list", output_scores=True)
    mined.save_to_disk(tmp_path / "mined")
    assert Dataset.load_from_disk(str(tmp_path / "mined")).to_list() == mined.to_list()


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


def test_rows_are_the_models_in_the_order_of_the_texts(model):
    texts = [*MORE, MORE[3], "a", MORE[0]]
    expected = torch.from_numpy(model.encode(texts))
    for kind in ("query", "document"):
        got = encode_texts(model, texts, kind=kind, batch_size=4, progress=False, shard_rows=7)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    half = encode_texts(model, texts, dtype=torch.float16, progress=False)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=1e-2, atol=1e-2)
    assert got.shape == (len(texts), WIDTH)


def test_equal_texts_of_a_shard_are_encoded_once(model):
    asked = counted(model)
    rows = encode_texts(model, [MORE[0], MORE[1], MORE[0]] * 5, progress=False)
    assert sorted(asked) == sorted(MORE[:2])
    assert torch.equal(rows, rows[[0, 1, 0] * 5])


def test_a_second_run_encodes_nothing(model, tmp_path):
    first = encode_texts(model, MORE, cache_folder=tmp_path, shard_rows=10, progress=False)
    assert [path.name for path in shards(tmp_path)] == [
        "rows-0000000000-0000000010.npy", "rows-0000000010-0000000020.npy", "rows-0000000020-0000000025.npy",
    ]  # fmt: skip
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name]
    asked = counted(model)
    again = encode_texts(model, MORE, cache_folder=tmp_path, shard_rows=10, progress=False)
    assert not asked
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "change",
    ["weights", "prompt", "prompt name", "default prompt", "kind", "dtype", "texts", "order", "length", "pooling"],
)
def test_whatever_decides_the_rows_makes_another_entry(model, tmp_path, change):
    model.prompts = {"p": "the ", "q": "a "}
    encode_texts(model, MORE, cache_folder=tmp_path, progress=False)
    texts, options = MORE, {}
    if change == "weights":  # trained further under the same name
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1e-3
    elif change == "default prompt":
        model.prompts["document"] = "old "
    elif change == "length":
        model.max_seq_length = 5
    elif change == "pooling":
        model[1] = type(model[1])(WIDTH, "cls")
    elif change in ("texts", "order"):
        texts = [*MORE[:-1], "a new one"] if change == "texts" else MORE[::-1]
    else:
        options = {
            "prompt": {"prompt": "the "}, "prompt name": {"prompt_name": "q"}, "kind": {"kind": "query"},
            "dtype": {"dtype": torch.float16},
        }[change]  # fmt: skip
    asked = counted(model)
    got = encode_texts(model, texts, cache_folder=tmp_path, progress=False, **options)
    assert len(asked) == len(MORE)
    assert len(shards(tmp_path)) == 2
    expected = encode_texts(model, texts, progress=False, **options)
    assert torch.equal(got, expected)


def test_prompts_of_the_miner_reach_the_cache(data, model, tmp_path):
    model.prompts = {"p": "the ", "q": "a "}
    plain = quiet(data, model, cache_folder=str(tmp_path), output_scores=True)
    asked = counted(model)
    assert quiet(data, model, cache_folder=str(tmp_path), output_scores=True).to_list() == plain.to_list()
    assert not asked
    other = quiet(data, model, cache_folder=str(tmp_path), output_scores=True, query_prompt="big ")
    assert {*asked} == {*ANCHORS}
    assert other["scores"] != plain["scores"]


def test_a_run_that_was_stopped_continues(model, tmp_path):
    class Stop(Exception):
        pass

    asked, encode = [], model.encode

    def stop_later(texts, **options):
        if len(asked) == 2:
            raise Stop
        asked.append(texts)
        return encode(texts, **options)

    model.encode = lambda inputs, **options: stop_later(inputs, **options)
    with pytest.raises(Stop):
        encode_texts(model, MORE, cache_folder=tmp_path, shard_rows=10, progress=False)
    assert len(shards(tmp_path)) == 2
    model.encode = encode
    again = counted(model)
    rows = encode_texts(model, MORE, cache_folder=tmp_path, shard_rows=10, progress=False)
    assert {*again} == {*MORE[20:]}
    assert torch.equal(rows, encode_texts(model, MORE, progress=False, shard_rows=10))


DAMAGE = {
    "cut short": lambda b: b[:-40], "only a header": lambda b: b[:60], "empty": lambda b: b"",
    "no array": lambda b: b"x" * len(b),
}  # fmt: skip


# The first shard says how wide rows are.
DAMAGED = [(damage, which) for damage in (*DAMAGE, "fewer rows", "another type", "pickle") for which in (0, 1)] + [
    ("wider", 1)
]


@pytest.mark.parametrize(("damage", "which"), DAMAGED)
def test_a_damaged_shard_is_made_again(model, tmp_path, damage, which):
    whole = encode_texts(model, MORE, cache_folder=tmp_path, shard_rows=10, progress=False)
    path = shards(tmp_path)[which]
    rows = np.load(path)
    if damage in DAMAGE:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    else:
        wrong = {
            "fewer rows": rows[:-1],
            "another type": rows.astype(np.float16),
            "wider": np.hstack([rows, rows]),
            "pickle": np.array([{}]),
        }[damage]
        np.save(path, wrong, allow_pickle=True)
    asked = counted(model)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged and is made again"):
        again = encode_texts(model, MORE, cache_folder=tmp_path, shard_rows=10, progress=False)
    assert {*asked} == {*MORE[10 * which : 10 * which + 10]}
    assert torch.equal(again, whole)
    assert torch.equal(torch.from_numpy(np.load(path)), whole[10 * which : 10 * which + 10])


def test_rows_that_are_not_finite_never_reach_the_cache(tmp_path, model):
    encode = model.encode
    model.encode = lambda inputs, **options: encode(inputs, **options) * (math.nan if MORE[12] in inputs else 1)
    with pytest.raises(ValueError, match="model must give finite rows, got NaN or infinity for text 10, "):
        encode_texts(model, MORE, cache_folder=tmp_path, shard_rows=10, progress=False)
    assert len(shards(tmp_path)) == 1


def test_a_model_in_training_stays_in_it(model):
    model.train()
    encode_texts(model, MORE[:3], progress=False)
    assert model.training
    assert all(module.training for module in model.modules())
    model.eval()
    encode_texts(model, MORE[:3], progress=False)
    assert not model.training


def test_a_model_that_cannot_be_told_apart_has_no_cache(tmp_path):
    with pytest.raises(
        ValueError, match="by its weights or its revision, got Vectors without either: leave cache_folder"
    ):
        encode_texts(Vectors(), MORE, cache_folder=tmp_path, progress=False)
    known = Vectors()
    known.revision = "1a2b"
    first = encode_texts(known, MORE, cache_folder=tmp_path, progress=False)
    known.asked.clear()
    assert torch.equal(encode_texts(known, MORE, cache_folder=tmp_path, progress=False), first)
    assert not known.asked
    known.revision = "3c4d"
    encode_texts(known, MORE, cache_folder=tmp_path, progress=False)
    assert known.asked


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


def test_the_bar_counts_texts_also_those_that_were_there(model, tmp_path, monkeypatch):
    import tqdm.auto

    bars = []

    class Kept(tqdm.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, file=io.StringIO(), **options)
            bars.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Kept)
    for _ in range(2):
        encode_texts(model, [*MORE, MORE[0]], cache_folder=tmp_path, shard_rows=10)
    assert [(bar.n, bar.total, bar.desc) for bar in bars] == [(26, 26, "encode corpus")] * 2
