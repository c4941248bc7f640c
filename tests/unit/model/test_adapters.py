"""LoRA trains its factors alone, and both ways of saving load with transformers."""

import json

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM
from unit.model.test_load import load
from unit.train.test_trainer import arguments, causal_lm

from llmft.config.fields import GenerationModelArguments
from llmft.errors import ConfigError
from llmft.model.adapters import add_lora, merged


def trained(tmp_path, base, args):
    trainer = causal_lm(arguments(tmp_path, max_steps=3, learning_rate=0.05), "llama")
    model = add_lora(AutoModelForCausalLM.from_pretrained(base), args)
    trainer = type(trainer)(
        objective=trainer.objective,
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
    ours = load(tmp_path / "model", "causal-lm")
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
    with pytest.raises(ConfigError, match="no layer is called query; there are") as e:
        add_lora(AutoModelForCausalLM.from_pretrained(base), args)
    assert "q_proj" in str(e.value)


def save_adapter(tmp_path, base):
    args = GenerationModelArguments(lora_r=4, lora_save="adapter")
    trained(tmp_path, base, args).save_pretrained(tmp_path / "model")
    tiny.bpe_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_second_adapter_needs_the_first_merged(tmp_path, base):
    folder = save_adapter(tmp_path, base)
    args = GenerationModelArguments(
        model_name_or_path=str(folder), lora_r=4, lora_save="adapter"
    )
    with pytest.raises(ConfigError, match="is an adapter, merged before training"):
        add_lora(load(folder, "causal-lm"), args)
    # Without new factors all weights train; peft had frozen them.
    assert all(p.requires_grad for p in load(folder, "causal-lm").parameters())


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_embeddings_are_no_targets(base, layer):
    args = GenerationModelArguments(lora_r=4, lora_target_modules=["q_proj", layer])
    with pytest.raises(ConfigError, match=f"{layer} is an embedding, which may be"):
        add_lora(AutoModelForCausalLM.from_pretrained(base), args)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("{", "does not name a model"),
        ('{"base_model_name_or_path": null}', "does not name a model"),
        ('{"base_model_name_or_path": "SELF"}', "does not name a model"),
        ('{"base_model_name_or_path": "/nowhere/x"}', "the adapter's base model /now"),
    ],
)
def test_a_damaged_adapter_config(tmp_path, base, damage, said):
    folder = save_adapter(tmp_path, base)
    text = damage.replace("SELF", str(folder))
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(folder, "causal-lm")


def test_damaged_adapter_weights(tmp_path, base):
    folder = save_adapter(tmp_path, base)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ConfigError, match="the adapter does not fit its base model"):
        load(folder, "causal-lm")


def test_an_adapter_is_no_model_for_other_tasks(tmp_path, base):
    folder = save_adapter(tmp_path, base)
    with pytest.raises(ConfigError, match="an adapter of a causal model"):
        load(folder, "classification")


def test_an_adapter_loads_from_every_folder(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained("base")
    args = GenerationModelArguments(lora_r=4, lora_save="adapter")
    add_lora(model, args).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
