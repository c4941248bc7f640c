"""LoRA trains its factors alone, and both ways of saving load with transformers."""

import json

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM
from unit.test_trainer import arguments, causal_lm

from llmft import models
from llmft.arguments import GenerationModelArguments, ModelArguments
from llmft.errors import ConfigError
from llmft.lora import add_lora, merged


def trained(tmp_path, base, args):
    trainer = causal_lm(arguments(tmp_path, max_steps=3, learning_rate=0.05), "llama")
    model = add_lora(AutoModelForCausalLM.from_pretrained(base), args)
    trainer = type(trainer)(
        task="causal-lm",
        model=model,
        args=trainer.args,
        data_collator=trainer.data_collator,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
    )
    trainer.train()
    return model.eval()


@pytest.fixture
def base(tmp_path):
    return tiny.save(tmp_path / "base", "llama", "causal-lm")


IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_what_is_saved_loads_and_gives_the_same(tmp_path, base, save, capsys):
    args = GenerationModelArguments(lora_r=4, lora_save=save)
    model = trained(tmp_path, base, args)
    assert "LoRA of rank 4: " in capsys.readouterr().out
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        before = AutoModelForCausalLM.from_pretrained(base)(input_ids=IDS).logits
    assert (wanted - before).abs().max() > 1e-3
    merged(model, args).save_pretrained(tmp_path / "model")
    tiny.bpe_tokenizer().save_pretrained(tmp_path / "model")
    written = {p.name for p in (tmp_path / "model").iterdir()}
    assert ("adapter_model.safetensors" in written) is (save == "adapter")
    assert ("config.json" in written) is (save == "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        found = loaded(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    again = ModelArguments(model_name_or_path=str(tmp_path / "model"))
    located = models.locate(again, "causal-lm")
    tokenizer = models.load_tokenizer(located, again, "causal-lm")
    ours = models.load_model(located, again, "causal-lm", tokenizer)
    with torch.no_grad():
        found = ours(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_only_the_factors_train(tmp_path, base):
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    model = trained(tmp_path, base, GenerationModelArguments(lora_r=2, lora_alpha=2))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    inner = model.get_base_model().state_dict()
    for name, weight in start.items():
        kept = inner.get(name, inner.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(kept, weight), name


def test_the_default_scale_is_twice_the_rank(base):
    model = add_lora(
        AutoModelForCausalLM.from_pretrained(base), GenerationModelArguments(lora_r=4)
    )
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.0)
    assert json.loads(json.dumps(sorted(config.target_modules)))


def test_without_rank_nothing_changes(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    args = GenerationModelArguments()
    assert add_lora(model, args) is model
    assert merged(model, args) is model


def test_layers_that_are_not_there_are_named(base):
    args = GenerationModelArguments(lora_r=4, lora_target_modules=["query"])
    with pytest.raises(ConfigError, match=r"lora_target_modules is \['query'\]") as e:
        add_lora(AutoModelForCausalLM.from_pretrained(base), args)
    assert "q_proj" in str(e.value)
