"""What the outputs of a classifier mean, and when its head is made new."""

import json

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import AutoConfig
from unit.model.test_load import change, found, load, saved

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.errors import ConfigError, DataError
from llmft.model.labels import label_names, problem_type, trained_problem_type
from llmft.model.pretrained import from_pretrained


def labelled(*labels):
    return Source(Dataset.from_dict({"label": list(labels)}), "train.csv")


@pytest.fixture
def classifier(tmp_path, wordpiece):
    """Make a folder with a trained classifier of the given class names."""

    def make(*names, kind="bert"):
        model = tiny.model(kind, "classification", len(wordpiece))
        model = type(model)(
            type(model.config).from_dict(
                model.config.to_dict() | {"id2label": dict(enumerate(names))}
            )
        )
        return saved(tmp_path / "-".join(names), model, wordpiece)

    return make


def head_of(folder):
    return load(folder, "classification").classifier.weight


def chosen(folder, *labels, kept=True):
    """Go the way of the recipe; return the model and what its ids mean."""
    names = label_names(found(folder), labelled(*labels)).names
    model = load(folder, "classification", label_names=names)
    assert tuple(model.config.id2label.values()) == names
    assert model.config.label2id == {name: i for i, name in enumerate(names)}
    assert kept == torch.equal(model.classifier.weight[:2], head_of(folder)[:2])
    return model, names


def test_label_names_come_from_data_or_from_the_model(tiny_bert, tmp_path, wordpiece):
    labels = labelled("good", "bad", "fair", "bad")
    names = label_names(found(tiny_bert), labels).names
    assert names == ("bad", "fair", "good")
    model = load(tiny_bert, "classification", label_names=names)
    assert model.classifier.out_features == 3
    saved(tmp_path, model, wordpiece)
    assert label_names(found(tmp_path), None).names == names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2}


def test_a_model_that_knows_the_labels_keeps_their_order(classifier, capsys):
    folder = classifier("pos", "neg")
    capsys.readouterr()
    _, names = chosen(folder, "neg", "pos", "neg")
    assert names == ("pos", "neg")
    said = capsys.readouterr().out
    assert "new weights" not in said
    assert "not used" not in said


def test_a_classifier_of_other_classes_is_made_new(classifier, capsys):
    folder = classifier("sad", "glad")
    model, names = chosen(folder, "neg", "pos", kept=False)
    assert names == ("neg", "pos")
    assert not model.classifier.bias.any()
    assert 0.01 < model.classifier.weight.std() < 0.04
    out = capsys.readouterr().out
    assert "           new weights, to be trained: classifier\n" in out
    assert (
        "           the classifier of the file is not used: it was trained for sad,"
        " glad, the data has neg, pos\n"
    ) in out


def test_classes_without_names_get_those_of_the_data(classifier, capsys):
    folder = classifier("LABEL_0", "LABEL_1")
    chosen(folder, "neg", "pos")
    out = capsys.readouterr().out
    assert "its classes had no names: LABEL_0 is neg, LABEL_1 is pos\n" in out
    assert "new weights" not in out
    for labels in (("0", "1"), ("LABEL_1", "LABEL_0")):
        assert chosen(folder, *labels)[1] == tuple(sorted(labels))
        assert "had no names" not in capsys.readouterr().out


def test_another_number_of_classes_is_another_head(classifier, capsys):
    folder = classifier("LABEL_0", "LABEL_1")
    assert chosen(folder, "a", "b", "c", kept=False)[0].num_labels == 3
    said = capsys.readouterr().out
    assert "to be trained: classifier\n" in said
    assert (
        "the classifier of the file is not used: it has 2 classes, the data 3" in said
    )


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "it is a BertForToken"),
        (
            {"problem_type": "multi_label_classification"},
            "it is for multi_label_classification",
        ),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label in its config.json is not one"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label in its config.json is not one"),
        ({"id2label": {"0": "a"}}, "it is for regression"),
    ],
)
def test_a_head_of_another_kind(values, why, classifier, capsys):
    """It is made new for training, and refused without."""
    folder = change(classifier("a", "b"), **values)
    names = label_names(found(folder), labelled("a", "b")).names
    model = load(folder, "classification", label_names=names)
    assert not model.classifier.bias.any()
    assert model.config.problem_type == "single_label_classification"
    said = capsys.readouterr().out
    assert f"the classifier of the file is not used: {why}" in said
    with pytest.raises(ConfigError) as caught:
        label_names(found(folder), None)
    assert f"ConfigError {folder}: this model has no trained classifier: {why}" in str(
        caught.value
    )


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "electra", "modernbert"])
def test_the_layer_of_the_classes_is_the_one_made_new(kind, classifier, capsys):
    folder = classifier("x", "y", kind=kind)
    before = load(folder, "classification").state_dict()
    model = load(folder, "classification", label_names=("a", "b"))
    new = {
        name
        for name, weight in model.state_dict().items()
        if not torch.equal(weight, before[name])
    }
    last = "classifier.out_proj" if kind in ("roberta", "electra") else "classifier"
    assert new == {f"{last}.weight"}  # its bias was zero before
    assert f"to be trained: {last}\n" in capsys.readouterr().out


def test_no_classifier_and_no_training(tiny_bert, classifier):
    with pytest.raises(ConfigError) as caught:
        label_names(found(tiny_bert), None)
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"ConfigError {tiny_bert}: this model has no trained classifier: it is a"
        " BertForMaskedLM; expected a model that recipes/classify.py trained, or the"
        " like; --do_train makes one"
    )
    options = {"label_names": ("a", "b"), "will_train": False}
    with pytest.raises(ConfigError, match="classifier would be random"):
        load(tiny_bert, "classification", **options)
    load(classifier("a", "b"), "classification", **options)


def test_predicting_with_a_config_that_hides_what_it_is(tmp_path, wordpiece):
    """Without `architectures` only the weights tell."""
    encoder = tiny.model("bert", "masked-lm", len(wordpiece)).base_model
    folder = change(saved(tmp_path, encoder, wordpiece), architectures=None)
    names = label_names(found(folder), None).names
    assert names == ("LABEL_0", "LABEL_1")
    with pytest.raises(ConfigError, match=r"classifier: bert\.pooler\.dense, class"):
        load(folder, "classification", label_names=names, will_train=False)


def test_numbers_stand_for_classes_without_names():
    names = LabelNames(("LABEL_0", "LABEL_1"))
    assert names.ids(["1", "0", "LABEL_1"], "test") == [1, 0, 1]
    with pytest.raises(DataError, match="test has labels that train has not: '2'"):
        names.ids(["2"], "test")
    with pytest.raises(DataError):
        LabelNames(("LABEL_1", "LABEL_0")).ids(["1"], "test")


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        (MULTI, ['["b", "a"]', "[]", '["c"]'], ("a", "b", "c")),
        (MULTI, ['["a"]', "[]"], ("a",)),
        (REGRESSION, ["0.5", "1.5"], ("LABEL_0",)),
    ],
)
def test_a_model_for_each_kind(kind, labels, names, tiny_bert, tmp_path, wordpiece):
    found_names = label_names(found(tiny_bert), labelled(*labels), (), kind)
    assert found_names == LabelNames(names, kind)
    options = {"label_names": names, "problem_type": kind}
    model = load(tiny_bert, "classification", **options)
    assert model.classifier.out_features == len(names)
    folder = saved(tmp_path, model, wordpiece)
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == kind
    assert trained_problem_type(found(folder)) == kind
    assert label_names(found(folder), None, (), kind) == found_names
    again = load(folder, "classification", **options, will_train=False)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    other = SINGLE if kind == MULTI else MULTI
    with pytest.raises(ConfigError, match=f"no trained classifier: it is for {kind}"):
        label_names(found(folder), None, (), other)


def test_a_regression_keeps_the_name_of_its_output(classifier, capsys):
    folder = change(classifier("score"), problem_type=REGRESSION)
    names = label_names(found(folder), labelled("0.5", "2"), (), REGRESSION)
    assert names.names == ("score",)
    load(folder, "classification", label_names=names.names, problem_type=REGRESSION)
    assert "new weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "names", "kind"),
    [
        (None, ("a", "b"), SINGLE),
        (None, ("a",), REGRESSION),  # as transformers takes it
        (MULTI, ("a",), MULTI),
        (SINGLE, ("a",), SINGLE),
        ("something", ("a", "b"), SINGLE),
    ],
)
def test_what_a_model_was_made_for(given, names, kind, classifier):
    folder = classifier(*names)
    config = from_pretrained(AutoConfig, found(folder))
    object.__setattr__(config, "problem_type", given)
    assert problem_type(config) == kind


def test_what_is_no_classifier_was_made_for_nothing(tiny_bert):
    with pytest.raises(ConfigError, match="classifier: it is a BertForMaskedLM; exp"):
        trained_problem_type(found(tiny_bert))
