"""Tokens that are added, the embeddings they get, and what LoRA does with them."""

import pytest
import tiny
import torch
from transformers import AutoTokenizer
from unit.model.test_load import load, load_tokenizer, saved

from llmft.config.fields import GenerationModelArguments, ModelArguments
from llmft.errors import ConfigError
from llmft.model.adapters import add_lora, merged
from llmft.model.vocabulary import tokens_to_add


def test_tokens_are_given_by_themselves_or_in_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("\ufeffzorp\n\n  blik \nzorp\n", "utf-8")
    found = tokens_to_add(["<x>", "words.txt", "two words"])
    assert found == ["<x>", "zorp", "blik", "two words"]
    assert tokens_to_add(None) == []
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    (tmp_path / "empty.txt").write_text(" \n")
    wrong = {"latin.txt": "utf-8", "empty.txt": "there is no token"}
    wrong |= {"gone.txt": "no such file", "a/b": "no such file"}
    for name, said in wrong.items():
        with pytest.raises(ConfigError, match=f"{name}: add_tokens: .*{said}"):
            tokens_to_add([name])


@pytest.mark.parametrize(
    ("kind", "task"),
    [("bert", "masked-lm"), ("bert", "classification"), ("gpt2", "causal-lm")],
)
def test_added_tokens_get_the_mean_and_stay_in_what_is_saved(
    tmp_path, kind, task, capsys
):
    folder = tiny.save(tmp_path / "model", kind, task)
    args = ModelArguments(add_tokens=["<x>", "zorp", "movie"])
    tokenizer = load_tokenizer(folder, args)
    model = load(folder, task, tokenizer=tokenizer, args=args)
    said = capsys.readouterr().out
    assert "tokens     2 added: '<x>', 'zorp'; 1 it had" in said
    assert "embeddings: 2 new ones start near the mean of the" in said
    plain = load(folder, task).get_input_embeddings().weight
    table = model.get_input_embeddings().weight
    assert torch.equal(table[:-2], plain)
    mean = plain.mean(0).expand(2, -1)
    torch.testing.assert_close(table[-2:], mean, atol=1e-3, rtol=0)
    saved(tmp_path / "saved", model, tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert "zorp" in again.tokenize("a zorp <x>")
    assert load(tmp_path / "saved", task).config.vocab_size == len(again)


def test_a_tokenizer_with_more_tokens_is_refused_unless_asked(tmp_path, tiny_bert):
    tokenizer = load_tokenizer(tiny_bert)
    tokenizer.add_tokens(["zorp"])
    with pytest.raises(ConfigError, match=r"ids up to .*--resize_embeddings"):
        load(tiny_bert, "masked-lm", tokenizer=tokenizer)
    args = ModelArguments(resize_embeddings=True)
    model = load(tiny_bert, "masked-lm", tokenizer=tokenizer, args=args)
    assert len(model.get_output_embeddings().bias) == len(tokenizer)


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("gpt2", True)])
def test_lora_trains_the_rows_of_added_tokens_alone(tmp_path, kind, tied):
    folder = tiny.save(tmp_path / "m", kind, "causal-lm", tie_word_embeddings=tied)
    args = GenerationModelArguments(
        lora_r=2, add_tokens=["<x>", "movie"], lora_save="adapter"
    )
    tokenizer = load_tokenizer(folder, args)
    model = load(folder, "causal-lm", tokenizer=tokenizer, args=args)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    model = add_lora(model, args, tokenizer)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(0.1)
    saved(tmp_path / "adapter", merged(model, args), tokenizer)
    whole = merged(model, GenerationModelArguments(lora_r=2)).state_dict()
    for name in (n for n in before if "head" in n or "embed" in n or "wte" in n):
        assert torch.equal(whole[name][:-1], before[name][:-1])
        moved = whole[name][-1] - before[name][-1]
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1))
    found = load(tmp_path / "adapter", "causal-lm").state_dict()
    for name, weight in whole.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)
