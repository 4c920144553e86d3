"""Training with a corpus bank: the ids, the rows, the upkeep, and a run that is continued."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from tiny_encoder import WIDTH, sentences, write_tiny_encoder
from typer.testing import CliRunner

import fastcse
from fastcse.cli import app
from fastcse.errors import InputError
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss
from fastcse.mining.corpus_negatives import CorpusNegatives
from fastcse.retrieval.index import CorpusIndex
from fastcse.training.bank_options import BankOptions
from fastcse.training.corpus_bank import make_bank
from fastcse.training.options import TrainOptions
from fastcse.training.run import train


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def encoder(encoder_path):
    return SentenceTransformer(encoder_path, device="cpu")


@pytest.fixture
def options(encoder_path, tmp_path):
    """Arguments of a run of four steps over 24 sentences, one of them twice."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*sentences(24), sentences(24)[0]]) + "\n")

    def make(**changes):
        given = dict(
            output_dir=str(tmp_path / "out"), objective="hsimcse", model=encoder_path, corpus=str(corpus), batch_size=6,
            max_steps=4, eval_steps=2, lr=1e-3,
        )  # fmt: skip
        return TrainOptions(**given | changes)

    return make


def bank_of(dataset, encoder, tmp_path, **changes):
    return make_bank(dataset, encoder, BankOptions(**changes), str(tmp_path / "out"), None)


def test_equal_texts_are_one_row_and_both_columns_have_ids(encoder, tmp_path):
    dataset = Dataset.from_dict({"anchor": ["a dog", "the cat", "a dog"], "positive": ["the dog", "a cat", "red sun"]})
    bank = bank_of(dataset, encoder, tmp_path, neighbours=1)
    texts = bank.negatives.index.texts
    assert sorted(texts) == sorted({"a dog", "the cat", "the dog", "a cat", "red sun"})
    named = [[texts[i] for i in row] for row in bank.dataset["label"][:]]
    assert named == [["a dog", "the dog"], ["the cat", "a cat"], ["a dog", "red sun"]]
    assert bank.notes == []


def test_a_bank_of_other_text_gives_no_id_to_what_it_lacks(encoder, tmp_path):
    file = tmp_path / "bank.txt"
    file.write_text("a dog\nred sun\nred sun\nblue moon\n")
    bank = bank_of(Dataset.from_dict({"anchor": ["a cat", "red sun"]}), encoder, tmp_path, bank=str(file), neighbours=1)
    assert bank.negatives.index.texts == ["a dog", "red sun", "blue moon"]
    assert bank.dataset["label"][:] == [[-1], [1]]
    assert bank.notes == ["1 of 2 training rows are not in the bank"]


def test_a_saved_bank_is_read_instead_of_encoded(encoder, tmp_path, monkeypatch):
    dataset = Dataset.from_dict({"anchor": sentences(6)})
    first = bank_of(dataset, encoder, tmp_path)
    monkeypatch.setattr(SentenceTransformer, "encode", lambda *_, **__: pytest.fail("encoded again"))
    again = make_bank(dataset, encoder, BankOptions(bank=str(tmp_path / "out" / "bank-0")), str(tmp_path / "new"), None)
    ids = first.negatives.index.ids
    assert torch.equal(again.negatives.index.rows(ids), first.negatives.index.rows(ids))
    assert again.dataset["label"][:] == first.dataset["label"][:]


def test_anchors_meet_negatives_of_their_own_space_and_never_themselves(encoder, tmp_path, monkeypatch):
    texts = sentences(12)
    bank = bank_of(Dataset.from_dict({"anchor": texts}), encoder, tmp_path, neighbours=2)
    seen = {}

    def watched(anchor, candidate, corpus_negative, **rest):
        seen.update(anchor=anchor.detach(), corpus_negative=corpus_negative)
        return fastcse.hsimcse_loss(anchor, candidate, corpus_negative, **rest)

    loss = FusedContrastiveLoss(encoder, watched, corpus_negatives=bank.negatives)
    encoder.eval()
    features = encoder.preprocess(texts[:4])
    loss([features], torch.tensor(bank.dataset["label"][:4]))
    rows = torch.nn.functional.normalize(bank.negatives.index.rows(bank.negatives.index.ids))
    similar = torch.nn.functional.normalize(seen["anchor"]) @ rows.T
    assert torch.allclose(similar[range(4), range(4)], torch.ones(4), atol=1e-5)
    similar[range(4), range(4)] = -1
    near = rows[similar.topk(2).indices].mean(1)
    torch.testing.assert_close(seen["corpus_negative"], near, atol=1e-5, rtol=0)
    stats = loss.take_stats()
    assert {"accuracy", "infonce", "quadruplet", "active_share", "corpus_similarity"} <= stats.keys()


@pytest.mark.parametrize("ids", [None, torch.zeros(4), torch.arange(3)])
def test_a_bank_needs_an_id_for_each_anchor(encoder, tmp_path, ids):
    bank = bank_of(Dataset.from_dict({"anchor": sentences(6)}), encoder, tmp_path)
    loss = FusedContrastiveLoss(encoder, fastcse.hsimcse_loss, corpus_negatives=bank.negatives)
    with pytest.raises(ValueError, match="needs a column 'label' with the id in the bank of each of the 4 anchors"):
        loss([encoder.preprocess(sentences(4))], ids)


def test_writing_through_happens_in_training_only(encoder, tmp_path):
    texts = sentences(8)
    bank = bank_of(Dataset.from_dict({"anchor": texts}), encoder, tmp_path, refresh="write-through")
    index = bank.negatives.index
    before = index.rows(index.ids)
    with torch.no_grad():  # else a row is written with what it held
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    loss = FusedContrastiveLoss(encoder, fastcse.hsimcse_loss, corpus_negatives=bank.negatives)
    ids = torch.tensor(bank.dataset["label"][:4])
    loss.eval()([encoder.preprocess(texts[:4])], ids)
    assert torch.equal(index.rows(index.ids), before)
    loss.train()([encoder.preprocess(texts[:4])], ids)
    changed = (index.rows(index.ids) != before).any(1)
    assert changed.tolist() == [True] * 4 + [False] * 4


def test_parity_takes_the_cls_vector_before_the_head(encoder, tmp_path):
    encoder.append(Dense(WIDTH, WIDTH))
    texts = sentences(5)
    bank = bank_of(Dataset.from_dict({"anchor": texts}), encoder, tmp_path, parity=True)
    encoder.eval()
    with torch.no_grad():
        out = encoder[0](encoder.preprocess(texts))
    index = bank.negatives.index
    torch.testing.assert_close(index.rows(index.ids), out["token_embeddings"][:, 0], atol=1e-5, rtol=0)


def test_a_refresh_leaves_dropout_on_and_sees_the_trained_weights(encoder, tmp_path):
    for parity in (False, True):
        encoder.eval()  # as it is when a run builds its bank
        bank = bank_of(
            Dataset.from_dict({"anchor": sentences(6)}), encoder, tmp_path / str(parity), refresh=1, parity=parity
        )
        index, before = bank.negatives.index, bank.negatives.index.rows(bank.negatives.index.ids)
        encoder.train()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 0.1 * torch.randn_like(parameter)

        class State:
            global_step = 1

        class Control:
            should_save = False

        bank.upkeep.on_step_end(None, State, Control)
        assert not torch.equal(index.rows(index.ids), before)
        assert all(module.training for module in encoder[0].modules())


def losses_of(folder, step):
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


@pytest.mark.parametrize("refresh", ["never", "3", "write-through"])
def test_a_resumed_run_goes_on_with_the_bank_of_its_checkpoint(options, tmp_path, refresh):
    bank_options = {"refresh": refresh, "sample": 5}
    # A margin that keeps every hinge above 0: the losses then depend on the bank.
    common = {"bank_options": bank_options, "objective_options": {"margin": 2.0}, "max_steps": 6}
    whole = train(options(output_dir=str(tmp_path / "whole"), **common))
    assert whole.stats["active_share"] == 1.0
    assert whole.bank == 24
    first = options(**common)
    train(first)
    out = tmp_path / "out"
    for step in (6,):
        for path in (out / f"checkpoint-{step}").rglob("*"):
            path.unlink() if path.is_file() else None
    resumed = train(options(resume=True, **common))
    assert resumed.new_steps == 2
    assert losses_of(out, 6) == losses_of(tmp_path / "whole", 6)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_the_banks_of_kept_checkpoints_stay(options, tmp_path):
    train(options(max_steps=8, bank_options={"refresh": "write-through"}))
    left = sorted(path.name for path in (tmp_path / "out").glob("bank-*"))
    assert left == ["bank-6", "bank-8"]


def test_the_hinge_trains_only_where_it_is_above_zero(options, tmp_path):
    plain = train(options(objective="infonce", output_dir=str(tmp_path / "plain")))
    still = train(options(output_dir=str(tmp_path / "still"), objective_options={"margin": -9.0, "noise": 0.0}))
    assert still.stats["quadruplet"] == 0
    assert still.stats["active_share"] == 0
    assert [round(loss, 4) for _, loss in still.loss] == pytest.approx([round(x, 4) for _, x in plain.loss], abs=2e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bank_options": {"neighbours": 0}}, "--neighbours is 0: expected at least 1"),
        ({"bank_options": {"refresh": "often"}}, "--refresh is 'often': expected never, write-through, or a number"),
        ({"bank_options": {"sample": 2}}, "--sample is 2: expected at least 3"),
        ({"bank_options": {"max_similarity": float("nan")}}, "--max-similarity is nan: expected a finite number"),
        ({"objective_options": {"noise": -1.0}}, "--noise is -1.0: expected at least 0"),
        ({"objective_options": {"adversarial_mode": "up"}}, "--adversarial-mode 'up' is unknown"),
        ({"objective": "infonce", "bank_options": {"skip": 2}}, "--skip 2 means nothing to --objective infonce"),
        ({"objective": "focal", "objective_options": {"noise": 0.5}}, "--noise 0.5 means nothing to --objective focal"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(options, changes, says):
    with pytest.raises(InputError, match=says):
        options(**changes)


def test_a_bank_that_is_too_small_or_none_is_one_sentence(options, tmp_path):
    small = tmp_path / "small.txt"
    small.write_text("a dog\na cat\n")
    with pytest.raises(InputError, match=r"--neighbours 3, --skip 0: index must have at least the 3 rows.*got 2"):
        train(options(bank_options={"bank": str(small)}))
    with pytest.raises(InputError, match=r"--bank .*nothing.* does not exist"):
        train(options(output_dir=str(tmp_path / "b"), bank_options={"bank": str(tmp_path / "nothing.txt")}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"--bank .*folder"):
        train(options(output_dir=str(tmp_path / "c"), bank_options={"bank": str(tmp_path / "folder")}))
    CorpusIndex(torch.randn(5, WIDTH)).save(tmp_path / "rows")
    with pytest.raises(InputError, match="holds rows without texts"):
        train(options(output_dir=str(tmp_path / "d"), bank_options={"bank": str(tmp_path / "rows")}))


def test_the_command_shows_bank_and_hinge(options, tmp_path):
    o = options()
    arguments = [
        "train", "--objective", "hsimcse", "--model", o.model, "--corpus", o.corpus, "--output-dir", o.output_dir,
        "--batch-size", "6", "--max-steps", "2", "--refresh", "1", "--adversarial-mode", "l2",
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, outcome.output
    for text in ("24 texts, mean of 3 behind 0, refreshed every 1 steps", "corpus negative", "adversarial_mode l2"):
        assert text in outcome.stdout
    assert CorpusNegatives(CorpusIndex.load(tmp_path / "out" / "bank-2")).index.texts


def test_a_bank_that_knows_nothing_of_a_batch_is_left_as_it_is():
    index = CorpusIndex(torch.eye(3), ids=[4, 5, 6])
    negatives = CorpusNegatives(index, k=1, refresh="write-through")
    negatives.write(torch.tensor([-1, -1]), torch.ones(2, 3))
    assert torch.equal(index.rows([4, 5, 6]), torch.eye(3))
