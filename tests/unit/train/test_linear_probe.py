"""The output layer that is fitted on frozen features, against plain computations."""

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge

from llmft.config.fields import TrainingArguments
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.train import linear_probe, outputs
from llmft.train.objectives import Classification

RNG = np.random.default_rng(0)
ROWS, WIDTH = 120, 5
X = RNG.normal(size=(ROWS, WIDTH)) * [1, 10, 0.1, 1, 1] + [0, 3, 0, 0, 0]
X = X.astype(np.float32)
CLASSES = (X[:, 1] > 3).astype(int) + (X[:, 0] > 0)


def standard():
    return ((X - X.mean(0)) / (X.std(0) + 1e-6)).astype(np.float64)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_classes_are_fitted_as_sklearn_does(weights):
    weights = None if weights is None else np.array(weights)
    weight, bias, strength = linear_probe.fitted(X, CLASSES, SINGLE, 3, weights)
    assert strength in linear_probe.STRENGTHS
    each = None if weights is None else weights[CLASSES]
    plain = LogisticRegression(C=strength, max_iter=1000, tol=1e-8)
    wanted = plain.fit(standard(), CLASSES, each).decision_function(standard())
    found = X @ weight.T + bias
    np.testing.assert_allclose(
        log_softmax(found, 1), log_softmax(wanted, 1), atol=0.02, rtol=0.02
    )


def test_two_classes_have_a_row_each():
    """As the minimum of the regularised loss of two logits."""
    labels = (CLASSES > 0).astype(int)
    weight, bias, strength = linear_probe.fitted(X, labels, SINGLE, 2)
    z = standard()

    def loss(v):
        logits = z @ v[:WIDTH] + v[WIDTH]
        nll = np.logaddexp(0, logits) - labels * logits
        return strength * nll.sum() + (v[:WIDTH] ** 2).sum() / 2

    best = minimize(loss, np.zeros(WIDTH + 1), tol=1e-10).x
    found = X @ weight.T + bias
    wanted = z @ best[:WIDTH] + best[WIDTH]
    np.testing.assert_allclose(found[:, 1] - found[:, 0], wanted, atol=0.02, rtol=0.02)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-4)


def test_a_class_without_an_example_is_unlikely():
    weight, bias, *_ = linear_probe.fitted(X, CLASSES, SINGLE, 5)
    probabilities = np.exp(log_softmax(X @ weight.T + bias, 1))
    assert probabilities[:, 3:].max() < 0.05
    assert (probabilities.argmax(1) == CLASSES).mean() > 0.8


def test_labels_and_numbers():
    several = np.stack([CLASSES > 0, X[:, 2] > 0, np.ones(ROWS)], 1).astype(np.float32)
    weight, bias, *_ = linear_probe.fitted(X, several, MULTI, 3, np.array([1.0, 1, 1]))
    logits = X @ weight.T + bias
    assert ((logits[:, :2] > 0) == several[:, :2]).mean() > 0.9
    assert not weight[2].any()
    assert bias[2] == pytest.approx(np.log(ROWS + 1))
    numbers = 80 + X @ np.array([1, 2, 3, 0, 0])
    weight, bias, strength = linear_probe.fitted(X, numbers, REGRESSION, 1)
    plain = Ridge(1 / strength).fit(standard(), numbers)
    wanted = plain.predict(standard())[:, None]
    np.testing.assert_allclose(X @ weight.T + bias, wanted, rtol=1e-3)


def texts(tokenizer, rows=60):
    found = tiny.sentences(rows)
    ids = [tokenizer(text)["input_ids"] for text in found]
    labels = [int("good" in text or "great" in text) for text in found]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_a_model_gives_what_its_new_output_layer_says(kind, tmp_path):
    """In the order of the data; the body stays as it was, its pooler being trained."""
    tokenizer = tiny.wordpiece_tokenizer()
    model = tiny.model(kind, "classification", len(tokenizer)).eval()
    if kind == "bert":
        torch.nn.init.ones_(model.bert.pooler.dense.bias)
    data, collator = texts(tokenizer), DataCollatorForClassification(tokenizer)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    args.per_device_eval_batch_size = 7
    before = {n: p.clone() for n, p in model.named_parameters()}
    objective, layer = Classification(), outputs.output_layer(model)
    (name,) = [n for n, w in model.named_parameters() if w is layer.weight]
    assert outputs.has_new_output(model, [name])
    assert not outputs.has_new_output(model, [*before.keys() - {name}])
    found = linear_probe.encode(model, layer, objective, collator, data, args)
    examples = linear_probe.fit_linear_probe(model, objective, collator, data, args)
    assert examples == len(data)
    with torch.no_grad():
        alone = [
            model(input_ids=torch.tensor([ids])).logits[0] for ids in data["input_ids"]
        ]
        wanted = layer(torch.from_numpy(found))
    near = 1e-5 * float(layer.weight.abs().max())  # features are near to 1e-6 or so
    torch.testing.assert_close(torch.stack(alone), wanted, atol=near, rtol=1e-4)
    changed = {n for n, p in model.named_parameters() if not p.equal(before[n])}
    own = {id(p) for p in layer.parameters()}
    assert changed == {n for n, p in model.named_parameters() if id(p) in own}
    loss = torch.nn.functional.cross_entropy(wanted, torch.tensor(data["labels"]))
    assert loss < np.log(2)


def test_a_head_that_reads_the_last_token(tmp_path):
    """As of a decoder: it runs at all positions, and has no bias."""
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny.model("gpt2", "classification", len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    collator = DataCollatorForClassification(tokenizer)
    data = texts(tokenizer)
    examples = linear_probe.fit_linear_probe(
        model.eval(), Classification(), collator, data, args
    )
    assert examples == len(data)
    nll = []
    with torch.no_grad():
        for ids, label in zip(data["input_ids"], data["labels"], strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits
            nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor([label])))
    assert torch.stack(nll).mean() < np.log(2)


def test_of_many_examples_some_are_drawn(monkeypatch):
    monkeypatch.setattr(linear_probe, "ENCODED", 10)
    monkeypatch.setattr(linear_probe, "MORE", 5)
    data = Dataset.from_dict({"row": list(range(100))})
    some = linear_probe.drawn(data, 2, seed=1)["row"][:]
    assert len({*some}) == 20
    assert some == linear_probe.drawn(data, 2, seed=1)["row"][:]
    assert some != linear_probe.drawn(data, 2, seed=2)["row"][:]
    assert linear_probe.drawn(data.select(range(20)), 2, seed=1)["row"][:] == [
        *range(20)
    ]


def test_weights_of_features_that_hardly_differ_are_bounded():
    """As those of a model that was never trained; the label follows from one."""
    x = np.ones((ROWS, WIDTH), np.float32)
    x[:, 0] += 1e-5 * RNG.normal(size=ROWS)
    weight, *_ = linear_probe.fitted(x, (x[:, 0] > 1).astype(int), SINGLE, 2)
    assert np.abs(weight).max() < 100


def test_without_a_bias():
    labels = (X @ [1, 0.1, 0, 0, 0] > 0.5).astype(int)
    weight, bias, strength = linear_probe.fitted(X, labels, SINGLE, 2, has_bias=False)
    assert not bias.any()
    z = X / (X.std(0) + 1e-6)

    def loss(v):
        nll = np.logaddexp(0, z @ v) - labels * (z @ v)
        return strength * nll.sum() + (v**2).sum() / 2

    best = minimize(loss, np.zeros(WIDTH), tol=1e-10).x
    found = X @ weight.T
    np.testing.assert_allclose(
        found[:, 1] - found[:, 0], z @ best, atol=0.05, rtol=0.05
    )


@pytest.mark.parametrize("rows", [2, 3])
def test_a_strength_is_chosen_of_few_rows_a_class(rows):
    """Fewer of each than there are folds."""
    labels = np.repeat(np.arange(3), rows)
    x = np.eye(3)[labels] + np.random.default_rng(1).normal(0, 0.1, (3 * rows, 3))
    found = linear_probe._strength(x, labels, SINGLE, None, True)
    assert found in linear_probe.STRENGTHS


def test_parts_of_a_text_are_on_one_side_of_the_folds(monkeypatch):
    """Else what is learnt by heart would look like what is right elsewhere."""
    texts, seen = np.repeat(np.arange(12), 5), []
    split = linear_probe.GroupKFold.split

    def noted(self, x, y, groups):
        for learnt, held_out in split(self, x, y, groups):
            seen.append({*groups[learnt]} & {*groups[held_out]})
            yield learnt, held_out

    monkeypatch.setattr(linear_probe.GroupKFold, "split", noted)
    x = np.random.default_rng(1).normal(size=(60, 4))
    labels = texts % 2
    linear_probe._strength(x, labels, SINGLE, None, True, texts)
    assert seen == [set()] * linear_probe.FOLDS
    linear_probe._strength(x, labels, SINGLE, None, True, np.arange(60))
    assert len(seen) == linear_probe.FOLDS
    linear_probe.fitted(x, labels * 1.0, REGRESSION, 1, texts=texts)
    assert seen == [set()] * (2 * linear_probe.FOLDS)
