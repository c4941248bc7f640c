"""Which weights of a model are new, how they start, and what is said of them."""

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import AutoModel
from unit.model.test_load import change, load, saved

from llmft.data.read.labels import REGRESSION
from llmft.errors import ConfigError
from llmft.model import new_weights


def warnings(capsys):
    """The lines of llmft among the progress bars on standard error."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("llmft: ")]


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


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_a_language_model_without_head_and_training(task, tmp_path, capsys):
    kind, head = ("bert", "MaskedLM") if task == "masked-lm" else ("llama", "CausalLM")
    tied = {"tie_word_embeddings": kind == "bert"}
    whole = tiny.save(tmp_path / "whole", kind, task, **tied)
    load(whole, task, will_train=False)
    AutoModel.from_pretrained(whole).save_pretrained(whole)  # the body alone
    load(whole, task, will_train=True)
    assert warnings(capsys) == []
    load(whole, task, will_train=False)
    assert warnings(capsys) == [
        f"llmft: warning: {whole} has no trained {head} head: what it predicts means"
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
    start = {"init_new_weights": new_weights.init_mlm_head_as_identity}
    kept = load(tmp_path / "whole", "masked-lm", **start).state_dict()
    new = load(tmp_path / "encoder", "masked-lm", **start).state_dict()
    assert torch.equal(kept[HEADS[kind]], whole.state_dict()[HEADS[kind]])
    assert torch.equal(new[HEADS[kind]], torch.eye(32))
    for name, weight in whole.base_model.state_dict().items():
        assert torch.equal(new[f"{whole.base_model_prefix}.{name}"], weight), name


@pytest.mark.parametrize("kind", HEADS)
def test_a_new_bias_starts_at_the_token_frequencies(kind, wordpiece, capsys):
    model = tiny.model(kind, "masked-lm", len(wordpiece)).eval()
    blocks = Dataset.from_dict({"input_ids": [[7, 7, 9], [9, 7]]})
    new_weights.init_output_bias_from_frequencies(model, blocks)
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
    new_weights.init_output_bias_from_frequencies(trained, blocks)
    assert trained.get_output_embeddings().bias.eq(0.5).all()
    new_weights.init_output_bias_from_frequencies(
        tiny.model("gpt2", "causal-lm", len(bpe)), blocks
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "modernbert"])
def test_the_new_head_of_a_regression_starts_at_the_mean(
    kind, tmp_path, capsys, wordpiece
):
    folder = tiny.save(tmp_path, kind, "masked-lm")
    options = {"label_names": ("LABEL_0",), "problem_type": REGRESSION}
    model = load(folder, "classification", **options).eval()
    train = Dataset.from_dict({"labels": [70.0, 90.0, 83.0]})
    new_weights.init_regression_head(model, None)
    assert "starts at" not in capsys.readouterr().out
    model = load(folder, "classification", **options).eval()
    new_weights.init_regression_head(model, train)
    assert "the new head starts at the mean training label, 81" in (
        capsys.readouterr().out
    )
    with torch.no_grad():
        given = model(input_ids=torch.tensor([[2, 9, 3]])).logits
    assert abs(float(given) - 81) < 1
    model.save_pretrained(folder)
    again = load(folder, "classification", **options, will_train=False).eval()
    capsys.readouterr()
    new_weights.init_regression_head(
        again, Dataset.from_dict({"labels": [0.0]})
    )  # not new
    assert "starts at" not in capsys.readouterr().out
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        in_bf16 = again(input_ids=torch.tensor([[2, 9, 3]])).logits
    assert in_bf16.dtype == torch.float32
    torch.testing.assert_close(in_bf16, given, rtol=0, atol=0.02)  # steps of 0.5
    classes = load(folder, "classification", label_names=("a", "b"))
    new_weights.init_regression_head(classes, train)
    assert "starts at" not in capsys.readouterr().out


def test_a_bias_that_is_not_of_tokens_stays(wordpiece):
    """The output embeddings of a new DeBERTa-v2 head are its inner layer."""
    model = tiny.model("deberta-v2", "masked-lm", len(wordpiece), legacy=False)
    blocks = Dataset.from_dict({"input_ids": [[2, 5, 3]]})
    new_weights.init_output_bias_from_frequencies(model, blocks)
    assert not model.get_output_embeddings().bias.any()
