"""Parts of training that need no model: mined negatives, views of a text, checkpoints, seeds of the processes."""

from types import SimpleNamespace

import torch
from datasets import Dataset

from fastcse.training import processes
from fastcse.training.checkpoints import LAST_WRITTEN, last_checkpoint
from fastcse.training.data import add_hard_negatives
from fastcse.training.recipes.views import switch_case


def test_columns_that_are_no_text_are_no_negatives(tmp_path):
    path = tmp_path / "mined.tsv"
    path.write_text("anchor\tpositive\tnegative\tnegative_score\na\tb\tc\t0.5\n")
    made = add_hard_negatives(Dataset.from_dict({"anchor": ["a"], "positive": ["b"]}), path)[0]
    assert made.to_dict() == {"anchor": ["a"], "positive": ["b"], "negative": ["c"]}


def test_a_view_is_drawn_anew_in_every_epoch_and_row():
    text = "a few words of which every second one is written large"
    places = [(epoch, index) for epoch in (0, 1) for index in (0, 1)]
    one, two = ([switch_case(text, rate=0.5, seed=3, epoch=e, index=i) for e, i in places] for _ in range(2))
    assert one == two
    assert len(set(one)) == 4


def test_the_last_checkpoint_has_the_highest_step_of_those_written_to_the_end(tmp_path):
    for step, whole in ((9, True), (10, True), (11, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / LAST_WRITTEN).write_text("{}")
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


def test_every_process_draws_its_own_dropout(monkeypatch):
    drawn = []
    for rank in (0, 1):
        state = SimpleNamespace(num_processes=2, process_index=rank)
        monkeypatch.setattr(processes, "PartialState", lambda state=state: state)
        processes.seed_rank(7)
        drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)
