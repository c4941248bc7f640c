"""Which weights of a model are new, how they start, and what its classes mean."""

import json

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import AutoModel

from llmft.config.fields import ModelArguments
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.errors import ConfigError, DataError
from llmft.model import load as models
from llmft.model import new_weights


def found(folder):
    args = ModelArguments(model_name_or_path=str(folder))
    return models.locate(args, "classification")


def load(folder, task, **options):
    args = ModelArguments()
    tokenizer = models.load_tokenizer(found(folder), args, task)
    return models.load_model(found(folder), args, task, tokenizer, **options)


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


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


def warnings(capsys):
    """The lines of llmft among the progress bars on standard error."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("llmft: ")]


def head_of(folder):
    return load(folder, "classification").classifier.weight


def chosen(folder, *labels, kept=True):
    """Go the way of the recipe; return the model and what its ids mean."""
    names = models.label_names(found(folder), labelled(*labels)).names
    model = load(folder, "classification", label_names=names)
    assert tuple(model.config.id2label.values()) == names
    assert model.config.label2id == {name: i for i, name in enumerate(names)}
    assert kept == torch.equal(model.classifier.weight[:2], head_of(folder)[:2])
    return model, names


def test_new_and_unused_weights_are_said(tiny_bert, tmp_path, wordpiece, capsys):
    encoder = AutoModel.from_pretrained(tiny_bert)
    saved(tmp_path / "encoder", encoder, wordpiece)
    load(tmp_path / "encoder", "masked-lm")
    said = capsys.readouterr().out
    assert "model      BertForMaskedLM, 0.0 M parameters" in said
    assert "new weights, to be trained: cls.predictions\n" in said
    model = load(tiny_bert, "classification", label_names=("a", "b", "c"))
    said = capsys.readouterr().out
    assert "new weights, to be trained: bert.pooler.dense, classifier\n" in said
    assert "weights of the file not used here: cls.predictions\n" in said
    saved(tmp_path / "three", model, wordpiece)
    three = load(tmp_path / "three", "classification", label_names=("a", "b", "c"))
    assert "new weights" not in capsys.readouterr().out
    assert torch.equal(three.classifier.weight, model.classifier.weight)
    two = load(tmp_path / "three", "classification", label_names=("a", "b"))
    assert two.classifier.out_features == 2
    assert "new weights, to be trained: classifier\n" in capsys.readouterr().out


def test_label_names_come_from_data_or_from_the_model(tiny_bert, tmp_path, wordpiece):
    labels = labelled("good", "bad", "fair", "bad")
    names = models.label_names(found(tiny_bert), labels).names
    assert names == ("bad", "fair", "good")
    model = load(tiny_bert, "classification", label_names=names)
    assert model.classifier.out_features == 3
    saved(tmp_path, model, wordpiece)
    assert models.label_names(found(tmp_path), None).names == names
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
    names = models.label_names(found(folder), labelled("a", "b")).names
    model = load(folder, "classification", label_names=names)
    assert not model.classifier.bias.any()
    assert model.config.problem_type == "single_label_classification"
    said = capsys.readouterr().out
    assert f"the classifier of the file is not used: {why}" in said
    with pytest.raises(ConfigError) as caught:
        models.label_names(found(folder), None)
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
        models.label_names(found(tiny_bert), None)
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
    names = models.label_names(found(folder), None).names
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


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_a_language_model_without_head_and_training(task, tmp_path, capsys):
    kind = "bert" if task == "masked-lm" else "llama"
    tied = {"tie_word_embeddings": kind == "bert"}
    whole = tiny.save(tmp_path / "whole", kind, task, **tied)
    load(whole, task, will_train=False)
    AutoModel.from_pretrained(whole).save_pretrained(whole)  # the body alone
    load(whole, task, will_train=True)
    assert warnings(capsys) == []
    load(whole, task, will_train=False)
    assert warnings(capsys) == [
        f"llmft: warning: {whole} has no trained {task} head: what it predicts means"
        " nothing; --do_train trains one"
    ]


WORDS = "bert.embeddings.word_embeddings.weight"
LAYER = "bert.encoder.layer"


@pytest.mark.parametrize("task", ["masked-lm", "classification"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": 64}, "{words} is {rows}x32 in the weights and {rows}x64 by"),
        ({"vocab_size": 300}, "{words} is {rows}x32 in the weights and 300x32 by"),
        (
            {"intermediate_size": 32},
            "{layer}.0.intermediate.dense.weight is 64x32 in the weights and 32x32 by",
        ),
        (
            {"num_hidden_layers": 4},
            "{layer}.2.attention.self.query.weight is not in the weights and 32x32 by",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights(
    values, said, task, tmp_path, wordpiece
):
    folder = change(tiny.save(tmp_path, "bert", "masked-lm"), **values)
    names = ("a", "b") if task == "classification" else ()
    with pytest.raises(ConfigError) as caught:
        load(folder, task, label_names=names)
    said = said.format(words=WORDS, layer=LAYER, rows=len(wordpiece))
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"ConfigError {folder}: config.json does not fit the weights: {said}"
        " config.json; expected the config.json that they were saved with; copy the"
        " folder again"
    )


def test_layers_that_the_config_leaves_out_are_told(tmp_path, capsys):
    folder = tiny.save(tmp_path, "bert", "masked-lm")
    load(change(folder, num_hidden_layers=1), "masked-lm")
    assert warnings(capsys) == [
        "llmft: warning: config.json leaves out weights of the model's body:"
        " bert.encoder.layer.1"
    ]


def test_modules_in_short():
    names = ["h.10.a.w", "h.10.b.w", "h.2.w", "c.p.bias", "c.p.t.dense.weight", "scale"]
    assert new_weights.modules(names) == "c.p, h.10, h.2, scale"
    assert (
        new_weights.modules(f"m{i}.weight" for i in range(9))
        == "m0, m1, m2, m3 and 5 more"
    )


HEADS = {
    "bert": "cls.predictions.transform.dense.weight",
    "distilbert": "vocab_transform.weight",
    "roberta": "lm_head.dense.weight",
    "modernbert": "head.dense.weight",
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_new_masked_lm_head_starts_as_identity(kind, tmp_path, wordpiece):
    whole = tiny.model(kind, "masked-lm", len(wordpiece))
    saved(tmp_path / "whole", whole, wordpiece)
    saved(tmp_path / "encoder", whole.base_model, wordpiece)
    kept = load(tmp_path / "whole", "masked-lm").state_dict()
    new = load(tmp_path / "encoder", "masked-lm").state_dict()
    assert torch.equal(kept[HEADS[kind]], whole.state_dict()[HEADS[kind]])
    assert torch.equal(new[HEADS[kind]], torch.eye(32))
    for name, weight in whole.base_model.state_dict().items():
        assert torch.equal(new[f"{whole.base_model_prefix}.{name}"], weight), name


@pytest.mark.parametrize("kind", HEADS)
def test_a_new_bias_starts_at_the_token_frequencies(kind, wordpiece, capsys):
    model = tiny.model(kind, "masked-lm", len(wordpiece)).eval()
    blocks = Dataset.from_dict({"input_ids": [[7, 7, 9], [9, 7]]})
    new_weights.start_from_frequencies(model, blocks)
    bias = model.get_output_embeddings().bias.detach().clone()
    size = 5 + len(wordpiece)
    assert bias[7].exp().item() == pytest.approx(4 / size)
    assert bias[9].exp().item() == pytest.approx(3 / size)
    assert bias[0].exp().item() == pytest.approx(1 / size)
    assert "starts at the token frequencies" in capsys.readouterr().out
    logits = model(input_ids=torch.tensor([[2, 3]])).logits
    with torch.no_grad():
        model.get_output_embeddings().bias.zero_()
    unbiased = model(input_ids=torch.tensor([[2, 3]])).logits
    torch.testing.assert_close(logits - unbiased, bias.expand_as(logits))


def test_a_trained_bias_and_a_head_without_bias_stay(wordpiece, bpe, capsys):
    blocks = Dataset.from_dict({"input_ids": [[7, 7, 9]]})
    trained = tiny.model("bert", "masked-lm", len(wordpiece))
    torch.nn.init.constant_(trained.get_output_embeddings().bias, 0.5)
    new_weights.start_from_frequencies(trained, blocks)
    assert trained.get_output_embeddings().bias.eq(0.5).all()
    new_weights.start_from_frequencies(
        tiny.model("gpt2", "causal-lm", len(bpe)), blocks
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        (MULTI, ['["b", "a"]', "[]", '["c"]'], ("a", "b", "c")),
        (MULTI, ['["a"]', "[]"], ("a",)),
        (REGRESSION, ["0.5", "1.5"], ("LABEL_0",)),
    ],
)
def test_a_model_for_each_kind(kind, labels, names, tiny_bert, tmp_path, wordpiece):
    found_names = models.label_names(found(tiny_bert), labelled(*labels), (), kind)
    assert found_names == LabelNames(names, kind)
    options = {"label_names": names, "problem_type": kind}
    model = load(tiny_bert, "classification", **options)
    assert model.classifier.out_features == len(names)
    folder = saved(tmp_path, model, wordpiece)
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == kind
    assert models.problem_type(found(folder)) == kind
    assert models.label_names(found(folder), None, (), kind) == found_names
    again = load(folder, "classification", **options, will_train=False)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    other = SINGLE if kind == MULTI else MULTI
    with pytest.raises(ConfigError, match=f"no trained classifier: it is for {kind}"):
        models.label_names(found(folder), None, (), other)


def test_a_regression_keeps_the_name_of_its_output(classifier, capsys):
    folder = change(classifier("score"), problem_type=REGRESSION)
    names = models.label_names(found(folder), labelled("0.5", "2"), (), REGRESSION)
    assert names.names == ("score",)
    load(folder, "classification", label_names=names.names, problem_type=REGRESSION)
    assert "new weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("problem_type", "names", "kind"),
    [
        (None, ("a", "b"), SINGLE),
        (None, ("a",), REGRESSION),  # as transformers takes it
        (MULTI, ("a",), MULTI),
        (SINGLE, ("a",), SINGLE),
        ("something", ("a", "b"), SINGLE),
    ],
)
def test_what_a_model_was_made_for(problem_type, names, kind, classifier):
    folder = classifier(*names)
    config = models._from_pretrained(models.AutoConfig, found(folder))
    object.__setattr__(config, "problem_type", problem_type)
    assert new_weights.problem_type(config) == kind


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "modernbert"])
def test_the_new_head_of_a_regression_starts_at_the_mean(
    kind, tmp_path, capsys, wordpiece
):
    folder = tiny.save(tmp_path, kind, "masked-lm")
    options = {"label_names": ("LABEL_0",), "problem_type": REGRESSION}
    model = load(folder, "classification", **options).eval()
    train = Dataset.from_dict({"labels": [70.0, 90.0, 83.0]})
    new_weights.prepare_regression(model, None)
    assert "starts at" not in capsys.readouterr().out
    model = load(folder, "classification", **options).eval()
    new_weights.prepare_regression(model, train)
    assert "the new head starts at the mean training label, 81" in (
        capsys.readouterr().out
    )
    with torch.no_grad():
        given = model(input_ids=torch.tensor([[2, 9, 3]])).logits
    assert abs(float(given) - 81) < 1
    model.save_pretrained(folder)
    again = load(folder, "classification", **options, will_train=False).eval()
    capsys.readouterr()
    new_weights.prepare_regression(
        again, Dataset.from_dict({"labels": [0.0]})
    )  # not new
    assert "starts at" not in capsys.readouterr().out
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        in_bf16 = again(input_ids=torch.tensor([[2, 9, 3]])).logits
    assert in_bf16.dtype == torch.float32
    torch.testing.assert_close(in_bf16, given, rtol=0, atol=0.02)  # steps of 0.5
    classes = load(folder, "classification", label_names=("a", "b"))
    new_weights.prepare_regression(classes, train)
    assert "starts at" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "changes", "takes"),
    [
        ("bert", {}, True),
        ("bert", {"type_vocab_size": 1}, False),
        ("distilbert", {}, False),
        ("roberta", {"type_vocab_size": 1}, False),
        ("modernbert", {}, False),
        ("electra", {}, True),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_pairs_have_token_types_where_the_model_has_a_use(
    kind, changes, takes, named, tmp_path
):
    folder = tiny.save(tmp_path, kind, "masked-lm", **changes)
    if named:
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    tokenizer = models.load_tokenizer(found(folder), ModelArguments(), "classification")
    assert ("token_type_ids" in tokenizer("a", "film")) == takes
    tokenizer.save_pretrained(tmp_path / "saved")
    again = type(tokenizer).from_pretrained(tmp_path / "saved")
    assert ("token_type_ids" in again("a", "film")) == takes
    model = load(folder, "classification", label_names=("x", "y"))
    model(**again("a", "film", return_tensors="pt"))


def test_what_is_no_classifier_was_made_for_nothing(tiny_bert):
    with pytest.raises(ConfigError, match="classifier: it is a BertForMaskedLM; exp"):
        models.problem_type(found(tiny_bert))
