"""LoRA trains its factors alone, and both ways of saving load with transformers."""

import json
import shutil
from types import SimpleNamespace

import pytest
import recipe_process
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from unit.model.test_load import load
from unit.train.test_trainer import arguments, causal_lm

from llmft.config.fields import GenerationModelArguments
from llmft.errors import ConfigError
from llmft.model import load as load_module
from llmft.model.adapters import (
    add_lora,
    base_of,
    light_base,
    lighten,
    lighten_base,
    merged,
)
from llmft.sources import catalog
from llmft.sources.hub import Located
from llmft.train.objectives import CausalLM


def lora_trainer(base, args, training):
    """Return the trainer of ``causal_lm`` for the base with new factors."""
    trainer = causal_lm(training, "llama")
    return type(trainer)(
        objective=trainer.objective,
        model=add_lora(AutoModelForCausalLM.from_pretrained(base), args),
        args=trainer.args,
        data_collator=trainer.data_collator,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
    )


def trained(tmp_path, base, args):
    training = arguments(tmp_path, max_steps=3, learning_rate=0.05)
    trainer = lora_trainer(base, args, training)
    trainer.train()
    return trainer.model.eval()


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


def test_training_from_an_adapter(tmp_path, base, capsys):
    """What is refused comes before data are read, and what trains is in the plan."""
    folder, texts = save_adapter(tmp_path, base), tmp_path / "texts.txt"
    texts.write_text("\n".join(tiny.sentences(40)))
    flags = ["--model_name_or_path", str(folder), "--do_train", "--dry_run"]
    flags += ["--max_seq_length", "32", "--fast_path", "off", "--train_file"]
    main = recipe_process.main_of("generate")
    nothing = tmp_path / "nothing.txt"
    nothing.touch()  # which reading would refuse
    with pytest.raises(ConfigError, match="is an adapter, merged before training: a n"):
        main([*flags, str(nothing), "--lora_r", "4", "--lora_save", "adapter"])
    capsys.readouterr()
    for more, said in (
        ([], "what it is merged into trains (merged into {base}; --lora_r trains few"),
        (["--lora_r", "4"], "a new one trains on top (merged into {base})"),
    ):
        main([*flags, str(texts), *more])
        assert f"  adapter    {said.format(base=base)}" in capsys.readouterr().out
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
    with pytest.raises(
        ConfigError, match=r"an adapter for CAUSAL_LM; .*; use recipes/generate.py"
    ):
        load(folder, "classification")


def test_an_adapter_loads_from_every_folder(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained("base")
    args = GenerationModelArguments(lora_r=4, lora_save="adapter")
    add_lora(model, args).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_an_adapter_names_the_commit_of_its_base(tmp_path, base):
    """Also where the base was a copy in the cache of the hub, which may go."""
    commit = "c" * 40
    copy = tmp_path / "models--owner--m" / "snapshots" / commit
    shutil.copytree(base, copy)
    given = {"lora_r": 4, "lora_save": "adapter"}
    for path, revision in ((copy, None), ("owner/m", "v1"), ("owner/m", None)):
        model = AutoModelForCausalLM.from_pretrained(base)
        model.name_or_path = str(path)
        args = GenerationModelArguments("x", model_revision=revision, **given)
        located = Located(str(path), name="owner/m", commit=commit)
        light = add_lora(model, args, located=located)
        light.save_pretrained(tmp_path / "saved")
        assert base_of(tmp_path / "saved") == ("owner/m", commit)


def test_the_base_of_an_adapter_is_found_wherever_it_is(monkeypatch, base):
    """An asset, where its folder in the cache has gone; the hub's at its commit."""
    asset = catalog.get("SmolLM2-135M-Instruct")
    gone = f"/gone/unpacked/{catalog.folder(asset).name}"
    asked = []

    def find(name, revision):
        asked.append((name, revision))
        return Located(str(base), name=name)

    monkeypatch.setattr(load_module, "_find", find)
    for name, revision in ((gone, None), (str(base), "c"), ("owner/m", "c")):
        load_module._base_of_adapter(name, revision, Located("x", name="x"))
    assert asked == [(asset.label, None), (str(base), None), ("owner/m", "c")]


TIES = [("llama", False), ("llama", True), ("gpt2", True), ("phi", False)]


def with_factors(kind, tied, **changes):
    """A tiny model whose factors all differ from zero; Phi has a bias everywhere."""
    model = tiny.model(kind, "causal-lm", 300, tie_word_embeddings=tied)
    model = add_lora(model, GenerationModelArguments(lora_r=4, **changes))
    generator = torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def loss_and_gradients(model):
    ids = torch.randint(0, 300, (2, 9), generator=torch.manual_seed(2))
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast("cpu", torch.bfloat16):
        loss = CausalLM().loss(model, {"input_ids": ids, "labels": ids})
    return [loss, *torch.autograd.grad(loss, trained)]


def same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("targets", [None, ["q_proj"]], ids=["all", "some"])
@pytest.mark.parametrize(("kind", "tied"), TIES)
def test_a_light_base_gives_the_same_bits(tmp_path, kind, tied, targets):
    if kind == "gpt2":
        targets = targets and ["c_attn"]
    plain, light = (
        with_factors(kind, tied, lora_target_modules=targets) for _ in range(2)
    )
    frozen = lighten(light, tmp_path)
    halves = [p for p in light.parameters() if p.dtype == torch.bfloat16]
    assert 0 < frozen == sum(p.numel() for p in halves)
    head, embeddings = light.get_output_embeddings(), light.get_input_embeddings()
    assert embeddings.weight.dtype == torch.float32
    assert (head.weight.dtype == torch.float32) is tied
    for found, wanted in zip(
        loss_and_gradients(light), loss_and_gradients(plain), strict=True
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)
    args = GenerationModelArguments(lora_r=4)
    alone = {n: p.clone() for n, p in plain.get_base_model().state_dict().items()}
    factors = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    found = merged(light, args)
    same_bits(found.state_dict(), merged(plain, args).state_dict())
    # In fp32, from the original weights, by another formula than peft's.
    name = next(n for n in alone if n.endswith("base_layer.weight"))
    key = f"base_model.model.{name.removesuffix('.base_layer.weight')}"
    a, b = (factors[f"{key}.lora_{x}.default.weight"].double() for x in "AB")
    delta = 2 * (b @ a)
    whole = alone[name].double() + (delta.T if kind == "gpt2" else delta)
    sums = found.state_dict()[name.replace(".base_layer", "")].double()
    torch.testing.assert_close(sums, whole, rtol=1e-6, atol=1e-7)
    assert (found.get_output_embeddings().weight is embeddings.weight) is tied


def test_a_trial_runs_on_the_light_base_and_leaves_it_whole(tmp_path):
    """Of the types that a training has, so that nothing is compiled once more."""
    model, light = (with_factors("llama", True) for _ in range(2))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    lighten(light, tmp_path)
    wanted = [(p.dtype, p.requires_grad) for p in light.parameters()]
    with light_base(model, True):
        assert [(p.dtype, p.requires_grad) for p in model.parameters()] == wanted
        found = loss_and_gradients(model)
        for one, other in zip(found, loss_and_gradients(light), strict=True):
            assert torch.equal(one, other)
    same_bits(model.state_dict(), before)
    with light_base(model, False):
        same_bits(model.state_dict(), before)


def test_an_adapter_on_an_adapter_keeps_its_base(tmp_path, base):
    folder = save_adapter(tmp_path, base)
    args = GenerationModelArguments(lora_r=4)
    models = [add_lora(load(folder, "causal-lm"), args) for _ in range(2)]
    assert lighten(models[1], tmp_path)
    plain, light = (merged(model, args).state_dict() for model in models)
    same_bits(light, plain)
    first = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert any(not torch.equal(light[name], first[name]) for name in first)


def test_a_training_ends_with_the_same_weights(tmp_path, base, capsys):
    """Also one that went on from a checkpoint; the adapter alone has its base back."""
    args = GenerationModelArguments(lora_r=4)

    def train(folder, light, **changes):
        more = {"bf16": True, "use_cpu": True, "save_steps": 2, "max_steps": 4}
        more |= {"save_strategy": "steps", "learning_rate": 0.05}
        training = arguments(tmp_path / folder, **more)
        trainer = lora_trainer(base, args, training)
        model = trainer.model
        if light:
            lighten_base(model, trainer.args)
            assert "weights in bf16" in capsys.readouterr().out
        trainer.train(**changes)
        return model

    plain, light = train("plain", False), train("light", True)
    resumed = train(
        "more", True, resume_from_checkpoint=str(tmp_path / "light/checkpoint-2")
    )
    kept = merged(light, GenerationModelArguments(lora_r=4, lora_save="adapter"))
    same_bits(kept.state_dict(), plain.state_dict())
    assert not list((tmp_path / "light").glob("*tmp*"))
    plain, light, resumed = (merged(m, args) for m in (plain, light, resumed))
    same_bits(light.state_dict(), plain.state_dict())
    same_bits(resumed.state_dict(), plain.state_dict())


def test_a_base_that_must_not_be_light_stays(tmp_path, capsys, monkeypatch):
    model = with_factors("llama", False)
    start = {n: p.clone() for n, p in model.state_dict().items()}
    args = SimpleNamespace(bf16=True, use_cpu=True, output_dir=str(tmp_path / "none"))
    lighten_base(model, args)
    assert "originals found no place" in capsys.readouterr().err
    args.output_dir = str(tmp_path)
    layer = model.get_base_model().model.layers[0].mlp.gate_proj
    forward = layer.forward

    def in_fp32(x):
        with torch.autocast("cpu", enabled=False):
            return forward(x)

    monkeypatch.setattr(layer, "forward", in_fp32)
    lighten_base(model, args)
    assert "gives other logits" in capsys.readouterr().err
    same_bits(model.state_dict(), start)
    for bf16, use_cpu in [(False, True), (True, False)]:
        args.bf16, args.use_cpu = bf16, use_cpu
        lighten_base(model, args)
    lighten_base(model.get_base_model(), SimpleNamespace(bf16=True, use_cpu=True))
    assert capsys.readouterr() == ("", "")
    same_bits(model.state_dict(), start)


def by_peft(model, folder, tokenizer, **config):
    """Save an adapter as a user of peft does, factors drawn; return its logits."""
    wrapped = get_peft_model(model, LoraConfig(r=2, **config)).eval()
    for weight in wrapped.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.2, generator=torch.manual_seed(3))
    wrapped.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return wrapped(input_ids=IDS).logits


def test_an_adapter_of_a_classifier_has_its_head(tmp_path, wordpiece, capsys):
    base = tiny.save(tmp_path / "base", "bert", "classification")
    classes = tiny.AUTO_CLASSES["classification"]
    model = classes.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    config = {"task_type": "SEQ_CLS", "target_modules": ["query", "dense"]}
    wanted = by_peft(model, tmp_path / "adapter", wordpiece, **config)
    for _ in range(2):
        found = load(tmp_path / "adapter", "classification", label_names=tuple("abc"))
        with torch.no_grad():
            logits = found.eval()(input_ids=IDS).logits
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out.count("in the cache (once)") == 1
    with pytest.raises(ConfigError, match=r"for SEQ_CLS; .* recipes/classify.py"):
        load(tmp_path / "adapter", "causal-lm")
    tiny.model("bert", "masked-lm", len(wordpiece)).save_pretrained(base)
    with pytest.raises(ConfigError, match=r"its base has bert.pooler.dense"):
        load(tmp_path / "adapter", "classification", label_names=tuple("abc"))


def test_an_adapter_brings_the_tokens_that_it_added(tmp_path, base, bpe):
    tokenizer = type(bpe).from_pretrained(base)
    tokenizer.add_tokens(["<new>", "<newer>"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    layers = {"modules_to_save": ["embed_tokens", "lm_head"], "task_type": "CAUSAL_LM"}
    targets = {"target_modules": ["q_proj"]}
    wanted = by_peft(model, tmp_path / "adapter", tokenizer, **layers, **targets)
    found = load(tmp_path / "adapter", "causal-lm").eval()
    assert len(found.get_input_embeddings().weight) == len(tokenizer)
    with torch.no_grad():
        logits = found(input_ids=IDS).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_what_peft_refuses_is_said_in_its_words():
    model = tiny.model("mamba", "causal-lm", 100, state_size=4, expand=1)
    with pytest.raises(ConfigError, match=r"LoRA: .*incompatible with Mamba"):
        add_lora(model, GenerationModelArguments(lora_r=2))


def test_layers_with_a_computation_of_their_own_get_no_factors(capsys):
    """Llama 4's router is a linear layer that returns two tensors."""
    sizes = {"num_local_experts": 2, "moe_layers": [1], "num_key_value_heads": 2}
    model = tiny.model("llama4_text", "causal-lm", 100, head_dim=16, **sizes)
    model = add_lora(model, GenerationModelArguments(lora_r=2))
    assert "computed in their own way: router\n" in capsys.readouterr().out
    assert not any("router.lora" in name for name, _ in model.named_parameters())
    model(input_ids=IDS, labels=IDS).loss.backward()


def test_an_adapter_that_lost_weights_is_refused(tmp_path, base):
    folder = save_adapter(tmp_path, base)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    del weights[next(iter(weights))]
    save_file(weights, path)
    with pytest.raises(ConfigError, match="does not fit its base model: Found missing"):
        load(folder, "causal-lm")


def unpacked(home):
    return sorted(p.name for p in (home / "unpacked").iterdir())


def test_a_merged_adapter_is_made_anew_where_anything_of_it_changes(
    tmp_path, base, monkeypatch
):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path / "home"))
    folder = save_adapter(tmp_path, base)
    first = load(folder, "causal-lm")
    assert len(unpacked(tmp_path / "home")) == 1
    for count, changed in enumerate((base, folder), 2):
        (changed / "chat_template.jinja").write_text(f"{{# {count} #}}")
        load(folder, "causal-lm")
        assert len(unpacked(tmp_path / "home")) == count
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    second = load(folder, "causal-lm")
    with torch.no_grad():
        logits = [model.eval()(input_ids=IDS).logits for model in (first, second)]
    assert not torch.allclose(*logits)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "an adapter of PREFIX_TUNING, which has no"),
        ({"task_type": ["x"]}, r"an adapter for \['x'\]; .* no recipe"),
        ({"task_type": "TOKEN_CLS"}, "for TOKEN_CLS; .* llmft has no recipe for it"),
    ],
)
def test_adapters_that_are_none_for_a_recipe(tmp_path, base, config, said):
    folder = save_adapter(tmp_path, base)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ConfigError, match=said):
        load(folder, "causal-lm")


def test_a_layer_with_a_computation_of_its_own_is_no_target():
    sizes = {"num_local_experts": 2, "moe_layers": [1], "num_key_value_heads": 2}
    model = tiny.model("llama4_text", "causal-lm", 100, head_dim=16, **sizes)
    args = GenerationModelArguments(lora_r=2, lora_target_modules=["router"])
    with pytest.raises(ConfigError, match="router computes in its own way"):
        add_lora(model, args)


def test_a_layer_that_is_linear_in_its_own_words_gets_factors(capsys):
    model = add_lora(
        tiny.model("falcon", "causal-lm", 100), GenerationModelArguments(lora_r=2)
    )
    assert "in their own way" not in capsys.readouterr().out
    assert any("query_key_value.lora_A" in name for name, _ in model.named_parameters())
