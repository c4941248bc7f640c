"""Epochs and rate that follow from data and model, unless they are given."""

import pytest
import tiny
from datasets import Dataset

from llmft.config.fields import (
    ClassificationDataArguments,
    GenerationModelArguments,
    TrainingArguments,
)
from llmft.config.fold import Fold
from llmft.config.parse import Arguments
from llmft.train.hyperparameters import (
    HIGHEST,
    LORA,
    OF_FOLDS,
    Rule,
    set_epochs_and_rate,
)

RULE = Rule(rate=2e-5, hidden_size=64, power=2, examples=100, most=8)
KEEPS_LAST = RULE._replace(keeps_last=True)
MODEL = tiny.model("bert", "classification", 100)  # of hidden size 32


def chosen(rows, model_args=None, rule=RULE, fold=None, by="command line", **given):
    training = TrainingArguments("x", do_train=True, **given)
    model_args = model_args or GenerationModelArguments("tiny")
    origins = dict.fromkeys(given, by)
    data = ClassificationDataArguments()
    args = Arguments(model_args, data, training, origins, [], fold=fold)
    examples = {"train": Dataset.from_dict({"input_ids": [[1, 2]] * rows})}
    choices = set_epochs_and_rate(args, MODEL, rule, examples)
    return training, {choice.name: choice.value for choice in choices}, args.origins


@pytest.mark.parametrize(
    ("rows", "epochs"), [(1, 8), (12, 8), (13, 8), (30, 4), (100, 1), (5000, 1)]
)
def test_epochs_follow_from_the_rows(rows, epochs):
    training, said, origins = chosen(rows)
    assert training.num_train_epochs == epochs
    assert said["epochs"] == str(epochs)
    assert origins["num_train_epochs"] == origins["learning_rate"] == "auto"


@pytest.mark.parametrize(
    ("rows", "most", "wanted"),
    [
        (20, 90, None),  # five passes
        (2, 50, None),  # each is evaluated
        (1, 60, 2),
        (1, 95, 3),
    ],
)
def test_of_many_passes_some_are_evaluated(rows, most, wanted):
    rule = RULE._replace(most=most)
    training = chosen(rows, rule=rule)[0]
    found = {training.eval_strategy, training.save_strategy}
    assert found == {"steps" if wanted else "epoch"}
    if wanted:
        assert training.eval_steps == training.save_steps == wanted
    asked = chosen(rows, rule=rule, eval_strategy="epoch")[0]
    assert asked.eval_strategy == asked.save_strategy == "epoch"
    last = chosen(rows, rule=rule._replace(keeps_last=True))[0]
    assert last.eval_strategy == "epoch"


@pytest.mark.parametrize(("rows", "epochs"), [(8, 20), (12, 6), (20, 4)])
def test_a_fold_is_trained_as_all_rows_are(rows, epochs):
    """Of 12, 18 and 30 rows, the first of which are few."""
    rule = RULE._replace(few=15)
    fold = chosen(rows, rule=rule, fold=Fold(3, 0))[0]
    of_all = chosen(rows * 3 // 2, rule=rule, fold=Fold(3))[0]
    for training in (fold, of_all):
        assert training.num_train_epochs == epochs
    assert fold.learning_rate == of_all.learning_rate


def test_what_the_first_fold_chose_is_shown():
    given = {"num_train_epochs": 7.0, "learning_rate": 3e-5}
    assert chosen(30, by=OF_FOLDS, **given)[1] == {"epochs": "7", "rate": "3e-05"}
    assert chosen(30, by="first_fold.json", **given)[1] == {}


def test_the_rate_follows_from_the_model():
    training, said, _ = chosen(10)
    assert training.learning_rate == pytest.approx(2e-5 * (64 / 32) ** 2)
    assert said["rate"] == "8e-05"
    lora, _, _ = chosen(10, GenerationModelArguments("tiny", lora_r=4))
    assert lora.learning_rate == pytest.approx(LORA * 8e-5)


def test_more_outputs_need_more_examples():
    training, _, _ = chosen(30, rule=RULE._replace(each=40))
    assert training.num_train_epochs == 6  # of 100 + 2 * 40


def test_a_stream_has_a_rate():
    """And no length, which is asked for only where few rows are another case."""
    training = TrainingArguments("x", do_train=True, max_steps=5)
    model_args, data = GenerationModelArguments("tiny"), ClassificationDataArguments()
    args = Arguments(model_args, data, training, {}, [])
    (rate,) = set_epochs_and_rate(args, MODEL, RULE, {"train": iter([])})
    assert rate.name == "rate"


def test_few_rows_are_learnt_often_and_slowly():
    few = RULE._replace(few=9, often=20, slower=0.5)
    found = [chosen(rows, rule=few)[0] for rows in (9, 10)]
    assert [training.num_train_epochs for training in found] == [20, 8]
    assert [f"{training.learning_rate:g}" for training in found] == ["4e-05", "8e-05"]
    given, _, _ = chosen(9, rule=few, num_train_epochs=3)  # not often: not slowly
    assert given.learning_rate == pytest.approx(8e-5)


def test_the_rate_has_an_end():
    training, _, _ = chosen(30, rule=RULE._replace(power=9))
    assert training.learning_rate == HIGHEST


@pytest.mark.parametrize(
    ("given", "stays"),
    [
        ({"learning_rate": 3e-5}, "rate"),
        ({"num_train_epochs": 7}, "epochs"),
        ({"max_steps": 5}, "epochs"),
        ({"time_limit": "5m"}, "epochs"),
    ],
)
def test_what_is_given_stays(given, stays):
    training, said, _ = chosen(30, **given)
    ((name, value),) = given.items()
    assert getattr(training, name) == value
    assert {*said} == {"rate", "epochs"} - {stays}


@pytest.mark.parametrize(
    ("rule", "given", "best", "patience"),
    [
        (RULE, {}, True, 3),
        (KEEPS_LAST, {}, False, None),
        (KEEPS_LAST, {"num_train_epochs": 3}, True, 3),
        (KEEPS_LAST, {"load_best_model_at_end": True}, True, None),
        (KEEPS_LAST, {"early_stopping_patience": 2}, False, 2),
    ],
)
def test_the_last_weights_are_kept(rule, given, best, patience):
    training, _, _ = chosen(30, rule=rule, **given)
    assert training.load_best_model_at_end is best
    assert training.early_stopping_patience == patience
