"""A run that was cut and goes on ends with the bytes of one that was not.

Each cell of the table is a way to train. Compared are the sha256 of the weights, each
batch that the model saw, and each number that was logged.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

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
from llmft.machine.plan import Forecast
from llmft.signals import Terminated, terminable
from llmft.train import checkpoint, resume, time_limit
from llmft.train.callbacks import EarlyStoppingCallback, SaveByClock, for_run
from llmft.train.objectives import CausalLM, Classification, MaskedLM
from llmft.train.trainer import LlmftTrainer

Cell = dict[str, Any]
# 13 rows in batches of 2, two of which make a step: the last step of an epoch has one.
EPOCHS = {"num_train_epochs": 2, "per_device_train_batch_size": 2}
EPOCHS |= {"gradient_accumulation_steps": 2, "eval_strategy": "epoch"}
GROUPED = {**EPOCHS, "train_sampling_strategy": "group_by_length"}
STEPS = {"max_steps": 9, "per_device_train_batch_size": 2}
LATER = {"max_steps": 9, "per_device_train_batch_size": 4}  # 2.5 steps a pass
WINDOW = {"logging_steps": 4, **EPOCHS}
# Names of cells, what they are, and where they are cut.
CELLS: dict[str, tuple[Cell, list[int]]] = {
    "classes": ({"task": "classify", **EPOCHS}, [1, 2, 3, 4, 5, 6, 7, 8]),
    "smoothed": (
        {"task": "classify", "weights": [0.5, 2.0, 1.0], "contrast": 1.0, **EPOCHS}
        | {"label_smoothing_factor": 0.2},
        [3],
    ),
    "window": ({"task": "classify", **WINDOW}, [1, 3, 6]),
    "evaluated first": ({"task": "classify", "eval_on_start": True, **EPOCHS}, [3]),
    "log by epoch": (
        {"task": "classify", **EPOCHS, "logging_strategy": "epoch"},
        [2, 4],
    ),
    "grouped": ({"task": "classify", **GROUPED}, [2, 4, 6]),
    "two workers": ({"task": "mlm", **EPOCHS, "dataloader_num_workers": 2}, [3, 6]),
    "masks": ({"task": "mlm", **EPOCHS}, [2, 6]),
    "bf16": ({"task": "mlm", **STEPS, "bf16": True}, [4]),
    "frozen": ({"task": "mlm", **STEPS, "frozen": True}, [4]),
    "packed": (
        {"task": "generate", **EPOCHS, "gradient_accumulation_steps": 4},
        [1, 2, 3],
    ),
    "lora": ({"task": "generate", **STEPS, "lora": True}, [5]),
    "time limit": ({"task": "mlm", "time_limit": "1h", **STEPS, "max_steps": -1}, [5]),
    "stream": ({"task": "mlm", "buffer_size": 3, **LATER}, [1, 3, 5, 8]),
    "stream in order": ({"task": "mlm", "buffer_size": 0, **LATER}, [5, 8]),
    "stream packed": (
        {"task": "mlm", "buffer_size": 4, "block_policy": "pack", **LATER},
        [4, 8],
    ),
    "stream of documents": (
        {"task": "generate", "buffer_size": 4, "block_policy": "pack", **LATER},
        [7],
    ),
    "stream in a worker": (
        {"task": "mlm", "buffer_size": 3, **LATER, "dataloader_num_workers": 1},
        [5, 8],
    ),
}
_OURS = ("task", "weights", "contrast", "frozen", "lora", "buffer_size", "block_policy")


class Seen:
    """What a run was: the numbers that it logged, its batches and weights."""

    def __init__(self) -> None:
        self.batches: list[str] = []
        self.log: list[list[tuple[str, str]]] = []
        self.weights = ""


def texts(count: int = 13) -> list[str]:
    return [tiny.sentences(1, i, words=4 + (7 * i) % 11)[0] for i in range(count)]


def model_of(cell: Cell, size: int) -> Any:
    kinds = {"classify": "classification", "mlm": "masked-lm", "generate": "causal-lm"}
    task = kinds[cell["task"]]
    kind = "gpt2" if task == "causal-lm" else "bert"
    labels = {"num_labels": 3} if task == "classification" else {}
    model: Any = tiny.model(kind, task, size, **labels)
    if cell.get("frozen"):
        for weight in model.bert.embeddings.parameters():
            weight.requires_grad = False
    if cell.get("lora"):
        model = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.2))
    return model


def data_of(cell: Cell, folder: Path, tokenizer: Any) -> tuple[Any, Any, Any]:
    """Return the data to train on and to evaluate on, and the collator."""
    encoded = tokenizer(texts())["input_ids"]
    if cell["task"] == "classify":
        lengths = list(map(len, encoded))
        columns = {"input_ids": encoded, "length": lengths}
        data = Dataset.from_dict({**columns, "label": [i % 3 for i in range(13)]})
        return data, data, DataCollatorForClassification(tokenizer)
    masked = cell["task"] == "mlm"
    collator = SeededDataCollatorForLanguageModeling(
        tokenizer, mlm=masked, mlm_probability=0.3
    )
    rows = list(range(13))
    data = Dataset.from_dict({"input_ids": encoded, "row": rows})
    held_out = fix_masks(data.select(range(5)), collator) if masked else data
    if not masked:  # as two documents
        halves = [[len(e) // 2, len(e) - len(e) // 2] for e in encoded]
        data = data.add_column("seq_lengths", halves)
    if "buffer_size" in cell:
        (folder / "texts.txt").write_text("\n".join(texts(10)))
        os.utime(folder / "texts.txt", (1, 1))
        args = LanguageModelingDataArguments(
            train_file=str(folder / "texts.txt"),
            block_policy=cell.get("block_policy", "row"),
            buffer_size=cell["buffer_size"],
            max_seq_length=10,
        )
        found = streamed_files(str(args.train_file), Columns(), Reading.of(args))
        data = Stream(found, args, tokenizer, 1, 0, end_documents=not masked)
    return data, held_out, collator


def train(
    cell: Cell, folder: Path, *callbacks: Any, at: str | None = None, **changes: Any
) -> Seen:
    """Train in ``folder``; ``at`` is the checkpoint to go on from."""
    options = {"output_dir": str(folder / "checkpoints" / ".saving"), "do_train": True}
    options |= {"save_strategy": "no", "eval_strategy": "no", "report_to": "none"}
    options |= {"load_best_model_at_end": False, "early_stopping_patience": None}
    options |= {"logging_steps": 1, "disable_tqdm": True, "save_total_limit": None}
    options |= {"learning_rate": 1e-3, "resume_from_checkpoint": at}
    options |= {name: x for name, x in cell.items() if name not in _OURS} | changes
    args = TrainingArguments(**options)
    causal = cell["task"] == "generate"
    tokenizer = tiny.bpe_tokenizer() if causal else tiny.wordpiece_tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text('{"recipe": "any"}')
    data, held_out, collator = data_of(cell, folder, tokenizer)
    objectives: dict[str, Callable[[], Any]] = {"mlm": MaskedLM, "generate": CausalLM}
    objectives["classify"] = lambda: Classification(
        class_weights=cell.get("weights"), contrast=cell.get("contrast", 0.0)
    )
    trainer = LlmftTrainer(
        objective=objectives[cell["task"]](),
        model=model_of(cell, len(tokenizer)),
        args=args,
        data_collator=collator,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[
            EarlyStoppingCallback(args.early_stopping_patience),
            *for_run(folder, args, trial=Forecast(1.0)),
            *callbacks,
        ],
    )
    seen, loss = Seen(), trainer.training_step
    seen.trainer = trainer  # type: ignore[attr-defined]

    def noted(model: Any, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
        ids = (inputs["input_ids"], inputs["labels"])
        parts = b"".join(x.numpy().tobytes() for x in ids)
        seen.batches.append(hashlib.sha256(parts).hexdigest())
        return loss(model, inputs, *rest, **kwargs)

    trainer.training_step = noted  # type: ignore[method-assign]
    torch.manual_seed(args.seed)
    torch.rand(3 if at else 1)  # what comes before may draw otherwise
    trainer.train(resume_from_checkpoint=at)
    timed = ("runtime", "_per_second", "_time")
    for event in trainer.state.log_history:
        values = {n: x for n, x in event.items() if not n.endswith(timed)}
        seen.log.append(sorted((n, float(x).hex()) for n, x in values.items()))
    digest = hashlib.sha256()
    for name, weight in trainer.model.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    seen.weights = digest.hexdigest()
    return seen


def assert_same(found: Seen, whole: Seen) -> None:
    tail = whole.batches[len(whole.batches) - len(found.batches) :]
    assert found.batches == tail
    assert found.log == whole.log
    assert found.weights == whole.weights


SAVED = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(autouse=True)
def _nine_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "steps_within", lambda *given: 9)


@pytest.mark.parametrize("name", CELLS)
def test_cut_and_resumed(name: str, tmp_path: Path) -> None:
    """From a checkpoint of each step named, in what stands for a new process."""
    cell, cuts = CELLS[name]
    whole = train(cell, tmp_path / "whole")
    assert len(set(whole.batches)) > 4
    saved = train(cell, tmp_path / "run", **SAVED)
    assert_same(saved, whole)
    for step in cuts:
        at = tmp_path / "run" / "checkpoints" / f"checkpoint-{step}"
        resumed = train(cell, tmp_path / "run", at=str(at))
        assert len(resumed.batches) < len(whole.batches)
        assert_same(resumed, whole)


class Signal(TrainerCallback, ExportableState):
    """Sends SIGTERM at a moment of the step after ``step``, or of its end."""

    def __init__(self, moment: str, step: int) -> None:
        self.moment, self.step, self.now, self.sent = moment, step, 0, 0

    def reach(self, moment: str) -> None:
        if (moment, self.now) == (self.moment, self.step):
            self.sent += 1
            os.kill(os.getpid(), signal.SIGTERM)

    def state(self) -> dict[str, Any]:
        self.reach("saving")
        return {"args": {}, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        weight = next(kw["model"].parameters())
        weight.register_hook(lambda gradient: self.reach("backward"))
        self.reach("begin")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.now = state.global_step
        self.reach("step begins")

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, **kw: Any
    ) -> None:
        self.now = state.global_step + 1
        self.reach("optimizer")

    def on_substep_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.reach("accumulated")

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.reach("step ends")

    def on_log(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.reach("log")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, **kw: Any
    ) -> None:
        self.reach("evaluation")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.reach("evaluated")

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.reach("saved")

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.reach("epoch begins")


# Evaluated after steps 4 and 8, logged after 3 and 6, saved after 3, 4, 6 and 8.
OFTEN = {"task": "classify", **EPOCHS, "logging_steps": 3}
OFTEN_SAVED = {"save_strategy": "steps", "save_steps": 3}
# Where the signal comes, and the step that is saved then; None: there is none.
MOMENTS = [
    *[("begin", 0, None), ("step begins", 0, None), ("backward", 0, None)],
    *[("step begins", 2, 2), ("backward", 2, 2), ("accumulated", 2, 2)],
    *[("optimizer", 2, 2), ("step ends", 2, 2), ("log", 3, 3), ("saving", 3, 3)],
    *[("saved", 3, 3), ("step ends", 4, 4), ("evaluation", 4, 4)],
    *[("evaluated", 4, 4), ("epoch begins", 4, 4), ("backward", 4, 4)],
    *[("optimizer", 8, 8), ("evaluation", 8, 8)],
]


@pytest.fixture(scope="module")
def often(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return train(OFTEN, tmp_path_factory.mktemp("often"))


@pytest.mark.parametrize(("moment", "step", "saved"), MOMENTS)
def test_a_signal_saves_the_last_whole_step_once(
    moment: str, step: int, saved: int | None, often: Seen, tmp_path: Path
) -> None:
    """And what goes on from it is exact, with an evaluation that was cut off."""
    sender = Signal(moment, step)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        train(OFTEN, tmp_path, sender, **OFTEN_SAVED)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert sender.sent == 1
    folders = checkpoint.checkpoints(tmp_path / "checkpoints")
    assert [resume.fault(folder) for folder in folders] == [None] * len(folders)
    assert (folders[-1].name if folders else None) == (
        None if saved is None else f"checkpoint-{saved}"
    )
    if saved is not None:
        assert_same(train(OFTEN, tmp_path, at=str(folders[-1])), often)


@pytest.mark.parametrize("streams", [False, True])
def test_five_cuts_in_one_run(streams: bool, tmp_path: Path) -> None:
    """By signals in the midst of steps, and of evaluations."""
    cell = {"task": "mlm", **LATER, "logging_steps": 4}
    cell |= {"buffer_size": 3} if streams else {}
    cell |= {"eval_strategy": "steps", "eval_steps": 2}
    whole = train(cell, tmp_path / "whole")
    moments = [("backward", 1), ("evaluation", 4), ("step ends", 5)]
    moments += [("backward", 6), ("optimizer", 8)]
    folder, at = tmp_path / "run", None
    for moment, step in moments:
        cut = Signal(moment, step)
        with pytest.raises(Terminated), terminable():
            train(cell, folder, cut, at=at, save_strategy="steps", save_steps=50)
        at = str(folder / "checkpoints" / f"checkpoint-{step}")
        assert os.path.isdir(at)
    assert_same(train(cell, folder, at=at), whole)


def test_a_save_by_the_clock_changes_nothing(
    often: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It is due after each step, and that is more than 5 % of the time."""
    seldom = {"save_strategy": "steps", "save_steps": 50, "save_total_limit": 2}
    clocked = train(OFTEN, tmp_path / "a", save_seconds="1h", **seldom)
    assert len(checkpoint.checkpoints(tmp_path / "a" / "checkpoints")) == 1
    monkeypatch.setattr(SaveByClock, "SHARE", 1e-9)
    monkeypatch.setattr(time, "monotonic", itertools.count(0.0, 10.0).__next__)
    clocked = train(OFTEN, tmp_path / "b", save_seconds="1", **seldom)
    assert_same(clocked, often)
    steps = [p.name for p in checkpoint.checkpoints(tmp_path / "b" / "checkpoints")]
    assert steps == ["checkpoint-1", "checkpoint-8"]
    said = [x for x in capsys.readouterr().err.splitlines() if "takes" in x]
    assert said == [
        "llmft: warning: a checkpoint takes 10 s: by the clock there is one every"
        " 1e+10 s, not 1 (save_seconds)"
    ]


def test_nothing_is_saved_where_nothing_is_to_be(tmp_path: Path) -> None:
    with pytest.raises(Terminated), terminable():
        train(OFTEN, tmp_path, Signal("backward", 2))
    assert not checkpoint.checkpoints(tmp_path / "checkpoints")


def test_evaluations_do_not_change_a_training(tmp_path: Path) -> None:
    """Nor does what is written in them."""

    class Draws(TrainerCallback):
        def on_prediction_step(
            self, args: Any, state: Any, control: Any, **kw: Any
        ) -> None:
            torch.rand(1)

    cell = {"task": "mlm", **STEPS}
    plain = train(cell, tmp_path / "plain")
    often = {"eval_strategy": "steps", "eval_steps": 1}
    evaluated = train(cell, tmp_path / "evaluated", Draws(), **often)
    assert evaluated.weights == plain.weights
    assert evaluated.batches == plain.batches
    assert len(evaluated.log) == len(plain.log) + 9
