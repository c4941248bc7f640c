"""The real trainer on tiny models: same steps as the plain one, right numbers."""

import ast
import inspect
import json
import math
import os
import re
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import transformers
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    DefaultFlowCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)

from llmft.config.fields import LanguageModelingDataArguments, TrainingArguments
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.rows import streamed_files
from llmft.data.tokens.collate import (
    DataCollatorForClassification,
    SeededDataCollatorForLanguageModeling,
    fix_masks,
)
from llmft.data.tokens.stream import Stream
from llmft.errors import CheckpointError, NonFiniteError
from llmft.machine.plan import Forecast
from llmft.metrics import classes
from llmft.metrics.tokens import TokenPrediction
from llmft.train import checkpoint, time_limit, whole_steps
from llmft.train.callbacks import EarlyStoppingCallback, MaskEpoch, for_run
from llmft.train.losses import token_statistics
from llmft.train.objectives import CausalLM, Classification, MaskedLM
from llmft.train.trainer import LlmftTrainer

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LAGUNA = {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 4}
LAGUNA |= {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LAGUNA |= {"shared_expert_intermediate_size": 32}
# After a few steps of SGD in float32, summed in another order.
WEIGHTS = {"rtol": 1e-4, "atol": 1e-6}


def arguments(folder, **changes):
    quiet = {"save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
    quiet |= {"load_best_model_at_end": False, "report_to": "none", "max_steps": 3}
    quiet |= {"early_stopping_patience": None, "logging_steps": 1, "do_train": True}
    return TrainingArguments(output_dir=str(folder), **(quiet | changes))


def blocks(wordpiece, count=16, seed=0):
    """Texts of unequal length, so that batches differ in labels and padding."""
    texts = [tiny.sentences(1, seed + i, words=5 + i % 9)[0] for i in range(count)]
    ids = [wordpiece(text)["input_ids"] for text in texts]
    return Dataset.from_dict({"input_ids": ids, "row": list(range(count))})


def masked_lm(wordpiece, args, cls=LlmftTrainer, model=None, **options):
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    if cls is LlmftTrainer:
        options = {"objective": MaskedLM(), **options}
    else:
        options["preprocess_logits_for_metrics"] = token_statistics
    return cls(
        model=model or tiny.model("bert", "masked-lm", len(wordpiece), **NO_DROPOUT),
        args=args,
        data_collator=collator,
        train_dataset=blocks(wordpiece),
        eval_dataset=fix_masks(blocks(wordpiece, 11, seed=50), collator),
        processing_class=wordpiece,
        compute_metrics=TokenPrediction("masked_accuracy"),
        **options,
    )


def causal_lm(args, kind="gpt2", cls=LlmftTrainer):
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    data = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9], [4]], "row": [0, 1, 2]})
    sizes = {"attention_dropout": 0.0}
    if kind == "gpt2":
        sizes = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    if kind == "gemma2":
        sizes |= {"head_dim": 16, "num_key_value_heads": 2}
        sizes |= {"attn_implementation": "eager", "final_logit_softcapping": 0.2}
    options = {"objective": CausalLM()} if cls is LlmftTrainer else {}
    model = tiny.model(kind, "causal-lm", len(tokenizer), **sizes)
    # By GPT2LMHeadModel's name, Trainer does not see that its first label is no target,
    # and divides by a label too many of each text.
    model.loss_type = "ForCausalLM"
    return cls(
        model=model,
        args=args,
        data_collator=SeededDataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=Dataset.from_dict(
            {"input_ids": [[i, i + 1, i + 2, i + 5] for i in range(9)], "row": [0] * 9}
        ),
        eval_dataset=data,
        processing_class=tokenizer,
        compute_metrics=TokenPrediction("token_accuracy"),
        **options,
    )


def texts_with_labels(wordpiece, count=13):
    lengths = [4 + (7 * i) % 11 for i in range(count)]
    encoded = wordpiece([tiny.sentences(1, i, n)[0] for i, n in enumerate(lengths)])
    labels = [i % 3 for i in range(count)]
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return Dataset.from_dict(
        {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "label": labels,
            "length": lengths,
        }
    )


def classifier(wordpiece, args, **options):
    data = texts_with_labels(wordpiece)
    return LlmftTrainer(
        objective=Classification(),
        model=tiny.model(
            "bert", "classification", len(wordpiece), num_labels=3, **NO_DROPOUT
        ),
        args=args,
        data_collator=DataCollatorForClassification(wordpiece),
        train_dataset=data,
        eval_dataset=data,
        processing_class=wordpiece,
        compute_metrics=classes.Classification(),
        **options,
    )


def losses(trainer):
    return [e["loss"] for e in trainer.state.log_history if "loss" in e]


def weights(trainer):
    state = trainer.model.state_dict()
    return {name: value.detach().clone() for name, value in state.items()}


def assert_same_weights(found, wanted, **tolerance):
    for name, value in found.items():
        torch.testing.assert_close(
            value,
            wanted[name],
            **(tolerance or WEIGHTS),
            msg=lambda m, name=name: f"{name}: {m}",
        )


class _OnStep(TrainerCallback):
    """Call ``action(trainer's model)`` after ``step`` steps."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.action(model)


def test_masked_lm_takes_the_steps_of_the_plain_trainer(wordpiece, tmp_path):
    """The plain one computes all logits and BERT's own loss."""
    options = {"max_steps": 6, "optim": "sgd", "learning_rate": 0.3}
    plain = masked_lm(wordpiece, arguments(tmp_path, **options), transformers.Trainer)
    before = weights(plain)
    plain.train()
    fast = masked_lm(wordpiece, arguments(tmp_path, **options))
    fast.train()
    assert len(losses(plain)) == 6
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-5)
    assert_same_weights(weights(fast), weights(plain))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert (before[name] - weights(plain)[name]).abs().max() > 100 * WEIGHTS["atol"]
    assert not fast.model.base_model._forward_hooks


@pytest.mark.parametrize("make", [masked_lm, classifier])
def test_accumulation_equals_one_large_batch(wordpiece, tmp_path, make):
    """4 x 1 and 1 x 4 examples; the last step of the epoch has fewer."""
    found = []
    for size, accumulated in ((1, 4), (4, 1)):
        args = arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.3,
            max_steps=-1,
            num_train_epochs=1,
        )
        trainer = make(wordpiece, args)
        trainer.train()
        assert trainer.state.global_step == 4
        found.append((weights(trainer), losses(trainer)))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert_same_weights(found[0][0], found[1][0])


def test_label_smoothing_reaches_the_loss(wordpiece, tmp_path):
    args = arguments(tmp_path, label_smoothing_factor=0.3, max_steps=1)
    trainer = classifier(wordpiece, args)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.model.classifier.bias.data[0] = 3
    with torch.no_grad():
        logits = trainer.model(**batch).logits
        loss = trainer.compute_loss(trainer.model, dict(batch))
    wanted = functional.cross_entropy(logits, batch["labels"], label_smoothing=0.3)
    torch.testing.assert_close(loss, wanted)
    assert abs(loss - functional.cross_entropy(logits, batch["labels"])) > 0.01


def test_evaluation_is_the_loss_over_all_tokens(wordpiece, tmp_path):
    """11 texts in batches of 4: means of batches would give another number."""
    trainer = masked_lm(wordpiece, arguments(tmp_path, per_device_eval_batch_size=4))
    found = trainer.evaluate()
    nll, tokens, right, batch_means = 0.0, 0, 0, []
    rows = [trainer.eval_dataset[i] for i in range(11)]
    for start in (0, 4, 8):
        batch = trainer.data_collator(rows[start : start + 4])
        with torch.no_grad():
            logits = trainer.model.eval()(**batch).logits
        keep = batch["labels"] != -100
        wanted = batch["labels"][keep]
        part = functional.cross_entropy(logits[keep], wanted, reduction="sum").item()
        nll, tokens = nll + part, tokens + len(wanted)
        right += int((logits[keep].argmax(-1) == wanted).sum())
        batch_means += [part / len(wanted)] * min(4, 11 - start)
    assert found["eval_loss"] == pytest.approx(nll / tokens, rel=1e-6)
    assert found["eval_perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert found["eval_masked_accuracy"] == pytest.approx(right / tokens)
    assert found["eval_n"] == tokens
    assert abs(np.mean(batch_means) - nll / tokens) > 1e-4
    again = trainer.evaluate()
    timing = ("runtime", "_per_second", "_time")
    same = {n: v for n, v in found.items() if not n.endswith(timing)}
    assert same == {name: again[name] for name in same}


def test_evaluation_keeps_no_logits(wordpiece, tmp_path):
    trainer = masked_lm(wordpiece, arguments(tmp_path))
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (11, 3)
    trainer = causal_lm(arguments(tmp_path, per_device_eval_batch_size=2))
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (3, 3)
    assert predicted.predictions[:, 1].tolist() == [2, 1, 0]
    assert predicted.metrics["test_n"] == 3


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_causal_lm_takes_the_steps_of_the_plain_trainer(tmp_path, kind, smoothing):
    """gemma2 caps its logits, so that its loss cannot come from the head alone."""
    options = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.3}
    options |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    options |= {"label_smoothing_factor": smoothing}
    found = []
    for cls in (LlmftTrainer, Trainer):
        trainer = causal_lm(arguments(tmp_path, **options), kind, cls)
        trainer.train()
        found.append((weights(trainer), losses(trainer)))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert_same_weights(found[0][0], found[1][0])
    assert len(found[0][1]) == 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_after_an_evaluation(wordpiece, tmp_path, checkpointing):
    """Trainer turns it on in train(): the layers that run again must see the same."""
    options = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.3}
    args = arguments(tmp_path, activation_checkpointing=checkpointing, **options)
    trainer = masked_lm(wordpiece, args)
    trainer.evaluate()
    trainer.train()
    plain = masked_lm(wordpiece, arguments(tmp_path, **options))
    plain.train()
    for ours, theirs in zip(
        trainer.model.parameters(), plain.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_evaluation_begins_with_the_longest_in_workers_that_live_on(tmp_path):
    """Also where the length of examples is no column of its own."""
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    for given, same in (({}, False), (workers, True)):
        trainer = causal_lm(arguments(tmp_path / "run", **given))
        loaders = [trainer.get_eval_dataloader() for _ in range(2)]
        assert (loaders[0] is loaders[1]) is same
        assert loaders[0].dataset.indices == [0, 1, 2]
        other = trainer.eval_dataset.select([2, 1, 0])
        other = trainer.get_test_dataloader(other)
        assert other is not loaders[0]
        assert other.dataset.indices == [2, 1, 0]


def test_predictions_come_in_the_order_of_the_data(wordpiece, tmp_path):
    grouped = arguments(
        tmp_path,
        train_sampling_strategy="group_by_length",
        per_device_eval_batch_size=4,
    )
    trainer = classifier(wordpiece, grouped)
    data = trainer.eval_dataset
    trainer.train()
    predicted = trainer.predict(data)
    assert predicted.label_ids.tolist() == data["label"][:]
    for i, scores in enumerate(predicted.predictions):
        with torch.no_grad():
            alone = trainer.model(torch.tensor([data[i]["input_ids"]])).logits[0]
        np.testing.assert_allclose(scores, alone, rtol=1e-4, atol=1e-5)


def test_a_classifier_that_also_returns_states(wordpiece, tmp_path):
    """As BART does: what is judged are the logits."""
    trainer = classifier(wordpiece, arguments(tmp_path))
    plain = trainer.predict(trainer.eval_dataset).predictions
    trainer.model.config.output_hidden_states = True
    predicted = trainer.predict(trainer.eval_dataset)
    np.testing.assert_array_equal(predicted.predictions, plain)
    unlabelled = trainer.eval_dataset.remove_columns("label")
    found = trainer.predict(unlabelled).predictions
    np.testing.assert_array_equal(found, plain)


def test_lengths_are_a_list_to_the_sampler(wordpiece, tmp_path):
    """A column reads each length by itself. The order is that of Trainer's."""
    orders = []
    for cls in (LlmftTrainer, Trainer):
        grouped = arguments(tmp_path, train_sampling_strategy="group_by_length")
        options = {"objective": Classification()} if cls is LlmftTrainer else {}
        trainer = cls(
            **options,
            model=tiny.model("bert", "classification", len(wordpiece)),
            args=grouped,
            train_dataset=texts_with_labels(wordpiece, 60),
            processing_class=wordpiece,
        )
        sampler = trainer._get_train_sampler()
        torch.manual_seed(grouped.seed + 2)
        if cls is LlmftTrainer:
            sampler.set_epoch(2)
        orders.append(list(sampler))
        if cls is LlmftTrainer:
            assert sampler.lengths == trainer.train_dataset["length"][:]
            assert type(sampler.lengths) is list
    assert orders[0] == orders[1] != list(range(60))


def stopped(trainer):
    """Train until NonFiniteError; return it."""
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    assert caught.value.exit_code == 6
    return str(caught.value)


def test_a_loss_that_is_not_finite_never_reaches_the_weights(wordpiece, tmp_path):
    args = arguments(tmp_path, max_steps=5, learning_rate=1e-3, warmup_steps=0)
    trainer = masked_lm(wordpiece, args)
    kept = {}

    def poison(model):
        model.cls.predictions.bias.data[3] = math.inf
        kept.update(weights(trainer))

    trainer.add_callback(_OnStep(2, poison))
    said = stopped(trainer)
    assert said.startswith("NonFiniteError: the loss is ")
    assert " in step 3; learning rate 0.0006, gradient norm " in said
    assert said.endswith(
        "; the first module to give one is cls.predictions.decoder; weights of the"
        " model are not finite: use another model"
    )
    assert trainer.state.global_step == 2
    assert_same_weights(weights(trainer), kept, rtol=0, atol=0)
    assert not trainer.model.base_model._forward_hooks


@pytest.mark.parametrize("make", [masked_lm, classifier])
def test_nor_is_one_reported_by_an_evaluation(wordpiece, tmp_path, make):
    trainer = make(wordpiece, arguments(tmp_path))
    with torch.no_grad():
        next(trainer.model.parameters())[:] = math.nan
    with pytest.raises(NonFiniteError, match="NonFiniteError: before_loss is nan aft"):
        trainer.evaluate(metric_key_prefix="before")
    with pytest.raises(NonFiniteError) as caught:
        trainer.predict(trainer.eval_dataset)
    assert caught.value.exit_code == 6
    assert str(caught.value).startswith(
        "NonFiniteError: test_loss is nan after 0 steps; expected a finite number;"
    )
    assert not [e for e in trainer.state.log_history if "before_loss" in e]


def test_nor_are_predictions_without_labels(wordpiece, tmp_path):
    trainer = classifier(wordpiece, arguments(tmp_path))
    data = trainer.eval_dataset.remove_columns("label")
    assert trainer.predict(data).predictions.shape == (13, 3)
    with torch.no_grad():
        trainer.model.classifier.bias[1] = math.inf
    with pytest.raises(NonFiniteError, match="NonFiniteError: prediction is nan after"):
        trainer.predict(data)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_nor_does_a_gradient(wordpiece, tmp_path, max_grad_norm):
    args = arguments(tmp_path, max_steps=5, max_grad_norm=max_grad_norm)
    trainer = classifier(wordpiece, args)
    kept = {}

    def poison(model):
        model.classifier.weight.register_hook(lambda g: g * math.nan)
        kept.update(weights(trainer))

    trainer.add_callback(_OnStep(2, poison))
    assert "the gradient is nan in step 3" in stopped(trainer)
    assert trainer.state.global_step == 2
    assert_same_weights(weights(trainer), kept, rtol=0, atol=0)


def test_a_far_too_large_learning_rate_stops(wordpiece, tmp_path):
    args = arguments(tmp_path, max_steps=20, learning_rate=1e6, warmup_steps=0)
    trainer = masked_lm(wordpiece, args)
    assert "lower learning_rate, or raise warmup_steps" in stopped(trainer)
    assert len(losses(trainer)) < 10
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


def test_what_stays_private_is_still_there():
    """In Trainer, where an upgrade may rename it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(LlmftTrainer)))
    overridden, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            overridden.add(node.name)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
    private = {n for n in overridden | used if n[0] == "_" and n[:2] != "__"}
    gone = sorted(name for name in private if not hasattr(Trainer, name))
    assert not gone, f"transformers.Trainer has no {', '.join(gone)}"
    assert len(private) <= 7  # four of them are how checkpoints are saved and loaded
    # These are public, and would never be called under another name.
    public = {n for n in overridden - private if n != "__init__"}
    ours = {"in_order"}
    gone = sorted(n for n in public - ours if not hasattr(Trainer, n))
    assert not gone, f"transformers.Trainer has no {', '.join(gone)}"
    source = inspect.getsource(Trainer)
    for name in re.findall(r"trainer\.(_\w+)", inspect.getsource(whole_steps)):
        assert f"self.{name} = " in source or hasattr(Trainer, name), name


@pytest.mark.parametrize("quiet", [True, False])
def test_a_notebook_shows_one_bar(wordpiece, tmp_path, monkeypatch, quiet):
    """There Trainer's own is no ProgressCallback."""
    theirs = "transformers.trainer.DEFAULT_PROGRESS_CALLBACK"
    monkeypatch.setattr(theirs, type("NotebookBar", (TrainerCallback,), {}))
    args = arguments(tmp_path / "run", disable_tqdm=quiet, report_to=["tensorboard"])
    ours = for_run(tmp_path / "run", args)
    trainer = classifier(wordpiece, args, callbacks=ours)
    found = trainer.callback_handler.callbacks
    assert found[0].__class__ is DefaultFlowCallback
    ends = [trainer.end_of_pass, trainer.whole_steps, trainer.guards]
    assert found[1:] == [*ours, *ends]
    assert sum(isinstance(c, ProgressCallback) for c in found) == (not quiet)


def test_early_stopping(wordpiece, tmp_path):
    args = arguments(
        tmp_path / "run" / "checkpoints",
        max_steps=9,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        early_stopping_patience=1,
        learning_rate=0.0,
    )
    stopping = EarlyStoppingCallback(args.early_stopping_patience)
    trainer = classifier(wordpiece, args, callbacks=[stopping])
    trainer.train()
    evaluations = [e for e in trainer.state.log_history if "eval_loss" in e]
    assert (trainer.state.global_step, len(evaluations)) == (2, 2)


def test_the_log_of_a_run_stays_in_its_folder(wordpiece, tmp_path, monkeypatch):
    work, run = tmp_path / "work", tmp_path / "run"
    work.mkdir()
    run.mkdir()
    monkeypatch.chdir(work)
    args = arguments(run / "checkpoints", report_to=["tensorboard"])
    trainer = classifier(wordpiece, args, callbacks=for_run(run, args))
    trainer.train()
    trainer.evaluate()
    trainer.log({"test_loss": math.nan, "other": -math.inf})
    lines = (run / "metrics.jsonl").read_text().splitlines()

    def refuse(constant):
        raise AssertionError(constant)

    events = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [e["loss"] for e in events if "loss" in e] == losses(trainer)
    for event in events:
        assert ("samples_per_second" in event) is ("loss" in event)
        assert event.get("rss_bytes", 2e8) > 1e8
        assert event.get("samples_per_second", 1) > 0
    assert events[-1]["test_loss"] is events[-1]["other"] is None
    assert all(e["step"] <= 3 and e["time"] > 0 for e in events)
    assert any("eval_accuracy" in e for e in events)
    written = [p for p in tmp_path.rglob("*") if "tfevents" in p.name]
    assert [p.parent for p in written] == [run / "logs"] * len(written)
    assert written
    assert os.listdir(work) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_trains_on_its_own_masks(wordpiece, tmp_path, workers):
    args = arguments(
        tmp_path, max_steps=-1, num_train_epochs=3, dataloader_num_workers=workers
    )
    trainer = masked_lm(wordpiece, args, callbacks=for_run(tmp_path, args))
    seen = []

    plain = trainer.compute_loss

    def compute_loss(model, inputs, *rest, **kwargs):
        for ids, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
            seen.append((ids[ids != 0].tolist(), labels[ids != 0].tolist()))
        return plain(model, inputs, *rest, **kwargs)

    trainer.compute_loss = compute_loss
    trainer.train()
    reference = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    for epoch in range(3):
        reference.set_epoch(epoch)
        wanted = []
        for row in trainer.train_dataset:
            batch = reference([row])
            wanted.append((batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
        assert sorted(seen[16 * epoch : 16 * (epoch + 1)]) == sorted(wanted)


def streamed(wordpiece, folder, **changes):
    """A trainer on a stream of 10 blocks in batches of 4, and what it has seen."""
    (folder / "texts.txt").write_text("\n".join(tiny.sentences(10)))
    data = LanguageModelingDataArguments(
        train_file=str(folder / "texts.txt"), block_policy="row", buffer_size=3
    )
    rows = streamed_files(data.train_file, Columns(), Reading.of(data))
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    saving |= {"per_device_train_batch_size": 4, "save_total_limit": None}
    run = folder / "run"
    args = arguments(run / "checkpoints" / ".saving", **(saving | changes))
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    seen = []

    def collate(examples):
        batch = collator(examples)
        seen.extend(zip(examples, batch["labels"].tolist(), strict=True))
        return batch

    trainer = LlmftTrainer(
        objective=MaskedLM(),
        model=tiny.model("bert", "masked-lm", len(wordpiece)),
        args=args,
        data_collator=collate,
        train_dataset=Stream(rows, data, wordpiece, 1, 0),
        eval_dataset=blocks(wordpiece, 3),
        processing_class=wordpiece,
        callbacks=for_run(run, args, trial=Forecast(1.0)),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer, seen


def test_each_pass_over_a_stream_has_its_own_masks(wordpiece, tmp_path):
    trainer, seen = streamed(wordpiece, tmp_path)
    assert trainer.state.global_step == 6
    assert [e["epoch"] for e, _ in seen[:24]] == [0] * 10 + [1] * 10 + [2] * 4
    reference = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    masks = {}
    for example, labels in seen[:20]:
        reference.set_epoch(example["epoch"])
        alone = {name: example[name] for name in ("input_ids", "row")}
        (wanted,) = reference([alone])["labels"].tolist()
        assert labels[: len(wanted)] == wanted
        masks.setdefault(example["row"], []).append(wanted)
    assert len(masks) == 10
    assert sum(first != second for first, second in masks.values()) > 5


def test_a_resume_in_a_later_pass_over_a_stream_is_exact(wordpiece, tmp_path):
    """Step 4 is in the second pass; dropout is on."""
    whole, _ = streamed(wordpiece, tmp_path)
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    resumed, _ = streamed(wordpiece, tmp_path, resume_from_checkpoint=str(folder))
    assert_same_weights(weights(resumed), weights(whole), rtol=0, atol=0)
    assert losses(resumed) == losses(whole)
    assert [e["epoch"] for e in resumed.state.log_history if "loss" in e][-1] == 1


def test_the_end_of_a_pass_is_one_of_an_epoch(wordpiece, tmp_path):
    """A pass is two and a half steps; the last one ends with the training."""
    by_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": 7}
    trainer, _ = streamed(wordpiece, tmp_path, **by_epoch)
    evaluated = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
    assert evaluated == [3, 6, 7]
    saved = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert [folder.name for folder in saved] == [f"checkpoint-{n}" for n in evaluated]
    again = {**by_epoch, "resume_from_checkpoint": str(saved[0])}
    resumed, _ = streamed(wordpiece, tmp_path, **again)
    assert_same_weights(weights(resumed), weights(trainer), rtol=0, atol=0)


def test_a_stream_within_a_time(wordpiece, tmp_path, monkeypatch):
    """The end of a pass is known when it comes."""
    monkeypatch.setattr(time_limit, "steps_within", lambda *given: 7)
    options = {"time_limit": "1h", "max_steps": -1}
    options |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer, _ = streamed(wordpiece, tmp_path, **options)
    evaluated = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
    assert evaluated == [3, 6, 7]
    assert trainer.state.max_steps == 7
    saved = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert [folder.name for folder in saved] == [f"checkpoint-{n}" for n in evaluated]
    again = {**options, "resume_from_checkpoint": str(saved[1])}
    resumed, _ = streamed(wordpiece, tmp_path, **again)
    assert_same_weights(weights(resumed), weights(trainer), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("told", "epoch"), [(None, 0), (0.0, 0), (1.0, 1), (1.9999999, 2), (2.5, 2)]
)
def test_mask_epoch_also_when_resumed_inside_one(wordpiece, told, epoch):
    collator = SeededDataCollatorForLanguageModeling(wordpiece)
    state = transformers.TrainerState(epoch=told)
    loader = SimpleNamespace(collate_fn=collator)
    MaskEpoch().on_epoch_begin(None, state, None, train_dataloader=loader)
    assert int(collator._epoch) == epoch


@pytest.mark.parametrize("best", [False, True])
def test_a_checkpoint_of_a_family_with_other_names_in_files(wordpiece, tmp_path, best):
    esm = tiny.model("esm", "masked-lm", len(wordpiece), mask_token_id=4, **NO_DROPOUT)
    args = arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=2)
    trainer = masked_lm(wordpiece, args, model=esm)
    states = []

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            states.append(weights(trainer))

    trainer.add_callback(Keep())
    trainer.train()
    assert any(
        "LayerNorm" in n and (states[1][n] != x).any() for n, x in states[0].items()
    )
    first = str(tmp_path / "checkpoint-1")
    if best:
        trainer.state.best_model_checkpoint = first
        trainer._load_best_model()
    else:
        trainer._load_from_checkpoint(first)
    assert_same_weights(weights(trainer), states[0], rtol=0, atol=0)


def test_a_checkpoint_with_other_weights_is_refused(wordpiece, tmp_path):
    """As of before checkpoints had the model's own names; tied weights are no fault."""
    trainer = masked_lm(wordpiece, arguments(tmp_path))
    trainer.save_model(tmp_path / "whole")
    trainer._load_from_checkpoint(str(tmp_path / "whole"))
    state = load_file(tmp_path / "whole/model.safetensors")
    moved = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma"): x
        for name, x in state.items()
    }
    save_file(moved, tmp_path / "whole/model.safetensors")
    with pytest.raises(CheckpointError, match=r"other weights .*LayerNorm\.gamma"):
        trainer._load_from_checkpoint(str(tmp_path / "whole"))


def test_factors_that_peft_would_rename_come_back(tmp_path):
    """It turns mlp.shared_experts of Laguna into mlp.shared_experts. with a dot."""
    trainer = causal_lm(arguments(tmp_path))
    laguna = tiny.model("laguna", "causal-lm", 500, **LAGUNA)
    factors = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    trainer.model = get_peft_model(laguna, factors)
    trainer.save_model(tmp_path / "checkpoint-1")
    saved = weights(trainer)
    assert any("shared_experts" in n and "lora_B" in n for n in saved)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            weight.zero_() if "lora_" in name else None
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert_same_weights(weights(trainer), saved, rtol=0, atol=0)


def test_a_model_with_labels_of_several_kinds_is_evaluated(wordpiece, tmp_path):
    """Trainer asks LUKE's forward for its labels, and one of these is not there."""
    sizes = {"entity_vocab_size": 8, "entity_emb_size": 8, **NO_DROPOUT}
    luke = tiny.model("luke", "masked-lm", len(wordpiece), **sizes)
    trainer = masked_lm(wordpiece, arguments(tmp_path), model=luke)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_a_config_that_trainer_cannot_read_is_no_internal_error(
    wordpiece, tmp_path, monkeypatch
):
    """It reads any config as a plain one, and DeepSeek V4's is refused then."""

    def fails(*args):
        raise StrictDataclassError("Class validation error")

    trainer = masked_lm(wordpiece, arguments(tmp_path))
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", fails)
    with pytest.raises(CheckpointError, match="cannot resume this family: Class val"):
        trainer._load_from_checkpoint("checkpoint-1")
