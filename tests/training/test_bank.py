"""The corpus bank of a run: its ids and rows, what the loss takes of it, and its upkeep."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from tiny_encoder import WIDTH, sentences

import fastcse
from fastcse import CorpusIndex, CorpusNegatives
from fastcse.errors import InputError
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss
from fastcse.training.negatives import BankCallback, make_bank
from fastcse.training.options import BankOptions


class Labelled(NamedTuple):
    bank: BankCallback
    dataset: Dataset
    missing: int

    @property
    def index(self):
        return self.bank.index


def bank_of(dataset, encoder, folder=None, **changes):
    bank = make_bank(dataset, encoder, BankOptions(**changes), folder)
    return Labelled(bank, *bank.label(dataset))


def test_equal_texts_are_one_row_and_what_is_not_there_has_no_id(encoder, tmp_path):
    dataset = Dataset.from_dict({"anchor": ["a dog", "the cat", "a dog"], "positive": ["the dog", "a cat", "red sun"]})
    bank = bank_of(dataset, encoder, neighbours=1)
    texts = bank.index.texts
    assert sorted(texts) == sorted({"a dog", "the cat", "the dog", "a cat", "red sun"})
    named = [[texts[i] for i in row] for row in bank.dataset["label"][:]]
    assert named == [["a dog", "the dog"], ["the cat", "a cat"], ["a dog", "red sun"]]
    assert bank.missing == 0
    (tmp_path / "bank.txt").write_text("a dog\nred sun\nred sun\nblue moon\n")
    other = Dataset.from_dict({"anchor": ["a cat", "red sun"]})
    bank = bank_of(other, encoder, bank=str(tmp_path / "bank.txt"), neighbours=1)
    assert bank.index.texts == ["a dog", "red sun", "blue moon"]
    assert bank.dataset["label"][:] == [[-1], [1]]
    assert bank.missing == 1


def test_a_saved_bank_is_read_instead_of_encoded(encoder, tmp_path, monkeypatch):
    dataset = Dataset.from_dict({"anchor": sentences(6)})
    first = bank_of(dataset, encoder)
    first.bank.save(tmp_path / "bank")
    monkeypatch.setattr(SentenceTransformer, "encode", lambda *_, **__: pytest.fail("encoded again"))
    for again in (bank_of(dataset, encoder, bank=str(tmp_path / "bank")), bank_of(dataset, encoder, tmp_path / "bank")):
        assert torch.equal(again.index.rows(range(6)), first.index.rows(range(6)))
        assert again.dataset["label"][:] == first.dataset["label"][:]


def test_anchors_meet_negatives_of_their_own_space_and_never_themselves(encoder):
    texts = sentences(12)
    bank = bank_of(Dataset.from_dict({"anchor": texts}), encoder, neighbours=2)
    seen = {}

    def watched(anchor, candidate, corpus_negative, **rest):
        seen.update(anchor=anchor.detach(), corpus_negative=corpus_negative)
        return fastcse.hsimcse_loss(anchor, candidate, corpus_negative, **rest)

    loss = FusedContrastiveLoss(encoder, watched, corpus_negatives=bank.bank.negatives)
    encoder.eval()
    features = encoder.preprocess(texts[:4])
    loss([features], torch.tensor(bank.dataset["label"][:4]))
    rows = torch.nn.functional.normalize(bank.index.rows(bank.index.ids))
    similar = torch.nn.functional.normalize(seen["anchor"]) @ rows.T
    assert torch.allclose(similar[range(4), range(4)], torch.ones(4), atol=1e-5)
    similar[range(4), range(4)] = -1
    near = rows[similar.topk(2).indices].mean(1)
    torch.testing.assert_close(seen["corpus_negative"], near, atol=1e-5, rtol=0)
    stats = loss.take_stats()
    assert {"accuracy", "infonce", "quadruplet", "active_share", "corpus_similarity"} <= stats.keys()


def test_a_bank_needs_an_id_for_each_anchor(encoder):
    bank = bank_of(Dataset.from_dict({"anchor": sentences(6)}), encoder)
    loss = FusedContrastiveLoss(encoder, fastcse.hsimcse_loss, corpus_negatives=bank.bank.negatives)
    for ids in (None, torch.zeros(4), torch.arange(3)):
        with pytest.raises(ValueError, match="needs a column 'label' with the id in the bank of each of the 4 anchors"):
            loss([encoder.preprocess(sentences(4))], ids)


def test_writing_through_happens_in_training_only(encoder):
    texts = sentences(8)
    bank = bank_of(Dataset.from_dict({"anchor": texts}), encoder, refresh="write-through")
    index = bank.index
    before = index.rows(index.ids)
    with torch.no_grad():  # else a row is written with what it held
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    loss = FusedContrastiveLoss(encoder, fastcse.hsimcse_loss, corpus_negatives=bank.bank.negatives)
    ids = torch.tensor(bank.dataset["label"][:4])
    loss.eval()([encoder.preprocess(texts[:4])], ids)
    assert torch.equal(index.rows(index.ids), before)
    loss.train()([encoder.preprocess(texts[:4])], ids)
    changed = (index.rows(index.ids) != before).any(1)
    assert changed.tolist() == [True] * 4 + [False] * 4


def test_parity_takes_the_cls_vector_before_the_head(encoder):
    encoder.append(Dense(WIDTH, WIDTH))
    texts = sentences(5)
    bank = bank_of(Dataset.from_dict({"anchor": texts}), encoder, parity=True)
    encoder.eval()
    with torch.no_grad():
        out = encoder[0](encoder.preprocess(texts))
    index = bank.index
    torch.testing.assert_close(index.rows(index.ids), out["token_embeddings"][:, 0], atol=1e-5, rtol=0)


def test_a_refresh_leaves_dropout_on_and_sees_the_trained_weights(encoder):
    for parity in (False, True):
        encoder.eval()  # as it is when a run builds its bank
        bank = bank_of(Dataset.from_dict({"anchor": sentences(6)}), encoder, refresh=1, parity=parity)
        index, before = bank.index, bank.index.rows(bank.index.ids)
        encoder.train()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 0.1 * torch.randn_like(parameter)

        bank.bank.on_step_end(None, SimpleNamespace(global_step=1), None)
        assert not torch.equal(index.rows(index.ids), before)
        assert all(module.training for module in encoder[0].modules())


def test_a_bank_that_is_too_small_or_none_is_one_sentence(encoder, tmp_path):
    (tmp_path / "small.txt").write_text("a dog\na cat\n")
    (tmp_path / "folder").mkdir()
    CorpusIndex(torch.randn(5, WIDTH)).save(tmp_path / "rows")
    for name, says in (
        ("small.txt", r"neighbours 3, skip 0: index must have at least the 3 rows.*got 2"),
        ("nothing.txt", r"--bank .*nothing.* does not exist"),
        ("folder", r"--bank .*folder"),
        ("rows", "holds rows without texts"),
    ):
        with pytest.raises(InputError, match=says):
            bank_of(Dataset.from_dict({"anchor": sentences(6)}), encoder, bank=str(tmp_path / name))


def test_a_bank_that_knows_nothing_of_a_batch_is_left_as_it_is():
    index = CorpusIndex(torch.eye(3), ids=[4, 5, 6])
    negatives = CorpusNegatives(index, k=1, refresh="write-through")
    negatives.write(torch.tensor([-1, -1]), torch.ones(2, 3))
    assert torch.equal(index.rows([4, 5, 6]), torch.eye(3))
