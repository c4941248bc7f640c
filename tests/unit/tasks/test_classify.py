"""What follows from the kind of labels, and what does not fit it."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from datasets import Dataset
from sklearn import metrics as sk
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput, SchedulerType

from llmft.config.fields import ClassificationDataArguments
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.errors import ConfigError, DataError, LabelError
from llmft.tasks import classify
from llmft.train.objectives import Classification

RNG = np.random.default_rng(0)
PLAIN = Classification()  # without weights and contrast


def arguments(best="loss", smoothing=0.0, given=None, **data):
    training = SimpleNamespace(
        metric_for_best_model=best,
        greater_is_better=True,
        label_smoothing_factor=smoothing,
    )
    data = ClassificationDataArguments(**data)
    origins = {given: "command line"} if given else {}
    return SimpleNamespace(data=data, training=training, origins=origins)


def sources(**kinds):
    data = Dataset.from_dict({"text": ["a"]})
    return {
        split: Source(data, f"{split}.csv", problem_type=kind)
        for split, kind in kinds.items()
    }


def settle(args, made_for=None, **kinds):
    return classify.set_problem_type_from_labels(args, sources(**kinds), made_for)


@pytest.mark.parametrize("kind", [MULTI, REGRESSION])
def test_what_follows_from_the_labels(kind):
    args = arguments()
    assert settle(args, train=kind, validation=kind, test=None) == kind
    assert args.data.problem_type == kind
    assert args.origins["problem_type"] == "follows: the labels"


def test_no_contrast_may_be_asked_for_of_any_labels():
    args = arguments(given="contrastive_weight", contrastive_weight=0.0)
    assert settle(args, train=REGRESSION) == REGRESSION


def test_single_labels_change_nothing():
    args = arguments("accuracy")
    assert settle(args, train=SINGLE) == SINGLE
    assert args.data.problem_type is None
    assert args.training.metric_for_best_model == "accuracy"
    assert settle(arguments(), made_for=MULTI, test=None) == MULTI


@pytest.mark.parametrize("best", ["r2", "eval_spearman", "loss"])
def test_a_metric_of_the_kind_stays(best):
    args = arguments(best)
    settle(args, train=REGRESSION)
    assert args.training.metric_for_best_model == best


@pytest.mark.parametrize(
    ("args", "kind", "said"),
    [
        (arguments("accuracy"), REGRESSION,
         "metric_for_best_model is accuracy, regression has loss, mse, mae, r2, pears"),
        (arguments("r2"), SINGLE,
         "metric_for_best_model is r2, single_label_classification has loss, accuracy"),
        (arguments(smoothing=0.1), MULTI,
         "label_smoothing_factor does not work with multi_label_classification"),
        (arguments(given="contrastive_weight"), REGRESSION,
         "contrastive_weight does not work with regression"),
        (arguments(class_weights=["balanced"]), REGRESSION,
         "class_weights is of classes, the labels are numbers"),
        (arguments(calibrate=True), REGRESSION,
         "calibrate is of probabilities, the labels are numbers"),
    ],
)  # fmt: skip
def test_arguments_for_another_kind(args, kind, said):
    with pytest.raises(ConfigError) as caught:
        settle(args, train=kind)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "made_for", "said"),
    [
        ({"train": REGRESSION, "validation": SINGLE}, None,
         "the labels of train (train.csv) are regression, those of validation"
         " (validation.csv) single_label_classification"),
        ({"test": SINGLE}, MULTI,
         "the labels of test (test.csv) are single_label_classification, those of the"
         " model multi_label_classification"),
    ],
)  # fmt: skip
def test_labels_of_two_kinds(kinds, made_for, said):
    with pytest.raises(LabelError) as caught:
        settle(arguments(), made_for, **kinds)
    assert str(caught.value) == (
        f"LabelError: {said}; expected the same kind everywhere; write them alike, or"
        " say what they are with --problem_type"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, []),
        ({"class_weights": ["balanced"]}, ["class_weights is of training: add"]),
        ({"class_weights": ["balanced"], "problem_type": REGRESSION, "do_train": True},
         ["class_weights is of classes, problem_type is regression"]),
        ({"calibrate": True}, ["calibrate is of training: add --do_train"]),
        ({"calibrate": True, "do_train": True}, []),
        ({"calibrate": True, "do_train": True, "do_eval": False, "do_predict": True,
          "eval_strategy": "epoch"}, []),
        ({"calibrate": True, "do_train": True, "do_eval": False, "do_predict": True,
          "eval_strategy": "no"}, ["calibrate needs validation data: add --do_eval"]),
        ({"calibrate": True, "do_train": True, "problem_type": REGRESSION},
         ["calibrate is of probabilities, problem_type is regression"]),
        ({"label_delimiter": "|", "problem_type": REGRESSION},
         ["label_delimiter is of several labels, problem_type is regression"]),
        ({"label_delimiter": "|", "problem_type": MULTI}, []),
        ({"stride": 3}, ["stride is of long_text split: add --long_text split"]),
        ({"stride": 3, "long_text": "split"}, []),
        ({"freeze_backbone": True, "neftune_noise_alpha": 5.0, "do_train": True},
         ["freeze_backbone and neftune_noise_alpha exclude each other"]),
        ({"long_text": "split", "text_pair_column_name": "b"},
         ["long_text split is for single texts, not for pairs (text_pair_"]),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_together(given, said):
    enough = {"model_name_or_path": "tiny", "dataset_name": "a", "do_eval": True}
    steps = {"do_train": False, "do_predict": False}
    steps |= {"freeze_backbone": False, "neftune_noise_alpha": None}
    values = vars(ClassificationDataArguments()) | enough | steps | given
    found = classify.check(values)
    assert len(found) == len(said)
    assert all(a.startswith(b) for a, b in zip(found, said, strict=True))


def choices(objective, data, labels, train):
    """Those of data arguments, where no reason is asked of model and training."""
    examples = {} if train is None else {"train": train}
    return classify.choices(
        objective, SimpleNamespace(data=data), None, labels, examples
    )


@pytest.mark.parametrize(
    ("given", "rows", "said"),
    [
        ({"train_file": "a"}, 499, "499 examples"),
        ({"train_file": "a"}, 500, None),
        ({"train_file": "a", "k_folds": 5}, 9, None),
        ({"train_file": "a", "validation_file": "b"}, 9, None),
    ],
)
def test_folds_are_offered_for_small_data(given, rows, said):
    names = LabelNames(("a", "b"))
    data = ClassificationDataArguments(contrastive_weight=0.0, **given)
    train = Dataset.from_dict({"labels": [0, 1] * rows}).select(range(rows))
    found = choices(PLAIN, data, names, train)
    assert [choice.value for choice in found] == ([said] if said else [])


@pytest.mark.parametrize(
    ("beside", "value"),
    [
        *((name, "1m") for name in ("validation_file", "time_limit", "calibrate")),
        ("lr_scheduler_type", "reduce_lr_on_plateau"),  # as a command line has it
        ("lr_scheduler_type", SchedulerType.GREEDY),
        ("test_file", "-"),
    ],
)
def test_folds_have_no_validation(beside, value):
    values = vars(ClassificationDataArguments(k_folds=3)) | {
        **{"model_name_or_path": "tiny", "train_file": "a", "do_train": True},
        **{"do_eval": True, "do_predict": True, "eval_strategy": "epoch"},
        **{"resume_from_checkpoint": None, "time_limit": None},
        **{"freeze_backbone": False, "lr_scheduler_type": "linear"},
    }
    assert classify.check(values) == []
    found = classify.check(values | {beside: value})
    (said,) = found
    assert said.startswith(f"k_folds and {beside} ")
    assert "exclude each other" in said
    assert ("; shorter: " in said) is (beside == "time_limit")


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_the_best_is_by_what_is_asked_for(kind):
    """Unless the user says by what."""
    args = arguments()
    settle(args, train=kind)
    assert args.training.metric_for_best_model == "loss"
    args.origins["metric_for_best_model"] = "follows: default"
    args.training.greater_is_better = False
    settle(args, train=kind)
    best = args.training.metric_for_best_model
    assert best == {SINGLE: "accuracy", MULTI: "f1_micro", REGRESSION: "r2"}[kind]
    assert args.training.greater_is_better


def test_the_plan_says_what_the_labels_are():
    data = ClassificationDataArguments(
        class_weights=["balanced"], dataset_name="x", contrastive_weight=0.0
    )
    several = LabelNames(("a", "b"), MULTI)
    train = Dataset.from_dict({"labels": [[1.0, 0], [1.0, 1.0], [0.0, 0], [0.0, 0]]})
    weighed = Classification(MULTI, [1.0, 3.0], 0.5)
    labels, weights = choices(weighed, data, several, train)
    assert (labels.name, labels.value, labels.reason) == (
        *("labels", "multi_label_classification, 2 labels"),
        "0.75 an example, 2 examples have none",
    )
    assert weights.value == "'a' 1, 'b' 3"
    number = LabelNames(("LABEL_0",), REGRESSION)
    train = Dataset.from_dict({"labels": [1.0, 4.5, 2.0]})
    (choice,) = choices(PLAIN, data, number, train)
    assert choice.reason == "from 1 to 4.5, mean 2.5, standard deviation 1.472"
    (choice,) = choices(PLAIN, data, number, None)
    assert choice.reason == "as the model was trained"
    assert choices(PLAIN, data, LabelNames(("a", "2")), train) == []
    (choice,) = choices(PLAIN, data, LabelNames(("1", "2")), train)
    assert (choice.value, choice.reason) == (
        "2 classes",
        "their names are numbers; --problem_type regression learns them as such",
    )
    (choice,) = choices(PLAIN, data, LabelNames(("1,5", "2")), train)
    assert choice.reason.endswith(" learns them as such, written with a point")
    titles = [classify.title(x) for x in (several, number, LabelNames(("a", "b")))]
    assert titles == [
        "Multi-label text classifier for a, b",
        "Text regression",
        "Text classifier for a, b",
    ]


@pytest.mark.parametrize(
    ("rows", "frozen", "outputs", "wanted", "said"),
    [
        (8, False, 2, 0.5, "texts of a class in a batch are drawn together"),
        (1, False, 2, 0.0, "batches of one text"),
        (8, True, 2, 0.0, "the encoder is frozen"),
        (8, False, 3, 0.0, "the head has no output layer"),
    ],
)
def test_contrast_is_where_something_is_moved_and_the_plan_says_so(
    rows, frozen, outputs, wanted, said
):
    model = tiny.model("bert", "classification", 50)
    model.config.num_labels = outputs  # of another than its head
    data = ClassificationDataArguments(dataset_name="x", contrastive_weight=0.5)
    args = SimpleNamespace(
        data=data,
        model=SimpleNamespace(freeze_backbone=frozen),
        training=SimpleNamespace(train_batch_size=rows, gradient_accumulation_steps=2),
    )
    found = classify.contrast(args, model)
    assert found == wanted
    train, names = Dataset.from_dict({"labels": [0, 1]}), LabelNames(("a", "b"))
    objective = Classification(contrast=found)
    examples = {"train": train}
    (choice,) = classify.choices(objective, args, model, names, examples)
    assert (choice.name, choice.value) == ("contrast", f"{wanted:g}")
    assert choice.reason.startswith(said)
    assert ("; a batch is of 8" in choice.reason) is (wanted > 0)
    assert classify.choices(objective, args, model, names, {}) == []
    data.contrastive_weight = 0.0
    assert classify.choices(PLAIN, args, model, names, examples) == []


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_each_kind_is_measured_by_its_metrics(kind):
    logits = np.array([[0.2], [1.0], [3.0]])
    labels = np.array([0.0, 1.0, 2.5])
    if kind == MULTI:
        logits, labels = logits.repeat(2, 1), np.array([[0, 1], [1, 1], [0.0, 0]])
    if kind == SINGLE:
        logits, labels = logits.repeat(2, 1), np.array([0, 1, 1])
    found = classify.compute_metrics(kind, 0.5)(EvalPrediction(logits, labels))
    assert {n for n in found if "stderr" not in n} == {*classify.METRICS[kind], "n"}
    low = classify.compute_metrics(kind, 0.99)(EvalPrediction(logits, labels))
    assert (low == found) == (kind != MULTI)


KINDS = {
    SINGLE: (RNG.normal(size=(60, 3)), RNG.integers(0, 3, 60), "accuracy"),
    MULTI: (RNG.normal(size=(60, 3)), RNG.integers(0, 2, (60, 3)), "f1_micro"),
    REGRESSION: (RNG.normal(size=(60, 1)), RNG.normal(size=60), "mse"),
}


def plain(kind, scores, labels):
    """The metric of ``KINDS``, told a second time by sklearn."""
    if kind == SINGLE:
        return sk.accuracy_score(labels, scores.argmax(1))
    if kind == MULTI:
        return sk.f1_score(labels, scores >= 0, average="micro")
    return sk.mean_squared_error(labels, scores[:, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [None, [3, 8, 59], [*range(60)]])
def test_metrics_without_the_rows_that_train_has(kind, shared):
    scores, labels, name = KINDS[kind]

    def predict(data, metric_key_prefix):
        assert data is examples
        return PredictionOutput(scores, labels, {f"{metric_key_prefix}_x": 1.0})

    examples = Dataset.from_dict({"input_ids": [[5, 3], [3, 3]], "row": [7, 7]})
    rows = {} if shared is None else {"validation": np.array(shared)}
    run = SimpleNamespace(results={})
    found = classify.measure(
        SimpleNamespace(predict=predict),
        {"validation": examples},
        SimpleNamespace(
            in_train=rows, sources={"validation": SimpleNamespace(dataset=examples)}
        ),
        classify.compute_metrics(kind, 0.5),
        run,
        "validation",
    )
    assert found.predictions is scores
    assert run.results.pop("eval") == {"eval_x": 1.0}
    if shared == [3, 8, 59]:
        left = [i for i in range(60) if i not in shared]
        measured = run.results.pop("eval_without_shared")
        wanted = plain(kind, scores[left], labels[left])
        assert measured[name] == pytest.approx(wanted)
        assert (measured["n"], measured[f"{name}_stderr"] > 0) == (57, True)
    assert run.results == {}


def test_unknown_tokens_of_the_texts_held_out():
    names = ("unk_token_id", "eos_token_id", "bos_token_id")
    tokenizer = SimpleNamespace(**dict(zip(names, (3, 1, 0), strict=True)))
    examples = Dataset.from_dict({"input_ids": [[5, 3], [3, 3]], "row": [7, 7]})
    for held_out, wanted in (("test", {7: 3}), (None, {})):
        run = SimpleNamespace(held_out=held_out, unknown_tokens={})
        classify.count_unknown(tokenizer, {"test": examples}, run)
        assert run.unknown_tokens == wanted


def test_what_a_command_on_the_model_takes_over():
    """As far as it is other than by default: how the next export is read, too."""
    assert classify.arguments_to_keep(ClassificationDataArguments()) == []
    data = ClassificationDataArguments(
        encoding="cp1252",
        delimiter=";",
        quoting="none",
        text_column_name="a",
        max_seq_length=32,
        multi_label_threshold=0.3,
        train_file="a.csv",
        ladder=False,
    )
    kept = {"encoding", "delimiter", "quoting", "text_column_name", "max_seq_length"}
    assert {*classify.arguments_to_keep(data)} == {*kept, "multi_label_threshold"}


def test_a_text_with_the_end_of_text_of_a_bart_is_a_bad_row():
    model = SimpleNamespace(
        config=SimpleNamespace(
            is_encoder_decoder=True, model_type="bart", eos_token_id=2
        )
    )
    texts = Dataset.from_dict(
        {"text": ["a", "b", "c"], "file": [0] * 3, "line": [2, 3, 5]}
    )
    given = {"test": Source(texts, "t.csv", files=("t.csv",))}
    rows = [[0, 7, 2], [0, 8, 2], [0, 2, 9, 2]]
    good = {"test": Dataset.from_dict({"input_ids": rows[:2]})}
    classify.require_one_end(model, good, given)
    bad = {"test": Dataset.from_dict({"input_ids": rows})}
    with pytest.raises(DataError, match=r"t.csv:5: a text holds the end of text"):
        classify.require_one_end(model, bad, given)
    model.config.is_encoder_decoder = False
    classify.require_one_end(model, bad, given)


def test_where_no_row_that_was_drawn_has_a_label_nothing_is_measured():
    source = SimpleNamespace(dataset=Dataset.from_dict({"label": [None, None]}))
    assert classify._of_labelled(None, source, None, None, "test") == {}
