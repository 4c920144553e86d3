"""Training with mined hard negatives: the file, the join, the batches, and a run that is continued."""

import gzip
import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_encoder import sentences, write_tiny_encoder
from typer.testing import CliRunner

from fastcse.cli import app
from fastcse.errors import InputError
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss
from fastcse.training.data import check_fills_a_batch, read_corpus, read_pairs
from fastcse.training.hard_negatives import add_hard_negatives
from fastcse.training.options import TrainOptions
from fastcse.training.run import train
from fastcse.training.trainer import Progress

PAIRS = "q1\tp1\nq2\tp2\nq1\tp3\nq4\tp4\n"


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


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


# The run


@pytest.fixture
def files(write):
    """24 pairs, a corpus of their anchors, and two mined negatives for all but the last four of them."""
    anchors, positives, negatives = (sentences(24, seed=seed) for seed in (1, 2, 3))
    return {
        "pairs": write("pairs.tsv", "".join(f"{a}\t{p}\n" for a, p in zip(anchors, positives))),
        "corpus": write("corpus.txt", "\n".join(anchors)),
        "mined": write("mined.jsonl", [
            triplet(a, p, n)
            for i, (a, p) in enumerate(zip(anchors[:20], positives)) for n in (negatives[i], negatives[i - 1])
        ]),
    }  # fmt: skip


@pytest.fixture
def options(tmp_path, encoder_path, files):
    def make(**changes):
        defaults = {
            "output_dir": str(tmp_path / "out"), "model": encoder_path, "pairs": files["pairs"], "objective": "infonce",
            "hard_negatives": files["mined"], "batch_size": 8, "max_steps": 6, "lr": 1e-3, "eval_steps": 2,
        }  # fmt: skip
        return TrainOptions(**{**defaults, **changes})

    return make


@pytest.mark.parametrize("text", ["pairs", "corpus"])
def test_the_loss_gets_anchor_positive_and_negative(options, files, monkeypatch, text):
    seen, plain = [], FusedContrastiveLoss.compute_loss_from_embeddings

    def spy(self, embeddings, labels=None):
        seen.append([one.detach() for one in embeddings])
        return plain(self, embeddings, labels)

    monkeypatch.setattr(FusedContrastiveLoss, "compute_loss_from_embeddings", spy)
    report = train(options(**{"pairs": None, "corpus": None, text: files[text], "max_steps": 2}))
    assert report.sentences == 40
    assert [len(columns) for columns in seen] == [3, 3]
    anchor, positive, _ = seen[0]
    similar = torch.cosine_similarity(anchor, positive).min() > 0.9
    assert not torch.equal(anchor, positive)  # two dropout masks, also where the text is one
    assert similar == (text == "corpus")


def test_a_batch_holds_no_text_twice_in_any_column(options, monkeypatch):
    from fastcse.training import run

    batches, make = [], run.make_trainer

    def spy(model, dataset, *args, **kwargs):
        trainer = make(model, dataset, *args, **kwargs)
        batches.extend(dataset[rows] for rows in trainer.get_train_dataloader().batch_sampler)
        return trainer

    monkeypatch.setattr(run, "make_trainer", spy)
    train(options(max_steps=1))
    assert len(batches) >= 3
    for batch in batches:
        texts = [*batch["anchor"], *batch["positive"], *batch["negative"]]
        assert len(texts) == len(set(texts)) == 24


def test_what_is_left_out_is_said_before_the_run_and_in_the_report(options, caplog):
    report = train(options(max_steps=1))
    assert report.notes == ["4 of 24 pairs have no mined negatives and are left out"]
    assert [record.getMessage() for record in caplog.records if "mined" in record.getMessage()] == report.notes


def test_mined_negatives_change_the_training(options, tmp_path):
    with_mined, without = (
        train(options(output_dir=str(tmp_path / name), hard_negatives=file, max_steps=1))
        for name, file in (("a", options().hard_negatives), ("b", None))
    )
    assert with_mined.loss[0][1] > without.loss[0][1]
    assert without.notes == []


def test_a_killed_run_resumes_with_the_same_losses_and_the_same_file_only(options, monkeypatch, tmp_path, files):
    whole = train(options(output_dir=str(tmp_path / "whole")))

    def die(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", die)
        with pytest.raises(SystemExit):
            train(options())
    saved = json.loads((tmp_path / "out" / "fastcse_train.json").read_text())
    assert saved["hard_negatives"] == files["mined"]
    mined = (tmp_path / "mined.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "mined.jsonl").write_text("".join(mined[:-1]))
    changed = r"the sha256 of --hard-negatives '.*mined.jsonl' is '\w{64}', but the run that --resume continues had '\w"
    with pytest.raises(InputError, match=changed):
        train(options(resume=True))
    with pytest.raises(InputError, match=r"--hard-negatives is None, but the run that .* continues had '.*jsonl'"):
        train(options(resume=True, hard_negatives=None))
    (tmp_path / "mined.jsonl").write_text("".join(mined))
    resumed = train(options(resume=True))
    assert resumed.loss == whole.loss
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_command_says_what_is_left_out(options, files, tmp_path, encoder_path):
    arguments = [
        "train", "--objective", "infonce", "--pairs", files["pairs"], "--hard-negatives", files["mined"], "--model",
        encoder_path, "--output-dir", str(tmp_path / "out"), "--batch-size", "8", "--max-steps", "1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "fastcse.cli", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    note = "4 of 24 pairs have no mined negatives and are left out"
    assert note in done.stderr.splitlines()
    report = json.loads(done.stdout)
    assert report["notes"] == [note]
    assert report["options"]["hard_negatives"] == files["mined"]
    table = CliRunner().invoke(app, [*arguments[:-6], "--output-dir", str(tmp_path / "t"), *arguments[-4:]])
    assert table.exit_code == 0, table.output
    shown = " ".join(table.stdout.split())
    assert "hard negatives" in shown
    assert "4 of 24 pairs" in shown
