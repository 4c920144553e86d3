"""Training with ClusterNS's clustering: that it starts, moves, is logged, and goes on after a stop."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import WIDTH, sentences, write_tiny_encoder
from typer.testing import CliRunner

import fastcse
from fastcse.cli import app
from fastcse.errors import InputError
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss
from fastcse.training.options import TrainOptions
from fastcse.training.run import train


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def options(encoder_path, tmp_path):
    """Arguments of a run of six steps over 24 sentences, clustered from the first step on."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences(24)) + "\n")

    def make(**changes):
        given = dict(
            output_dir=str(tmp_path / "out"), objective="clusterns", model=encoder_path, corpus=str(corpus),
            batch_size=6, max_steps=6, eval_steps=2, lr=1e-3, objective_options={"margin_weight": 1.0},
            cluster_options={"clusters": 3, "cluster_threshold": 1.0, "cluster_rate": 0.1},
        )  # fmt: skip
        return TrainOptions(**given | changes)

    return make


def losses_of(folder, step):
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


def test_the_log_has_sizes_and_false_negatives(options, tmp_path):
    report = train(options())
    assert {"margin", "false_share", "largest_cluster", "empty_clusters", "infonce"} <= report.stats.keys()
    assert 2 <= report.stats["largest_cluster"] <= 6
    state = torch.load(tmp_path / "out" / "clusters-6", weights_only=True)
    assert bool(state["started"])
    assert state["centroids"].shape == (3, WIDTH)


@pytest.mark.parametrize("mode", ["momentum", "adamw"])
def test_a_resumed_run_goes_on_with_the_clusters_of_its_checkpoint(options, tmp_path, mode):
    common = {"cluster_options": {"clusters": 3, "cluster_threshold": 1.0, "cluster_rate": 0.1, "cluster_mode": mode}}
    train(options(output_dir=str(tmp_path / "whole"), **common))
    train(options(**common))
    out = tmp_path / "out"
    for path in (out / "checkpoint-6").rglob("*.json"):
        path.unlink()
    resumed = train(options(resume=True, **common))
    assert resumed.new_steps == 2
    assert losses_of(out, 6) == losses_of(tmp_path / "whole", 6)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = [torch.load(folder / "clusters-6", weights_only=True)["centroids"] for folder in (out, tmp_path / "whole")]
    assert torch.equal(*kept)
    assert sorted(path.name for path in out.glob("clusters-*")) == ["clusters-4", "clusters-6"]


def test_a_damaged_state_is_one_sentence(options, tmp_path):
    train(options())
    (tmp_path / "out" / "clusters-6").write_bytes(b"")
    with pytest.raises(InputError, match=r"--resume cannot read .*clusters-6"):
        train(options(resume=True))


def test_until_it_starts_the_objective_is_infonce(options, tmp_path):
    waiting = train(options(cluster_options={"clusters": 3, "cluster_threshold": -1.0}))
    plain = train(
        options(objective="infonce", objective_options={}, cluster_options={}, output_dir=str(tmp_path / "plain"))
    )
    assert waiting.loss == plain.loss
    assert "largest_cluster" not in waiting.stats


def test_the_loss_is_called_with_what_the_clustering_says(encoder_path):
    from sentence_transformers import SentenceTransformer

    encoder, seen = SentenceTransformer(encoder_path, device="cpu"), []

    def watched(anchor, candidate, *more, **options):
        seen.append(more)
        return fastcse.clusterns_loss(anchor, candidate, *more, **options)

    clusters = fastcse.OnlineKMeans(2, WIDTH, threshold=1.0, seed=0)
    loss = FusedContrastiveLoss(encoder, watched, clusters=clusters)
    features = [encoder.preprocess(sentences(6)), encoder.preprocess(sentences(6, seed=1))]
    loss(features)
    loss(features).backward()
    assert seen[0] == ()
    index, centroids, counts = seen[1]
    assert index.shape == (6,)
    assert torch.equal(centroids, clusters.centroids)
    assert counts.sum() == 6
    assert loss.take_stats()["largest_cluster"] >= 3


def test_the_module_is_the_function_and_keeps_its_clusters():
    g = torch.Generator().manual_seed(0)
    a, c = torch.randn(8, 5, generator=g, requires_grad=True), torch.randn(8, 5, generator=g)
    module = fastcse.ClusterNSLoss(fastcse.OnlineKMeans(3, 5, threshold=1.0, seed=0), margin_weight=0.5, stats=True)
    assert torch.equal(module(a, c), fastcse.infonce_loss(a, c))
    got = module(a, c)
    clusters = module.clusters
    nearest = fastcse.assign(a, clusters.centroids, second=True).index
    counts = torch.bincount(nearest[:, 1], minlength=3)
    want = fastcse.clusterns_loss(a, c, nearest[:, 0], clusters.centroids, counts, margin_weight=0.5)
    assert torch.equal(got, want)
    assert module.stats.false_share > 0
    assert "clusters.centroids" in module.state_dict()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cluster_options": {"clusters": 1}}, "--clusters is 1: expected 2 to the 6 of --batch-size"),
        ({"cluster_options": {"clusters": 7}}, "--clusters is 7: expected 2 to the 6 of --batch-size"),
        ({"cluster_options": {"cluster_mode": "sgd"}}, "--cluster-mode 'sgd' is unknown: expected momentum or kmeans"),
        ({"cluster_options": {"cluster_rate": 2.0}}, "--cluster-rate 2.0"),
        ({"objective_options": {"false_negatives": "keep"}}, "--false-negatives 'keep' is unknown"),
        ({"objective": "infonce", "objective_options": {}}, "--clusters 3 means nothing to --objective infonce"),
    ],
)
def test_bad_options_are_one_sentence(options, changes, says):
    with pytest.raises(InputError, match=says):
        options(**changes)


def test_the_command_shows_the_clusters(options):
    o = options()
    arguments = [
        "train", "--objective", "clusterns", "--model", o.model, "--corpus", o.corpus, "--output-dir", o.output_dir,
        "--batch-size", "6", "--max-steps", "3", "--clusters", "2", "--cluster-threshold", "1", "--alpha", "0.1",
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, outcome.output
    for text in ("2, momentum 0.001; in the last batch largest", "alpha 0.1"):
        assert text in outcome.stdout
