"""What is loaded, what is refused and with which words."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel

from llmft import models
from llmft.arguments import ModelArguments
from llmft.errors import ConfigError, EnvironmentFault, UnsafeArtifactError
from llmft.hub import Located


def found(folder):
    args = ModelArguments(model_name_or_path=str(folder))
    return models.locate(args, "masked-lm")


def load(folder, task, *, tokenizer=None, args=None, **options):
    args = args or ModelArguments()
    tokenizer = tokenizer or models.load_tokenizer(found(folder), args, task)
    return models.load_model(found(folder), args, task, tokenizer, **options)


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def without_special_tokens(folder, *names):
    """A folder of GPT-2's tokenizer where ``names`` are not set."""
    saved(folder, tiny.model("gpt2", "causal-lm", 500), tiny.bpe_tokenizer())
    for path in folder.glob("tokenizer_config.json"):
        config = json.loads(path.read_text())
        kept = {k: v for k, v in config.items() if k not in names}
        path.write_text(json.dumps(kept))
    return folder


def test_a_model_without_mask_token_is_refused_for_masked_lm(tiny_gpt2):
    with pytest.raises(ConfigError) as caught:
        models.load_tokenizer(found(tiny_gpt2), ModelArguments(), "masked-lm")
    assert str(caught.value) == (
        f"ConfigError: {tiny_gpt2} has no mask token, which masked language modelling"
        " needs: choose a masked model such as distilbert-base-uncased, or"
        " recipes/generate.py for this one"
    )


def test_padding_with_eos_is_said(tiny_gpt2, tiny_bert, capsys):
    tokenizer = models.load_tokenizer(found(tiny_gpt2), ModelArguments(), "causal-lm")
    assert tokenizer.pad_token == "<|endoftext|>"
    assert capsys.readouterr().out == (
        "the tokenizer has no pad token: padding with '<|endoftext|>'\n"
    )
    model = load(tiny_gpt2, "classification", label_names=("a", "b"))
    assert model.config.pad_token_id == tokenizer.pad_token_id
    capsys.readouterr()
    models.load_tokenizer(found(tiny_bert), ModelArguments(), "masked-lm")
    assert capsys.readouterr().out == ""


def test_no_pad_and_no_eos_token_is_refused(tmp_path):
    folder = without_special_tokens(tmp_path, "eos_token", "pad_token")
    with pytest.raises(ConfigError, match="has no pad and no eos token: set pad_token"):
        models.load_tokenizer(found(folder), ModelArguments(), "causal-lm")


def test_another_tokenizer(tiny_gpt2, tiny_bert):
    args = ModelArguments(tokenizer_name=str(tiny_bert))
    assert models.load_tokenizer(found(tiny_gpt2), args, "causal-lm").mask_token


@pytest.mark.parametrize(
    ("kind", "task", "limit"),
    [
        ("bert", "masked-lm", 64),
        ("distilbert", "masked-lm", 64),
        ("roberta", "masked-lm", 62),  # counts from padding_idx + 1 = 2
        ("gpt2", "causal-lm", 64),
    ],
)
def test_position_limit_is_where_the_model_itself_gives_up(kind, task, limit):
    model = tiny.model(kind, task, 160).eval()
    assert models.position_limit(model) == limit
    with torch.no_grad():
        model(torch.full((1, limit), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 7))


def test_too_long_and_too_few_embeddings(tiny_bert, wordpiece, bpe):
    load(tiny_bert, "masked-lm", max_seq_length=64)
    with pytest.raises(
        ConfigError, match="max_seq_length is 65, this model has 64 positions"
    ):
        load(tiny_bert, "masked-lm", max_seq_length=65)
    large, rows = len(bpe), len(wordpiece)
    with pytest.raises(
        ConfigError,
        match=f"the tokenizer has {large} tokens, the model embeddings for {rows}:"
        " use the tokenizer that the model was made with",
    ):
        load(tiny_bert, "masked-lm", tokenizer=bpe)


def test_label_names_come_from_data_or_from_the_model(tiny_bert, tmp_path, wordpiece):
    data = Dataset.from_dict({"label": ["good", "bad", "fair", "bad"]})
    names = models.label_names(found(tiny_bert), data).names
    assert names == ("bad", "fair", "good")
    model = load(tiny_bert, "classification", label_names=names)
    assert model.classifier.out_features == 3
    saved(tmp_path, model, wordpiece)
    assert models.label_names(found(tmp_path), None).names == names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2}


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "classification"),
        ("distilbert", "classification"),
        ("roberta", "masked-lm"),
        ("modernbert", "masked-lm"),
        ("albert", "masked-lm"),
        ("electra", "classification"),
        ("gpt2", "causal-lm"),
        ("llama", "causal-lm"),
    ],
)
def test_dropout_is_set_everywhere(tmp_path, kind, task, wordpiece):
    saved(tmp_path, tiny.model(kind, task, len(wordpiece)), wordpiece)
    for dropout in (0.0, 0.35):
        args = ModelArguments(dropout=dropout)
        model = load(tmp_path, task, tokenizer=wordpiece, args=args).train()
        rates = {
            name: module.p
            for name, module in model.named_modules()
            if isinstance(module, nn.Dropout)
        }
        assert {name: p for name, p in rates.items() if p != dropout} == {}
        ids = torch.full((2, 9), 7)
        first, second = (model(ids).logits for _ in range(2))
        assert torch.equal(first, second) == (dropout == 0)
    kept = load(tmp_path, task, tokenizer=wordpiece)
    assert kept.config.to_dict() != model.config.to_dict()


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_is_refused_and_never_opened(tmp_path, wordpiece):
    marker, folder = tmp_path / "marker", tmp_path / "model"
    saved(folder, tiny.model("bert", "masked-lm", len(wordpiece)), wordpiece)
    (folder / "model.safetensors").unlink()
    bad = folder / "pytorch_model.bin"
    with open(bad, "wb") as stream:
        pickle.dump({"weight": _Payload(marker)}, stream)
    with pytest.raises(UnsafeArtifactError) as caught:
        load(folder, "masked-lm")
    assert caught.value.exit_code == 7
    assert str(caught.value) == (
        f"UnsafeArtifactError {folder}: the weights are a pickle (pytorch_model.bin),"
        " which can run code; expected model.safetensors; convert it with a tool that"
        " you trust"
    )
    assert not marker.exists()
    pickle.loads(bad.read_bytes())
    assert marker.exists()  # the payload works


@pytest.mark.parametrize("kept", [0, 500, -5])
def test_damaged_weights_are_named(tmp_path, kept):
    file = tiny.save(tmp_path, "bert", "masked-lm") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(EnvironmentFault, match=f"{tmp_path}: the weights are damaged"):
        load(tmp_path, "masked-lm")


def test_no_weights_at_all_is_another_fault(tmp_path):
    tiny.save(tmp_path, "bert", "masked-lm")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EnvironmentFault, match=r"no file named model\.safetensors"):
        load(tmp_path, "masked-lm")


def test_new_and_unused_weights_are_said(tiny_bert, tmp_path, wordpiece, capsys):
    encoder = AutoModel.from_pretrained(tiny_bert)
    saved(tmp_path / "encoder", encoder, wordpiece)
    load(tmp_path / "encoder", "masked-lm")
    said = capsys.readouterr().out
    assert "model      BertForMaskedLM, 0.0 M parameters" in said
    assert "new weights, to be trained: cls\n" in said
    model = load(tiny_bert, "classification", label_names=("a", "b", "c"))
    said = capsys.readouterr().out
    assert "new weights, to be trained: bert, classifier\n" in said  # bert: pooler
    assert "weights of the file not used here: cls\n" in said
    saved(tmp_path / "three", model, wordpiece)
    three = load(tmp_path / "three", "classification", label_names=("a", "b", "c"))
    assert "new weights" not in capsys.readouterr().out
    assert torch.equal(three.classifier.weight, model.classifier.weight)
    two = load(tmp_path / "three", "classification", label_names=("a", "b"))
    assert two.classifier.out_features == 2
    assert "new weights, to be trained: classifier\n" in capsys.readouterr().out


def test_weights_are_float32_also_from_a_bf16_checkpoint(tmp_path, wordpiece):
    half = tiny.model("bert", "masked-lm", len(wordpiece)).to(torch.bfloat16)
    saved(tmp_path, half, wordpiece)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    model = load(tmp_path, "masked-lm")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    wanted = half.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name].float()), name
    kept = load(tmp_path, "masked-lm", dtype=torch.bfloat16)
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}


def test_attention_implementation(tiny_bert):
    for name in ("eager", "sdpa"):
        args = ModelArguments(attn_implementation=name)
        assert load(tiny_bert, "masked-lm", args=args).config._attn_implementation == (
            name
        )


def test_identity(tiny_bert, wordpiece, bpe):
    weights = (tiny_bert / "model.safetensors").read_bytes()
    pins = models.identity(found(tiny_bert), wordpiece)
    assert pins.pop("name") == str(tiny_bert)
    assert len(pins.pop("tokenizer")) >= 16
    assert pins == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    pinned = Located("cache/snapshot", name="owner/name", commit="abc")
    first, second = (models.identity(pinned, t) for t in (wordpiece, bpe))
    assert first.pop("tokenizer") != second.pop("tokenizer")
    assert first == second == {"name": "owner/name", "commit": "abc"}


def test_a_wrong_type_in_config_json_names_the_field(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"{folder}: .*hidden_size"):
        load(folder, "masked-lm")


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
    models.start_from_frequencies(model, blocks)
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
    models.start_from_frequencies(trained, blocks)
    assert trained.get_output_embeddings().bias.eq(0.5).all()
    models.start_from_frequencies(tiny.model("gpt2", "causal-lm", len(bpe)), blocks)
    assert capsys.readouterr().out == ""
