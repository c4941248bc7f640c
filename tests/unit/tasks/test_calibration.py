"""The temperature is in the head that is saved; what is predicted stays."""

import json

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from scipy.special import expit, log_softmax
from transformers import AutoModelForSequenceClassification

from llmft.config.fields import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    TrainingArguments,
)
from llmft.config.parse import Arguments
from llmft.data.read.labels import MULTI, SINGLE
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.tasks import calibration
from llmft.tasks.classify import compute_metrics
from llmft.train.objectives import Classification
from llmft.train.outputs import output_layer
from llmft.train.trainer import LlmftTrainer

TOKENIZER = tiny.wordpiece_tokenizer()
RNG = np.random.default_rng(0)
IDS = [TOKENIZER(text)["input_ids"] for text in tiny.sentences(60)]
SCALE = 5.0  # standard deviation of the logits: far too sure, for what they know


def logits_of(model):
    model.eval()
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([ids])).logits[0] for ids in IDS]
    return torch.stack(found).double().numpy()


def sure_model(kind, problem_type):
    more = {} if kind == "gpt2" else {"problem_type": problem_type}
    model = tiny.model(kind, "classification", len(TOKENIZER), **more)
    if kind == "gpt2":
        model.config.pad_token_id = 0
    with torch.no_grad():
        for weight in output_layer(model).parameters():
            weight.normal_(generator=torch.Generator().manual_seed(1))
        factor = SCALE / logits_of(model).std()
        for weight in output_layer(model).parameters():
            weight.mul_(factor)
    return model


def run_calibration(folder, model, labels, problem_type, **data):
    """Calibrate a model; return the run's parts of metrics.json."""
    data = ClassificationDataArguments(**data)
    quiet = {"report_to": "none", "disable_tqdm": True, "eval_strategy": "no"}
    training = TrainingArguments(str(folder), load_best_model_at_end=False, **quiet)
    args = Arguments(ClassificationModelArguments("tiny"), data, training, {}, [])
    examples = {"validation": Dataset.from_dict({"input_ids": IDS, "labels": labels})}
    with tiny.started_run(args) as run:
        trainer = LlmftTrainer(
            model=model,
            args=training,
            objective=Classification(problem_type),
            data_collator=DataCollatorForClassification(TOKENIZER),
            processing_class=TOKENIZER,
            compute_metrics=compute_metrics(problem_type, 0.5),
            callbacks=run.callbacks,
        )
        calibration.calibrate(trainer, examples, data, problem_type, run)
        run.finish(trainer, "calibrated")
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2"])
def test_the_head_has_the_temperature(kind, problem_type, tmp_path, capsys):
    model = sure_model(kind, problem_type)
    before, names = logits_of(model), ("log_loss", "calibration_error")
    less = before / SCALE
    if problem_type == MULTI:
        labels = (RNG.random(before.shape) < expit(less)).astype(float)
    else:
        labels = (less + RNG.gumbel(size=before.shape)).argmax(1)
    found = run_calibration(
        *(tmp_path / "run", model, labels.tolist(), problem_type),
        **{"calibrate": True, "multi_label_threshold": 0.4},
    )["calibration"]
    temperature = found["temperature"]
    assert temperature > 2
    assert (found["split"], found["n"]) == ("validation", 60)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    after = logits_of(loaded)
    np.testing.assert_allclose(after, before / temperature, rtol=1e-4, atol=1e-4)
    assert np.array_equal(after.argmax(1), before.argmax(1))
    assert np.array_equal(after >= 0, before >= 0)

    def log_loss(logits):
        if problem_type == MULTI:
            return (np.logaddexp(0, logits) - labels * logits).mean()
        return -log_softmax(logits, 1)[np.arange(60), labels].mean()

    wanted = {"before": log_loss(before), "after": log_loss(after)}
    assert found["log_loss"] == pytest.approx(wanted, rel=1e-4)
    assert all(found[name]["after"] < found[name]["before"] for name in names)
    said = capsys.readouterr().out
    shown = f"temperature {temperature:.3g}: log loss {wanted['before']:.4g} -> "
    assert f"  calibrated, {shown}" in said
    assert ("0.4 is now of the calibrated" in said) == (problem_type == MULTI)


def test_what_cannot_be_is_said_and_changes_nothing(tmp_path, capsys, monkeypatch):
    model = sure_model("bert", SINGLE)
    labels = logits_of(model).argmax(1).tolist()
    other = [label if i % 3 else 1 - label for i, label in enumerate(labels)]
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    same = run_calibration(tmp_path / "off", model, other, SINGLE)
    assert ("calibration" in same, capsys.readouterr().err) == (False, "")
    run_calibration(tmp_path / "right", model, labels, SINGLE, calibrate=True)
    said = capsys.readouterr().err
    assert "warning: not calibrated: no temperature is the best for the val" in said
    # A head that goes on after its last linear layer.
    model.classifier.register_forward_hook(lambda _m, _i, logits: 4 * logits.tanh())
    run_calibration(tmp_path / "other", model, other, SINGLE, calibrate=True)
    assert "not calibrated: something follows the model's" in capsys.readouterr().err
    monkeypatch.setattr(calibration, "output_layer", lambda model: None)
    run_calibration(tmp_path / "none", model, other, SINGLE, calibrate=True)
    assert "not calibrated: the model has no linear outp" in capsys.readouterr().err
    assert all(p.equal(weights[n]) for n, p in model.state_dict().items())
