"""What is chosen by trying, that it leaves no trace, and what it says will happen."""

import json
import random
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tiny
import torch
from datasets import Dataset
from unit.machine.test_detect import PLAIN
from unit.train.test_trainer import (
    NO_DROPOUT,
    arguments,
    blocks,
    causal_lm,
    masked_lm,
)

from llmft.config.choice import Choice
from llmft.config.fields import MaskedLMDataArguments, ModelArguments
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.rows import streamed_files
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.data.tokens.stream import Stream
from llmft.errors import ConfigError, EnvironmentFault
from llmft.machine import detect
from llmft.machine.measure import Measurement
from llmft.machine.trial import Candidate
from llmft.model.compiled import compile_layers, plain_layers, why_not_compiled
from llmft.train import fast_path as module
from llmft.train import memory, trials
from llmft.train.batches import Batches, lengths_of
from llmft.train.fast_path import choose_fast_path
from llmft.train.objectives import CausalLM, MaskedLM
from llmft.train.steps import Steps, optimizer_cost, runnable
from llmft.train.trials import Trial, _by_length, winner

EAGER = Candidate("fp32", "eager")
SPEEDS = Measurement(fp32_gflops=160, bf16_gflops=390, bandwidth_gb_s=20)


@pytest.fixture(autouse=True)
def _known_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(detect, "detect", lambda: PLAIN)
    monkeypatch.setattr(module, "measure", lambda machine, threads: SPEEDS)


def state(model):
    """Return all that a trial could leave behind."""
    weights = {n: x.clone() for n, x in model.state_dict(keep_vars=True).items()}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    draws = random.random(), np.random.rand(), torch.rand(1).item()
    return weights, gradients, draws, model.training, model.config.use_cache


def try_out(wordpiece, folder, model=None, **changes):
    """Choose for a masked-LM training; return arguments, model and what was chosen."""
    model = model or tiny.model("bert", "masked-lm", len(wordpiece))
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    attention = changes.pop("attn_implementation", None)
    args = SimpleNamespace(
        training=arguments(folder, **changes),
        model=ModelArguments(attn_implementation=attention),
        data=None,
        origins={},
    )
    found = choose_fast_path(
        args, model, MaskedLM(), collator, {"train": blocks(wordpiece)}
    )
    return args, model, found


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_a_trial_leaves_no_trace(wordpiece, tmp_path, fast_path):
    model = tiny.model("bert", "masked-lm", len(wordpiece))  # it has dropout
    found = []
    for tries in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if tries:
            try_out(wordpiece, tmp_path, model, fast_path=fast_path)
        found.append(state(model))
    (weights, *others), (weights_after, *others_after) = found
    assert others == others_after
    assert all(torch.equal(weights[n], weights_after[n]) for n in weights)


def test_the_run_with_a_trial_is_the_run_with_its_choices_as_flags(wordpiece, tmp_path):
    """Same bytes, whatever was fastest."""
    flags, trained = {}, []
    for _ in range(2):
        args, model, found = try_out(wordpiece, tmp_path, **flags)
        chosen = {choice.name: choice.value for choice in found.choices}
        trainer = masked_lm(wordpiece, args.training)
        trainer.model.set_attn_implementation(model.config._attn_implementation)
        trainer.train()
        trained.append(trainer.model.state_dict())
        flags = {"precision": chosen["precision"], "fast_path": "off"}
        flags |= {"attn_implementation": chosen["attention"]}
    assert all(torch.equal(x, trained[1][n]) for n, x in trained[0].items())


def test_what_was_chosen_is_set_and_recalled(wordpiece, tmp_path, monkeypatch):
    seconds = {
        Candidate("bf16", "eager"): 0.5,
        Candidate("bf16", "sdpa"): 0.25,
        Candidate("fp32", "eager"): 0.75,
    }
    monkeypatch.setattr(trials, "contest", lambda *given: (seconds, True))
    for _ in range(2):
        args, model, found = try_out(wordpiece, tmp_path)
        assert model.config._attn_implementation == "sdpa"
        assert (args.training.bf16, args.training.mixed_precision) == (True, "bf16")
        assert found.choices == [
            Choice(
                "precision", "bf16", "part of a batch took: bf16 250 ms, fp32 750 ms"
            ),
            Choice(
                "attention", "sdpa", "part of a batch took: sdpa 250 ms, eager 500 ms"
            ),
        ]
        monkeypatch.setattr(trials, "contest", None)  # not called again
    assert found.forecast.trial_seconds == 0
    assert found.forecast.step_seconds > 0


def test_figures_of_a_busy_machine_are_not_kept(wordpiece, tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "detect", lambda: replace(PLAIN, load=6.0))
    try_out(wordpiece, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("given", "bf16_gflops", "tried"),
    [
        ({}, 390, ["bf16/eager", "fp32/eager", "bf16/sdpa", "fp32/sdpa"]),
        ({}, 150, ["fp32/eager", "bf16/eager", "fp32/sdpa", "bf16/sdpa"]),
        ({}, 2, ["fp32/eager", "fp32/sdpa"]),  # it would take minutes
        ({"precision": "bf16"}, 2, ["bf16/eager", "bf16/sdpa"]),
        ({"bf16": True}, 390, ["bf16/eager", "bf16/sdpa"]),
        ({"attn_implementation": "sdpa"}, 390, ["bf16/sdpa", "fp32/sdpa"]),
        ({"fast_path": "off"}, 390, None),
        ({"fast_path": "off", "precision": "bf16"}, 390, None),
        ({"fast_path": "off", "time_limit": "1m"}, 390, ["fp32/sdpa"]),
    ],
)
def test_candidates(
    wordpiece, tmp_path, monkeypatch, capsys, given, bf16_gflops, tried
):
    seen = []

    def contest(candidates, run, budget):
        seen.append([f"{c.precision}/{c.attention}" for c in candidates])
        return {candidates[0]: 1.0}, False

    speeds = replace(SPEEDS, bf16_gflops=bf16_gflops)
    monkeypatch.setattr(module, "measure", lambda machine, threads: speeds)
    monkeypatch.setattr(trials, "contest", contest)
    args, model, found = try_out(wordpiece, tmp_path, **given)
    assert seen == ([tried] if tried else [])
    slow = "warning: precision is bf16, which multiplies 0.013 times as fast as fp32"
    assert (slow in capsys.readouterr().err) is (given == {"precision": "bf16"})
    assert (found.forecast is None) is (tried is None)
    if "fast_path" in given:
        whys = {choice.reason for choice in found.choices}
        assert whys <= {"was given", "nothing was tried"}
        assert model.config._attn_implementation == "sdpa"
        assert args.training.bf16 is (given.get("precision") == "bf16")
    given_ones = [c.name for c in found.choices if c.reason == "was given"]
    assert given_ones == [
        name
        for name, flags in {
            "precision": {"precision", "bf16"},
            "attention": {"attn_implementation"},
        }.items()
        if flags & given.keys()
    ]


def test_what_is_more_precise_wins_near_ties():
    bf16 = EAGER._replace(precision="bf16")
    assert winner({bf16: 1.0, EAGER: 1.04}) == EAGER
    assert winner({bf16: 1.0, EAGER: 1.06}) == bf16


@pytest.mark.parametrize(("compiled", "runs"), [(False, 1), (True, 3)])
def test_compiling_is_not_timed(monkeypatch, compiled, runs):
    """A long step is not repeated; a first one that compiles says nothing."""
    ran = []
    monkeypatch.setattr("llmft.train.steps.LONG", -1.0)
    monkeypatch.setattr(Steps, "run", lambda *args: ran.append(args))
    steps = Steps(None, CausalLM(), None, None)
    steps.timed(EAGER._replace(compiled=compiled), [], True)
    assert len(ran) == runs


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_batches_are_as_long_as_those_of_the_trainer(wordpiece, tmp_path, strategy):
    args = arguments(
        tmp_path, train_sampling_strategy=strategy, per_device_train_batch_size=3
    )
    trainer = masked_lm(wordpiece, args)
    trainer.train_dataset = trainer.train_dataset.add_column(
        "length", lengths_of(trainer.train_dataset)
    )
    loader = trainer.get_train_dataloader()
    made = sorted(tuple(batch["input_ids"].shape) for batch in loader)
    found = Batches(trainer.train_dataset, 3, strategy, args.seed)
    if strategy == "group_by_length":
        shapes = zip(found.sizes.tolist(), found.lengths.tolist(), strict=True)
        assert sorted(shapes) == made
    assert found.sizes.sum() == 16
    assert found.lengths.tolist() == sorted(found.lengths)
    longest = len(found) - 1
    ids = [example["input_ids"] for example in found.examples(longest)]
    assert max(map(len, ids)) == found.lengths[longest]
    assert len(found.examples(longest, tokens=1)) == 1


def test_seconds_by_length_follow_the_line():
    two = Trial({}, EAGER, [20, 60], [1.0, 3.0], 0.0, 0)
    lengths = np.array([10, 20, 40, 60, 80])
    assert _by_length(two, lengths) == pytest.approx([0.5, 1, 2, 3, 4])
    flat = replace(two, batches=[1.0, 0.9])
    assert _by_length(flat, lengths) == pytest.approx([1, 1, 2, 3, 4])
    one = replace(two, lengths=[20], batches=[1.0])
    assert _by_length(one, lengths) == pytest.approx([0.5, 1, 2, 3, 4])


@pytest.mark.parametrize(("optim", "states"), [("adamw_torch_fused", 2), ("sgd", 0)])
def test_the_optimizer_is_tried_on_weights_of_its_own(tmp_path, optim, states):
    seconds, kept = optimizer_cost(
        arguments(tmp_path, optim=optim), torch.nn.Linear(10_000, 1_000, bias=False)
    )
    assert seconds > 0
    assert kept == pytest.approx(states * 40_000_000, rel=0.01)


def test_a_resumed_run_keeps_its_choices(wordpiece, tmp_path):
    choices = {"precision": {"value": "fp32"}, "attention": {"value": "sdpa"}}
    (tmp_path / "run.json").write_text(json.dumps({"choices": choices}))
    args, model, found = try_out(
        wordpiece,
        tmp_path / "x",
        resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-3"),
    )
    kept = {c.name: c.value for c in found.choices if "before the resume" in c.reason}
    assert kept == {"precision": "fp32", "attention": "sdpa"}
    assert model.config._attn_implementation == "sdpa"
    assert args.training.bf16 is False


def causal(folder, **changes):
    trainer = causal_lm(arguments(folder, **changes), kind="llama")
    data = {"train": Dataset.from_dict({"input_ids": [[3, 4, 5, 6]] * 8})}
    return trainer, data


@pytest.mark.parametrize(
    ("flag", "lengths", "compiler", "took", "why"),
    [
        (None, 4, True, 0.5, None),
        (None, 4, True, 0.8, None),  # three steps do not save a second
        (True, 4, True, 0.5, "compile_layers was given"),
        (False, 4, True, 0.5, "compile_layers was given"),
        (None, 5, True, 0.5, "batches of many lengths"),
        (None, 4, False, 0.5, "there is no C++ compiler"),
    ],
)
def test_whether_layers_are_compiled(
    tmp_path, monkeypatch, flag, lengths, compiler, took, why
):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name if compiler else None)
    monkeypatch.setattr(trials, "COMPILED_SAVES", 1e6)  # it is tried
    monkeypatch.setattr(trials, "COMPILING", 1.0)
    tried = []

    def contest(candidates, run, budget):
        return dict.fromkeys(candidates, 1.0), True

    def timed(steps, candidate, examples, trains, until=0.0):
        tried.append(candidate)
        return took if candidate.compiled else 1.0

    monkeypatch.setattr(trials, "contest", contest)
    monkeypatch.setattr(Steps, "timed", timed)
    trainer, data = causal(tmp_path, compile_layers=flag, per_device_train_batch_size=1)
    data["train"] = Dataset.from_dict(
        {"input_ids": [[3, 4, 5, 6]] * 8 + [[3] * lengths] * 8}
    )
    model_args = ModelArguments()
    args = SimpleNamespace(
        training=trainer.args, model=model_args, data=None, origins={}
    )
    found = choose_fast_path(
        args, trainer.model, CausalLM(), trainer.data_collator, data
    )
    (layers,) = [choice for choice in found.choices if choice.name == "layers"]
    pays = flag or (why is None and took < 0.6)
    wanted = "compiled" if pays else "as written"
    assert layers.value == wanted
    figures = ["compiled 500 ms", "as written 1,000 ms"]
    figures = figures if pays else [figures[1], "compiled 800 ms"]
    assert layers.reason == (why or f"part of a batch took: {', '.join(figures)}")
    assert any(c.compiled for c in tried) is (flag or why is None)
    replaced = ["forward" in vars(x) for x in trainer.model.base_model.layers]
    assert replaced == [wanted == "compiled"] * 2


@pytest.mark.skipif(
    bool(why_not_compiled(tiny.model("llama", "causal-lm", 500))),
    reason="no C++ compiler",
)
def test_compiled_layers_compute_the_same(tmp_path):
    trainer, _ = causal(tmp_path)
    model = trainer.model
    batch = trainer.data_collator([{"input_ids": [3, 4, 5, 6], "row": 0}] * 2)
    short = trainer.data_collator([{"input_ids": [3, 4, 5], "row": 0}] * 2)
    found = []
    for compiled in (False, True):
        compile_layers(model, 2, 4) if compiled else plain_layers(model)
        model.train()
        loss = CausalLM().loss(model, batch)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        model.zero_grad()
        ran = CausalLM().loss(model, short).item()  # another shape runs as written
        model.eval()
        with torch.no_grad():
            evaluated = CausalLM().loss(model, batch).item()
        found.append(({"loss": loss.detach(), **gradients}, ran, evaluated))
    plain_layers(model)
    (wanted, *rest), (seen, *others) = found
    assert rest == others
    for name, values in wanted.items():
        torch.testing.assert_close(seen[name], values, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({}, "fp32"),
        ({"fp16": True}, "fp16"),
        ({"bf16": True}, "bf16"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "fp32"}, "fp32"),
    ],
)
def test_precision_on_a_gpu_is_what_was_asked_for(wordpiece, given, value):
    training = SimpleNamespace(fp16=False, bf16=False, precision="auto")
    vars(training).update(device=torch.device("cuda"), resume_from_checkpoint=None)
    vars(training).update(given)
    args = SimpleNamespace(training=training, model=ModelArguments(), data=None)
    model = tiny.model("bert", "masked-lm", len(wordpiece))
    found = choose_fast_path(args, model, MaskedLM(), None, {})
    assert found.choices == [Choice("precision", value, "not tried on cuda")]
    assert found.forecast is None
    assert training.bf16 is (value == "bf16")


@pytest.fixture
def needs(wordpiece, tmp_path, monkeypatch):
    """Sets what may be used: so many GB beside what is held, and 1 for the optimizer.

    Each example takes 1 GB. Returns the bytes that are held by now.
    """

    def kept(steps, candidate, examples):
        return 10**9 * len(examples)

    def needs(more):
        held = psutil.Process().memory_info().rss
        monkeypatch.setattr(memory, "saved_bytes", kept)
        allowed = held + memory.GAPS + 10**9 + int(more * 10**9)
        monkeypatch.setattr(memory, "allowed_bytes", lambda: allowed)
        monkeypatch.setattr(memory, "MOST", 1.0)
        return held

    return needs


def test_memory_is_told_and_refused_before_it_is_taken(wordpiece, tmp_path, needs):
    model = tiny.model("bert", "masked-lm", len(wordpiece), **NO_DROPOUT)
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    args = arguments(tmp_path, per_device_train_batch_size=8)
    steps = Steps(model, MaskedLM(), collator, args)
    batches = Batches(blocks(wordpiece), 8, "random", 42)
    found = []
    for more in (100, 7, 0):
        held = needs(more)
        need = memory.need_of(steps, EAGER, batches, 10**9)
        try:
            found.append(memory.require_memory(need, steps, 18))
        except EnvironmentFault as refused:
            found.append(refused)
    needed, refused, hopeless = found
    wanted = held + memory.GAPS + 1e9 + 8 * memory.MARGIN * 1e9
    assert needed == pytest.approx(wanted, rel=0.05)
    assert refused.exit_code == hopeless.exit_code == 5
    assert re.fullmatch(
        r"training would take about \d.* of memory, and may use .* whatever the batch,"
        r" .* and 1.1 GiB for each example of 18 tokens",
        refused.found,
    )
    fits = "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 fits"
    assert refused.hint.startswith(fits)
    assert hopeless.hint.startswith("use a smaller model or")


@pytest.mark.parametrize(
    ("more", "parts", "found"),
    [
        (100, 1, "8 x 1"),
        (100, 2, "16 x 1"),
        (7, 1, "4 x 2"),
        (7, 3, "6 x 4"),
        (0.5, 1, "1 x 8"),
    ],
)
def test_the_batch_that_fits(wordpiece, tmp_path, needs, more, parts, found):
    """However it is cut, a step learns from the same examples."""
    needs(more)
    flags = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": parts}
    args, _, chosen = try_out(
        wordpiece, tmp_path, auto_find_batch_size=True, fast_path="off", **flags
    )
    assert chosen.choices[0].value == found
    training = args.training
    rows, times = (
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
    )
    assert f"{rows} x {times}" == found
    assert rows * times == 8 * parts
    assert training.auto_find_batch_size is False
    assert args.origins["per_device_train_batch_size"] == "auto_find_batch_size"
    # A resume has the batch of before, whatever memory there is then.
    needs(2)
    (tmp_path / "run.json").write_text(
        json.dumps({"choices": {"batch": {"value": found}}})
    )
    args, _, chosen = try_out(
        wordpiece,
        tmp_path / "x",
        auto_find_batch_size=True,
        fast_path="off",
        resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-3"),
        **flags,
    )
    assert chosen.choices[0] == Choice("batch", found, "as before the resume")
    assert args.training.per_device_train_batch_size == rows
    assert args.training.gradient_accumulation_steps == times


def test_a_batch_of_before_with_other_parts_is_said(wordpiece, tmp_path, needs, capsys):
    needs(100)
    (tmp_path / "run.json").write_text(
        json.dumps({"choices": {"batch": {"value": "8 x 1"}}})
    )
    flags = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    flags["resume_from_checkpoint"] = str(tmp_path / "checkpoints" / "checkpoint-3")
    try_out(
        *(wordpiece, tmp_path / "x"),
        **{"auto_find_batch_size": True, "fast_path": "off", **flags},
    )
    said = (
        "warning: 32 examples a step were asked for; the batch stays 8 x 1, as before"
    )
    assert said in capsys.readouterr().err


def test_memory_is_that_of_the_longest_example(wordpiece, tmp_path, monkeypatch):
    """Whichever stands first in its batch."""
    seen = []

    def kept(steps, candidate, examples):
        seen.append([len(example["input_ids"]) for example in examples])
        return len(examples)

    monkeypatch.setattr(memory, "saved_bytes", kept)
    model = tiny.model("bert", "masked-lm", len(wordpiece))
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    steps = Steps(model, MaskedLM(), collator, arguments(tmp_path))
    data = Dataset.from_dict(
        {"input_ids": [[5, 6, 7], [5] * 9, [5, 6]], "row": [0, 1, 2]}
    )
    memory.need_of(steps, EAGER, Batches(data, 3, "random", 1), 0)
    assert seen == [[9], [9, 9]]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_partial_batch_is_not_typical(strategy):
    data = Dataset.from_dict({"input_ids": [[3] * 5] * 17})
    found = Batches(data, 16, strategy, 1)
    assert found.sizes.tolist() == [1, 16]
    assert [len(found.examples(place)) for place in (0, 1)] == [1, 16]


def test_a_stream_within_a_time(wordpiece, tmp_path, monkeypatch):
    """Whose length nobody knows."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(tiny.sentences(40, 1)))
    data = MaskedLMDataArguments(train_file=str(texts), max_seq_length=16)
    stream = Stream(
        streamed_files(data.train_file, Columns(), Reading.of(data)),
        data,
        wordpiece,
        1,
        0,
    )
    monkeypatch.setattr(module, "seconds_left", lambda limit: 60.0)
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    args = SimpleNamespace(
        training=arguments(tmp_path, time_limit="60s"),
        model=ModelArguments(),
        data=None,
        origins={},
    )
    model = tiny.model("bert", "masked-lm", len(wordpiece))
    found = choose_fast_path(args, model, MaskedLM(), collator, {"train": stream})
    assert found.forecast.step_seconds > 0


@pytest.mark.parametrize("held", ['{"grown": 1}', "[1]", "7"])
def test_a_trial_that_was_damaged_is_taken_again(wordpiece, tmp_path, held):
    long = {"max_steps": 99_999}  # there is time to try all
    try_out(wordpiece, tmp_path, **long)
    (path,) = (tmp_path / "cache" / "hardware").glob("trial-*.json")
    path.write_text(f'{{"found": {held}, "machine": "", "row": []}}')
    _, _, found = try_out(wordpiece, tmp_path, **long)
    assert found.forecast.trial_seconds > 0


def test_a_trial_of_another_evaluation_is_no_trial_of_this(wordpiece, tmp_path):
    model = tiny.model("bert", "masked-lm", len(wordpiece))
    steps = Steps(model, MaskedLM(), None, arguments(tmp_path))
    train = Batches(blocks(wordpiece), 4, "random", 1)
    keys = [
        trials._key(steps, PLAIN, train, Batches(blocks(wordpiece, n), 8, "random", 1))
        for n in (2, 16)
    ]
    assert keys[0] != keys[1]


def test_a_model_that_fails_in_bf16_runs_in_fp32(wordpiece, tmp_path, capsys):
    """DeBERTa masks with a number that bf16 does not have."""
    model = tiny.model("deberta", "masked-lm", len(wordpiece))
    args, _, found = try_out(wordpiece, tmp_path, model)
    assert {choice.name: choice.value for choice in found.choices} == {
        "precision": "fp32",
        "attention": "eager",
    }
    assert not args.training.bf16
    said = "this model does not run in bf16 with attention eager: value cannot be"
    assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"a step of this deberta.*--precision fp32"):
        try_out(wordpiece, tmp_path, model, precision="bf16")


def test_too_few_positions_are_found_before_the_run(wordpiece, tmp_path):
    """Not every model calls them max_position_embeddings."""
    model = tiny.model("bert", "masked-lm", len(wordpiece))
    table = model.bert.embeddings
    table.position_embeddings = torch.nn.Embedding(10, 32)
    for fast_path in ("auto", "off"):
        with pytest.raises(ConfigError, match="runs with 9 tokens, not with 18"):
            try_out(wordpiece, tmp_path, model, fast_path=fast_path)


def test_what_only_a_held_out_example_is_too_long_for_is_found(wordpiece):
    model = tiny.model("bert", "masked-lm", len(wordpiece), max_position_embeddings=32)
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    steps = Steps(model, MaskedLM(), collator, arguments("unused"))
    fits = {"input_ids": [5] * 32, "row": 0}
    longest = {"train": fits, "test": {"input_ids": [5] * 40, "row": 0}}
    assert runnable(steps, [EAGER], {"train": fits}) == [EAGER]
    with pytest.raises(ConfigError, match="with 20 tokens, not with 40"):
        runnable(steps, [EAGER], longest)


def test_layers_between_checkpoints_are_transformers_own_argument(wordpiece, tmp_path):
    """torch knows none of that name, and would blame the model."""
    model = tiny.model("bert", "masked-lm", len(wordpiece))
    collator = SeededDataCollatorForLanguageModeling(wordpiece, mlm_probability=0.3)
    args = arguments(
        tmp_path,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"every_n_layers": 2},
    )
    steps = Steps(model, MaskedLM(), collator, args)
    with steps.leaving_no_trace():
        steps.run(EAGER, [{"input_ids": [5] * 9, "row": 0}])
        assert model.is_activation_checkpointing


def test_an_evaluation_takes_as_long_as_its_tokens():
    """Also where they are more, or longer, than what was timed."""
    trial = Trial({}, EAGER, [20], [1.0], 0.5, 0)
    data = Dataset.from_dict({"input_ids": [[3] * 10] * 4 + [[3] * 30] * 3})
    batches = Batches(data, 2, "longest_first", 1)
    cells = sum(int(a * b) for a, b in zip(batches.lengths, batches.sizes, strict=True))
    assert trials._evaluation(trial, batches) == 0.5 * cells
