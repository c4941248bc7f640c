"""A step that is not finite: stopped at, passed over, looked into, kept, and told."""

import json
import math
import random
import re
import tempfile

import pytest
import tiny
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    CanineConfig,
    CanineForSequenceClassification,
    TrainerCallback,
)

from llmft.config.fields import (
    ClassificationDataArguments,
    ModelArguments,
    TrainingArguments,
)
from llmft.config.parse import Arguments
from llmft.data.read.store import Source
from llmft.data.tokens.collate import (
    DataCollatorForClassification,
    SeededDataCollatorForLanguageModeling,
    unmasked,
)
from llmft.errors import DataError, EnvironmentFault, NonFiniteError
from llmft.machine.plan import Forecast
from llmft.model.features import freeze_backbone
from llmft.runs.inspect import _module, _place, inspected
from llmft.runs.record import RunRecord
from llmft.train import checkpoint, debug_batch, memory
from llmft.train.callbacks import for_run
from llmft.train.guards import Guards, check_batch
from llmft.train.loss_watch import LossWatch
from llmft.train.objectives import CausalLM, Classification, MaskedLM
from llmft.train.profile import FOLDER, LOOP, TRACE, Profile
from llmft.train.trainer import LlmftTrainer

QUIET = {"save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
QUIET |= {"load_best_model_at_end": False, "report_to": "none", "do_train": True}
QUIET |= {"early_stopping_patience": None, "logging_steps": 1}
BAD = 7  # the row with the token of which the model knows no number


def texts(count=12):
    found = [tiny.sentences(1, i, words=4 + i % 7)[0] for i in range(count)]
    found[BAD] = f"a # {found[BAD]}"
    return found


def weights(trainer):
    return {n: w.detach().clone() for n, w in trainer.model.named_parameters()}


def poisoned(model, token, value=math.nan):
    """Give a token this number for all that the model knows of it."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = value
    return model


def made(tokenizer, kind, folder=None, options=(), model=None, **changes):
    """A trainer of each objective whose model gives NaN for one row alone."""
    changes = {"per_device_train_batch_size": 4, "max_steps": 6, **changes}
    there = folder / "run" if folder else tempfile.gettempdir()  # nothing is saved
    args = TrainingArguments(output_dir=str(there), **(QUIET | changes))
    (token,) = tokenizer("#", add_special_tokens=False)["input_ids"][-1:]
    encoded = tokenizer(texts())["input_ids"]
    data = {"input_ids": encoded, "row": list(range(len(encoded)))}
    untied = {"tie_word_embeddings": False}
    if kind == "classification":
        of = tiny.model("bert", kind, len(tokenizer), num_labels=2)
        data["labels"] = [i % 2 for i in range(len(encoded))]
        parts = Classification(), DataCollatorForClassification(tokenizer)
    elif kind == "masked-lm":
        of = tiny.model("bert", kind, len(tokenizer), **untied)
        parts = (
            MaskedLM(),
            SeededDataCollatorForLanguageModeling(
                tokenizer,
                mlm_probability=0.3,
                mask_replace_prob=0,
                random_replace_prob=0,
            ),
        )
    else:
        of = tiny.model("llama", kind, len(tokenizer), **untied)
        parts = CausalLM(), SeededDataCollatorForLanguageModeling(tokenizer, mlm=False)
    lines = {"text": texts(), "file": [0] * 12, "line": list(range(1, 13))}
    source = Source(Dataset.from_dict(lines), "own.txt", files=("own.txt",))
    run = folder / "run" if folder else None
    return LlmftTrainer(
        model=poisoned(model or of, token),
        args=args,
        objective=parts[0],
        data_collator=parts[1],
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        callbacks=[*options, Guards(args, run, source)],
    )


@pytest.fixture
def byte_level():
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class Kept(TrainerCallback):
    """Weights and the optimizer's state after each step."""

    def __init__(self):
        self.weights, self.states, self.rates = [], [], []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kw):
        self.weights.append(
            {n: w.detach().clone() for n, w in model.named_parameters()}
        )
        kept = optimizer.state_dict()["state"]
        self.states.append(
            {i: {k: v.clone() for k, v in s.items()} for i, s in kept.items()}
        )
        self.rates.append(optimizer.param_groups[0]["lr"])


def same(one, other):
    """Bit by bit; NaN is equal to itself."""
    return one.keys() == other.keys() and all(
        same(x, other[n])
        if isinstance(x, dict)
        else torch.equal(x.nan_to_num(7.0), other[n].nan_to_num(7.0))
        for n, x in one.items()
    )


def gradient_of_nan(model):
    """Let one place of a model be differentiable nowhere, and finite all the same."""
    model.bert.pooler.register_forward_hook(lambda m, a, out: out + (out * 0).sqrt())
    return model


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["classification", "masked-lm", "causal-lm"])
def test_a_skipped_step_changes_nothing(wordpiece, byte_level, kind, parts, capsys):
    kept = Kept()
    tokenizer = byte_level if kind == "causal-lm" else wordpiece
    changes = {"on_nonfinite": "skip", "gradient_accumulation_steps": parts}
    trainer = made(tokenizer, kind, options=[kept], **changes)
    trainer.train()
    said = capsys.readouterr()
    steps = [i for i in range(1, 6) if same(kept.weights[i - 1], kept.weights[i])]
    steps = [0, *steps] if not kept.states[0] else steps
    assert trainer.state.global_step == 6
    assert len(steps) == trainer.guards.skipped == (2 if parts == 1 else 3)
    for i in steps:
        assert (
            f"step {i + 1} is skipped: the loss is nan, own.txt:{BAD + 1} alone"
            in said.err
        )
        assert i == 0 or same(kept.states[i - 1], kept.states[i])
    assert f"skipped    {len(steps)} of 6 steps" in said.out
    assert f"not finite: own.txt:{BAD + 1} ({len(steps)})" in said.out
    assert sorted(kept.rates, reverse=True) == kept.rates[:] or parts == 2
    assert all(
        w.isfinite().all() for n, w in weights(trainer).items() if "embed" not in n
    )
    # In its place stands the loss of the step before.
    logged = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert all(math.isfinite(x) for x in logged)
    assert all(logged[i] == pytest.approx(logged[i - 1]) for i in steps if i)


def test_what_was_not_finite_before_training_is_no_fault_of_it(wordpiece, capsys):
    trainer = made(wordpiece, "classification", on_nonfinite="skip")
    trainer.train()
    name = "bert.embeddings.word_embeddings.weight"
    said = f"values of the weights are not finite before training: 32 of {name}\n"
    assert f"llmft: warning: {said}" in capsys.readouterr().err
    checkpoint.require_finite(trainer.model, 6)
    poisoned(trainer.model, 7)
    with pytest.raises(NonFiniteError) as caught:
        checkpoint.require_finite(trainer.model, 6)
    size = 32 * len(wordpiece)
    assert (
        f"64 of {size:,} values of the weight {name} are not finite after step 6, 32"
        " before training; nothing of it is saved" in str(caught.value)
    )


def test_a_step_that_is_not_whole_counts_no_row(wordpiece):
    """A signal may end it, and a resume takes it again."""
    seen = []

    class Between(TrainerCallback):
        def on_substep_end(self, *args, **kw):
            guards = trainer.guards
            found = sum(guards.rows.values()), guards.skipped
            seen.append((bool(guards.fault), *found))

    changes = {"on_nonfinite": "skip", "gradient_accumulation_steps": 2}
    trainer = made(wordpiece, "classification", options=[Between()], **changes)
    trainer.train()
    assert any(fault for fault, *_ in seen)
    assert all(rows == skipped for _, rows, skipped in seen)
    assert sum(trainer.guards.rows.values()) == trainer.guards.skipped


@pytest.mark.parametrize(
    ("examples", "places", "said"),
    [
        ([3], ["a:4"], "a:4"),
        ([3], ["a:4", "a:5", "b:1"], "a:4 to b:1"),  # a block of documents
        ([3, 9], ["a:4", "a:10"], "a:4 or a:10"),
        ([3, 4], ["a:4", "a:4"], "a:4"),  # parts of one text
        ([*range(8)], [f"a:{i}" for i in range(8)], "a:0 or a:1 or a:2 or a:3 or a:4"),
    ],
)
def test_equal_rows_are_no_range(examples, places, said):
    row = {"examples": examples, "places": places}
    found = debug_batch.Found(1, "loss", math.nan, 0.1, None, alone=[0], rows=[row])
    said += " or 3 more" * (len(places) == 8)
    assert found.places_alone == [said]
    assert _place(row) == said


def test_labels_of_classes_are_no_ids():
    ids = torch.tensor([[2, 6, 3, 0]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    for labels, learnt in (
        (torch.tensor([[1.0, 0.0, 1.0, 1.0]]), [2, 6, 3]),
        (torch.tensor([[-100, 9, -100, -100]]), [2, 9, 3]),
    ):
        assert unmasked(batch | {"labels": labels}) == [learnt]


def failed(trainer):
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    return str(caught.value)


def test_an_absurd_rate_is_to_be_lowered_before_rows_are_blamed(wordpiece, tmp_path):
    for rate, skips in ((0.5, False), (1e-4, True)):
        model = tiny.model("distilbert", "classification", len(wordpiece), num_labels=2)
        how = {"model": model, "learning_rate": rate}
        trainer = made(wordpiece, "classification", tmp_path / str(rate), **how)
        data = {"train": trainer.train_dataset}
        kept = freeze_backbone(model, data, trainer.data_collator)["train"]
        trainer.train_dataset = kept
        assert ("--on_nonfinite skip goes on" in failed(trainer)) is skips


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_features_that_are_not_finite_are_those_of_the_encoder(
    wordpiece, tmp_path, kind
):
    """Also where there is a pooler, which is the first that is trained."""
    model = tiny.model(kind, "classification", len(wordpiece), num_labels=2)
    trainer = made(wordpiece, "classification", tmp_path, model=model)
    data = {"train": trainer.train_dataset}
    kept = freeze_backbone(model, data, trainer.data_collator)["train"]
    trainer.train_dataset = kept
    said = failed(trainer)
    assert (
        f", own.txt:{BAD + 1} alone gives it; the features that the frozen encoder gave"
        " for it are not finite; --on_nonfinite skip goes on without that step; or use"
        " another model, or --precision fp32; `llmft inspect" in said
    )
    shown = inspected(RunRecord(tmp_path / "run", {}, {}))
    assert "\nfeatures that the frozen encoder gave for the batch are not" in shown
    assert ("it gets numbers that are not finite already" in shown) is (kind == "bert")
    assert "input_ids" not in shown  # they are numbers of features
    assert re.search(rf"own\.txt:{BAD + 1} +nan +yes ", shown)


@pytest.mark.parametrize(
    ("size", "hint"), [(1, "or use another model, or --prec"), (4, "lower learning_ra")]
)
def test_a_module_may_get_what_is_not_finite(wordpiece, tmp_path, size, hint):
    model = tiny.model("bert", "classification", len(wordpiece), num_labels=2)
    changes = {"per_device_train_batch_size": size, "model": model}
    trainer = made(wordpiece, "classification", tmp_path, **changes)
    poisoned(model, wordpiece("#", add_special_tokens=False)["input_ids"][0], 0.5)
    model.classifier.register_forward_pre_hook(lambda m, args: (args[0] * math.nan,))
    said = failed(trainer)
    gets = "the first module to give one is classifier, which gets numbers that are not"
    assert f"; {gets} finite; " in said
    assert hint in said
    assert ("lower learning_rate" in said) is (size == 4)
    shown = inspected(RunRecord(tmp_path / "run", {}, {}))
    assert "  it gets numbers that are not finite already\n" in shown


def test_a_gradient_that_is_not_finite_is_skipped_and_traced(
    wordpiece, tmp_path, capsys
):
    model = gradient_of_nan(tiny.model("bert", "classification", len(wordpiece)))
    (token,) = wordpiece("x", add_special_tokens=False)["input_ids"]
    trainer = made(wordpiece, "classification", tmp_path, model=model, max_steps=2)
    poisoned(model, token, 0.0)  # no value is bad but that of the row
    poisoned(model, wordpiece("#", add_special_tokens=False)["input_ids"][0], 0.5)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    said = str(caught.value)
    assert said.startswith("NonFiniteError: the gradient is nan in step 1; ")
    assert "the first module to give one is bert.pooler.activation; lower learn" in said
    (folder,) = debug_batch.kept(tmp_path / "run")
    record = json.loads((folder / "batch.json").read_text("utf-8"))
    assert (record["forward"], record["alone"]) == (None, [])
    assert record["backward"]["gradient"]["not_finite"] > 0
    assert "bert.embeddings.word_embeddings.weight" in record["gradients"]
    run = RunRecord(tmp_path / "run", {}, {})
    assert "first module whose gradient was not finite: bert.pooler.a" in inspected(run)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("loss", "the loss itself"),
        ("gradient", "that of the weights, of steps that are too large"),
    ],
)
def test_what_no_module_gave_is_told_by_what_it_is(what, said):
    found = {"what": what, "forward": None, "backward": None, "weights": []}
    shown = _module(found | {"gradients": []})
    assert shown == f"every module gave finite numbers: it is {said}"


def test_a_stop_keeps_batch_and_weights(wordpiece, tmp_path, capsys):
    kept = Kept()
    trainer = made(wordpiece, "classification", tmp_path, options=[kept])
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    said, step = str(caught.value), trainer.state.global_step + 1
    assert f"the loss is nan in step {step}; learning rate " in said
    assert (
        f", own.txt:{BAD + 1} alone gives it; the first module to give one is bert.emb"
        in said
    )
    assert said.endswith(f"`llmft inspect {tmp_path / 'run'}` shows the batch")
    folder = tmp_path / "run" / "debug_batch"
    assert {p.name for p in folder.iterdir()} == {f"step-{step}", "model"}
    assert f"(0 MiB): {folder}" in capsys.readouterr().out
    saved = load_file(folder / "model" / "model.safetensors")
    assert same(saved, {n: w for n, w in weights(trainer).items() if n in saved})
    assert len(saved) > 30
    tensors = load_file(folder / f"step-{step}" / "batch.safetensors")
    assert {"input_ids", "attention_mask", "labels", "rng_state"} == tensors.keys()
    shown = inspected(RunRecord(tmp_path / "run", {}, {}))
    for part in (
        f"run: the loss of step {step} is nan; learning rate ",
        f"  own.txt:{BAD + 1}  ",
        "first module whose output was not finite: bert.embeddings.word_embeddings",
        "its weights of these are not finite: '#' (",
        f"a # {tiny.sentences(1, BAD, words=4)[0].rstrip('.')}"[:20],
        "  input_ids  attention_mask\n   0  [CLS]",
        "labels: ",
    ):
        assert part in shown
    assert not trainer.model.base_model._forward_hooks


def test_without_a_batch_inspect_says_so(tmp_path):
    run = RunRecord(tmp_path, {}, {})
    assert inspected(run) == f"{tmp_path.name}: no batch is kept"
    record = {"error": "NonFiniteError: it is\nnan", "skipped_steps": 1200}
    assert inspected(RunRecord(tmp_path, record, {})) == (
        f"{tmp_path.name}: no batch is kept; steps that were skipped, not finite:"
        r" 1,200; it ended with NonFiniteError: it is\nnan"
    )
    assert inspected(RunRecord(tmp_path, {"status": "complete"}, {})).endswith(
        "every step was finite: its report.html says what to try next"
    )
    folder = tmp_path / "debug_batch" / "step-3"
    folder.mkdir(parents=True)
    (folder / "batch.json").write_text("{}")
    with pytest.raises(DataError, match="it cannot be read"):
        inspected(run)


@pytest.mark.parametrize("fails", ["publish_folder", "_keep_weights"])
def test_a_full_disk_hides_nothing(wordpiece, tmp_path, monkeypatch, capsys, fails):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if fails == "publish_folder":
        monkeypatch.setattr(debug_batch, fails, full)
    else:
        monkeypatch.setattr(
            debug_batch.shutil, "disk_usage", lambda p: type("U", (), {"free": 9})
        )
    trainer = made(wordpiece, "classification", tmp_path)
    with pytest.raises(NonFiniteError, match=f"own.txt:{BAD + 1} alone gives it"):
        trainer.train()
    said = capsys.readouterr().err
    wanted = {
        "publish_folder": "the batch could not be kept: [Errno 28] No space",
        "_keep_weights": "its weights are not kept: 0 MiB, and 0 MiB are free",
    }
    assert f"llmft: warning: {wanted[fails]}" in said


def test_a_model_that_cannot_tell_hides_nothing(
    wordpiece, tmp_path, monkeypatch, capsys
):
    def odd(*args):
        raise RuntimeError("not of\none row")

    monkeypatch.setattr(debug_batch, "_row", odd)
    trainer = made(wordpiece, "classification", tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"the loss is nan in step \d; learning ra"
    ):
        trainer.train()
    said = "llmft: warning: the batch could not be looked into: not of one row\n"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "debug_batch").exists()


def test_looking_into_a_step_changes_nothing_and_the_newest_are_kept(
    wordpiece, tmp_path, monkeypatch
):
    """Dropout is on: the random numbers of later steps are those of a run without."""
    found, empty = [], debug_batch.Found(1, "loss", math.nan, 0.1, None)
    for looks in (True, False):
        trainer = made(
            wordpiece, "classification", tmp_path, max_steps=15, on_nonfinite="skip"
        )
        if not looks:
            monkeypatch.setattr(debug_batch, "look_into", lambda *a: empty)
        trainer.train()
        found.append((weights(trainer), trainer.guards.skipped, torch.get_rng_state()))
        kept = {p.name for p in (tmp_path / "run" / "debug_batch").iterdir()}
        if looks:
            assert len(kept) == debug_batch._KEPT < trainer.guards.skipped
            newest = max(int(n.removeprefix("step-")) for n in kept)
            assert debug_batch.kept(tmp_path / "run")[0].name == f"step-{newest}"
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == 5
    assert torch.equal(found[0][2], found[1][2])


def test_too_many_in_a_row_end_the_run(wordpiece):
    model = tiny.model("bert", "classification", len(wordpiece), num_labels=2)
    model.classifier.bias.data[0] = math.inf
    changes = {"on_nonfinite": "skip", "max_nonfinite_steps": 2}
    trainer = made(wordpiece, "classification", model=model, **changes)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    said = str(caught.value)
    assert "is nan in step 3, after 2 in a row were skipped; learning rate" in said
    assert "weights of the model are not finite: use another model" in said
    assert (trainer.guards.skipped, trainer.state.global_step) == (2, 2)


def test_a_resume_goes_on_with_the_count_and_is_exact(wordpiece, tmp_path):
    def run(folder, steps, resume=None, save=0):
        args = {"on_nonfinite": "skip", "max_steps": 12, "max_nonfinite_steps": 1}
        args |= {"gradient_accumulation_steps": 2, "logging_steps": 1}
        if save:
            args |= {"save_strategy": "steps", "save_steps": save}
        trainer = made(wordpiece, "classification", folder, **args)
        if save:
            stop = type("Stop", (TrainerCallback,), {})()
            stop.on_step_end = lambda a, s, control, **kw: setattr(
                control, "should_training_stop", s.global_step == steps
            )
            trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole", 12)
    cut = run(tmp_path / "cut", 5, save=5)
    assert 0 < cut.guards.skipped < whole.guards.skipped
    (folder,) = checkpoint.checkpoints(tmp_path / "cut" / "run")
    resumed = run(tmp_path / "cut", 12, str(folder))
    assert resumed.guards.state() == whole.guards.state()
    assert same(weights(resumed), weights(whole))
    losses = [
        [e["loss"] for e in t.state.log_history if "loss" in e]
        for t in (resumed, whole)
    ]
    assert losses[0] == losses[1]


def decaying(draw, start=2.5, to=2.0, noise=0.15, steps=600, over=150):
    gone = start - to
    return [
        to + gone * math.exp(-i / over) + noise * draw.gauss(0, 1) for i in range(steps)
    ]


def told(losses, well=False):
    watch = LossWatch()
    watch.well = well
    return [said for i, x in enumerate(losses, 1) if (said := watch.add(x, i))]


def test_healthy_losses_are_not_warned_of():
    for seed in range(40):
        draw = random.Random(seed)
        fine = decaying(draw)
        assert not told(fine)
        # Small batches of a classifier that has nearly learnt all: one in 20 is hard.
        hard = [
            max(x / 30, 0.001) if draw.random() > 0.05 else draw.uniform(0.5, 3)
            for x in decaying(draw, 20, 1, 0.3)
        ]
        assert not told(hard)
        # A good start leaves little to gain.
        assert not told([0.4 + draw.gauss(0, 0.1) for _ in range(600)], well=True)
        # A rate that warms up, then falls.
        assert not told(decaying(draw, 3.0, 2.8, 0.1, over=300))


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (lambda x, draw: x + 4, ["the loss rose at step 20"]),
        (lambda x, draw: 2.9 + draw.gauss(0, 0.05), ["the loss rose at step 20"]),
        (lambda x, draw: x, []),
    ],
)
def test_a_spike_is_warned_of_once(later, said):
    draw = random.Random(3)
    losses = decaying(draw, to=1.5, noise=0.1)
    for i in range(200, 600):
        losses[i] = later(losses[i], draw)
    found = told(losses)
    assert len(found) == len(said)
    assert all(x in y for x, y in zip(said, found, strict=True))
    assert not found or "a lower learning_rate, more warmup_steps" in found[0]


def test_a_loss_that_does_not_move_is_warned_of_once():
    draw = random.Random(4)
    (said,) = told([0.69 + draw.gauss(0, 0.03) for _ in range(900)])
    assert said.startswith("the loss does not move: 0.6")
    assert "(step 300); a higher learning_rate may help" in said
    watch = LossWatch()
    watch.begin(resumed=True)
    assert not any(watch.add(0.69, i) for i in range(900))


@pytest.mark.parametrize(
    ("kind", "name", "values", "said"),
    [
        ("masked-lm", "input_ids", [[2, 999, 3], [2, 5, 3]], "input_ids has 999, ex"),
        ("masked-lm", "input_ids", [[2, 5, -1], [2, 5, 3]], "input_ids has -1, expec"),
        ("masked-lm", "attention_mask", [[1, 2, 1], [1, 1, 1]], "has 2, expected 0 o"),
        ("masked-lm", "attention_mask", [[1, 1, 1], [0, 0, 0]], "is 0 in a whole row"),
        ("masked-lm", "attention_mask", [[1, 1], [1, 1]], "their shapes differ: "),
        ("masked-lm", "token_type_ids", [[0, 0, 5], [0, 0, 0]], "has 5, expected 0 t"),
        ("masked-lm", "labels", [[-100] * 3] * 2, "labels are all -100"),
        ("masked-lm", "labels", [[999, 1, 1]] * 2, "labels have 999, expected 0 to "),
        ("masked-lm", "labels", [[1, 1, 1]], "its parts have unlike numbers of rows"),
        ("masked-lm", "extra", [1.0, math.inf], "extra has numbers that are not fini"),
        ("masked-lm", "input_ids", [[0.5] * 3] * 2, "expected whole numbers"),
        ("causal-lm", "labels", [[-5, 1, 1]] * 2, "labels have -5, expected 0 to "),
        ("classification", "labels", [0, 2], "labels have 2, expected 0 to 1"),
        ("classification", "labels", [0.0, 1.0], "labels are torch.float32, expect"),
        ("regression", "labels", [0.5, math.nan], "labels has numbers that are not"),
        ("multi", "labels", [[0.0, 1.5], [0.0, 1.0]], "labels have 1.5, expected 0 "),
        ("classification", "labels", [0, 1], ""),
        ("masked-lm", "labels", [[1, -100, 1]] * 2, ""),
    ],
)
def test_inputs_are_checked(wordpiece, byte_level, kind, name, values, said):
    of = {"regression": "classification", "multi": "classification"}.get(kind, kind)
    trainer = made(byte_level if kind == "causal-lm" else wordpiece, of)
    if kind in ("regression", "multi"):
        trainer.objective.problem_type = {
            "regression": "regression",
            "multi": "multi_label_classification",
        }[kind]
    batch = {"input_ids": torch.tensor([[2, 6, 3], [2, 5, 3]])}
    batch["labels"] = torch.tensor([0, 1] if of == "classification" else [[1] * 3] * 2)
    batch[name] = torch.tensor(values)
    if not said:
        check_batch(trainer, batch, "step 3")
        return
    with pytest.raises(DataError) as caught:
        check_batch(trainer, batch, "step 3")
    found = str(caught.value)
    assert "DataError: the batch of step 3 is not what the model takes: " in found
    assert said in found


def test_ids_of_a_model_without_embeddings_have_no_limit(wordpiece):
    """CANINE hashes characters."""
    config = CanineConfig(**tiny.SIZES, num_hash_buckets=64, num_labels=2)
    trainer = made(wordpiece, "classification")
    trainer.model = CanineForSequenceClassification(config)
    ids = torch.tensor([[0xE000, 0x10FFFF, 0xE001], [0xE000, 97, 0xE001]])
    batch = {"input_ids": ids, "labels": torch.tensor([0, 1])}
    check_batch(trainer, batch, "step 3")
    trainer.objective = MaskedLM()  # its labels are ids
    check_batch(trainer, batch | {"labels": ids}, "step 3")
    trainer.objective = Classification()
    with pytest.raises(DataError, match="labels have 2, expected 0 to 1"):
        check_batch(trainer, batch | {"labels": torch.tensor([0, 2])}, "step 3")


def test_check_inputs_names_the_row(wordpiece):
    trainer = made(wordpiece, "classification", check_inputs=True, max_steps=3)
    (token,) = wordpiece("#", add_special_tokens=False)["input_ids"]
    poisoned(trainer.model, token, 0.1)
    labels = [0] * 12
    labels[4] = 5
    data = trainer.train_dataset.remove_columns("labels").add_column("labels", labels)
    trainer.train_dataset = data
    with pytest.raises(
        DataError, match=r"labels have 5, expected 0 to 1 \(own.txt:5\); "
    ):
        trainer.train()
    assert not made(wordpiece, "classification").args.check_inputs


@pytest.mark.parametrize(
    ("forecast", "said"),
    [
        (
            None,
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 takes ",
        ),
        (
            Forecast(1.0, peak_bytes=2**30, example_bytes=2**27),
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 takes 0.",
        ),
        (
            Forecast(1.0, peak_bytes=2**40, example_bytes=2**27),
            "use a shorter --max_seq_length, or a smaller model",
        ),
    ],
)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"),
        OSError(12, "Cannot allocate memory"),
        ValueError("odd"),
    ],
)
def test_out_of_memory_names_what_it_was_about(error, forecast, said, monkeypatch):
    # The plan is a quarter GiB above nine tenths of it: two examples.
    allowed = int((2**30 - 2**28) / 0.9) + 1
    monkeypatch.setattr(memory, "allowed_bytes", lambda: allowed)
    monkeypatch.setattr(memory, "allowed_text", lambda: "0.9 GiB (ulimit)")
    monkeypatch.setattr(
        memory.psutil.Process, "memory_info", lambda s: type("M", (), {"rss": 2**29})
    )
    args = TrainingArguments(per_device_train_batch_size=8)
    guards = Guards(args, forecast=forecast)
    assert guards.out_of_memory(MemoryError()) is None  # not in a training
    batch = {"input_ids": torch.zeros(8, 128)}
    guards.parts, guards.step = [debug_batch.Part(None, batch, None, batch)], 4
    found = guards.out_of_memory(error)
    if isinstance(error, ValueError):
        assert found is None
        return
    assert str(found).startswith(
        "EnvironmentFault: out of memory in step 4, with a batch of 8 x 128 tokens: the"
        " process holds 0.5 GiB, and may hold 0.9 GiB (ulimit); "
    )
    assert said in str(found)
    assert found.exit_code == 5


def test_the_allocator_itself_ends_a_run_with_that(tmp_path):
    quiet = {"report_to": "none", "disable_tqdm": True, "do_train": True}
    training = TrainingArguments(output_dir=str(tmp_path / "run"), **quiet)
    data = ClassificationDataArguments()
    args = Arguments(ModelArguments("tiny"), data, training, {}, [])

    def run():
        with tiny.started_run(args) as run:
            batch = {"input_ids": torch.zeros(8, 128)}
            run.guards.parts = [debug_batch.Part(None, batch, None, batch)]
            torch.empty(2**48)

    with pytest.raises(EnvironmentFault) as caught:
        run()
    assert "out of memory in step 0, with a batch of 8 x 128 tokens" in str(
        caught.value
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert (record["status"], record["error"]) == ("failed", str(caught.value))


@pytest.mark.parametrize(
    ("steps", "files"),
    [(2, set()), (8, {TRACE}), (15, {TRACE, LOOP}), (25, {TRACE, LOOP})],
)
def test_a_profile_is_kept_and_shown(wordpiece, tmp_path, steps, files, capfd):
    profile = Profile(tmp_path)
    trainer = made(wordpiece, "classification", options=[profile], max_steps=steps)
    poisoned(trainer.model, 43, 0.1)
    trainer.args.on_nonfinite = "skip"
    trainer.train()
    said = capfd.readouterr()
    there = tmp_path / FOLDER
    assert {p.name for p in there.iterdir()} == files if files else not there.exists()
    assert (f"profile    {there}" in said.out) is bool(files)
    assert ("torch, 10 steps" in said.out) is (steps > 13)
    assert ("torch, 5 steps" in said.out) is (steps == 8)
    assert ("aten::" in said.out) is bool(files)
    assert (f"Python, {min(steps - 13, 10)} steps" in said.out) is (steps > 13)
    assert ("nothing: this training had 2 steps" in said.out) is (steps == 2)
    assert "profiler_st" not in said.err
    assert not any(isinstance(c, Profile) for c in for_run(tmp_path, trainer.args))
