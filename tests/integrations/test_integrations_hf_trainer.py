"""The losses in transformers' plain Trainer: accumulated batches, labels, evaluation."""

import doctest

import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import sentences, write_tiny_encoder
from transformers import AutoTokenizer, BertModel, Trainer, TrainingArguments

import fastcse
from fastcse.integrations import hf_trainer as ours
from fastcse.integrations.hf_trainer import ContrastiveLossFunc, ContrastiveTrainer, TextColumns

NAMES = ("anchor", "positive", "negative")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_encoder(folder, dropout=0.0)
    model = BertModel.from_pretrained(folder / "bert")
    with torch.no_grad():  # as it is drawn, every sentence has nearly the same first token
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 8
    model.save_pretrained(folder / "bert")
    return folder / "bert"


def examples(count, columns=2, labels=False):
    texts = [sentences(count, seed=k, words=8 - 2 * k) for k in range(columns)]  # of several lengths: padded
    rows = [dict(zip(NAMES, row)) for row in zip(*texts)]
    return [{**row, "label": k // 2} for k, row in enumerate(rows)] if labels else rows


def step_gradients(bert, tmp_path, route, data, *, batch=4, accumulate=2, attach=True, pooling="cls", **options):
    """The gradients of each optimizer step of one epoch without a change of weights, and the trainer."""
    model, tokenizer = BertModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    columns = len([k for k in data[0] if k != "label"])
    steps = 1 if route == "class" or attach else accumulate
    func = ContrastiveLossFunc(columns=columns, pooling=pooling, gradient_accumulation_steps=steps, **options)
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=batch, per_device_eval_batch_size=batch, learning_rate=0.0,
        gradient_accumulation_steps=accumulate, num_train_epochs=1, max_grad_norm=0.0, remove_unused_columns=False,
        use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    shared = {"train_dataset": data, "eval_dataset": data, "data_collator": TextColumns(tokenizer, NAMES[:columns])}
    if route == "class":
        trainer = ContrastiveTrainer(model, arguments, contrastive=func, **shared)
    else:
        trainer = Trainer(model, arguments, compute_loss_func=func, **shared)
        if attach:
            assert func.attach(trainer) is func
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(data)
    made, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        made.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        trainer.train()
    return made, trainer, func


def by_hand(trainer, data, pooling="cls", temperature=0.05):
    """The gradient of one batch's mean loss, in plain torch."""
    model = trainer.model.train()
    model.zero_grad()
    batch = trainer.data_collator(data)
    labels = batch.pop("labels", None)
    outputs = model(**batch)
    if pooling == "mean":
        mask = batch["attention_mask"][..., None]
        rows = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
    else:
        rows = outputs.pooler_output if pooling == "pooler" else outputs.last_hidden_state[:, 0]
    columns = F.normalize(rows, dim=1).reshape(len(data), -1, rows.shape[1]).unbind(1)
    x = columns[0] @ torch.cat(columns[1:]).T / temperature
    if labels is not None:
        same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
        x = torch.cat([x[:, : len(labels)].masked_fill(same, -torch.inf), x[:, len(labels) :]], 1)
    loss = F.cross_entropy(x, torch.arange(len(data)))
    loss.backward()
    return loss.item(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_mean(step, *batches):
    wanted = {k: sum(b[k] for b in batches) / len(batches) for k in batches[0]}
    assert step.keys() == wanted.keys()
    assert max(g.abs().max() for g in wanted.values()) > 1e-2
    for name, gradient in step.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(("route", "attach"), [("class", False), ("function", True), ("function", False)])
def test_a_step_is_the_mean_of_its_batches(bert, tmp_path, route, attach, labels):
    data = examples(8, labels=labels)
    (step,), trainer, func = step_gradients(bert, tmp_path, route, data, attach=attach)
    assert func.used_backend == "cpp" == fastcse.last_backend()
    assert_mean(step, by_hand(trainer, data[:4])[1], by_hand(trainer, data[4:])[1])


@pytest.mark.parametrize("route", ["class", "function"])
def test_the_last_step_of_an_epoch_may_have_fewer_batches(bert, tmp_path, route):
    data = examples(11)
    (first, last), trainer, _ = step_gradients(bert, tmp_path, route, data)
    assert_mean(first, by_hand(trainer, data[:4])[1], by_hand(trainer, data[4:8])[1])
    assert_mean(last, by_hand(trainer, data[8:])[1])


@pytest.mark.parametrize(("route", "pooling"), [("class", "mean"), ("class", "pooler"), ("function", "pooler")])
def test_poolings_and_hard_negatives(bert, tmp_path, route, pooling):
    data = examples(4, columns=3)
    (step,), trainer, _ = step_gradients(bert, tmp_path, route, data, accumulate=1, pooling=pooling, temperature=0.2)
    assert_mean(step, by_hand(trainer, data, pooling, temperature=0.2)[1])


@pytest.mark.parametrize("labels", [False, True])
def test_evaluation_has_the_batches_mean(bert, tmp_path, labels):
    data = examples(8, labels=labels)
    routes = [("class", False)] if not labels else [("class", False), ("function", False)]
    for route, attach in routes:
        _, trainer, _ = step_gradients(bert, tmp_path, route, data, attach=attach)
        if labels:
            trainer.label_names = ["labels"]
        expected = (by_hand(trainer, data[:4])[0] + by_hand(trainer, data[4:])[0]) / 2
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_factor_for_processes_comes_off():
    class Processes:
        class args:
            average_tokens_across_devices, n_gpu = True, 1

        class accelerator:
            num_processes = 8

    rows = torch.randn(8, 4)
    func = ContrastiveLossFunc(pooling=lambda outputs: outputs)
    plain = func(rows, None, None)
    func.attach(Processes)
    assert Processes.loss_is_scaled_for_ga is False
    # The Trainer multiplies by 8 where it has counted labels, and there only.
    torch.testing.assert_close(8 * func(rows, None, torch.tensor(4)), plain)
    torch.testing.assert_close(func(rows, None, None), plain)
    Processes.args.average_tokens_across_devices = False
    torch.testing.assert_close(func(rows, None, torch.tensor(4)), plain)


def test_any_loss_and_its_options():
    rows = torch.randn(10, 6)
    func = ContrastiveLossFunc(
        fastcse.focal_infonce_loss, pooling=lambda outputs: outputs, margin=0.2, backend="reference"
    )
    expected = fastcse.focal_infonce_loss(rows[::2], rows[1::2], margin=0.2)
    torch.testing.assert_close(func(rows), expected)
    assert func.used_backend == "reference"


def test_wrong_arguments_are_named():
    for options, word in [({"pooling": "max"}, "pooling"), ({"columns": 1}, "columns"),
                          ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps")]:  # fmt: skip
        with pytest.raises(ValueError, match=word):
            ContrastiveLossFunc(**options)
    func = ContrastiveLossFunc(pooling=lambda outputs: outputs)
    with pytest.raises(ValueError, match="got 3 rows"):
        func(torch.randn(3, 4))
    with pytest.raises(ValueError, match="labels"):
        func(torch.randn(4, 4), torch.arange(4))
    with pytest.raises(ValueError, match="attention mask"):
        ContrastiveLossFunc(pooling="mean")({"last_hidden_state": torch.randn(2, 3, 4)})


def test_examples_run():
    assert doctest.testmod(ours, extraglobs={"torch": torch}).failed == 0
