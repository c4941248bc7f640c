"""Losses of classifiers: torch's own over the whole accumulated batch, weights and all.

Each is compared with one call of torch on all examples of a step, and the steps of the
trainer with plain SGD on that.
"""

import copy

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from torch.nn import functional
from unit.model.test_features import NO_DROPOUT
from unit.train.test_trainer import WEIGHTS, arguments, assert_same_weights

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.train import losses
from llmft.train.losses import label_count, label_loss
from llmft.train.objectives import Classification
from llmft.train.trainer import LlmftTrainer

CLASSES = 3
WEIGHT = torch.tensor([0.2, 1.0, 5.0])
KINDS = [SINGLE, MULTI, REGRESSION]
WEIGHED = [*((kind, None) for kind in KINDS), (SINGLE, WEIGHT), (MULTI, WEIGHT)]
# float32 sums in another order.
SAME = {"rtol": 1e-6, "atol": 1e-6}


def outputs(kind, rows=13):
    """Random logits and labels; one number is -100, as Trainer marks what is none."""
    draw = torch.Generator().manual_seed(3)
    classes = 1 if kind == REGRESSION else CLASSES
    logits = torch.randn(rows, classes, generator=draw) * 3
    labels = torch.randint(0, CLASSES, (rows,), generator=draw)
    if kind == MULTI:
        labels = torch.randint(0, 2, (rows, CLASSES), generator=draw).float()
    if kind == REGRESSION:
        labels = torch.randn(rows, generator=draw) * 2
        labels[4] = -100.0
    return logits, labels


def by_torch(kind, logits, labels, weight=None, smoothing=0.0):
    if kind == REGRESSION:
        return functional.mse_loss(logits.squeeze(-1), labels)
    if kind == MULTI:
        return torch.nn.BCEWithLogitsLoss(pos_weight=weight)(logits, labels)
    weight = torch.ones(CLASSES) if weight is None else weight
    wanted = functional.one_hot(labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES
    each = -(wanted * logits.log_softmax(1)).sum(1) * weight[labels]
    return each.sum() / weight[labels].sum()


@pytest.mark.parametrize(
    ("kind", "weight", "smoothing"),
    [*((*case, 0.0) for case in WEIGHED), (SINGLE, None, 0.1), (SINGLE, WEIGHT, 0.1)],
)
def test_parts_of_a_step_add_up_to_the_loss_of_torch(kind, weight, smoothing):
    logits, labels = outputs(kind)
    whole, parts = (logits.clone().requires_grad_() for _ in range(2))
    wanted = by_torch(kind, whole, labels, weight, smoothing)
    wanted.backward()
    sizes = [1, 5, 7]
    count = sum(label_count(part, kind, weight) for part in labels.split(sizes))
    total = 0.0
    for x, y in zip(parts.split(sizes), labels.split(sizes), strict=True):
        loss = label_loss(x, y, count, kind, weight, smoothing)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(parts.grad, whole.grad, **SAME)
    alone = label_loss(logits, labels, None, kind, weight, smoothing)
    torch.testing.assert_close(alone, wanted.detach(), **SAME)
    bf16 = label_loss(logits.bfloat16(), labels, None, kind, weight, smoothing)
    assert bf16.dtype == torch.float32


def test_smoothed_and_weighed_the_loss_is_least_at_the_smoothed_labels():
    """400 texts of one class and 10 of another, each weighed as all of the other."""
    labels = torch.tensor([0] * 400 + [1] * 10)
    weights, smoothing = torch.tensor([410 / 800, 410 / 20]), 0.1
    smoothed = torch.tensor([[0.95, 0.05], [0.05, 0.95]])
    logits = smoothed.log()[labels].requires_grad_()
    label_loss(logits, labels, None, SINGLE, weights, smoothing).backward()
    assert logits.grad.abs().max() < 1e-7
    plain = functional.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    assert torch.autograd.grad(plain, logits)[0].abs().max() > 1e-4


def supervised_contrast(vectors, labels, temperature=losses.TEMPERATURE):
    """Equation 2 of Khosla et al. for each text, in float64, as it stands there."""
    unit = [v / v.norm() for v in vectors.double()]
    found = []
    for i, mine in enumerate(unit):
        others = [k for k in range(len(unit)) if k != i]
        near = {k: torch.exp(mine @ unit[k] / temperature) for k in others}
        alike = [k for k in others if labels[k] == labels[i]]
        total = sum(near.values())
        terms = [-torch.log(near[k] / total) for k in alike]
        found.append(sum(terms) / max(len(alike), 1) + 0 * mine.sum())
    return torch.stack(found)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("rows", [13, 2, 1])
def test_the_contrastive_loss_is_that_of_its_paper(rows, weight):
    draw = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 0, 0, 1, 1, 0, 1, 0])[:rows]
    ours, plain = (
        torch.randn(13, 6, generator=draw.manual_seed(1))[:rows].requires_grad_()
        for _ in range(2)
    )
    each = supervised_contrast(plain, labels)
    wanted = (each * (1.0 if weight is None else weight[labels])).sum() / 20
    wanted.backward()
    found = losses.contrastive_loss(ours, labels, torch.tensor(20.0), weight)
    found.backward()
    torch.testing.assert_close(found.double(), wanted, **SAME)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        again = losses.contrastive_loss(ours, labels, torch.tensor(20.0), weight)
    assert torch.equal(again, found)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_contrast_counts_beside_the_loss_and_only_in_training(wordpiece, family):
    """What the output layer is given: of a decoder, at the last token of a text."""
    options = {"num_labels": CLASSES, **NO_DROPOUT.get(family, {})}
    model = tiny.model(family, "classification", len(wordpiece), **options)
    model.eval().config.pad_token_id = wordpiece.pad_token_id
    batch = DataCollatorForClassification(wordpiece)(list(examples(wordpiece, SINGLE)))
    count, weights = torch.tensor(40.0), WEIGHT.tolist()
    with torch.no_grad():
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
        last = hidden[torch.arange(20), batch["attention_mask"].sum(1) - 1]
        vectors = last
        if family == "bert":
            vectors = model.bert.pooler(hidden)
        if family == "distilbert":
            vectors = model.pre_classifier(hidden[:, 0]).relu()
    plain, both = Classification(SINGLE, weights), Classification(SINGLE, weights, 0.5)
    each = supervised_contrast(vectors, batch["labels"]) * WEIGHT[batch["labels"]]
    wanted = plain.loss(model, batch, count) + 0.5 * each.sum() / count
    loss = both.loss(model, batch, count)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(both.evaluate(model, batch)[0], plain.evaluate(model, batch)[0])
    loss.backward()
    body = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    plain.loss(model, batch, count).backward()
    assert (body - model.get_input_embeddings().weight.grad).abs().max() > 1e-6


def test_no_contrast_of_what_the_logits_are_not_made_of(wordpiece):
    """A decoder that pads with a token of the text reads elsewhere than the mask."""
    model = tiny.model("gpt2", "classification", len(wordpiece), num_labels=CLASSES)
    model.eval().config.pad_token_id = 7
    batch = {
        "input_ids": torch.tensor([[5, 6, 9, 7], [8, 9, 5, 6]]),
        "attention_mask": torch.ones(2, 4, dtype=torch.int64),
        "labels": torch.tensor([0, 0]),
    }
    found = [Classification(SINGLE, contrast=c).loss(model, batch) for c in (0, 1)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", [MULTI, REGRESSION])
def test_there_is_no_contrast_of_other_labels(kind):
    assert Classification(SINGLE, contrast=0.5).contrast == 0.5
    assert Classification(kind, contrast=0.5).contrast == 0


def test_frozen_features_have_no_contrast(wordpiece):
    model = classifier(wordpiece, SINGLE)
    model.base_model.requires_grad_(False)
    batch = DataCollatorForClassification(wordpiece)(list(examples(wordpiece, SINGLE)))
    found = [Classification(SINGLE, contrast=c).loss(model, batch) for c in (0, 1)]
    assert torch.equal(*found)


def classifier(wordpiece, kind):
    classes = 1 if kind == REGRESSION else CLASSES
    options = {"num_labels": classes, "problem_type": kind, **NO_DROPOUT["bert"]}
    return tiny.model("bert", "classification", len(wordpiece), **options)


def examples(wordpiece, kind, rows=20):
    texts = [tiny.sentences(1, i, 3 + (5 * i) % 11)[0] for i in range(rows)]
    labels = outputs(kind, rows)[1]
    ids = wordpiece(texts)["input_ids"]
    lengths = [len(row) for row in ids]
    columns = {"input_ids": ids, "length": lengths, "labels": labels.tolist()}
    return Dataset.from_dict(columns)


@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_it_is_the_loss_of_transformers(wordpiece, kind):
    model = classifier(wordpiece, kind)
    batch = DataCollatorForClassification(wordpiece)(list(examples(wordpiece, kind)))
    found = model(**batch)
    loss = label_loss(found.logits, batch["labels"], None, kind)
    torch.testing.assert_close(loss, found.loss, **SAME)


@pytest.mark.parametrize(("kind", "weight"), WEIGHED)
def test_accumulated_steps_of_the_trainer_are_those_of_whole_batches(
    wordpiece, tmp_path, kind, weight
):
    data, collate = examples(wordpiece, kind), DataCollatorForClassification(wordpiece)
    model = classifier(wordpiece, kind)
    plain = copy.deepcopy(model).train()
    rate, seen = 0.01, []

    def note(features):
        seen.append(collate(features))
        return seen[-1].copy()

    trainer = LlmftTrainer(
        objective=Classification(kind, None if weight is None else weight.tolist()),
        model=model,
        args=arguments(
            tmp_path,
            max_steps=3,
            optim="sgd",
            learning_rate=rate,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            weight_decay=0,
            warmup_steps=0,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=3,
        ),
        data_collator=note,
        train_dataset=data,
        processing_class=wordpiece,
    )
    trainer.train()
    logged = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    for step, loss in enumerate(logged):
        parts = seen[3 * step : 3 * step + 3]  # the third step has 20 - 18 examples
        logits, labels = [], []
        for batch in parts[: len(parts) if step < 2 else 1]:
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            logits.append(plain(**inputs).logits)
            labels.append(batch["labels"])
        wanted = by_torch(kind, torch.cat(logits), torch.cat(labels), weight)
        assert loss == pytest.approx(wanted.item(), rel=1e-4)
        plain.zero_grad()
        wanted.backward()
        with torch.no_grad():
            for p in plain.parameters():
                p.sub_(rate * p.grad)
    assert len(logged) == 3
    assert_same_weights(model.state_dict(), plain.state_dict())
    assert WEIGHTS["rtol"] <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_a_text_are_averaged(wordpiece, tmp_path, kind):
    """Metrics see a row a text, in the order of the data; predictions are as many."""
    rows = [0, 1, 1, 1, 2, 3, 3, 4, *range(5, 17)]
    data = examples(wordpiece, kind)
    labels = [data["labels"][rows.index(row)] for row in rows]
    data = data.remove_columns("labels").add_column("labels", labels)
    data = data.add_column("row", rows)
    model = classifier(wordpiece, kind).eval()
    measured = []
    trainer = LlmftTrainer(
        objective=Classification(kind),
        model=model,
        args=arguments(tmp_path, per_device_eval_batch_size=4),
        data_collator=DataCollatorForClassification(wordpiece),
        eval_dataset=data,
        compute_metrics=lambda p: measured.append(p) or {"n": len(p.predictions)},
        processing_class=wordpiece,
    )
    found = trainer.predict(data)
    with torch.no_grad():
        alone = [
            model(input_ids=torch.tensor([ids])).logits[0].numpy()
            for ids in data["input_ids"]
        ]
    of = np.array(rows)
    wanted = np.stack([np.stack(alone)[of == i].mean(0) for i in range(17)])
    first = [labels[rows.index(i)] for i in range(17)]
    for predictions, ids in (
        (found.predictions, found.label_ids),
        (measured[0].predictions, measured[0].label_ids),
    ):
        np.testing.assert_allclose(predictions, wanted, rtol=1e-4, atol=1e-6)
        assert np.array_equal(ids, np.array(first, ids.dtype))
    assert found.metrics["test_n"] == 17
    assert trainer.predict(data.remove_columns("labels")).label_ids is None
