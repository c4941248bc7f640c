"""The ladder beside a training: where it starts, which model is kept, what is told."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from scipy.special import log_softmax
from transformers.trainer_utils import PredictionOutput

from llmft.config.fields import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    TrainingArguments,
)
from llmft.config.parse import Arguments
from llmft.data.read.labels import REGRESSION, SINGLE, LabelNames
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.metrics.classes import Classification as Metric
from llmft.metrics.classes import Regression
from llmft.metrics.ladder import Rung
from llmft.tasks.ladder import HEAD_ONLY, PROBE, TUNED, Ladder
from llmft.train.objectives import Classification
from llmft.train.outputs import output_layer
from llmft.train.trainer import LlmftTrainer

NAMES = LabelNames(("no", "yes"))
TOKENIZER = tiny.wordpiece_tokenizer()


def rows(count, seed):
    texts = tiny.sentences(count, seed)
    labels = [NAMES.names[int("good" in t or "great" in t)] for t in texts]
    return Dataset.from_dict({"text": texts, "label": labels})


PARTS = {"train": rows(80, 0), "validation": rows(40, 1), "test": rows(50, 2)}
EXAMPLES = {
    split: Dataset.from_dict(
        {
            "input_ids": [TOKENIZER(text)["input_ids"] for text in part["text"]],
            "labels": [NAMES.names.index(label) for label in part["label"]],
        }
    )
    for split, part in PARTS.items()
}


def climb(folder, model, splits=("train", "validation", "test"), **changes):
    """Train beside a ladder; return it, the run, and what it had before training."""
    frozen = changes.pop("freeze_backbone", False)
    data = ClassificationDataArguments(ladder=changes.pop("ladder", True))
    given = {"num_train_epochs": 10, "learning_rate": 1e-3, **changes}
    training = TrainingArguments(
        str(folder), report_to="none", disable_tqdm=True, do_train=True, **given
    )
    if "validation" not in splits:
        training.eval_strategy = training.save_strategy = "no"
        training.load_best_model_at_end = False
    examples = {split: EXAMPLES[split] for split in splits}
    parts = {split: PARTS[split] for split in splits}
    held_out = next((s for s in ("test", "validation") if s in splits), None)
    splits = SimpleNamespace(parts=parts, held_out=lambda: held_out)
    model_args = ClassificationModelArguments("tiny", freeze_backbone=frozen)
    args = Arguments(model_args, data, training, {}, [])
    bias = output_layer(model).bias  # that of a new one is zero
    new = [n for n, _ in model.named_parameters()] if not bias.any() else []
    ladder = Ladder(args, splits, NAMES, new)
    with tiny.started_run(args) as run:
        run.held_out = held_out
        trainer = LlmftTrainer(
            model=model,
            args=training,
            objective=Classification(),
            data_collator=DataCollatorForClassification(TOKENIZER),
            train_dataset=examples["train"],
            eval_dataset=examples.get("validation"),
            processing_class=TOKENIZER,
            compute_metrics=Metric(),
            callbacks=run.callbacks,
        )
        ladder.start_from_probe(trainer, examples, run)
        start = {n: p.clone() for n, p in model.state_dict().items()}
        trainer.train()
        ladder.keep_best(trainer, examples, run)
        if held_out:
            ladder.finish(trainer.predict(examples[held_out]), run, Metric())
        assert not list(run.folder.glob("*.safetensors"))
    return ladder, run, start


@pytest.fixture
def model():
    return tiny.model("bert", "classification", len(TOKENIZER))


@pytest.mark.parametrize(
    ("rate", "frozen", "saved", "how"),
    [
        (3e-3, False, TUNED, ""),
        (10.0, False, PROBE, "better"),
        (1e-12, False, TUNED, ""),
        (1e-12, True, PROBE, "as good"),
    ],
    ids=["learns", "spoils", "the same", "the same, frozen"],
)
def test_the_better_on_validation_is_kept(
    model, tmp_path, capsys, rate, frozen, saved, how
):
    given = {"learning_rate": rate, "freeze_backbone": frozen}
    ladder, run, start = climb(tmp_path / "run", model, **given)
    assert ladder.saved == saved
    same = {n: p.equal(start[n]) for n, p in model.state_dict().items()}
    if rate > 1e-12:
        assert all(same.values()) == (saved == PROBE)
    said = capsys.readouterr().out
    assert "linear probe fitted on 80 of 80 examples" in said
    kept = f"the linear probe is {how} on validation, and saved"
    assert (kept in said) == (saved == PROBE)
    assert (f"  {HEAD_ONLY}" in ladder.notes) == frozen
    found = run.more["ladder"]
    assert (found["metric"], found["n"], found["saved"]) == ("accuracy", 50, saved)
    names = [rung["name"] for rung in found["rungs"]]
    assert names == ["majority", "TF-IDF + logistic regression", PROBE, TUNED]
    shown = [rung.name for rung in ladder.others]
    assert shown == [name for name in names[1:] if name != saved]
    labels = np.array(EXAMPLES["test"]["labels"])
    majority = found["rungs"][0]["value"]
    assert majority == (labels == np.bincount(labels).argmax()).mean()
    with torch.no_grad():
        model.eval()
        guesses = [
            int(model(input_ids=torch.tensor([ids])).logits.argmax())
            for ids in EXAMPLES["test"]["input_ids"]
        ]
    kept = next(rung for rung in found["rungs"] if rung["name"] == saved)
    assert kept["value"] == pytest.approx((labels == guesses).mean())
    assert "ladder, on test, n 50" in ladder.notes[0]


@pytest.mark.parametrize(("errors", "saved"), [(0.9, TUNED), (1.1, PROBE)])
def test_within_an_error_of_the_probe_the_fine_tuned_is_kept(
    model, tmp_path, monkeypatch, errors, saved
):
    start, seen = Ladder.start_from_probe, []

    def keep(ladder, *args):
        start(ladder, *args)
        seen.append(ladder.reached)

    def below(trainer, name):
        assert seen[0][f"{name}_stderr"] > 0
        return seen[0][name] - errors * seen[0][f"{name}_stderr"]

    monkeypatch.setattr(Ladder, "start_from_probe", keep)
    monkeypatch.setattr("llmft.tasks.ladder._reached", below)
    best = {"metric_for_best_model": "accuracy", "greater_is_better": True}
    assert climb(tmp_path / "run", model, **best)[0].saved == saved


def test_the_last_model_is_kept_without_validation(model, tmp_path):
    ladder, run, _ = climb(tmp_path / "run", model, ("train", "test"))
    assert (ladder.saved, len(run.more["ladder"]["rungs"])) == (TUNED, 4)
    again, other, _ = climb(tmp_path / "alone", model, ("train",))
    assert "ladder" not in other.more
    assert again.rungs == []


def test_a_probe_is_compared_also_where_nothing_was_evaluated_on_the_way(
    model, tmp_path
):
    off = {
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": "accuracy",
    }
    ladder, *_ = climb(tmp_path / "run", model, learning_rate=10.0, **off)
    assert ladder.saved == PROBE


def test_a_trained_head_is_where_training_goes_on(model, tmp_path):
    with torch.no_grad():
        model.classifier.bias.fill_(0.5)
    ladder, run, start = climb(tmp_path / "run", model)
    assert start["classifier.bias"].tolist() == [0.5, 0.5]
    assert [rung["name"] for rung in run.more["ladder"]["rungs"]][2:] == [TUNED]
    assert ladder.notes[-1] == "  no linear probe: the head had been trained before"


def test_off(model, tmp_path):
    before = {n: p.clone() for n, p in model.state_dict().items()}
    ladder, run, start = climb(tmp_path / "run", model, ladder=False)
    assert all(p.equal(start[n]) for n, p in before.items())
    assert (run.more.get("ladder"), ladder.notes) == (None, [])
    assert [rung.name for rung in ladder.rungs] == [TUNED]


def finished(kind, scores, labels, saved=TUNED, before=None):
    """What a ladder tells in the end, without a training."""
    names = LabelNames(("no", "yes") if kind == SINGLE else ("LABEL_0",), kind)
    texts = tiny.sentences(len(labels), 1)
    shown = [names.names[x] if kind == SINGLE else str(x) for x in labels]
    part = Dataset.from_dict({"text": texts, "label": shown})
    train = part if kind == SINGLE else part.add_column("i", [*range(len(part))])
    splits = SimpleNamespace(
        parts={"train": train, "validation": part}, held_out=lambda: "validation"
    )
    data, training = ClassificationDataArguments(), TrainingArguments("unused")
    args = Arguments(ClassificationModelArguments("tiny"), data, training, {}, [])
    ladder = Ladder(args, splits, names, [])
    ladder.saved = saved
    if before is not None:
        ladder.rungs.append(Rung(PROBE, before))
    run = SimpleNamespace(
        more={}, held_out="validation", clock=SimpleNamespace(seconds=1.0)
    )
    metric = Metric() if kind == SINGLE else Regression()
    predicted = PredictionOutput(scores, np.array(labels, float), {})
    if kind == SINGLE:
        predicted = PredictionOutput(scores, np.array(labels), {})
    ladder.finish(predicted, run, metric)
    return ladder, run


def test_numbers_that_are_all_the_same_have_no_ladder():
    ladder, run = finished(REGRESSION, np.arange(6.0)[:, None], [5] * 6)
    assert "ladder" not in run.more
    assert "no ladder: the numbers of validation are all the same" in ladder.notes[-1]
    assert ladder.references.tolist() == [5] * 6


def test_a_probe_that_was_calibrated_is_judged_as_it_is_saved():
    labels = [0, 1] * 10
    scores = np.random.default_rng(1).normal(size=(20, 2))
    _, run = finished(SINGLE, scores / 4, labels, PROBE, before=scores)
    chances = log_softmax(scores / 4, axis=-1)[range(20), labels]
    assert run.more["ladder"]["log_loss"] == pytest.approx(-chances.mean())
