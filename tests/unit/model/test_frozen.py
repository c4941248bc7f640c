"""Embeddings that are not trained: no gradient for them, the same numbers elsewhere."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from llmft.config.fields import ModelArguments, TrainingArguments
from llmft.data.tokens.collate import (
    DataCollatorForClassification,
    SeededDataCollatorForLanguageModeling,
)
from llmft.model.adapters import base_of
from llmft.model.load import load_model, load_tokenizer, locate
from llmft.train.batches import Batches
from llmft.train.fast_path import choose_fast_path, frozen_choice
from llmft.train.objectives import CausalLM, Classification, MaskedLM
from llmft.train.trainer import LlmftTrainer
from llmft.train.trials import Trial, predicted

GEMMA = {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "layer_types": ["full_attention"] * 2,
}
TIED = "the token embeddings, and the output layer, which is tied to them"
JOBS = {  # kind, task, changes of the config, what the plan says
    "masked-lm": ("bert", "masked-lm", {}, TIED),
    "causal-lm": ("gemma3_text", "causal-lm", GEMMA, TIED),
    "untied": ("llama", "causal-lm", {}, "the token embeddings"),
    "classification": ("gemma3_text", "classification", GEMMA, "the token embeddings"),
}


def arguments(folder, **changes):
    quiet = {"save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
    quiet |= {"load_best_model_at_end": False, "report_to": "none", "max_steps": 4}
    quiet |= {"early_stopping_patience": None, "do_train": True, "weight_decay": 0.0}
    return TrainingArguments(output_dir=str(folder), **(quiet | changes))


def loaded(folder, task, frozen):
    args = ModelArguments(str(folder), dropout=0.0, freeze_embeddings=frozen)
    located = locate(args, "", tiny.AUTO_CLASSES[task])
    tokenizer = load_tokenizer(located, args)
    names = ("a", "b") if task == "classification" else ()
    torch.manual_seed(0)
    auto_class = tiny.AUTO_CLASSES[task]
    return load_model(
        auto_class, located, args, tokenizer, label_names=names
    ), tokenizer


def trainer(model, tokenizer, task, args):
    rows = [{"input_ids": [5 + i, 9, 7 + i, 5], "row": i} for i in range(16)]
    if task == "classification":
        rows = [{**row, "labels": row["row"] % 2} for row in rows]
        collator, objective = DataCollatorForClassification(tokenizer), Classification()
    else:
        collator = SeededDataCollatorForLanguageModeling(
            tokenizer, mlm=task == "masked-lm", mlm_probability=0.4
        )
        objective = MaskedLM() if task == "masked-lm" else CausalLM()
    return LlmftTrainer(
        model=model,
        args=args,
        objective=objective,
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("job", JOBS)
def test_all_else_learns_as_with_a_gradient_of_zero(job, tmp_path):
    kind, task, changes, _ = JOBS[job]
    folder = tiny.save(tmp_path / "model", kind, task, **changes)
    found = {}
    for frozen in (True, False):
        model, tokenizer = loaded(folder, task, frozen)
        embeddings = model.get_input_embeddings().weight
        before = embeddings.detach().clone()
        if not frozen:
            embeddings.register_hook(torch.zeros_like)
        trainer(model, tokenizer, task, arguments(tmp_path / "run")).train()
        assert embeddings.requires_grad is not frozen
        assert torch.equal(embeddings, before)
        found[frozen] = model.state_dict()
    start = loaded(folder, task, False)[0].state_dict()
    assert len(found[True]) == len(found[False])
    for name, weight in found[True].items():
        # Four steps of AdamW in float32; a frozen head's rows are summed elsewhere.
        torch.testing.assert_close(weight, found[False][name], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(w, start[name]) for name, w in found[True].items())


@pytest.mark.parametrize("job", JOBS)
def test_the_plan_says_how_many_weights_are_frozen(job, tmp_path):
    kind, task, changes, said = JOBS[job]
    folder = tiny.save(tmp_path / "model", kind, task, **changes)
    model, tokenizer = loaded(folder, task, True)
    count = model.get_input_embeddings().weight.numel()
    total = sum(p.numel() for p in model.parameters())
    made = trainer(model, tokenizer, task, arguments(tmp_path, fast_path="off"))
    args = SimpleNamespace(
        training=made.args,
        model=ModelArguments(freeze_embeddings=True),
        data=None,
        origins={},
    )
    data = {"train": made.train_dataset}
    choices = choose_fast_path(args, model, made.objective, made.data_collator, data)
    assert choices.choices[-1] == frozen_choice(model)
    assert choices.choices[-1].value == f"{count:,} of {total:,} weights"
    assert choices.choices[-1].reason == said


def test_a_checkpoint_holds_what_is_frozen_but_an_adapter_does_not(tmp_path):
    """The optimizer keeps nothing of it in either case."""
    folder = tiny.save(tmp_path / "model", "llama", "causal-lm")
    sizes = {}
    for frozen in ("nothing", "embeddings", "all but LoRA"):
        model, _ = loaded(folder, "causal-lm", frozen == "embeddings")
        if frozen == "all but LoRA":
            model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
        rows = Dataset.from_dict({"input_ids": [[5, 6]] * 8, "length": [2] * 8})
        batches = Batches(rows, 4, "random", 0)
        trial = Trial({}, None, [2], [0.1], 0.1, 0)
        args = arguments(tmp_path)
        sizes[frozen] = predicted(args, model, trial, (0.0, 0), batches, {})
    total = sum(p.nbytes for p in loaded(folder, "causal-lm", True)[0].parameters())
    assert sizes["nothing"].checkpoint_bytes == total
    assert sizes["embeddings"].checkpoint_bytes == total
    assert sizes["all but LoRA"].checkpoint_bytes < total / 4
    assert {f.model_bytes >= total for f in sizes.values()} == {True}


def test_a_merged_adapter_keeps_them_frozen(tmp_path):
    folder = tiny.save(tmp_path / "model", "llama", "causal-lm")
    model, tokenizer = loaded(folder, "causal-lm", False)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert base_of(tmp_path / "adapter")
    for frozen in (True, False):
        model, _ = loaded(tmp_path / "adapter", "causal-lm", frozen)
        embeddings = model.get_input_embeddings().weight
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert (id(embeddings) in trained) is not frozen
        assert len(trained) == len(list(model.parameters())) - frozen
