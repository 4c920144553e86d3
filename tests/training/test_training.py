"""Runs: what is refused, which checkpoint is kept, what the seed decides, where one ends, and what resumes it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import losses
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from tiny_encoder import WIDTH, sentences

import fastcse
from fastcse.errors import InputError
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss
from fastcse.training import objectives, run
from fastcse.training.checkpoints import last_checkpoint
from fastcse.training.encoders import has_dropout
from fastcse.training.objectives import SIMCSE, Objective
from fastcse.training.options import options_of
from fastcse.training.run import train
from fastcse.training.trainer import EncoderTrainer, Progress, has_ended, make_trainer


def test_training_learns_pairs_with_hard_negatives(tmp_path, options, capsys):
    anchors, negatives = sentences(32, seed=5), sentences(32, seed=6)
    rows = [f"{a}\t{' '.join(reversed(a.split()))}\t{n}" for a, n in zip(anchors, negatives)]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows), encoding="utf-8")
    report = train(options(corpus=None, pairs=str(tmp_path / "pairs.tsv"), max_steps=30, eval_steps=30, lr=3e-3))
    assert capsys.readouterr().out == ""
    assert np.mean(losses(report)[-5:]) < 0.6 * np.mean(losses(report)[:5])
    assert report.positive_similarity > report.negative_similarity
    assert SentenceTransformer(report.saved, device="cpu").encode(anchors).shape == (32, WIDTH)


class Scripted(BaseEvaluator):
    """An evaluator that scores what the test says: before the run, and then at each evaluation."""

    name, primary_metric = run.DEV_KEY, None

    def __init__(self, *scores):
        self.scores = iter(scores)

    def __call__(self, model, *args, **kwargs):
        return {f"{run.DEV_KEY}_spearman_cosine": next(self.scores)}


def test_the_best_checkpoint_on_dev_is_kept_and_the_last_step_is_a_candidate(tmp_path, options, monkeypatch):
    monkeypatch.setattr(run, "find_dev", lambda _: Scripted(0.1, 0.3, 0.7, 0.5))
    report = train(options(sts_dir="unused", max_steps=7, eval_steps=3))
    assert report.dev_before == 10.0
    assert report.dev == [(3, 30.0), (6, 70.0), (7, 50.0)]
    assert (report.best_step, report.dev_best) == (6, 70.0)
    kept = load_file(tmp_path / "out" / "model.safetensors")
    best, last = (load_file(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors") for step in (6, 7))
    assert all(torch.equal(kept[k], best[k]) for k in kept)
    assert not all(torch.equal(kept[k], last[k]) for k in kept)


def dies_at(step):
    def die(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise SystemExit("killed")

    return die


def test_patience_goes_on_in_a_resumed_run(options, tmp_path, monkeypatch):
    """Of evaluations without a better score, those before the checkpoint count too."""
    given = {"sts_dir": "unused", "max_steps": 9, "eval_steps": 1, "patience": 3}
    monkeypatch.setattr(run, "find_dev", lambda _: Scripted(0.1, 0.5, 0.4, 0.3))
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", dies_at(4))
        with pytest.raises(SystemExit):
            train(options(**given))
    cut = last_checkpoint(tmp_path / "out")
    assert cut.name == "checkpoint-3", "two evaluations after the best one"
    monkeypatch.setattr(run, "find_dev", lambda _: Scripted(0.1, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4))
    resumed = train(options(**given, resume=True))
    assert (resumed.steps, resumed.new_steps) == (4, 1)
    last = last_checkpoint(tmp_path / "out")
    assert has_ended(last, 9, 3)
    assert not has_ended(last, 9, 4)
    monkeypatch.setattr(run, "find_dev", lambda _: Scripted(0.1))
    again = train(options(**given, resume=True))
    assert (again.steps, again.new_steps) == (4, 0)


def test_a_run_that_is_killed_while_it_saves_goes_on_from_the_checkpoint_before(options, tmp_path, monkeypatch):
    whole = train(options(output_dir=str(tmp_path / "whole"), max_steps=5, eval_steps=2, queue=10))
    save = EncoderTrainer._save_rng_state

    def die(self, folder):
        save(self, folder)
        if self.state.global_step == 4:
            raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(EncoderTrainer, "_save_rng_state", die)
        with pytest.raises(SystemExit):
            train(options(max_steps=5, eval_steps=2, queue=10))
    assert (tmp_path / "out" / "checkpoint-4" / "queue.pt").exists()
    assert last_checkpoint(tmp_path / "out").name == "checkpoint-2"
    resumed = train(options(max_steps=5, eval_steps=2, queue=10, resume=True))
    assert (resumed.new_steps, resumed.loss) == (3, whole.loss)


def test_a_damaged_state_is_one_sentence(run_of, cut):
    run = run_of("clusterns")
    folder = cut(run, last=99)
    state = folder / "checkpoint-8" / "clusters.pt"
    for damage in (lambda: state.write_bytes(b""), state.unlink):
        damage()
        with pytest.raises(InputError, match=r"resume cannot read '.*checkpoint-8/clusters\.pt': "):
            train(options_of(run.given | {"output_dir": str(folder), "resume": True}))


def test_only_stsb_dev_is_opened(options, text, tmp_path, monkeypatch):
    from fastcse.evaluation import sts

    folder = shutil.copytree(text.sts, tmp_path / "sts")
    for name in ("stsb.test.tsv", "sts16.tsv", "stsb.dev.senteval.tsv"):
        (folder / name).write_bytes(b"\xff damaged")
    opened = []
    original = sts.read_lines
    monkeypatch.setattr(sts, "read_lines", lambda path, argument: opened.append(path.name) or original(path, argument))
    assert len(run.find_dev(folder).sentences1) == 20
    assert opened == ["stsb.dev.tsv"]
    (folder / "more").mkdir()
    shutil.copy(folder / "stsb.dev.tsv", folder / "more" / "stsb.dev.tsv")
    with pytest.raises(InputError, match=r"holds 2 files called stsb.dev.tsv"):
        train(options(sts_dir=str(folder)))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds 0 files called stsb.dev.tsv"):
        run.find_dev(tmp_path / "none")


def test_the_seed_decides_also_weights_that_the_checkpoint_lacks(options, tmp_path, encoder_path):
    partial = shutil.copytree(encoder_path, tmp_path / "partial")
    weights = {k: v for k, v in load_file(partial / "model.safetensors").items() if ".layer.1." not in k}
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    first, again, other = (
        losses(train(options(output_dir=str(tmp_path / name), model=str(partial), seed=seed)))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_resuming_needs_the_same_run(options, tmp_path, text):
    mined = tmp_path / "mined.jsonl"
    mined.write_text(Path(text.mined).read_text())
    given = {"hard_negatives": str(mined)}
    with pytest.raises(InputError, match=r"resume found no complete checkpoint in output_dir '.*out'"):
        train(options(**given, resume=True))
    train(options(**given))
    with pytest.raises(InputError, match=r"holds checkpoint-2 of an earlier run: add resume to continue it, overwrite"):
        train(options(**given))
    train(options(**given, max_steps=1, overwrite=True))
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    given["max_steps"] = 1
    file = tmp_path / "out" / "fastcse_train.json"
    written = json.loads(file.read_text())
    assert written["hard_negatives"] == str(mined)
    for changes, says in (
        ({"lr": 0.5}, r"--lr is 0\.5, but the run that --resume continues had 0\.001"),
        ({"temperature": 0.1}, r"--temperature is 0\.1, but the run that --resume continues had 0\.05"),
        ({"hard_negatives": None}, r"--hard-negatives is None, but the run that .* continues had '.*jsonl'"),
    ):
        with pytest.raises(InputError, match=says):
            train(options(**given | changes, resume=True))
    mined.write_text("".join(mined.read_text().splitlines(keepends=True)[:-1]))
    changed = r"the sha256 of --hard-negatives is '\w{64}', but the run that --resume continues had '\w{64}'"
    with pytest.raises(InputError, match=changed):
        train(options(**given, resume=True))
    del written["version"]
    for content, says in (
        (json.dumps(written), "an earlier version of fastcse wrote it, which kept its state beside the checkpoints"),
        (json.dumps(written | {"version": 2, "processes": 3}), "has 1 processes, but the run .* continues had 3"),
        ("", r"resume cannot read '.*fastcse_train.json': not the JSON that a run writes"),
        (None, "not a fastcse run"),
    ):
        file.write_text(content) if content is not None else file.unlink()
        with pytest.raises(InputError, match=says):
            train(options(**given, resume=True))


def test_a_folder_that_holds_a_model_is_kept(options, tmp_path, encoder_path):
    kept = shutil.copytree(encoder_path, tmp_path / "kept")
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"output_dir '.*kept' holds a model: add overwrite to replace it"):
        train(options(output_dir=str(kept)))
    for more in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match=r"output_dir '.*kept' is the folder of model: it would be lost"):
            train(options(output_dir=str(kept), model=str(kept), **more))
    assert before == {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    train(options(output_dir=str(kept), max_steps=1, overwrite=True))
    assert before != {path: path.read_bytes() for path in before}


def test_a_run_that_cannot_work_is_refused_before_it_starts(options, tmp_path, still_path, text):
    (tmp_path / "same.txt").write_text("a dog runs\n" * 50, encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert not has_dropout(SentenceTransformer(still_path))
    for changes, says in (
        ({"batch_size": 64}, "--batch-size 64 is more than the 40 distinct sentences of --corpus"),
        ({"corpus": str(tmp_path / "same.txt")}, "--batch-size 8 is more than the 1 distinct sentences"),
        ({"corpus": str(tmp_path / "nowhere")}, r"--corpus '.*nowhere' does not exist"),
        ({"output_dir": str(tmp_path / "file" / "out")}, r"output_dir '.*' cannot be written"),
        ({"model": still_path}, "has no dropout"),
        ({"objective": "sscl", "parts": 9}, r"parts is 9: expected 2 to 3, the layers of model"),
        ({"objective": "soft-negative", "pairs": text.pairs, "corpus": None},
         "objective soft-negative needs a third column of text, and pairs '.*' has anchor, positive"),
        ({"lr": 1e38, "max_steps": 9}, r"the loss is nan at step [0-9]: --lr 1e\+38 may be too high"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            train(options(**changes))


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_ends_the_run(loss):
    trainer = SimpleNamespace(args=SimpleNamespace(learning_rate=2.0), state=SimpleNamespace(global_step=3))
    with pytest.raises(InputError, match=f"the loss is {loss} at step 3: --lr 2.0 may be too high"):
        EncoderTrainer.log(trainer, {"loss": loss})


def test_what_is_left_out_is_said_before_the_run_and_in_the_report(options, tmp_path, text, caplog):
    mined = tmp_path / "mined.jsonl"
    mined.write_text("".join(Path(text.mined).read_text().splitlines(keepends=True)[:36]))
    report = train(options(hard_negatives=str(mined)))
    assert report.notes == ["4 of 40 sentences have no mined negatives and are left out"]
    assert [record.getMessage() for record in caplog.records if "mined" in record.getMessage()] == report.notes
    assert report.sentences == 36
    plain = train(options(output_dir=str(tmp_path / "plain")))
    assert losses(report)[0] > losses(plain)[0], "more negatives"


@pytest.mark.parametrize("name", ["pairs", "corpus"])
def test_the_loss_gets_anchor_positive_and_negative_and_no_text_twice(options, text, tmp_path, monkeypatch, name):
    mined = tmp_path / "mined.tsv"
    mined.write_text("anchor\tpositive\tnegative\n" + Path(text.triplets).read_text())
    seen, batches, plain, make = [], [], FusedContrastiveLoss.compute_loss_from_embeddings, run.make_trainer

    def spy(self, embeddings, labels=None):
        seen.append([one.detach() for one in embeddings])
        return plain(self, embeddings, labels)

    def making(model, dataset, *args, **kwargs):
        trainer = make(model, dataset, *args, **kwargs)
        batches.extend(dataset[rows] for rows in trainer.get_train_dataloader().batch_sampler)
        return trainer

    monkeypatch.setattr(FusedContrastiveLoss, "compute_loss_from_embeddings", spy)
    monkeypatch.setattr(run, "make_trainer", making)
    train(options(**{"pairs": None, "corpus": None, name: getattr(text, name)}, hard_negatives=str(mined)))
    assert [len(columns) for columns in seen] == [3, 3]
    anchor, positive, _ = seen[0]
    assert not torch.equal(anchor, positive)  # two dropout masks, also where the text is one
    assert (torch.cosine_similarity(anchor, positive).min() > 0.9) == (name == "corpus")
    for batch in batches:
        texts = [*batch["anchor"], *batch["negative"], *(batch["positive"] if name == "pairs" else ())]
        assert len(texts) == len(set(texts))


def test_texts_are_cut_in_training_only(encoder, tmp_path):
    long = [" ".join([sentence] * 12) for sentence in sentences(8)]
    widths = []
    encoder[0].register_forward_pre_hook(lambda _, given: widths.append(given[0]["input_ids"].shape[1]))
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05)
    options = {"batch_size": 4, "max_steps": 1, "lr": 1e-4, "max_length": 10, "seed": 0, "save_steps": None}
    make_trainer(encoder, Dataset.from_dict({"anchor": long}), loss, output_dir=tmp_path, **options).train()
    assert widths == [10]
    encoder.encode(long)
    assert widths[-1] == encoder.max_seq_length == 64


def test_a_new_objective_is_one_row(options, monkeypatch, tmp_path):
    calls = []

    def doubled(anchor, positive, *, scale, **more):
        calls.append(scale)
        loss, stats = fastcse.infonce_loss(anchor, positive, temperature=0.05, **more)
        return scale * loss, stats

    monkeypatch.setitem(objectives.OBJECTIVES, "doubled", Objective(doubled, {"scale": 2.0}, SIMCSE))
    once = train(options(max_steps=1))
    twice = train(options(objective="doubled", max_steps=1, output_dir=str(tmp_path / "twice")))
    assert calls == [2.0]
    assert losses(twice)[0] == pytest.approx(2 * losses(once)[0])


def test_the_hinge_and_the_clusters_act_only_where_they_should(options, tmp_path):
    plain, still, waiting = (
        train(options(output_dir=str(tmp_path / name), objective=name, **changes))
        for name, changes in (
            ("infonce", {}),
            ("hsimcse", {"margin": -9.0, "noise": 0.0}),
            ("clusterns", {"clusters": 3, "cluster_threshold": -1.0}),
        )
    )
    assert still.stats["quadruplet"] == still.stats["active_share"] == 0
    assert losses(still) == pytest.approx(losses(plain), abs=2e-4)
    assert waiting.loss == plain.loss, "until the clusters start, the objective is InfoNCE"
    assert "largest_cluster" not in waiting.stats


def test_the_queue_holds_what_the_following_encoder_made(options, text, still_path, tmp_path):
    train(options(model=still_path, corpus=None, pairs=text.pairs, max_steps=4, eval_steps=4, lr=1e-2, queue=20,
                  queue_momentum=1.0))  # fmt: skip
    state = torch.load(tmp_path / "out" / "checkpoint-4" / "queue.pt", weights_only=True)
    # An encoder that keeps all of itself is the one that the run began with.
    first = SentenceTransformer(still_path, device="cpu")
    kept = {name.removeprefix("encoder."): value for name, value in state["encoder"].items()}
    assert all(torch.equal(value, kept[name]) for name, value in first.state_dict().items())
    texts = [line.split("\t")[1] for line in Path(text.pairs).read_text().splitlines()]
    known = torch.nn.functional.normalize(first.encode(texts, convert_to_tensor=True), dim=1)
    nearest = (torch.nn.functional.normalize(state["rows"]["rows"], dim=1) @ known.T).amax(1)
    torch.testing.assert_close(nearest, torch.ones(20), rtol=0, atol=1e-5)
